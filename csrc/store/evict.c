/* Lists of slots, and a heap where the least often used goes first. */
#include "store/evict.h"

#include <stdlib.h>

#define NOWHERE (-1)
#define KEEP_ONE_OF 64 /* bimodal insertion */

/* Lists, each from the slot that has been there longest. With FM_EVICT_LFU what is kept stands in the heap. */
enum { OUTSIDE, EMPTY, STAGED, KEPT, PROTECTED, FRESH, LISTS };

typedef struct {
    int32_t list, before, after;
    int32_t at; /* in the heap */
    uint64_t uses, used;
} seat;

struct fm_evict {
    fm_evict_kind kind;
    int32_t slots, all_slots;
    seat *seat; /* [all_slots] */
    int32_t first[LISTS], last[LISTS], length[LISTS];
    int32_t *heap; /* [all_slots], the first length[KEPT] of it; FM_EVICT_LFU only */
    uint64_t clock;
};

/* ---- heap: fewest uses first, then longest unused ------------------------------------- */

static bool goes_first(const fm_evict *e, int32_t a, int32_t b)
{
    const seat *x = &e->seat[a], *y = &e->seat[b];
    return x->uses != y->uses ? x->uses < y->uses : x->used < y->used;
}

static void place(fm_evict *e, int32_t at, int32_t slot)
{
    e->heap[at] = slot;
    e->seat[slot].at = at;
}

/* Put `slot` where it belongs, starting from `at`, which is free. */
static void sift(fm_evict *e, int32_t at, int32_t slot)
{
    int32_t n = e->length[KEPT];
    for (; at && goes_first(e, slot, e->heap[(at - 1) / 2]); at = (at - 1) / 2) place(e, at, e->heap[(at - 1) / 2]);
    for (int32_t child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && goes_first(e, e->heap[child + 1], e->heap[child])) child++;
        if (!goes_first(e, e->heap[child], slot)) break;
        place(e, at, e->heap[child]);
    }
    place(e, at, slot);
}

/* ---- lists ------------------------------------------------------------------------------ */

static bool in_heap(const fm_evict *e, int32_t list)
{
    return list == KEPT && e->kind == FM_EVICT_LFU;
}

static void leave(fm_evict *e, int32_t slot)
{
    seat *s = &e->seat[slot];
    int32_t list = s->list;
    e->length[list]--;
    if (in_heap(e, list)) {
        int32_t last = e->heap[e->length[KEPT]];
        if (last != slot) sift(e, s->at, last);
        return;
    }
    if (s->before != NOWHERE) e->seat[s->before].after = s->after;
    else e->first[list] = s->after;
    if (s->after != NOWHERE) e->seat[s->after].before = s->before;
    else e->last[list] = s->before;
}

static void move(fm_evict *e, int32_t slot, int32_t list)
{
    seat *s = &e->seat[slot];
    leave(e, slot);
    s->list = list;
    e->length[list]++;
    if (in_heap(e, list)) {
        sift(e, e->length[KEPT] - 1, slot);
        return;
    }
    s->before = e->last[list];
    s->after = NOWHERE;
    if (s->before != NOWHERE) e->seat[s->before].after = slot;
    else e->first[list] = slot;
    e->last[list] = slot;
}

/* ---- life ------------------------------------------------------------------------------- */

void fm_evict_close(fm_evict *e)
{
    if (!e) return;
    free(e->seat);
    free(e->heap);
    free(e);
}

fm_status fm_evict_open(fm_evict_kind kind, int32_t slots, fm_evict **out, fm_error *err)
{
    fm_evict *e = calloc(1, sizeof *e);
    if (!e) return fm_fail(err, FM_MEMORY, "no memory for an eviction policy");
    e->kind = kind == FM_EVICT_AUTO ? FM_EVICT_LFU : kind;
    e->seat = calloc((size_t)slots, sizeof *e->seat);
    e->heap = calloc((size_t)slots, sizeof *e->heap);
    if (!e->seat || !e->heap) {
        fm_evict_close(e);
        return fm_fail(err, FM_MEMORY, "no memory for the order of %d expert slots", slots);
    }
    for (int32_t i = 0; i < LISTS; i++) e->first[i] = e->last[i] = NOWHERE;
    for (int32_t i = 0; i < slots; i++) { /* all in OUTSIDE, in order */
        e->seat[i] = (seat){.list = OUTSIDE, .before = i - 1, .after = i + 1 < slots ? i + 1 : NOWHERE};
        e->last[OUTSIDE] = i;
    }
    e->first[OUTSIDE] = slots ? 0 : NOWHERE;
    e->length[OUTSIDE] = e->all_slots = slots;
    fm_evict_resize(e, slots);
    *out = e;
    return FM_OK;
}

