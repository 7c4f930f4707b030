/* The feed-forward half of a layer whose experts are on disk. */
#include "session/router.h"
#include "session/step.h"

#define PREFILL_WAVE 32 /* enough to keep the disk busy, few enough that reading and computing alternate finely */
#define WAVE 1024       /* experts of one wave; a layer with more takes several */

/* The expert that every row uses: resident, so it is computed while the routed ones are being read. */
static void shared_expert(fm_step *s, fm_cut *cut)
{
    fm_backend *b = s->backend;
    const fm_backend_ops *op = s->op;
    const fm_layer_weights *w = fm_step_weights(s);
    int32_t inner = fm_step_spec(s)->shared_intermediate_size;
    fm_tensor gate = fm_cut_take(cut, s->rows, inner), up = fm_cut_take(cut, s->rows, inner);
    fm_tensor score = fm_cut_take(cut, s->rows, 1);

    const fm_projection reads[] = {{gate, w->shared_gate, false}, {up, w->shared_up, false}, {score, w->shared_score, true}};
    op->project(b, reads, 3, s->normed);
    op->swiglu(b, gate, gate, up);
    op->matmul(b, s->y, w->shared_down, gate);
    op->gate(b, s->y, s->y, score);
}

/* Some experts that are read together, and the picks they serve. */
typedef struct {
    int32_t id[WAVE], slot[WAVE];
    int32_t ids, from, to;
} wave;

/* Begin to read the next distinct experts of pick[from .. n), at most `most`. FM_BUSY: there are no slots to spare. */
static fm_status begin(fm_step *s, wave *w, int32_t from, int32_t n, int32_t most, uint64_t ticket, fm_error *err)
{
    const fm_pick *pick = s->room->pick;
    fm_backend *b = s->backend;
    bool hit[WAVE];

    w->ids = 0;
    w->from = from;
    for (w->to = from; w->to < n; w->to++) {
        if (w->ids && pick[w->to].expert == w->id[w->ids - 1]) continue;
        if (w->ids == most) break;
        w->id[w->ids++] = pick[w->to].expert;
    }
    fm_status status = fm_expert_store_begin(s->model->store, s->layer, w->id, w->ids, s->op->done(b), w->slot, hit, err);
    if (status != FM_BUSY) return status;
    FM_TRY(s->op->wait(b, ticket, err)); /* an earlier wave still holds its slots */
    return fm_expert_store_begin(s->model->store, s->layer, w->id, w->ids, s->op->done(b), w->slot, hit, err);
}

/* Compute the picks of a wave that is in memory; its slots are lent until that is done. */
static uint64_t compute(fm_step *s, fm_tensor outs, const wave *w)
{
    fm_pick *pick = s->room->pick;
    const fm_layer_spec *spec = fm_step_spec(s);

    for (int32_t i = w->from, at = 0; i < w->to; i++) {
        if (i > w->from && pick[i].expert != pick[i - 1].expert) at++;
        pick[i].slot = w->slot[at];
    }
    outs.offset += (size_t)w->from * (size_t)outs.cols * sizeof(float);
    outs.rows = w->to - w->from;
    s->op->experts(s->backend, outs, s->normed, s->model->slots, s->model->slot_bytes, pick + w->from, outs.rows, &spec->expert);
    uint64_t ticket = s->op->submit(s->backend);
    fm_expert_store_lend(s->model->store, w->slot, w->ids, ticket);
    return ticket;
}

/*
 * All waves after the first, which is in memory: while one is computed, the next is read, as long as
 * there are slots for both. At every return no read is under way.
 */
static fm_status waves(fm_step *s, wave *now, wave *next, fm_tensor outs, int32_t n, int32_t most, uint64_t ticket, fm_error *err)
{
    while (now->to < n) {
        if (fm_step_cancelled(s)) return fm_fail(err, FM_CANCELLED, "cancelled");
        fm_expert_store_lend(s->model->store, now->slot, now->ids, UINT64_MAX);
        fm_status status = begin(s, next, now->to, n, most, ticket, err);
        ticket = compute(s, outs, now);
        if (status == FM_BUSY) status = begin(s, next, now->to, n, most, ticket, err);
        FM_TRY(status);
        FM_TRY(fm_expert_store_finish(s->model->store, err));
        wave *done = now;
        now = next;
        next = done;
    }
    compute(s, outs, now);
    return FM_OK;
}

fm_status fm_ffn_moe(fm_step *s, fm_error *err)
{
    fm_backend *b = s->backend;
    const fm_backend_ops *op = s->op;
    const fm_layer_spec *spec = fm_step_spec(s);
    const fm_layer_weights *w = fm_step_weights(s);
    fm_cut cut = fm_cut_start(s->room);
    fm_tensor scores = fm_cut_take(&cut, s->rows, spec->route.experts);
    fm_tensor outs = fm_cut_take(&cut, s->rows * spec->route.k, s->x.cols);
    int32_t n = s->rows * spec->route.k, most = fm_expert_store_slots(s->model->store);
    bool shared = spec->shared_intermediate_size > 0;
    wave first, second;

    /* one token needs all of its experts at once; many tokens go in waves, one read while another is computed */
    if (s->rows > 1) most = most / 2 < 1 ? 1 : most / 2 < PREFILL_WAVE ? most / 2 : PREFILL_WAVE;
    if (most > WAVE) most = WAVE;
    op->norm(b, s->normed, s->x, w->ffn_norm, s->model->manifest.spec.norm_eps);
    op->matmul_exact(b, scores, w->router, s->normed);
    uint64_t ticket = op->submit(b);
    FM_TRY(op->wait(b, ticket, err)); /* one token: the layer's only wait */
    const uint8_t *host = op->host(scores.buf);
    FM_TRY(
        fm_route(&spec->route, (const float *)(const void *)(host + scores.offset), s->rows, s->room->pick, s->room->count, err));

    FM_TRY(begin(s, &first, 0, n, most, ticket, err));
    if (shared) shared_expert(s, &cut);
    FM_TRY(fm_expert_store_finish(s->model->store, err));
    FM_TRY(waves(s, &first, &second, outs, n, most, ticket, err));
    op->combine(b, s->x, outs, s->room->pick, n);
    if (shared) op->add(b, s->x, s->x, s->y);
    return FM_OK;
}
