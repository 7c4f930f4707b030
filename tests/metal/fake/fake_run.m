/* Runs what a command buffer recorded, in an order that Metal allows. */
#include "fake.h"

#include <stdlib.h>

/* The order of n dispatches between two barriers: as encoded, from the last to the first, or shuffled. */
static void arrange(int32_t *place, int32_t n, uint32_t order)
{
    for (int32_t i = 0; i < n; i++) place[i] = order == 1 ? n - 1 - i : i;
    for (int32_t i = n - 1; order > 1 && i > 0; i--) {
        order = order * 1664525u + 1013904223u;
        int32_t j = (int32_t)((order >> 8) % (uint32_t)(i + 1)), kept = place[i];
        place[i] = place[j];
        place[j] = kept;
    }
}

static int run_one(const fake_entry *e, char *error, size_t error_bytes)
{
    const FakeFunction *f = e->pipeline->function;
    return emu_run(f->kernel, e->buffer, e->group_bytes, f->constant, f->set, e->groups, e->threads, error, error_bytes);
}

static int run_all(const fake_entry *entry, int32_t n, int32_t *place, char *error, size_t error_bytes)
{
    const fake_options *o = fake_metal_options();
    emu_order(o->threads);
    for (int32_t from = 0, to; from < n; from = to + 1) {
        for (to = from; to < n && entry[to].pipeline; to++) continue;
        arrange(place, to - from, (uint32_t)o->order);
        for (int32_t i = 0; i < to - from; i++)
            if (run_one(&entry[from + place[i]], error, error_bytes) != 0) return -1;
        emu_barrier();
    }
    return 0;
}

int fake_run(const fake_entry *entry, int32_t n, char *error, size_t error_bytes)
{
    int32_t *place = malloc((size_t)(n + 1) * sizeof *place);
    if (!place) fake_fatal("no memory");
    int status = run_all(entry, n, place, error, error_bytes);
    free(place);
    return status;
}
