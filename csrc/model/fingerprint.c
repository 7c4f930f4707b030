/* Which model this is, as a number: what a saved session must agree with. */
#include "base/hash.h"
#include "model/model.h"

enum { SAMPLE = 4096, EXPERT_SAMPLE = 512 };

/* A hash of everything that was added, and of its order. */
static void add(uint64_t *sum, const void *data, size_t bytes)
{
    const uint64_t both[] = {*sum, bytes, fm_xxh3(data, bytes)};
    *sum = fm_xxh3(both, sizeof both);
}

/* The spec is 4-byte fields without gaps, but for the ropes. */
static void add_spec(uint64_t *sum, const fm_model_spec *m)
{
    const int32_t shape[] = {m->hidden_size, m->vocab_size, m->layers, m->ropes, m->tied};
    add(sum, shape, sizeof shape);
    add(sum, &m->norm_eps, sizeof m->norm_eps);
    add(sum, m->layer, (size_t)m->layers * sizeof *m->layer);
    for (int32_t i = 0; i < m->ropes; i++) {
        add(sum, &m->rope[i].scale, sizeof m->rope[i].scale);
        add(sum, m->rope[i].inv_freq, (size_t)(m->rope[i].dims / 2) * sizeof *m->rope[i].inv_freq);
    }
}

/* Formats, and a sample of the numbers from begin, middle and end: training changes all of a tensor, or nothing. */
static void add_weights(uint64_t *sum, const fm_weights *w, const uint8_t *host)
{
    for (int32_t i = 0; i < w->count; i++) {
        const fm_wanted *t = &w->wanted[i];
        size_t end = i + 1 < w->count ? w->wanted[i + 1].at : w->bytes, bytes = end - t->at;
        size_t sample = bytes < SAMPLE ? bytes : SAMPLE;
        add(sum, &t->from->quant, sizeof t->from->quant);
        add(sum, host + t->at, sample);
        add(sum, host + t->at + (bytes - sample) / 2, sample);
        add(sum, host + end - sample, sample);
    }
}

/* Their recorded checksums; where there are none, the first bytes of a layer's first expert. */
static fm_status add_experts(uint64_t *sum, const fm_model *m, fm_error *err)
{
    uint8_t sample[EXPERT_SAMPLE];
    for (int32_t i = 0; i < m->manifest.spec.layers; i++) {
        const fm_expert_layer *l = &m->manifest.experts[i];
        if (!l->experts) continue;
        if (l->xxh3) {
            add(sum, l->xxh3, (size_t)l->experts * sizeof *l->xxh3);
            continue;
        }
        const fm_expert_part *p = l->part;
        size_t bytes = p->bytes < sizeof sample ? p->bytes : sizeof sample;
        FM_TRY(
            fm_read_all(&m->files[p->each ? p->each[0].file : p->file], sample, bytes, p->each ? p->each[0].at : p->base, err));
        add(sum, sample, bytes);
    }
    return FM_OK;
}

fm_status fm_model_identify(fm_model *model, uint64_t *out, fm_error *err)
{
    if (!model->fingerprint) {
        uint64_t sum = 0;
        add_spec(&sum, &model->manifest.spec);
        add_weights(&sum, &model->weights, model->backend->ops->host(model->weights.buf));
        FM_TRY(add_experts(&sum, model, err));
        model->fingerprint = sum ? sum : 1;
    }
    *out = model->fingerprint;
    return FM_OK;
}

fm_status fm_model_fingerprint(fm_model *model, uint64_t *out, fm_error *err)
{
    FM_NEED(model, err);
    FM_NEED(out, err);
    pthread_mutex_lock(&model->turn);
    fm_status status = fm_model_identify(model, out, err);
    pthread_mutex_unlock(&model->turn);
    return status;
}
