# cmake -DOUT=source.c -DSHADERS=folder -P embed.cmake: all shaders as one C string, params.h and common.h first.
file(GLOB metal ${SHADERS}/*.metal)
list(SORT metal)
set(text "")
foreach(file IN ITEMS ${SHADERS}/params.h ${SHADERS}/common.h ${metal})
  file(READ ${file} part)
  string(REGEX REPLACE "#include \"[^\n]*\n" "\n" part "${part}") # the parts follow one another
  string(APPEND text "${part}\n")
endforeach()
file(WRITE ${OUT}.metal "${text}")
file(READ ${OUT}.metal hex HEX)
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${hex}")
string(REGEX REPLACE "(................................................................................)" "\\1\n" bytes "${bytes}")
file(WRITE ${OUT} "#include \"backend/metal/metal_source.h\"\n\nconst char fm_metal_source[] = {\n${bytes}0};\n")
