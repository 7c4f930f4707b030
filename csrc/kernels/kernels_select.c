/* Which kernels run: the best this CPU has, or the ones FLASHMOE_KERNELS names. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"

extern const fm_kernels fm_kernels_ref;

/* The tables of this build, best first, and how many of the best this CPU lacks. */
#if defined(FM_HAVE_X86)
extern const fm_kernels fm_kernels_avx512, fm_kernels_avx2;
static const fm_kernels *const all[] = {&fm_kernels_avx512, &fm_kernels_avx2, &fm_kernels_ref, NULL};

static int lacking(void)
{
    __builtin_cpu_init();
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                  __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi");
    return avx512 ? 0 : avx2 ? 1 : 2;
}
#elif defined(FM_HAVE_NEON)
extern const fm_kernels fm_kernels_neon;
static const fm_kernels *const all[] = {&fm_kernels_neon, &fm_kernels_ref, NULL};

#ifdef __linux__
#include <sys/auxv.h>
static int lacking(void)
{
    return getauxval(AT_HWCAP) & 1ul << 20 ? 0 : 1;     /* HWCAP_ASIMDDP: dot products */
}
#else
static int lacking(void)
{
    return 0;                                           /* every Apple chip with an M has them */
}
#endif
#else
static const fm_kernels *const all[] = {&fm_kernels_ref, NULL};

static int lacking(void)
{
    return 0;
}
#endif

const fm_kernels *const *fm_kernels_available(void)
{
    return all + lacking();
}

fm_status fm_kernels_select(const fm_kernels **out, fm_error *err)
{
    const fm_kernels *const *have = fm_kernels_available();
    const char *wanted = getenv("FLASHMOE_KERNELS");
    char names[128] = "";
    size_t used = 0;

    for (const fm_kernels *const *k = have; *k; k++) {
        if (!wanted || strcmp((*k)->name, wanted) == 0) {
            *out = *k;
            return FM_OK;
        }
        int n = snprintf(names + used, sizeof names - used, "%s%s", used ? ", " : "", (*k)->name);
        used += n > 0 ? (size_t)n : 0;
    }
    return fm_fail(err, FM_UNSUPPORTED, "FLASHMOE_KERNELS names \"%s\", but this CPU and build have %s", wanted, names);
}
