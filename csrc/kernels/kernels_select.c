/* Which kernels run: the best this CPU has, or the ones FLASHMOE_KERNELS names. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"

extern const fm_kernels fm_kernels_ref;

/* Tables a CPU can run, best first. */
typedef const fm_kernels *const table_list[5];

#if defined(FM_HAVE_X86)
#include <cpuid.h>

extern const fm_kernels fm_kernels_avx512, fm_kernels_avxvnni, fm_kernels_avx2;

/* Asked of the CPU itself: __builtin_cpu_supports answers no to everything where zig's runtime is linked. */
const fm_kernels *const *fm_kernels_available(void)
{
    static table_list none = {&fm_kernels_ref, NULL};
    static table_list avx2[2][2] = {
        {{&fm_kernels_avx2, &fm_kernels_ref, NULL}, {&fm_kernels_avxvnni, &fm_kernels_avx2, &fm_kernels_ref, NULL}},
        {{&fm_kernels_avx512, &fm_kernels_avx2, &fm_kernels_ref, NULL},
         {&fm_kernels_avx512, &fm_kernels_avxvnni, &fm_kernels_avx2, &fm_kernels_ref, NULL}},
    };
    uint32_t eax, ebx, ecx, edx, states, high;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return none;
    const uint32_t leaf1 = bit_FMA | bit_F16C | bit_AVX | bit_OSXSAVE;
    if ((ecx & leaf1) != leaf1) return none;
    __asm__("xgetbv" : "=a"(states), "=d"(high) : "c"(0));
    (void)high;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return none;
    if ((states & 0x06) != 0x06 || !(ebx & bit_AVX2)) return none; /* the system saves ymm */
    const uint32_t leaf7b = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
    const uint32_t leaf7c = bit_AVX512VNNI | bit_AVX512VBMI;
    bool avx512 = (states & 0xe6) == 0xe6 && (ebx & leaf7b) == leaf7b && (ecx & leaf7c) == leaf7c;
    bool vnni = eax >= 1 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && eax & 1u << 4; /* AVX-VNNI */
    return avx2[avx512][vnni];
}
#elif defined(FM_HAVE_NEON)
extern const fm_kernels fm_kernels_neon_i8mm, fm_kernels_neon_dot, fm_kernels_neon;

#ifdef __linux__
#include <sys/auxv.h>
static bool has_dot(void)
{
    return getauxval(AT_HWCAP) & 1ul << 20; /* HWCAP_ASIMDDP */
}

static bool has_i8mm(void)
{
    return getauxval(AT_HWCAP2) & 1ul << 13; /* HWCAP2_I8MM */
}
#elif defined(__APPLE__)
#include <sys/sysctl.h>
static bool has_dot(void)
{
    return true; /* every Apple chip with an M */
}

static bool has_i8mm(void)
{
    int yes = 0;
    size_t size = sizeof yes;
    return sysctlbyname("hw.optional.arm.FEAT_I8MM", &yes, &size, NULL, 0) == 0 && yes;
}
#else
static bool has_dot(void)
{
    return false;
}

static bool has_i8mm(void)
{
    return false;
}
#endif

const fm_kernels *const *fm_kernels_available(void)
{
    static table_list all = {&fm_kernels_neon_i8mm, &fm_kernels_neon_dot, &fm_kernels_neon, &fm_kernels_ref, NULL};
    return all + (!has_dot() ? 2 : !has_i8mm() ? 1 : 0);
}
#else
const fm_kernels *const *fm_kernels_available(void)
{
    static table_list all = {&fm_kernels_ref, NULL};
    return all;
}
#endif

fm_status fm_kernels_select(const char *name, const fm_kernels **out, fm_error *err)
{
    const fm_kernels *const *have = fm_kernels_available();
    const char *wanted = name ? name : getenv("FLASHMOE_KERNELS");
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
    return fm_fail(err, FM_UNSUPPORTED, "%s \"%s\", but this CPU and build have %s",
                   name ? "there are no kernels" : "FLASHMOE_KERNELS names", wanted, names);
}
