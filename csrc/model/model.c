/* fm_model_*: opens what a manifest describes, within the budget. */
#include "model/model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/threads.h"
#include "model/plan.h"

static fm_status open_device(const fm_model_options *o, fm_backend **out, fm_error *err)
{
    const fm_device_options how = {.threads = o->threads, .cache = o->cache};
    const char *name = o->device ? o->device : "cpu";
    char names[64] = "";
    size_t used = 0;

    for (const fm_backend_ops *const *ops = fm_backends(); *ops; ops++) {
        if (strcmp((*ops)->name, name) == 0) return (*ops)->open(&how, out, err);
        int n = snprintf(names + used, sizeof names - used, "%s\"%s\"", used ? ", " : "", (*ops)->name);
        used += n > 0 ? (size_t)n : 0;
    }
    return fm_fail(err, FM_UNSUPPORTED, "this build has no device \"%s\"; it has %s", name, names);
}

static fm_status check_options(const fm_model_options *o, fm_error *err)
{
    if (o->threads < 0 || o->threads > 1024) return fm_fail(err, FM_ARGUMENT, "threads %d is not in 0 .. 1024", o->threads);
    if (o->read_threads < 0 || o->read_threads > 256)
        return fm_fail(err, FM_ARGUMENT, "read_threads %d is not in 0 .. 256", o->read_threads);
    if (o->read_split < 0 || o->read_split > 64)
        return fm_fail(err, FM_ARGUMENT, "read_split %d is not in 0 .. 64", o->read_split);
    if (o->read_timeout_ms < 0) return fm_fail(err, FM_ARGUMENT, "read_timeout_ms %d", o->read_timeout_ms);
    if (o->prefill_rows < 0 || o->prefill_rows > 8192 || o->prefill_rows % 64)
        return fm_fail(err, FM_ARGUMENT, "prefill_rows %d is not a multiple of 64 in 64 .. 8192", o->prefill_rows);
    if (o->experts_per_token < 0) return fm_fail(err, FM_ARGUMENT, "experts_per_token %d", o->experts_per_token);
    if (o->expert_slots < 0) return fm_fail(err, FM_ARGUMENT, "expert_slots %d", o->expert_slots);
    if ((unsigned)o->kv > FM_KV_BF16) return fm_fail(err, FM_ARGUMENT, "kv %d", (int)o->kv);
    if ((unsigned)o->read > FM_READ_URING) return fm_fail(err, FM_ARGUMENT, "read %d", (int)o->read);
    if ((unsigned)o->evict > FM_EVICT_STATIC) return fm_fail(err, FM_ARGUMENT, "evict %d", (int)o->evict);
    if ((unsigned)o->verify > FM_VERIFY_OFF) return fm_fail(err, FM_ARGUMENT, "verify %d", (int)o->verify);
    return FM_OK;
}

/* Every file of the model; the resident weights and the experts share descriptors. */
static fm_status open_files(fm_model *m, const char *directory, fm_error *err)
{
    FM_TRY(fm_files_open(directory, (const char *const *)m->manifest.path, m->manifest.file_bytes, m->manifest.files,
                         m->options.read, &m->files, err));
    if (m->options.read == FM_READ_DIRECT && !fm_files_direct(m->files, m->manifest.files)) m->options.read = FM_READ_BUFFERED;
    return FM_OK;
}

static fm_status open_store(fm_model *m, fm_error *err)
{
    fm_backend *b = m->backend;
    const fm_reader_options how = {m->files, m->options.read_threads, m->options.read_split, m->options.read};

    if (!m->max_slots) return FM_OK;
    fm_files_expect_random(m->files, m->manifest.files);
    FM_TRY(b->ops->alloc(b, (size_t)m->max_slots * m->slot_bytes, FM_SHARED, &m->slots, err));
    FM_TRY(fm_reader_open(&how, &m->reader, err));
    const fm_expert_store_options store = {
        .layout = {m->manifest.spec.layers, m->manifest.experts, m->files},
        .reader = m->reader,
        .memory = b->ops->host(m->slots),
        .slot_bytes = m->slot_bytes,
        .slots = m->max_slots,
        .evict = m->options.evict,
        .verify = m->options.verify,
        .patience_ns = (uint64_t)m->options.read_timeout_ms * 1000000u,
    };
    return fm_expert_store_open(&store, &m->store, err);
}

static void tear_down(fm_model *m)
{
    fm_expert_store_close(m->store);
    fm_reader_close(m->reader);
    if (m->slots) m->backend->ops->release(m->backend, m->slots);
    fm_activations_free(&m->room, m->backend);
    fm_weights_free(&m->weights, m->backend);
    if (m->backend) m->backend->ops->close(m->backend);
    if (m->files) fm_files_close(m->files, m->manifest.files);
    fm_manifest_free(&m->manifest);
    free(m->trace.line);
    free(m->layer_ns);
    pthread_mutex_destroy(&m->turn);
    free(m);
}