void fm_evict_resize(fm_evict *e, int32_t slots)
{
    for (int32_t i = slots; i < e->slots; i++) move(e, i, OUTSIDE);
    for (int32_t i = e->slots; i < slots; i++) move(e, i, EMPTY);
    e->slots = slots;
}

/* ---- use -------------------------------------------------------------------------------- */

void fm_evict_fill(fm_evict *e, int32_t slot)
{
    move(e, slot, FRESH);
}

void fm_evict_stage(fm_evict *e, int32_t slot)
{
    move(e, slot, STAGED);
}

void fm_evict_empty(fm_evict *e, int32_t slot)
{
    if (e->seat[slot].list != EMPTY) move(e, slot, EMPTY);
}

bool fm_evict_is_fresh(const fm_evict *e, int32_t slot)
{
    return e->seat[slot].list == FRESH;
}

int32_t fm_evict_fresh(const fm_evict *e)
{
    return e->length[FRESH];
}

int32_t fm_evict_first_fresh(const fm_evict *e)
{
    return e->first[FRESH];
}

int32_t fm_evict_next(const fm_evict *e, int32_t slot)
{
    return e->seat[slot].after;
}

/* Used a second time while probation lasts: protected, as four fifths of the slots may be. */
static void protect(fm_evict *e, int32_t slot)
{
    move(e, slot, PROTECTED);
    if (e->length[PROTECTED] > e->slots - e->slots / 5) move(e, e->first[PROTECTED], KEPT);
}

static void keep(fm_evict *e, int32_t slot)
{
    bool kept = e->seat[slot].list == KEPT || e->seat[slot].list == PROTECTED;
    if (kept && e->kind == FM_EVICT_STATIC) return;
    if (kept && e->kind == FM_EVICT_SLRU) protect(e, slot);
    else move(e, slot, KEPT);
}

void fm_evict_use(fm_evict *e, int32_t slot, uint64_t uses, bool scan, int32_t spare)
{
    seat *s = &e->seat[slot];
    bool kept = s->list == KEPT || s->list == PROTECTED;

    if (in_heap(e, s->list)) { /* its place follows from these two */
        leave(e, slot);
        s->uses = uses;
        s->used = ++e->clock;
        e->length[KEPT]++;
        sift(e, e->length[KEPT] - 1, slot);
        return;
    }
    s->uses = uses;
    s->used = ++e->clock;
    if (e->kind == FM_EVICT_STATIC) scan = true;
    if (!scan) keep(e, slot);
    else if (!kept && (e->length[EMPTY] > spare || (e->kind != FM_EVICT_STATIC && e->clock % KEEP_ONE_OF == 0))) keep(e, slot);
    else if (!kept) move(e, slot, STAGED);
}

/* ---- choice ------------------------------------------------------------------------------ */

static int32_t first_idle(const fm_evict *e, int32_t list, fm_evict_busy busy, const void *context)
{
    int32_t slot = e->first[list];
    while (slot != NOWHERE && busy(context, slot)) slot = e->seat[slot].after;
    return slot;
}

/* The idle one that goes first; under a busy one both children have to be looked at. */
static int32_t least_used(const fm_evict *e, int32_t at, fm_evict_busy busy, const void *context)
{
    if (at >= e->length[KEPT]) return NOWHERE;
    if (!busy(context, e->heap[at])) return e->heap[at];
    int32_t a = least_used(e, 2 * at + 1, busy, context), b = least_used(e, 2 * at + 2, busy, context);
    if (a == NOWHERE || b == NOWHERE) return a == NOWHERE ? b : a;
    return goes_first(e, a, b) ? a : b;
}

int32_t fm_evict_choose(const fm_evict *e, fm_evict_busy busy, const void *context, bool fresh)
{
    static const int32_t order[] = {EMPTY, STAGED, KEPT, PROTECTED, FRESH};
    for (int32_t i = 0; i < (fresh ? 5 : 4); i++) {
        int32_t list = order[i];
        int32_t slot = in_heap(e, list) ? least_used(e, 0, busy, context) : first_idle(e, list, busy, context);
        if (slot != NOWHERE) return slot;
    }
    return NOWHERE;
}
