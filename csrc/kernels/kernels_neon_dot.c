/* NEON with dot products (Apple M1, Cortex-A76 and later). */
#include "kernels/kernels_neon.c"
