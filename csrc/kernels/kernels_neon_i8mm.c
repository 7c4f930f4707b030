/* NEON with products of 8-bit matrices (Apple M2, Neoverse V1 and later). */
#include "kernels/kernels_neon.c"
