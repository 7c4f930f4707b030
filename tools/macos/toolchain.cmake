# macOS 14 on Apple silicon, from a machine without Apple's SDK: zig compiles, our own headers and stubs stand for frameworks.
# build_wheel.sh makes the wrappers in FLASHMOE_ZIG.
set(CMAKE_SYSTEM_NAME Darwin)
set(CMAKE_SYSTEM_PROCESSOR arm64)
set(CMAKE_OSX_SYSROOT "" CACHE STRING "" FORCE)
set(CMAKE_OSX_DEPLOYMENT_TARGET "" CACHE STRING "" FORCE) # zig's target says it

foreach(language C CXX OBJC)
  set(CMAKE_${language}_COMPILER $ENV{FLASHMOE_ZIG}/zig-cc)
  set(CMAKE_SHARED_LIBRARY_CREATE_${language}_FLAGS "-shared")
  set(CMAKE_SHARED_MODULE_CREATE_${language}_FLAGS "-shared")
endforeach()
set(CMAKE_CXX_COMPILER $ENV{FLASHMOE_ZIG}/zig-c++)
set(CMAKE_AR $ENV{FLASHMOE_ZIG}/zig-ar CACHE FILEPATH "")
set(CMAKE_RANLIB $ENV{FLASHMOE_ZIG}/zig-ranlib CACHE FILEPATH "")
set(CMAKE_STRIP "" CACHE FILEPATH "")
set(CMAKE_INSTALL_NAME_TOOL true CACHE FILEPATH "")
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)

set(CMAKE_OBJC_FLAGS_INIT "-fblocks -I${CMAKE_CURRENT_LIST_DIR}/../../tests/metal/headers")
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
