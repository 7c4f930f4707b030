/*
 * Which slot is given up next. Knows slots and how they are used, not what they hold.
 *
 * A slot is empty; or fresh: read ahead of its use; or staged: used, but part of a scan that is larger
 * than all slots, so that keeping it would only push out what will be needed sooner; or kept, in the
 * order of the policy. They are given up in this order: empty, staged, kept, fresh. Every step is O(1),
 * or O(log slots) with FM_EVICT_LFU.
 */
#ifndef FM_EVICT_H
#define FM_EVICT_H

#include <stdbool.h>

#include "base/status.h"

typedef struct fm_evict fm_evict;

/* Whether a slot may not go now. */
typedef bool (*fm_evict_busy)(const void *context, int32_t slot);

/* FM_EVICT_AUTO is FM_EVICT_LFU. All slots are empty. */
fm_status fm_evict_open(fm_evict_kind kind, int32_t slots, fm_evict **out, fm_error *err);
void fm_evict_close(fm_evict *e);

/* Only slots below `slots` from now on; those above must be empty. */
void fm_evict_resize(fm_evict *e, int32_t slots);

/* An empty slot is being filled ahead of its use. */
void fm_evict_fill(fm_evict *e, int32_t slot);

/*
 * What the slot holds is used. `uses` is how often so far, for FM_EVICT_LFU. In a scan, slots are kept only
 * while more than `spare` are empty, and 1 of 64 besides (bimodal insertion), so that the set can change.
 */
void fm_evict_use(fm_evict *e, int32_t slot, uint64_t uses, bool scan, int32_t spare);

/* It was read ahead for nothing. */
void fm_evict_stage(fm_evict *e, int32_t slot);

void fm_evict_empty(fm_evict *e, int32_t slot);

/* Fresh slots: whether one is, how many are, the first (-1: none), and the one after. */
bool fm_evict_is_fresh(const fm_evict *e, int32_t slot);
int32_t fm_evict_fresh(const fm_evict *e);
int32_t fm_evict_first_fresh(const fm_evict *e);
int32_t fm_evict_next(const fm_evict *e, int32_t slot);

/* The slot to fill next, or -1 if all are busy. Fresh ones are given up only where `fresh` is true. */
int32_t fm_evict_choose(const fm_evict *e, fm_evict_busy busy, const void *context, bool fresh);

#endif
