/* The sizes of Qwen3.5-397B-A17B and its vocabulary: what small shapes cannot show, offsets beyond 2^31 among them. */
#include "selftest/selftest.h"

void fm_selftest_large(fm_pair *p)
{
    static const int32_t one[] = {1}, several[] = {1, 7, 1};
    static const fm_selftest_attend attention = {32, 2, 256, 64, true, FM_F16};
    static const fm_delta_shape delta = {16, 64, 128, 128, 4};
    const fm_quant four = {.kind = FM_AFFINE, .scale = FM_BF16, .bits = 4, .group = 64};
    const fm_quant eight = {.kind = FM_AFFINE, .scale = FM_BF16, .bits = 8, .group = 64};

    fm_selftest_product(p, four, 1, 248320, 4096);
    fm_selftest_product(p, four, 1, 16384, 4096);
    fm_selftest_product(p, eight, 1, 4096, 8192);
    fm_selftest_product(p, (fm_quant){.kind = FM_BF16}, 1, 512, 4096);
    fm_selftest_product(p, (fm_quant){.kind = FM_F16}, 1, 151936, 2048);
    fm_selftest_product(p, four, 64, 12288, 4096);
    fm_selftest_norm(p, 64, 4096);
    fm_selftest_expert(p, four, four, four, 4096, 1024, 1, 4);
    fm_selftest_expert(p, four, four, four, 4096, 1024, 16, 4);
    fm_selftest_conv(p, 1, 12288, 4);
    fm_selftest_conv(p, 64, 12288, 4);
    fm_selftest_delta_shape(p, &delta, 1, 5);
    fm_selftest_delta_shape(p, &delta, 64, 0);
    fm_selftest_attention_shape(p, &attention, 4096, 64, several, 3);
    fm_selftest_attention_shape(p, &attention, 32768, 64, one, 1);
}