fm_status fm_model_open(const char *manifest, size_t length, const char *directory, const fm_model_options *options,
                        fm_model **out, fm_error *err)
{
    static const fm_model_options defaults;
    fm_status status;
    fm_limits limits;

    FM_NEED(manifest, err);
    FM_NEED(directory, err);
    FM_NEED(out, err);
    if (!options) options = &defaults;
    FM_TRY(check_options(options, err));
    fm_model *m = calloc(1, sizeof *m);
    if (!m) return fm_fail(err, FM_MEMORY, "no memory for a model");
    if (pthread_mutex_init(&m->turn, NULL) != 0) {
        free(m);
        return fm_fail(err, FM_MEMORY, "no memory for a mutex");
    }
    m->options = *options;
    m->system_memory = fm_system_memory;
    if (!m->options.threads) m->options.threads = fm_cores();
    if (!m->options.read_threads) m->options.read_threads = 8;
    if (!m->options.read_split) m->options.read_split = 1;

    FM_TRY_UNDO(fm_manifest_parse(manifest, length, options->experts_per_token, &m->manifest, err));
    const fm_model_spec *spec = &m->manifest.spec;
    m->layer_ns = calloc((size_t)spec->layers, sizeof *m->layer_ns);
    if (!m->layer_ns) {
        status = fm_fail(err, FM_MEMORY, "no memory for the times of %d layers", spec->layers);
        goto undo;
    }
    FM_TRY_UNDO(fm_weights_plan(&m->manifest, &m->weights, err));
    FM_TRY_UNDO(open_files(m, directory, err));
    FM_TRY_UNDO(open_device(&m->options, &m->backend, err));
    m->options.device = m->options.cache = NULL;
    m->options.cancel = NULL;
    m->slot_bytes = fm_plan_slot_bytes(&m->manifest);
    m->state_bytes = 2 * fm_plan_state_bytes(spec);
    m->kv_row_bytes = fm_plan_kv_row_bytes(spec, m->options.kv);
    for (int32_t i = 0; i < spec->layers; i++)
        m->expert_file_bytes += (uint64_t)m->manifest.experts[i].experts * m->manifest.experts[i].bytes;
    FM_TRY_UNDO(fm_plan_memory(m, err));

    limits = fm_activations_limits(spec, m->options.prefill_rows);
    FM_TRY_UNDO(m->backend->ops->reserve(m->backend, &limits, err));
    FM_TRY_UNDO(fm_activations_open(spec, m->options.prefill_rows, m->backend, &m->room, err));
    FM_TRY_UNDO(fm_weights_load(&m->weights, m->backend, m->files, options->cancel, err));
    FM_TRY_UNDO(open_store(m, err));
    *out = m;
    return FM_OK;
undo:
    tear_down(m);
    return status;
}

fm_status fm_model_close(fm_model *model)
{
    if (!model) return FM_OK;
    pthread_mutex_lock(&model->turn);
    int32_t sessions = model->sessions;
    pthread_mutex_unlock(&model->turn);
    if (sessions) return FM_BUSY;
    tear_down(model);
    return FM_OK;
}

/* The largest numbers of any layer. */
static void describe_experts(const fm_model_spec *s, fm_model_info *out)
{
    for (int32_t i = 0; i < s->layers; i++) {
        const fm_route_spec *r = &s->layer[i].route;
        if (s->layer[i].ffn != FM_FFN_MOE) continue;
        if (r->experts > out->experts) out->experts = r->experts;
        if (r->k > out->experts_per_token) out->experts_per_token = r->k;
        if (r->native_k > out->native_experts_per_token) out->native_experts_per_token = r->native_k;
    }
}

void fm_model_describe(fm_model *model, fm_model_info *out)
{
    if (!model || !out) return;
    const fm_model_spec *s = &model->manifest.spec;
    fm_model_info info = {
        .device = model->backend->ops->name,
        .kernels = model->backend->ops->variant(model->backend),
        .layers = s->layers,
        .hidden_size = s->hidden_size,
        .vocab_size = s->vocab_size,
        .max_positions = s->max_positions,
        .threads = model->options.threads,
        .read_threads = model->options.read_threads,
        .prefill_rows = model->options.prefill_rows,
        .min_expert_slots = model->min_slots,
        .kv = model->options.kv,
        .read = model->options.read,
        .evict = model->options.evict == FM_EVICT_AUTO ? FM_EVICT_LFU : model->options.evict,
        .verify = model->options.verify,
        .serial = model->options.serial,
        .no_guess = model->options.no_guess,
        .read_split = model->options.read_split,
        .read_direct = fm_files_direct(model->files, model->manifest.files),
        .memory = model->options.memory,
        .resident_bytes = model->weights.bytes,
        .scratch_bytes = model->scratch_bytes,
        .expert_bytes = model->slot_bytes,
        .expert_file_bytes = model->expert_file_bytes,
        .state_bytes = model->state_bytes,
        .kv_bytes_per_token = model->kv_row_bytes,
    };
    describe_experts(s, &info);
    pthread_mutex_lock(&model->turn);
    info.expert_slots = model->store ? fm_expert_store_slots(model->store) : 0;
    info.held_bytes =
        info.resident_bytes + info.scratch_bytes + model->session_bytes + (uint64_t)info.expert_slots * model->slot_bytes;
    pthread_mutex_unlock(&model->turn);
    *out = info;
}
