/* Two kernels in plain C behind emulator.h, so that the fake device can be tested by itself. */
#include "emulator.h"

#include <stdio.h>
#include <string.h>

typedef struct {
    uint32_t n;
    float by;
} parameters;

struct emu_kernel {
    const char *name;
    emu_param param[4];
    int32_t params, constants;
};

static const emu_kernel kernels[] = {
    /* y = x * by, or x + by where constant 2 is 1 */
    {"scale", {{0, 0, 1, sizeof(parameters), "p"}, {1, 0, 1, 0, "x"}, {2, 0, 0, 0, "y"}}, 3, 1},
    /* y = its group's sum of x */
    {"sums", {{0, 0, 1, sizeof(parameters), "p"}, {1, 0, 1, 0, "x"}, {2, 0, 0, 0, "y"}, {0, 1, 0, 0, "t"}}, 4, 0},
};

const emu_kernel *emu_find(const char *name)
{
    for (size_t i = 0; i < sizeof kernels / sizeof *kernels; i++)
        if (strcmp(kernels[i].name, name) == 0) return &kernels[i];
    return NULL;
}

int32_t emu_params(const emu_kernel *k, const emu_param **out)
{
    *out = k->param;
    return k->params;
}

int32_t emu_constants(const emu_kernel *k, const int32_t **indices)
{
    static const int32_t index[] = {2};
    *indices = index;
    return k->constants;
}

void emu_order(int32_t order)
{
    (void)order;
}

void emu_barrier(void) {}

int emu_run(const emu_kernel *k, const emu_binding buffer[EMU_BUFFERS], const size_t threadgroup_bytes[EMU_BUFFERS],
            const int32_t constant[EMU_CONSTANTS], const uint8_t constant_set[EMU_CONSTANTS], emu_size groups, emu_size threads,
            char *error, size_t error_bytes)
{
    const parameters *p = buffer[0].at;
    const float *x = buffer[1].at;
    float *y = buffer[2].at;
    (void)threadgroup_bytes, (void)constant_set;
    for (uint32_t i = 0; i < groups.x * threads.x && i < p->n; i++) {
        if (buffer[1].bytes < 4 * (i + 1) || buffer[2].bytes < 4 * (i + 1)) {
            snprintf(error, error_bytes, "%s: element %u is out of range", k->name, i);
            return -1;
        }
        if (k->constants) y[i] = constant[2] ? x[i] + p->by : x[i] * p->by;
        else y[i] = i % threads.x ? y[i - 1] + x[i] : x[i];
    }
    return 0;
}
