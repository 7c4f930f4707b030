/* The memory budget, cut up once when the model opens. */
#include "model/plan.h"

#include "base/clock.h"
#include "base/memory.h"
#include "store/ways.h"

size_t fm_plan_state_bytes(const fm_model_spec *m)
{
    size_t bytes = 0;
    for (int32_t i = 0; i < m->layers; i++) {
        const fm_delta_shape *d = &m->layer[i].delta;
        if (m->layer[i].mixer != FM_MIXER_DELTA) continue;
        size_t width = 2 * (size_t)d->key_heads * (size_t)d->key_dim + (size_t)d->value_heads * (size_t)d->value_dim;
        bytes += fm_align_up((size_t)(d->conv_taps - 1) * width * sizeof(float), 64);
        bytes += fm_align_up((size_t)d->value_heads * (size_t)d->key_dim * (size_t)d->value_dim * sizeof(float), 64);
    }
    return bytes;
}

size_t fm_plan_kv_row_bytes(const fm_model_spec *m, fm_kv_kind kind)
{
    size_t numbers = 0;
    for (int32_t i = 0; i < m->layers; i++)
        if (m->layer[i].mixer == FM_MIXER_ATTENTION)
            numbers += 2 * (size_t)m->layer[i].attention.kv_heads * (size_t)m->layer[i].attention.head_dim;
    return numbers * (kind == FM_KV_F32 ? 4 : 2);
}

size_t fm_plan_slot_bytes(const fm_manifest *m)
{
    size_t bytes = 0;
    for (int32_t i = 0; i < m->spec.layers; i++)
        if (m->experts[i].experts && m->experts[i].bytes > bytes) bytes = m->experts[i].bytes;
    return fm_align_up(bytes, FM_PAGE);
}

/* Slots that one token needs at once, and slots that would hold every expert. */
static void count_slots(fm_model *model, int32_t *fewest, int64_t *all)
{
    const fm_manifest *m = &model->manifest;
    *fewest = 0;
    *all = 0;
    for (int32_t i = 0; i < m->spec.layers; i++) {
        if (!m->experts[i].experts) continue;
        *all += m->experts[i].experts;
        if (m->spec.layer[i].route.k > *fewest) *fewest = m->spec.layer[i].route.k;
    }
}

static bool is_aligned(const fm_expert_layer *l)
{
    for (int32_t i = 0; i < l->parts; i++) {
        const fm_expert_part *p = &l->part[i];
        if (p->each || (p->base | p->stride | p->at | p->bytes) % FM_PAGE) return false;
    }
    return true;
}

/* Reads around the page cache that are not aligned go through a buffer for each read in flight. */
static size_t read_buffers(const fm_model *model)
{
    size_t largest = 0;
    if (!fm_read_way_of(model->options.read)->direct) return 0;
    for (int32_t i = 0; i < model->manifest.spec.layers; i++) {
        const fm_expert_layer *l = &model->manifest.experts[i];
        if (l->experts && !is_aligned(l) && l->bytes > largest) largest = l->bytes;
    }
    return largest ? (size_t)model->options.read_threads * (fm_align_up(largest, FM_PAGE) + FM_PAGE) : 0;
}

static size_t scratch(const fm_model *model, int32_t rows)
{
    fm_limits limits = fm_activations_limits(&model->manifest.spec, rows);
    return fm_activations_measure(&model->manifest.spec, rows) + model->backend->ops->scratch(&limits, model->options.threads) +
           read_buffers(model);
}

static double gb(uint64_t bytes)
{
    return (double)bytes / 1e9;
}

/*
 * Rows of a step: many enough that an expert read serves several tokens, while scratch stays a small part of what is
 * left beside the experts of one token. Where a fiftieth of all experts would fit at best, keeping them gains nothing:
 * then up to half goes to rows, of which a prompt gains all the more.
 */
static int32_t choose_rows(const fm_model *model, uint64_t left, uint64_t experts)
{
    int32_t longest = model->manifest.spec.max_positions, rows = experts > left ? 2048 : 512;
    uint64_t most = experts / 50 > left ? left / 2 : left / 6;
    while (rows > 64 && (scratch(model, rows) > most || rows / 2 >= longest)) rows /= 2;
    return rows;
}

