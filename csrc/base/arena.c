/* Small blocks that live and die together: a linked list of mallocs. */
#include "base/arena.h"

#include <stdlib.h>
#include <string.h>

struct fm_arena_block {
    fm_arena_block *before;
    max_align_t data[];
};

fm_status fm_arena_take(fm_arena *arena, size_t n, size_t size, void *out, fm_error *err)
{
    size_t bytes;
    if (__builtin_mul_overflow(n, size, &bytes) || __builtin_add_overflow(bytes, sizeof(fm_arena_block), &bytes))
        return fm_fail(err, FM_MEMORY, "%zu items of %zu bytes are more than memory can address", n, size);

    fm_arena_block *block = calloc(1, bytes);
    if (!block) return fm_fail(err, FM_MEMORY, "no memory for %zu bytes", bytes);
    block->before = arena->last;
    arena->last = block;
    void *data = block->data;
    memcpy(out, &data, sizeof data); /* out is a pointer of any type */
    return FM_OK;
}

fm_status fm_arena_text(fm_arena *arena, const char *text, size_t length, char **out, fm_error *err)
{
    char *copy = NULL;
    FM_TRY(fm_arena_take(arena, length + 1, 1, &copy, err));
    memcpy(copy, text, length);
    *out = copy;
    return FM_OK;
}

void fm_arena_free(fm_arena *arena)
{
    while (arena->last) {
        fm_arena_block *before = arena->last->before;
        free(arena->last);
        arena->last = before;
    }
}
