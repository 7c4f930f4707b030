# link_emulated_metal(TARGET): a Metal device for Linux, whose kernels run on the emulator. FLASHMOE_METAL_KIND says how
# they are built: plain, address or watch.
set(FLASHMOE_METAL_KIND plain CACHE STRING "plain, address or watch: how emulated kernels are built")
set(EMULATED_METAL_DIR ${CMAKE_CURRENT_LIST_DIR})

function(link_emulated_metal target)
  set(shaders ${PROJECT_SOURCE_DIR}/shaders)
  file(GLOB metal CONFIGURE_DEPENDS ${shaders}/*.metal)
  include(${EMULATED_METAL_DIR}/emulator/emulator.cmake)
  metal_emulator(metal_kernels ${FLASHMOE_METAL_KIND} ${shaders}/params.h ${shaders}/common.h ${metal})
  add_subdirectory(${EMULATED_METAL_DIR}/fake ${PROJECT_BINARY_DIR}/fake_metal)
  target_link_libraries(${target} PUBLIC fake_metal metal_kernels)
endfunction()

# The test of the device itself.
function(add_device_check core)
  add_executable(device_check ${EMULATED_METAL_DIR}/device_check.c)
  target_compile_options(device_check PRIVATE -Wall -Wextra -Wpedantic)
  target_link_libraries(device_check PRIVATE ${core})
  set_target_properties(device_check PROPERTIES LINKER_LANGUAGE CXX RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR})
  if(FLASHMOE_METAL_KIND STREQUAL "address")
    target_link_options(device_check PRIVATE -fsanitize=address)
  endif()
endfunction()