fm_status fm_plan_memory(fm_model *model, fm_error *err)
{
    fm_model_options *o = &model->options;
    uint64_t resident = model->weights.bytes, limit = o->memory;
    uint64_t session = model->state_bytes + (uint64_t)FM_KV_STEP * model->kv_row_bytes;
    uint64_t fixed = resident + session;
    int64_t all;
    int32_t fewest;

    count_slots(model, &fewest, &all);
    if (all > INT32_MAX) return fm_fail(err, FM_UNSUPPORTED, "%lld experts", (long long)all);
    uint64_t room = model->backend->ops->room(model->backend);
    bool device = room < SIZE_MAX && (!limit || room < limit); /* it sets the ceiling */
    if (device) limit = o->memory = room;
    if (!limit) limit = UINT64_MAX;
    if (!o->prefill_rows) {
        uint64_t left = limit > fixed ? limit - fixed : 0;
        o->prefill_rows = choose_rows(model, left, (uint64_t)all * model->slot_bytes);
    }
    model->scratch_bytes = scratch(model, o->prefill_rows);
    fixed += model->scratch_bytes;

    model->min_slots = fewest;
    uint64_t needed = fixed + (uint64_t)fewest * model->slot_bytes;
    if (needed > limit)
        return fm_fail(err, FM_BUDGET,
                       "the model needs %.3f GB and memory is %.3f GB%s: resident weights %.3f GB + activations of %d tokens and "
                       "read buffers %.3f GB"
                       " + one session's recurrent state %.3f GB and KV cache of %d tokens %.3f GB + %d expert slots %.3f GB",
                       gb(needed), gb(limit), device ? ", all that the GPU is meant to hold" : "", gb(resident), o->prefill_rows,
                       gb(model->scratch_bytes), gb(model->state_bytes), FM_KV_STEP,
                       gb((uint64_t)FM_KV_STEP * model->kv_row_bytes), fewest, gb((uint64_t)fewest * model->slot_bytes));
    size_t largest = model->backend->ops->largest(model->backend);
    if (resident > largest || (uint64_t)fewest * model->slot_bytes > largest)
        return fm_fail(
            err, FM_BUDGET,
            "the device's largest buffer is %.3f GB: too small for resident weights of %.3f GB or %d expert slots of %.3f GB",
            gb(largest), gb(resident), fewest, gb((uint64_t)fewest * model->slot_bytes));
    uint64_t slots = model->slot_bytes ? (limit - fixed) / model->slot_bytes : 0;
    if (slots > largest / (model->slot_bytes ? model->slot_bytes : 1)) slots = largest / model->slot_bytes;
    if (slots > (uint64_t)all) slots = (uint64_t)all;
    if (o->expert_slots) {
        if (o->expert_slots < fewest)
            return fm_fail(err, FM_ARGUMENT, "expert_slots %d are fewer than the %d experts of one token", o->expert_slots,
                           fewest);
        if ((uint64_t)o->expert_slots < slots) slots = (uint64_t)o->expert_slots;
    }
    model->max_slots = (int32_t)slots;
    return FM_OK;
}

void fm_model_relieve(fm_model *model)
{
    fm_memory_state state = model->store ? model->system_memory() : FM_MEMORY_FINE;
    uint64_t now = fm_now_ns();
    if (state == FM_MEMORY_FINE || now - model->relieved_ns < FM_RELIEF_NS) return;
    int32_t slots = fm_expert_store_slots(model->store), less = slots / (state == FM_MEMORY_CRITICAL ? 2 : 8);

    model->relieved_ns = now;
    model->max_slots = slots - (less ? less : 1);
    if (model->max_slots < model->min_slots) model->max_slots = model->min_slots;
    fm_model_charge(model, 0, NULL); /* between two steps no slot is in use */
}

fm_status fm_model_charge(fm_model *model, int64_t bytes, fm_error *err)
{
    uint64_t held = model->session_bytes + (uint64_t)bytes; /* wraps back when bytes < 0 */
    uint64_t fixed = model->weights.bytes + model->scratch_bytes + held;
    uint64_t limit = model->options.memory ? model->options.memory : UINT64_MAX;
    int32_t now = model->store ? fm_expert_store_slots(model->store) : 0;

    if (fixed + (uint64_t)model->min_slots * model->slot_bytes > limit)
        return fm_fail(err, FM_BUDGET,
                       "sessions would hold %.3f GB; with weights %.3f GB, activations %.3f GB and %d expert slots %.3f GB that "
                       "is more than memory %.3f GB",
                       gb(held), gb(model->weights.bytes), gb(model->scratch_bytes), model->min_slots,
                       gb((uint64_t)model->min_slots * model->slot_bytes), gb(limit));
    model->session_bytes = held;
    if (!model->store) return FM_OK;

    uint64_t slots = (limit - fixed) / model->slot_bytes;
    if (slots > (uint64_t)model->max_slots) slots = (uint64_t)model->max_slots;
    if ((int32_t)slots == now) return FM_OK;
    fm_backend *b = model->backend;
    fm_status status = fm_expert_store_resize(model->store, (int32_t)slots, b->ops->done(b), err);
    if (status != FM_OK) {
        if (bytes > 0) model->session_bytes -= (uint64_t)bytes;
        return status;
    }
    if ((int32_t)slots < now)
        b->ops->discard(b, model->slots, slots * model->slot_bytes, (size_t)(now - (int32_t)slots) * model->slot_bytes);
    return FM_OK;
}
