/* Small blocks that live and die together. */
#ifndef FM_ARENA_H
#define FM_ARENA_H

#include "base/status.h"

typedef struct fm_arena_block fm_arena_block;

/* Zero it to start; fm_arena_free gives everything back. */
typedef struct {
    fm_arena_block *last;
} fm_arena;

/* Zeroed room for n items of `size` bytes each. FM_MEMORY on overflow or when there is none. */
fm_status fm_arena_take(fm_arena *arena, size_t n, size_t size, void *out, fm_error *err);

/* A copy of `length` bytes with a NUL behind it. */
fm_status fm_arena_text(fm_arena *arena, const char *text, size_t length, char **out, fm_error *err);

void fm_arena_free(fm_arena *arena);

#endif
