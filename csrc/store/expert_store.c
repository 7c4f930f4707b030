/* What is resident, what must be read, and all or nothing. */
#include "store/expert_store.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/hash.h"
#include "store/evict.h"

#define NOWHERE (-1)

struct fm_expert_store {
    fm_expert_layout layout;
    fm_reader *reader;
    uint8_t *memory;
    size_t slot_bytes;
    int32_t slots, all_slots;
    fm_slot_use *use; /* [all_slots] */
    int32_t *holds;   /* [all_slots]: layer * width + expert, or NOWHERE */
    int32_t *place;   /* [layers * width]: slot, or NOWHERE */
    uint8_t *trusted; /* [layers * width]: checked once already */
    int32_t width;    /* experts of the widest layer */
    uint64_t clock;
    fm_store_stats stats;

    /* the fetch under way */
    int32_t layer, missing, parts_room;
    int32_t *missing_id, *missing_slot; /* [all_slots] */
    fm_read *reads;                     /* [all_slots * parts_room] */
    int32_t *group;
    bool reading;
};

static int32_t key_of(const fm_expert_store *s, int32_t layer, int32_t expert)
{
    return layer * s->width + expert;
}

static void forget(fm_expert_store *s, int32_t slot)
{
    if (s->holds[slot] != NOWHERE) s->place[s->holds[slot]] = NOWHERE;
    s->holds[slot] = NOWHERE;
    s->use[slot] = (fm_slot_use){0};
}

/* ---- life ------------------------------------------------------------------------- */

