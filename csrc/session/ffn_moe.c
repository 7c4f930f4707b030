/* The feed-forward half of a layer whose experts are on disk. */
#include "session/router.h"
#include "session/step.h"

#include "base/clock.h"
#include "base/memory.h"

#define WAVE 1024 /* experts of one wave; a layer with more takes several */

/* The expert that every row uses: resident, so it is computed while the routed ones are being read. */
static void shared_expert(fm_step *s, fm_cut *cut)
{
    fm_backend *b = s->backend;
    const fm_backend_ops *op = s->op;
    const fm_layer_weights *w = fm_step_weights(s);
    int32_t inner = fm_step_spec(s)->shared_intermediate_size;
    fm_tensor gate = fm_cut_take(cut, s->rows, inner), up = fm_cut_take(cut, s->rows, inner);
    fm_tensor score = fm_cut_take(cut, s->rows, 1);

    op->matmul(b, gate, w->shared_gate, s->normed);
    op->matmul(b, up, w->shared_up, s->normed);
    op->swiglu(b, gate, gate, up);
    op->matmul(b, s->y, w->shared_down, gate);
    op->matmul_exact(b, score, w->shared_score, s->normed);
    op->gate(b, s->y, s->y, score);
}

/* The next distinct experts of pick[from..n), at most `most`; *to is the first pick past them. */
static int32_t next_experts(const fm_pick *pick, int32_t from, int32_t n, int32_t most, int32_t *id, int32_t *to)
{
    int32_t ids = 0, i = from;
    for (; i < n; i++) {
        if (ids && pick[i].expert == id[ids - 1]) continue;
        if (ids == most) break;
        id[ids++] = pick[i].expert;
    }
    *to = i;
    return ids;
}

static fm_status begin(fm_step *s, const int32_t *id, int32_t ids, uint64_t ticket, int32_t *slot, bool *hit, fm_error *err)
{
    fm_expert_store *store = s->model->store;
    fm_backend *b = s->backend;
    fm_status status = fm_expert_store_begin(store, s->layer, id, ids, s->op->done(b), slot, hit, err);
    if (status != FM_BUSY) return status;
    FM_TRY(s->op->wait(b, ticket, err)); /* the wave before still holds its slots */
    return fm_expert_store_begin(store, s->layer, id, ids, s->op->done(b), slot, hit, err);
}

/* Compute the picks whose experts lie in these slots, and lend the slots until that is done. */
static uint64_t compute(fm_step *s, fm_tensor outs, int32_t from, int32_t to, const int32_t *slot, int32_t ids)
{
    fm_pick *pick = s->room->pick;
    const fm_layer_spec *spec = fm_step_spec(s);

    for (int32_t i = from, at = 0; i < to; i++) {
        if (i > from && pick[i].expert != pick[i - 1].expert) at++;
        pick[i].slot = slot[at];
    }
    outs.offset += (size_t)from * (size_t)outs.cols * sizeof(float);
    outs.rows = to - from;
    s->op->experts(s->backend, outs, s->normed, s->model->slots, s->model->slot_bytes, pick + from, to - from, &spec->expert);
    uint64_t ticket = s->op->submit(s->backend);
    fm_expert_store_lend(s->model->store, slot, ids, ticket);
    return ticket;
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
    int32_t n = s->rows * spec->route.k, id[WAVE], slot[WAVE], to;
    int32_t most = fm_expert_store_slots(s->model->store);
    bool hit[WAVE], shared = spec->shared_intermediate_size > 0;

    if (most > WAVE) most = WAVE;
    op->norm(b, s->normed, s->x, w->ffn_norm, s->model->manifest.spec.norm_eps);
    op->matmul_exact(b, scores, w->router, s->normed);
    uint64_t ticket = op->submit(b);
    FM_TRY(op->wait(b, ticket, err)); /* one token: the layer's only wait */
    FM_TRY(fm_route(&spec->route, (const float *)(const void *)((const uint8_t *)op->host(scores.buf) + scores.offset), s->rows,
                    s->room->pick, s->room->count, err));

    for (int32_t from = 0; from < n; from = to) {
        if (atomic_load_explicit(&s->session->cancel, memory_order_relaxed)) return fm_fail(err, FM_CANCELLED, "cancelled");
        int32_t ids = next_experts(s->room->pick, from, n, most, id, &to);
        FM_TRY(begin(s, id, ids, ticket, slot, hit, err));
        if (from == 0 && shared) shared_expert(s, &cut);
        FM_TRY(fm_expert_store_finish(s->model->store, err));
        ticket = compute(s, outs, from, to, slot, ids);
    }
    op->combine(b, s->x, outs, s->room->pick, n);
    if (shared) op->add(b, s->x, s->x, s->y);
    return FM_OK;
}
