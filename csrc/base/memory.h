/* Page-aligned blocks that can grow, shrink and give pages back; checked sizes. */
#ifndef FM_MEMORY_H
#define FM_MEMORY_H

#include <stdbool.h>

#include "base/status.h"

/* Blocks start on this boundary, so that direct reads and devices can use them. */
#define FM_PAGE 4096u

static inline size_t fm_align_up(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}

/* *out = a * b or a + b; false on overflow. */
static inline bool fm_size_mul(size_t a, size_t b, size_t *out)
{
    return !__builtin_mul_overflow(a, b, out);
}

static inline bool fm_size_add(size_t a, size_t b, size_t *out)
{
    return !__builtin_add_overflow(a, b, out);
}

/* Zeroed memory of at least `bytes`, committed as it is touched. */
fm_status fm_pages_map(size_t bytes, void **out, fm_error *err);
void fm_pages_unmap(void *block, size_t bytes);

/* Move the block to a larger one, contents kept; the old address is gone. */
fm_status fm_pages_grow(void **block, size_t bytes, size_t new_bytes, fm_error *err);

/* Give the system's pages wholly inside [at, at + bytes) back; they read as zero. */
void fm_pages_discard(void *block, size_t at, size_t bytes);

#endif
