/*
 * Metal kernels on the CPU: translate.py turns shader text into C++, and emu_run runs a dispatch of one kernel,
 * every thread a fiber. For tests: it refuses what hardware would leave undefined, and says where.
 */
#ifndef FM_METAL_EMULATOR_H
#define FM_METAL_EMULATOR_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define EMU_BUFFERS 31
#define EMU_CONSTANTS 64

typedef struct emu_kernel emu_kernel; /* generated: one per kernel function */

const emu_kernel *emu_find(const char *name); /* NULL: no such kernel */

typedef struct {
    int32_t index;
    uint8_t is_threadgroup, read_only;
    size_t least; /* bytes that a reference takes; 0 for a pointer */
    const char *name;
} emu_param;

int32_t emu_params(const emu_kernel *k, const emu_param **out);
int32_t emu_constants(const emu_kernel *k, const int32_t **indices); /* function constants that the kernel uses */

/* What lies behind a bound buffer, from its offset on. */
typedef struct {
    void *at;
    size_t bytes;
} emu_binding;

typedef struct {
    uint32_t x, y, z;
} emu_size;

/*
 * Run a dispatch. 0, or -1 and why in `error`: an argument unbound or too short, a constant not set, too many
 * threads or bytes of threadgroup memory, lanes or threads that do not meet; in watch builds also an access out of
 * range, a write to a `const` buffer, a race. One dispatch at a time; callers wait for each other.
 */
int emu_run(const emu_kernel *k, const emu_binding buffer[EMU_BUFFERS], const size_t threadgroup_bytes[EMU_BUFFERS],
            const int32_t constant[EMU_CONSTANTS], const uint8_t constant_set[EMU_CONSTANTS], emu_size groups, emu_size threads,
            char *error, size_t error_bytes);

/* Watch builds: dispatches between two of these may run at the same time, so they race with each other. */
void emu_barrier(void);

/* The order of threadgroups, simdgroups and lanes: 0 ascending, 1 descending, 2 shuffled. Right kernels give the same. */
void emu_order(int32_t order);

#ifdef __cplusplus
}
#endif
#endif