void fm_expert_store_close(fm_expert_store *s)
{
    int32_t group;
    if (!s) return;
    if (s->reading) fm_reader_wait(s->reader, &group, NULL); /* no thread writes into the slots any more */
    free(s->use);
    free(s->holds);
    free(s->place);
    free(s->trusted);
    free(s->missing_id);
    free(s->missing_slot);
    free(s->reads);
    free(s->group);
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

fm_status fm_expert_store_open(const fm_expert_layout *layout, fm_reader *reader, void *memory, size_t slot_bytes, int32_t slots,
                               fm_expert_store **out, fm_error *err)
{
    fm_expert_store *s = calloc(1, sizeof *s);
    if (!s) return fm_fail(err, FM_MEMORY, "no memory for an expert store");
    s->layout = *layout;
    s->reader = reader;
    s->memory = memory;
    s->slot_bytes = slot_bytes;
    s->slots = s->all_slots = slots;
    measure(layout, &s->width, &s->parts_room);

    size_t n = (size_t)slots, keys = (size_t)layout->layers * (size_t)s->width, reads = n * (size_t)s->parts_room;
    s->use = calloc(n, sizeof *s->use);
    s->holds = calloc(n, sizeof *s->holds);
    s->missing_id = calloc(n, sizeof *s->missing_id);
    s->missing_slot = calloc(n, sizeof *s->missing_slot);
    s->place = calloc(keys, sizeof *s->place);
    s->trusted = calloc(keys, 1);
    s->reads = calloc(reads, sizeof *s->reads);
    s->group = calloc(reads, sizeof *s->group);
    if (!s->use || !s->holds || !s->missing_id || !s->missing_slot || !s->place || !s->trusted || !s->reads || !s->group) {
        fm_expert_store_close(s);
        return fm_fail(err, FM_MEMORY, "no memory for the tables of %d expert slots", slots);
    }
    for (size_t i = 0; i < n; i++) s->holds[i] = NOWHERE;
    for (size_t i = 0; i < keys; i++) s->place[i] = NOWHERE;
    *out = s;
    return FM_OK;
}

/* ---- checks at first touch, on a read thread ------------------------------------------ */

static fm_status check_expert(void *context, int32_t group, fm_error *err)
{
    fm_expert_store *s = context;
    const fm_expert_layer *l = &s->layout.layer[s->layer];
    int32_t expert = s->missing_id[group];
    const uint8_t *slot = s->memory + (size_t)s->missing_slot[group] * s->slot_bytes;
    uint8_t *trusted = &s->trusted[key_of(s, s->layer, expert)];
    size_t where;

    if (*trusted) return FM_OK;
    if (l->xxh3) {
        uint64_t sum = fm_xxh3(slot, l->bytes);
        if (sum != l->xxh3[expert])
            return fm_fail(err, FM_INTEGRITY, "its checksum is %016llx, recorded is %016llx; run `flashmoe verify`",
                           (unsigned long long)sum, (unsigned long long)l->xxh3[expert]);
    }
    for (int32_t i = 0; i < l->runs; i++)
        if (!fm_numbers_finite(l->run[i].kind, slot + l->run[i].at, l->run[i].count, &where))
            return fm_fail(err, FM_NUMERIC, "number %zu at byte %u of its record is NaN or infinite", where, l->run[i].at);
    *trusted = 1;
    return FM_OK;
}

/* ---- fetch -------------------------------------------------------------------------------- */

static void pin(fm_expert_store *s, int32_t slot)
{
    s->use[slot].pinned = 1;
    s->use[slot].used = ++s->clock;
}

static void unpin(fm_expert_store *s, const int32_t *slot, int32_t k)
{
    for (int32_t i = 0; i < k; i++)
        if (slot[i] != NOWHERE) s->use[slot[i]].pinned = 0;
}

/* Slots for the experts that are not here. FM_BUSY leaves everything as it was. */
static fm_status claim(fm_expert_store *s, const int32_t *id, int32_t k, uint64_t done, int32_t *out, fm_error *err)
{
    for (int32_t i = 0; i < k; i++) {
        if (out[i] != NOWHERE) continue;
        int32_t slot = fm_evict_choose(s->use, s->slots, done);
        if (slot < 0) return fm_fail(err, FM_BUSY, "the device still reads too many expert slots");
        s->missing_id[s->missing] = id[i];
        s->missing_slot[s->missing++] = slot;
        s->use[slot].pinned = 1;
        out[i] = slot;
    }
    return FM_OK;
}

/* Parts that follow each other in file and slot are one read. */
static int32_t plan_reads(fm_expert_store *s)
{
    const fm_expert_layer *l = &s->layout.layer[s->layer];
    int32_t n = 0;

    for (int32_t i = 0; i < s->missing; i++) {
        uint8_t *slot = s->memory + (size_t)s->missing_slot[i] * s->slot_bytes;
        uint64_t expert = (uint64_t)s->missing_id[i];
        int32_t first = n;
        for (int32_t p = 0; p < l->parts; p++) {
            const fm_expert_part *part = &l->part[p];
            fm_extent from = part->each ? part->each[expert] : (fm_extent){part->file, part->base + expert * part->stride};
            fm_read *last = n > first ? &s->reads[n - 1] : NULL;
            if (last && last->file == from.file && last->from + last->bytes == from.at &&
                last->to + last->bytes == slot + part->at) {
                last->bytes += part->bytes;
                continue;
            }
            s->group[n] = i;
            s->reads[n++] = (fm_read){from.file, from.at, part->bytes, slot + part->at};
        }
    }
    return n;
}

static fm_status check_ids(const fm_expert_store *s, int32_t layer, const int32_t *id, int32_t k, fm_error *err)
{
    if (layer < 0 || layer >= s->layout.layers || k < 1 || k > s->slots)
        return fm_fail(err, FM_ARGUMENT, "%d experts of layer %d do not fit into %d slots", k, layer, s->slots);
    for (int32_t i = 0; i < k; i++)
        if (id[i] < 0 || id[i] >= s->layout.layer[layer].experts || (i && id[i] <= id[i - 1]))
            return fm_fail(err, FM_ARGUMENT, "expert %d of layer %d is out of range or out of order", id[i], layer);
    return FM_OK;
}

fm_status fm_expert_store_begin(fm_expert_store *s, int32_t layer, const int32_t *id, int32_t k, uint64_t done, int32_t *out,
                                bool *hit, fm_error *err)
{
    if (s->reading) return fm_fail(err, FM_ARGUMENT, "a fetch is under way");
    FM_TRY(check_ids(s, layer, id, k, err));
    s->missing = 0;
    s->layer = layer;
    for (int32_t i = 0; i < k; i++) {
        out[i] = s->place[key_of(s, layer, id[i])];
        hit[i] = out[i] != NOWHERE;
        if (hit[i]) pin(s, out[i]);
    }
    fm_status status = claim(s, id, k, done, out, err);
    if (status == FM_OK && s->missing) {
        for (int32_t i = 0; i < s->missing; i++) forget(s, s->missing_slot[i]);
        for (int32_t i = 0; i < s->missing; i++) pin(s, s->missing_slot[i]);
        int32_t n = plan_reads(s);
        status = fm_reader_start(s->reader, s->reads, s->group, n, check_expert, s, err);
        for (int32_t i = 0; status == FM_OK && i < n; i++) s->stats.bytes_read += s->reads[i].bytes;
    }
    if (status != FM_OK) {
        unpin(s, out, k);
        return status;
    }
    s->reading = s->missing > 0;
    s->stats.needed += (uint64_t)k;
    s->stats.hits += (uint64_t)(k - s->missing);
    return FM_OK;
}

fm_status fm_expert_store_finish(fm_expert_store *s, fm_error *err)
{
    fm_error why = {0};
    int32_t group = 0;
    fm_status status = FM_OK;

    if (s->reading) {
        uint64_t started = fm_now_ns();
        status = fm_reader_wait(s->reader, &group, &why);
        s->stats.wait_ns += fm_now_ns() - started;
        s->reading = false;
    }
    for (int32_t i = 0; i < s->slots; i++) s->use[i].pinned = 0;
    for (int32_t i = 0; i < s->missing; i++) {
        int32_t slot = s->missing_slot[i], key = key_of(s, s->layer, s->missing_id[i]);
        if (status != FM_OK) {
            forget(s, slot);
            continue;
        }
        s->holds[slot] = key;
        s->place[key] = slot;
    }
    if (status == FM_OK) return FM_OK;
    const fm_expert_layer *l = &s->layout.layer[s->layer];
    int32_t expert = s->missing_id[group], file = l->part[0].each ? l->part[0].each[expert].file : l->part[0].file;
    if (status == FM_IO) return fm_fail(err, status, "layer %d expert %d: %s", s->layer, expert, why.message);
    return fm_fail(err, status, "layer %d expert %d (%s): %s", s->layer, expert, s->layout.file[file].path, why.message);
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
    for (int32_t i = slots; i < s->slots; i++) forget(s, i);
    s->slots = slots;
    return FM_OK;
}

int32_t fm_expert_store_slots(const fm_expert_store *s)
{
    return s->slots;
}

void fm_expert_store_describe(const fm_expert_store *s, fm_store_stats *out)
{
    *out = s->stats;
}
