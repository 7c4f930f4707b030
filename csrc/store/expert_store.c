/* The expert store's life, and what it knows about experts and slots. Reading is in expert_fetch.c. */
#include "store/expert_store.h"

#include <stdlib.h>

#include "store/expert_store_state.h"

/* ---- life ------------------------------------------------------------------------- */

void fm_expert_store_close(fm_expert_store *s)
{
    if (!s) return;
    if (s->batch.flying) { /* until no thread writes into the slots any more */
        fm_error why;
        int32_t group;
        fm_reader_drop(s->reader);
        fm_reader_wait(s->reader, &group, &why);
    }
    fm_evict_close(s->evict);
    free(s->use);
    free(s->holds);
    free(s->place);
    free(s->trusted);
    free(s->uses);
    free(s->fetch);
    free(s->wanted);
    free(s->batch.id);
    free(s->batch.slot);
    free(s->batch.reads);
    free(s->batch.group);
    free(s);
}

static void measure(const fm_expert_layout *layout, int32_t *width, int32_t *parts)
{
    *width = *parts = 1;
    for (int32_t i = 0; i < layout->layers; i++) {
        if (layout->layer[i].experts > *width) *width = layout->layer[i].experts;
        if (layout->layer[i].parts > *parts) *parts = layout->layer[i].parts;
    }
}

static fm_status make_tables(fm_expert_store *s, size_t slots, size_t keys, fm_error *err)
{
    size_t reads = slots * (size_t)s->parts;
    s->use = calloc(slots, sizeof *s->use);
    s->holds = calloc(slots, sizeof *s->holds);
    s->fetch = calloc(slots, sizeof *s->fetch);
    s->wanted = calloc(slots, sizeof *s->wanted);
    s->place = calloc(keys, sizeof *s->place);
    s->trusted = calloc(keys, 1);
    s->uses = calloc(keys, sizeof *s->uses);
    s->batch.id = calloc(slots, sizeof *s->batch.id);
    s->batch.slot = calloc(slots, sizeof *s->batch.slot);
    s->batch.reads = calloc(reads, sizeof *s->batch.reads);
    s->batch.group = calloc(reads, sizeof *s->batch.group);
    if (!s->use || !s->holds || !s->fetch || !s->wanted || !s->place || !s->trusted || !s->uses || !s->batch.id ||
        !s->batch.slot || !s->batch.reads || !s->batch.group)
        return fm_fail(err, FM_MEMORY, "no memory for the tables of %zu expert slots", slots);
    for (size_t i = 0; i < slots; i++) s->holds[i] = NOWHERE;
    for (size_t i = 0; i < keys; i++) s->place[i] = NOWHERE;
    return FM_OK;
}

fm_status fm_expert_store_open(const fm_expert_store_options *o, fm_expert_store **out, fm_error *err)
{
    fm_expert_store *s = calloc(1, sizeof *s);
    if (!s) return fm_fail(err, FM_MEMORY, "no memory for an expert store");
    s->layout = o->layout;
    s->reader = o->reader;
    s->memory = o->memory;
    s->slot_bytes = o->slot_bytes;
    s->slots = s->all_slots = o->slots;
    s->verify = o->verify;
    s->patience_ns = o->patience_ns;
    s->failed = NOWHERE;
    measure(&o->layout, &s->width, &s->parts);
    fm_status status = make_tables(s, (size_t)o->slots, (size_t)o->layout.layers * (size_t)s->width, err);
    if (status == FM_OK) status = fm_evict_open(o->evict, o->slots, &s->evict, err);
    if (status != FM_OK) {
        fm_expert_store_close(s);
        return status;
    }
    *out = s;
    return FM_OK;
}

void fm_expert_store_watch(fm_expert_store *s, bool (*stop)(const void *context), const void *context)
{
    s->stop = stop;
    s->stop_context = context;
}

/* ---- slots ------------------------------------------------------------------------- */

void fm_expert_forget(fm_expert_store *s, int32_t slot)
{
    fm_slot_use *u = &s->use[slot];
    if (s->holds[slot] != NOWHERE) s->place[s->holds[slot]] = NOWHERE;
    s->holds[slot] = NOWHERE;
    *u = (fm_slot_use){.pinned = u->pinned};
    fm_evict_empty(s->evict, slot);
}

void fm_expert_store_lend(fm_expert_store *s, const int32_t *slot, int32_t k, uint64_t ticket)
{
    for (int32_t i = 0; i < k; i++) s->use[slot[i]].lent = ticket;
}

fm_status fm_expert_store_resize(fm_expert_store *s, int32_t slots, uint64_t done, fm_error *err)
{
    if (slots < 1 || slots > s->all_slots) return fm_fail(err, FM_ARGUMENT, "%d slots are not in 1 .. %d", slots, s->all_slots);
    for (int32_t i = slots; i < s->slots; i++)
        if (s->use[i].lent > done || s->use[i].pinned) return fm_fail(err, FM_BUSY, "expert slot %d is in use", i);
    if (s->batch.flying && slots < s->slots) {
        fm_reader_drop(s->reader);
        FM_TRY(fm_expert_settle(s, err));
    }
    for (int32_t i = slots; i < s->slots; i++) fm_expert_forget(s, i);
    fm_evict_resize(s->evict, slots);
    s->slots = slots;
    return FM_OK;
}

/* ---- layers --------------------------------------------------------------------------- */

void fm_expert_store_enter(fm_expert_store *s, int32_t layer, int32_t distinct)
{
    s->scan = (int64_t)distinct * s->layout.layers > s->slots;
    if (s->failed != NOWHERE && s->failed / s->width != layer) s->failed = NOWHERE; /* read ahead, and never needed */
    for (int32_t slot = fm_evict_first_fresh(s->evict), next; slot != NOWHERE; slot = next) {
        next = fm_evict_next(s->evict, slot);
        if (s->holds[slot] / s->width == layer || s->use[slot].loading) continue;
        if (s->use[slot].guessed) s->stats.guess_bytes_wasted += s->layout.layer[s->holds[slot] / s->width].bytes;
        s->use[slot].guessed = false;
        fm_evict_stage(s->evict, slot);
    }
}

bool fm_expert_store_guesses(fm_expert_store *s)
{
    return fm_trial_on(&s->guessing);
}

void fm_expert_store_took(fm_expert_store *s, uint64_t ns)
{
    fm_trial_took(&s->guessing, ns);
}

void fm_expert_store_count(fm_expert_store *s, int32_t layer, int32_t expert)
{
    s->uses[fm_expert_key(s, layer, expert)]++;
}

/* ---- what there is ------------------------------------------------------------------ */

int32_t fm_expert_store_slots(const fm_expert_store *s)
{
    return s->slots;
}

bool fm_expert_store_holds(fm_expert_store *s, int32_t layer, int32_t expert)
{
    int32_t slot = s->place[fm_expert_key(s, layer, expert)];
    return slot != NOWHERE && fm_expert_store_arrived(s, slot);
}

void fm_expert_store_describe(const fm_expert_store *s, fm_store_stats *out)
{
    *out = s->stats;
}

const uint64_t *fm_expert_store_uses(const fm_expert_store *s, int32_t *width)
{
    *width = s->width;
    return s->uses;
}
