/* Reading experts: what is asked for, and what is going to be. One batch of reads at a time. */
#include "base/clock.h"
#include "base/hash.h"
#include "store/expert_store_state.h"

#define SLICE_NS 20000000u /* who waits for reads looks up so often */
#define GUESSES 4          /* experts read on a guess: what a disk gives while a layer's mixer is computed */

/* ---- checks of what was read, on a read thread ------------------------------------------ */

static fm_status check_expert(void *context, int32_t group, fm_error *err)
{
    fm_expert_store *s = context;
    const fm_read_batch *b = &s->batch;
    const fm_expert_layer *l = &s->layout.layer[b->layer];
    int32_t expert = b->id[group];
    const uint8_t *slot = s->memory + (size_t)b->slot[group] * s->slot_bytes;
    uint8_t *trusted = &s->trusted[fm_expert_key(s, b->layer, expert)];
    size_t where;

    if (*trusted && s->verify != FM_VERIFY_ALWAYS) return FM_OK;
    if (l->xxh3 && s->verify != FM_VERIFY_OFF) {
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

/* ---- a batch of reads ---------------------------------------------------------------------- */

static fm_extent extent_of(const fm_expert_part *part, int32_t expert)
{
    if (part->each) return part->each[expert];
    return (fm_extent){part->file, part->base + (uint64_t)expert * part->stride};
}

/* Parts that follow each other in file and slot are one read. */
static int32_t plan_reads(fm_expert_store *s)
{
    const fm_read_batch *b = &s->batch;
    const fm_expert_layer *l = &s->layout.layer[b->layer];
    int32_t n = 0;

    for (int32_t i = 0; i < b->n; i++) {
        uint8_t *slot = s->memory + (size_t)b->slot[i] * s->slot_bytes;
        int32_t first = n;
        for (int32_t p = 0; p < l->parts; p++) {
            const fm_expert_part *part = &l->part[p];
            fm_extent from = extent_of(part, b->id[i]);
            fm_read *last = n > first ? &b->reads[n - 1] : NULL;
            if (last && last->file == from.file && last->from + last->bytes == from.at &&
                last->to + last->bytes == slot + part->at) {
                last->bytes += part->bytes;
                continue;
            }
            b->group[n] = i;
            b->reads[n++] = (fm_read){from.file, from.at, part->bytes, slot + part->at};
        }
    }
    return n;
}

static void add(fm_expert_store *s, int32_t id, int32_t slot)
{
    s->batch.id[s->batch.n] = id;
    s->batch.slot[s->batch.n++] = slot;
}

/* Read what was added. The slots' old experts are forgotten; the new ones have their places at once. */
static fm_status start(fm_expert_store *s, int32_t layer, bool guess, fm_error *err)
{
    fm_read_batch *b = &s->batch;
    b->layer = layer;
    b->guess = guess;
    b->ready = b->quiet = 0;
    for (int32_t i = 0; i < b->n; i++) fm_expert_forget(s, b->slot[i]);
    int32_t n = plan_reads(s);
    FM_TRY(fm_reader_start(s->reader, b->reads, b->group, n, check_expert, s, err));
    b->flying = true;
    for (int32_t i = 0; i < b->n; i++) {
        int32_t slot = b->slot[i], key = fm_expert_key(s, layer, b->id[i]);
        s->holds[slot] = key;
        s->place[key] = slot;
        s->use[slot].loading = true;
        s->use[slot].guessed = guess;
        s->use[slot].group = i;
        fm_evict_fill(s->evict, slot);
    }
    return FM_OK;
}

static uint64_t bytes_of(const fm_expert_layer *l)
{
    uint64_t bytes = 0;
    for (int32_t p = 0; p < l->parts; p++) bytes += l->part[p].bytes;
    return bytes;
}

/* The disk gives nothing: name the first expert that has not come. */
static fm_status stalled(const fm_expert_store *s, fm_error *err)
{
    const fm_read_batch *b = &s->batch;
    int32_t i = 0;
    while (i < b->n - 1 && fm_reader_group_ready(s->reader, i)) i++;
    const fm_expert_part *part = s->layout.layer[b->layer].part;
    fm_extent from = extent_of(part, b->id[i]);
    return fm_fail(err, FM_IO,
                   "layer %d expert %d: %s: wanted %u bytes at offset %llu, got no answer in %.3g s (read_timeout): "
                   "is the disk there?",
                   b->layer, b->id[i], s->layout.file[from.file].path, part->bytes, (unsigned long long)from.at,
                   (double)s->patience_ns / 1e9);
}

/* Wait until more than `known` experts of the batch are in memory, or it is over, or nobody wants to wait any longer. Slices
 * are counted, not time: the machine may have slept. */
static fm_status await(fm_expert_store *s, int32_t known, fm_error *err)
{
    fm_read_batch *b = &s->batch;
    fm_status status = FM_OK;
    uint64_t started = fm_now_ns();

    while (status == FM_OK) {
        bool over;
        int32_t ready = fm_reader_progress(s->reader, known, SLICE_NS, &over);
        b->quiet = ready > b->ready ? 0 : b->quiet + 1;
        b->ready = ready;
        if (over || ready > known) break;
        if (s->stop && s->stop(s->stop_context)) status = fm_fail(err, FM_CANCELLED, "cancelled");
        else if (s->patience_ns && (uint64_t)b->quiet * SLICE_NS >= s->patience_ns) status = stalled(s, err);
    }
    s->stats.wait_ns += fm_now_ns() - started;
    return status;
}

fm_status fm_expert_settle(fm_expert_store *s, fm_error *err)
{
    fm_read_batch *b = &s->batch;
    fm_error why = {0};
    int32_t group = 0;

    if (!b->flying) return FM_OK;
    FM_TRY(await(s, b->n, err));
    fm_status status = fm_reader_wait(s->reader, &group, &why);
    b->flying = false;
    if (status != FM_OK) {
        s->failed = fm_expert_key(s, b->layer, b->id[group]);
        s->status = status;
        s->why = why;
    }
    for (int32_t i = 0; i < b->n; i++) {
        s->use[b->slot[i]].loading = false;
        if (fm_reader_group_ready(s->reader, i)) {
            s->stats.bytes_read += bytes_of(&s->layout.layer[b->layer]);
            s->stats.guessed += b->guess;
        } else fm_expert_forget(s, b->slot[i]);
    }
    return FM_OK;
}

/* ---- which slots ------------------------------------------------------------------------- */

typedef struct {
    const fm_expert_store *store;
    uint64_t done;
} moment;

static bool is_busy(const void *context, int32_t slot)
{
    const moment *now = context;
    const fm_slot_use *u = &now->store->use[slot];
    return u->pinned || u->loading || u->lent > now->done;
}

/* What may be in memory ahead of its use. */
static int32_t most_ahead(const fm_expert_store *s)
{
    return s->slots / 4 < s->width ? s->slots / 4 : s->width;
}

/* Slots for what is in no slot. FM_BUSY leaves everything as it was. */
static fm_status claim(fm_expert_store *s, const int32_t *id, int32_t k, uint64_t done, int32_t *out, fm_error *err)
{
    const moment now = {s, done};
    s->batch.n = 0;
    for (int32_t i = 0; i < k; i++) {
        if (out[i] != NOWHERE) continue;
        int32_t slot = fm_evict_choose(s->evict, is_busy, &now, true);
        if (slot < 0) return fm_fail(err, FM_BUSY, "the device still reads too many expert slots");
        add(s, id[i], slot);
        s->use[slot].pinned = true;
        out[i] = slot;
    }
    return FM_OK;
}

/* ---- ahead of use ------------------------------------------------------------------------ */

static bool read_ahead(fm_expert_store *s, int32_t layer, const int32_t *id, int32_t n, int32_t most, bool guess, uint64_t done)
{
    const moment now = {s, done};
    bool over = true;

    if (s->batch.flying) fm_reader_progress(s->reader, 0, 0, &over);
    if (!over || fm_expert_settle(s, NULL) != FM_OK) return true;
    most -= fm_evict_fresh(s->evict);
    s->batch.n = 0;
    for (int32_t i = 0; i < n && s->batch.n < most; i++) {
        int32_t expert = id ? id[i] : i;
        if (s->place[fm_expert_key(s, layer, expert)] != NOWHERE) continue;
        int32_t slot = fm_evict_choose(s->evict, is_busy, &now, false);
        if (slot < 0) break;
        s->use[slot].pinned = true;
        add(s, expert, slot);
    }
    for (int32_t i = 0; i < s->batch.n; i++) s->use[s->batch.slot[i]].pinned = false;
    if (s->batch.n) start(s, layer, guess, NULL); /* what cannot be read now is read, or reported, when it is needed */
    return s->batch.flying;
}

bool fm_expert_store_ahead(fm_expert_store *s, int32_t layer, const int32_t *id, int32_t n, uint64_t done)
{
    return read_ahead(s, layer, id, n, most_ahead(s), false, done);
}

void fm_expert_store_guess(fm_expert_store *s, int32_t layer, const int32_t *id, int32_t n, uint64_t done)
{
    int32_t most = most_ahead(s) < GUESSES ? most_ahead(s) : GUESSES;
    if (fm_expert_store_guesses(s)) read_ahead(s, layer, id, n, most, true, done);
}

/* ---- fetch --------------------------------------------------------------------------------- */

static fm_status check_ids(const fm_expert_store *s, int32_t layer, const int32_t *id, int32_t k, fm_error *err)
{
    if (layer < 0 || layer >= s->layout.layers || k < 1 || k > s->slots)
        return fm_fail(err, FM_ARGUMENT, "%d experts of layer %d do not fit into %d slots", k, layer, s->slots);
    for (int32_t i = 0; i < k; i++)
        if (id[i] < 0 || id[i] >= s->layout.layer[layer].experts || (i && id[i] <= id[i - 1]))
            return fm_fail(err, FM_ARGUMENT, "expert %d of layer %d is out of range or out of order", id[i], layer);
    return FM_OK;
}

/* Say what could not be read, once. */
static fm_status report(fm_expert_store *s, fm_error *err)
{
    int32_t layer = s->failed / s->width, expert = s->failed % s->width;
    int32_t file = extent_of(s->layout.layer[layer].part, expert).file;
    s->failed = NOWHERE;
    if (s->status == FM_IO) return fm_fail(err, s->status, "layer %d expert %d: %s", layer, expert, s->why.message);
    return fm_fail(err, s->status, "layer %d expert %d (%s): %s", layer, expert, s->layout.file[file].path, s->why.message);
}

static bool look(const fm_expert_store *s, int32_t layer, const int32_t *id, int32_t k, int32_t *out)
{
    bool all = true;
    for (int32_t i = 0; i < k; i++) {
        out[i] = s->place[fm_expert_key(s, layer, id[i])];
        all &= out[i] != NOWHERE;
    }
    return all;
}

static void unpin(fm_expert_store *s, const int32_t *slot, int32_t k)
{
    for (int32_t i = 0; i < k; i++)
        if (slot[i] != NOWHERE) s->use[slot[i]].pinned = false;
}

/* The experts are asked for: count them, and tell the policy. */
static void use(fm_expert_store *s, int32_t layer, const int32_t *id, const int32_t *slot, int32_t k)
{
    int32_t spare = most_ahead(s) + s->slots / 16;
    for (int32_t i = 0; i < k; i++) {
        fm_slot_use *u = &s->use[slot[i]];
        s->stats.needed++;
        s->stats.hits += !fm_evict_is_fresh(s->evict, slot[i]);
        s->stats.guesses_used += u->guessed;
        u->guessed = false;
        fm_evict_use(s->evict, slot[i], s->uses[fm_expert_key(s, layer, id[i])], s->scan, spare);
    }
}

fm_status fm_expert_store_begin(fm_expert_store *s, int32_t layer, const int32_t *id, int32_t k, uint64_t done, int32_t *out,
                                bool *hit, fm_error *err)
{
    if (s->fetched) return fm_fail(err, FM_ARGUMENT, "a fetch is under way");
    FM_TRY(check_ids(s, layer, id, k, err));
    if (!look(s, layer, id, k, out) && s->batch.flying) {
        if (s->batch.guess || s->batch.layer != layer) fm_reader_drop(s->reader);
        FM_TRY(fm_expert_settle(s, err));
        look(s, layer, id, k, out);
    }
    for (int32_t i = 0; i < k; i++)
        if (out[i] == NOWHERE && s->failed == fm_expert_key(s, layer, id[i])) return report(s, err);
    for (int32_t i = 0; i < k; i++) {
        hit[i] = out[i] != NOWHERE && fm_expert_store_arrived(s, out[i]);
        if (out[i] != NOWHERE) s->use[out[i]].pinned = true;
    }
    if (!look(s, layer, id, k, out)) {
        fm_status status = claim(s, id, k, done, out, err);
        if (status == FM_OK) status = start(s, layer, false, err);
        if (status != FM_OK) {
            unpin(s, out, k);
            return status;
        }
    }
    for (int32_t i = 0; i < k; i++) {
        s->fetch[i] = out[i];
        s->wanted[i] = fm_expert_key(s, layer, id[i]);
    }
    s->fetched = k;
    use(s, layer, id, out, k);
    return FM_OK;
}

bool fm_expert_store_arrived(fm_expert_store *s, int32_t slot)
{
    const fm_slot_use *u = &s->use[slot];
    return s->holds[slot] != NOWHERE && (!u->loading || fm_reader_group_ready(s->reader, u->group));
}

bool fm_expert_store_wait(fm_expert_store *s)
{
    int32_t before = s->batch.ready;
    return s->batch.flying && await(s, before, NULL) == FM_OK && s->batch.ready > before;
}

/* How many of the fetch have not arrived; whether one of them is what failed. */
static int32_t count_missing(fm_expert_store *s, bool *failed)
{
    int32_t missing = 0;
    *failed = false;
    for (int32_t i = 0; i < s->fetched; i++) {
        if (fm_expert_store_arrived(s, s->fetch[i])) continue;
        missing++;
        *failed |= s->failed == s->wanted[i];
    }
    return missing;
}

/* Reads of the fetch that were given up because another one failed, which nobody needs now. */
static fm_status read_again(fm_expert_store *s, fm_error *err)
{
    s->batch.n = 0;
    for (int32_t i = 0; i < s->fetched; i++)
        if (s->holds[s->fetch[i]] == NOWHERE) add(s, s->wanted[i] % s->width, s->fetch[i]);
    FM_TRY(start(s, s->wanted[0] / s->width, false, err));
    for (int32_t i = 0; i < s->fetched; i++)
        if (fm_evict_is_fresh(s->evict, s->fetch[i])) fm_evict_stage(s->evict, s->fetch[i]);
    return FM_OK;
}

fm_status fm_expert_store_finish(fm_expert_store *s, fm_error *err)
{
    fm_status status = FM_OK;
    bool failed = false, over = false;

    while (status == FM_OK && count_missing(s, &failed) && !failed) {
        if (fm_expert_store_wait(s)) continue;
        status = s->batch.flying ? fm_expert_settle(s, err) : read_again(s, err);
    }
    if (failed) status = report(s, err);
    unpin(s, s->fetch, s->fetched);
    s->fetched = 0;
    if (s->batch.flying) fm_reader_progress(s->reader, 0, 0, &over);
    if (over) fm_expert_settle(s, NULL);
    return status;
}
