/* AVX2 with AVX-VNNI (Alder Lake, Zen 5 and later): the same text, compiled with instructions for products of bytes. */
#include "kernels/kernels_avx2.c"
