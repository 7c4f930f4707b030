# metal_emulator(NAME KIND FILE...): a library NAME that holds shader files, in this order, as kernels for emulator.h.
# KIND is one of
#   plain     as fast as it gets
#   address   AddressSanitizer; link the program with -fsanitize=address as well
#   watch     every access of a kernel is checked: ranges, const buffers, races
# Wants clang 19 or later as the C++ compiler. BUILD_SHARED_LIBS says what kind of library it is.

set(METAL_EMULATOR_DIR ${CMAKE_CURRENT_LIST_DIR})
find_package(Python3 REQUIRED COMPONENTS Interpreter)

function(metal_emulator name kind)
    if(NOT CMAKE_CXX_COMPILER_ID STREQUAL "Clang" OR CMAKE_CXX_COMPILER_VERSION VERSION_LESS 19)
        message(FATAL_ERROR "the Metal emulator wants clang 19 or later as CMAKE_CXX_COMPILER, not ${CMAKE_CXX_COMPILER}")
    endif()
    set(dir ${METAL_EMULATOR_DIR})
    set(out ${CMAKE_CURRENT_BINARY_DIR}/${name}.cpp)
    add_custom_command(
        OUTPUT ${out}
        COMMAND ${Python3_EXECUTABLE} ${dir}/translate.py cpu ${ARGN} > ${out}
        DEPENDS ${ARGN} ${dir}/translate.py ${dir}/msl.py
        VERBATIM)
    add_library(${name} ${out} ${dir}/emulator.cpp ${dir}/fibers.cpp)
    target_include_directories(${name} PUBLIC ${dir})
    target_compile_features(${name} PRIVATE cxx_std_17)
    target_compile_options(${name} PRIVATE -O2 -gline-tables-only -fPIC -fno-exceptions -fno-rtti -Wall -Wextra -Werror)
    # Kernels: numbers as the text says them, and locals that nobody set are no zeros.
    set(options -nostdinc++ -I${dir}/cpu -Wno-unused-function -Wno-unused-parameter -ffp-contract=off -fno-math-errno
        -Xclang -ffloat16-excess-precision=none -ftrivial-auto-var-init=pattern)
    if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
        list(APPEND options -march=native)
    endif()
    if(kind STREQUAL "address")
        target_compile_definitions(${name} PRIVATE EMU_ADDRESS)
        list(APPEND options -O1 -fsanitize=address -fsanitize-address-use-after-return=never)
    elseif(kind STREQUAL "watch")
        # The instrumentation of ThreadSanitizer, with watch.cpp in the place of its runtime.
        target_sources(${name} PRIVATE ${dir}/watch.cpp)
        target_compile_definitions(${name} PRIVATE EMU_WATCH)
        list(APPEND options -O1 -fsanitize=thread -fno-vectorize -fno-slp-vectorize
             -mllvm -tsan-instrument-func-entry-exit=0 -mllvm -tsan-instrument-atomics=0)
    elseif(NOT kind STREQUAL "plain")
        message(FATAL_ERROR "metal_emulator: plain, address or watch, not ${kind}")
    endif()
    set_source_files_properties(${out} PROPERTIES COMPILE_OPTIONS "${options}")
    find_package(Threads REQUIRED)
    target_link_libraries(${name} PUBLIC Threads::Threads m ${CMAKE_DL_LIBS})
endfunction()
