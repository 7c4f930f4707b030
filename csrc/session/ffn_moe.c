/* The feed-forward half of a layer whose experts are on disk. */
#include "base/clock.h"
#include "session/router.h"
#include "session/step.h"

#define WAVE 1024       /* experts of one wave; a layer with more takes several */
#define PREFILL_WAVE 32 /* of them to be read: enough to keep the disk busy, few enough to go with little memory */
#define FEW_ROWS 64     /* experts are computed as they arrive; with more rows, all of a wave in one go */
#define SURE 8          /* rows an expert would serve on average, if the next layer is read without asking its router */

/* Some experts that are read together, and the picks they serve. */
typedef struct {
    int32_t id[WAVE], slot[WAVE];
    int32_t first[WAVE + 1]; /* picks of expert i: first[i] .. first[i + 1] */
    bool done[WAVE];
    int32_t ids;
} wave;

/* The expert that every row uses: resident, so it is computed while the routed ones are being read. Its part of the
 * sum is left in s->y, the score that it is weighted with is returned. */
static fm_tensor shared_expert(fm_step *s, fm_cut *cut)
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
    return score;
}

/* ---- reads ---------------------------------------------------------------------- */

/* The next distinct experts of pick[from .. n): at most `most`, and at most `reads` that are not in memory. */
static void gather(const fm_step *s, wave *w, int32_t from, int32_t n, int32_t most, int32_t reads)
{
    const fm_pick *pick = s->room->pick;
    int32_t at = from;

    for (w->ids = 0; at < n && w->ids < most; w->ids++) {
        int32_t id = pick[at].expert;
        if (!fm_expert_store_holds(s->model->store, s->layer, id) && !reads--) break;
        w->id[w->ids] = id;
        w->first[w->ids] = at;
        w->done[w->ids] = false;
        while (at < n && pick[at].expert == id) at++;
    }
    w->first[w->ids] = at;
}

/* Begin to read a wave. */
static fm_status begin(fm_step *s, wave *w, uint64_t ticket, fm_error *err)
{
    fm_expert_store *store = s->model->store;
    fm_backend *b = s->backend;
    bool hit[WAVE];

    fm_status status = fm_expert_store_begin(store, s->layer, w->id, w->ids, s->op->done(b), w->slot, hit, err);
    if (status != FM_BUSY) return status;
    FM_TRY(s->op->wait(b, ticket, err)); /* an earlier wave still holds its slots */
    return fm_expert_store_begin(store, s->layer, w->id, w->ids, s->op->done(b), w->slot, hit, err);
}

/* Distinct experts of pick[from .. n), at most WAVE. */
static int32_t list_rest(const fm_step *s, int32_t from, int32_t n, int32_t *id)
{
    const fm_pick *pick = s->room->pick;
    int32_t ids = 0;
    for (int32_t i = from; i < n && ids < WAVE; i++)
        if (i == from || pick[i].expert != pick[i - 1].expert) id[ids++] = pick[i].expert;
    return ids;
}

/* Many rows: read what the layer still needs after `from`, then what the next one is sure to need. */
static void read_on(const fm_step *s, int32_t from, int32_t n)
{
    const fm_model_spec *m = &s->model->manifest.spec;
    int32_t id[WAVE], ids = list_rest(s, from, n, id), next = s->layer + 1;
    uint64_t done = s->op->done(s->backend);

    if (s->model->options.serial) return;
    if (ids && fm_expert_store_ahead(s->model->store, s->layer, id, ids, done)) return;
    if (next == m->layers || m->layer[next].ffn != FM_FFN_MOE || n < SURE * m->layer[next].route.experts) return;
    fm_expert_store_ahead(s->model->store, next, NULL, m->layer[next].route.experts, done);
}

/* One row: what the next layer's router would pick if it saw the present hidden state, the surest first. */
static int32_t guess(const fm_step *s, fm_cut *cut, int32_t *id)
{
    const fm_model *m = s->model;
    const fm_model_spec *spec = &m->manifest.spec;
    int32_t next = s->layer + 1, n = 0;

    if (s->rows > 1 || m->options.serial || m->options.no_guess || !fm_expert_store_guesses(m->store)) return 0;
    if (next == spec->layers || spec->layer[next].ffn != FM_FFN_MOE) return 0;
    const fm_route_spec *route = &spec->layer[next].route;
    const fm_layer_weights *w = &m->weights.layer[next];
    fm_tensor normed = fm_cut_take(cut, 1, s->x.cols), scores = fm_cut_take(cut, 1, route->experts);
    fm_pick *pick = s->room->pick + 2 * spec->layer[s->layer].route.k;

    s->op->norm(s->backend, normed, s->x, w->ffn_norm, spec->norm_eps);
    s->op->matmul_exact(s->backend, scores, w->router, normed);
    if (s->op->wait(s->backend, s->op->submit(s->backend), NULL) != FM_OK) return 0; /* the next wait fails too, and says so */
    const uint8_t *host = s->op->host(scores.buf);
    if (fm_route(route, (const float *)(const void *)(host + scores.offset), 1, pick, s->room->count, NULL) != FM_OK) return 0;
    for (; n < route->k && n < WAVE; n++) {
        int32_t best = 0;
        for (int32_t i = 1; i < route->k; i++)
            if (pick[i].share > pick[best].share) best = i;
        id[n] = pick[best].expert;
        pick[best].share = -1;
    }
    return n;
}

/* ---- products ------------------------------------------------------------------- */

static bool is_ready(const fm_step *s, const wave *w, int32_t i)
{
    return !w->done[i] && fm_expert_store_arrived(s->model->store, w->slot[i]);
}

static int32_t count_ready(const fm_step *s, const wave *w)
{
    int32_t n = 0;
    for (int32_t i = 0; i < w->ids; i++) n += is_ready(s, w, i);
    return n;
}

/* Compute experts [i, end) of a wave, which stand side by side. */
static void compute_run(fm_step *s, fm_tensor outs, wave *w, int32_t i, int32_t end)
{
    int32_t from = w->first[i], to = w->first[end];
    for (; i < end; i++) {
        w->done[i] = true;
        for (int32_t p = w->first[i]; p < w->first[i + 1]; p++) s->room->pick[p].slot = w->slot[i];
    }
    s->op->experts(s->backend, fm_step_rows(outs, from, to - from), s->normed, s->model->slots, s->model->slot_bytes,
                   s->room->pick + from, to - from, &fm_step_spec(s)->expert);
}

/* Compute what has arrived, and take it off *left; the wave's slots are lent until the ticket returned is done. */
static uint64_t compute(fm_step *s, fm_tensor outs, wave *w, int32_t *left)
{
    for (int32_t i = 0, end; i < w->ids; i = end) {
        for (end = i; end < w->ids && is_ready(s, w, end); end++) continue;
        *left -= end - i;
        if (end > i) compute_run(s, outs, w, i, end);
        else end++;
    }
    uint64_t ticket = s->op->submit(s->backend);
    fm_expert_store_lend(s->model->store, w->slot, w->ids, ticket);
    return ticket;
}

/* While some of the wave is still being read, compute what is there; return when only what has arrived is left. */
static void compute_as_they_come(fm_step *s, fm_tensor outs, wave *w)
{
    for (int32_t left = w->ids, ready; (ready = count_ready(s, w)) < left;) {
        if (ready) compute(s, outs, w, &left);
        else if (!fm_expert_store_wait(s->model->store)) return;
    }
}

/* ---- the layer ------------------------------------------------------------------ */

/* Pick experts for every row: room->pick, and in *distinct how many there are. */
static fm_status route(fm_step *s, fm_tensor scores, int32_t *distinct, uint64_t *ticket, fm_error *err)
{
    const fm_route_spec *spec = &fm_step_spec(s)->route;
    const fm_pick *pick = s->room->pick;
    const fm_layer_weights *w = fm_step_weights(s);

    s->op->norm(s->backend, s->normed, s->x, w->ffn_norm, s->model->manifest.spec.norm_eps);
    s->op->matmul_exact(s->backend, scores, w->router, s->normed);
    *ticket = s->op->submit(s->backend);
    FM_TRY(s->op->wait(s->backend, *ticket, err)); /* one token: the layer's only wait */
    const uint8_t *host = s->op->host(scores.buf);
    FM_TRY(fm_route(spec, (const float *)(const void *)(host + scores.offset), s->rows, s->room->pick, s->room->count, err));
    FM_TRY(fm_trace_add(&s->model->trace, s->layer, pick, s->rows, spec->k, err));
    *distinct = 0;
    for (int32_t i = 0; i < s->rows * spec->k; i++) {
        *distinct += !i || pick[i].expert != pick[i - 1].expert;
        fm_expert_store_count(s->model->store, s->layer, pick[i].expert);
    }
    return FM_OK;
}

/*
 * Waves: while one is computed, the next is read. What one row needs is one wave, and so is what few rows need if
 * there are slots: then experts that are here are computed while the others are read, each as it arrives.
 */
static fm_status waves(fm_step *s, fm_cut *cut, fm_tensor outs, int32_t n, uint64_t ticket, fm_tensor *score, fm_error *err)
{
    fm_expert_store *store = s->model->store;
    int32_t slots = fm_expert_store_slots(store), most = s->rows == 1 ? slots : slots / 2, reads = most;
    int32_t guessed[WAVE], guesses = 0, left = 0;
    bool serial = s->model->options.serial, few = s->rows <= FEW_ROWS;
    wave w;

    if (s->rows > 1) reads = few ? slots / 4 : slots / 4 < PREFILL_WAVE ? slots / 4 : PREFILL_WAVE;
    for (int32_t at = 0; at < n; at = w.first[w.ids]) {
        if (fm_step_cancelled(s)) return fm_fail(err, FM_CANCELLED, "cancelled");
        gather(s, &w, at, n, most < 1 ? 1 : most < WAVE ? most : WAVE, reads < 1 ? 1 : reads);
        FM_TRY(begin(s, &w, ticket, err));
        if (serial) FM_TRY(fm_expert_store_finish(store, err));
        if (!few) read_on(s, w.first[w.ids], n);
        if (at == 0 && fm_step_spec(s)->shared_intermediate_size) *score = shared_expert(s, cut);
        if (at == 0 && count_ready(s, &w) < w.ids) guesses = guess(s, cut, guessed);
        if (few && !serial) compute_as_they_come(s, outs, &w);
        if (!serial) FM_TRY(fm_expert_store_finish(store, err));
        fm_expert_store_lend(store, w.slot, w.ids, UINT64_MAX);
        if (guesses) fm_expert_store_guess(store, s->layer + 1, guessed, guesses, s->op->done(s->backend));
        else read_on(s, w.first[w.ids], n);
        ticket = compute(s, outs, &w, &left);
    }
    return FM_OK;
}

fm_status fm_ffn_moe(fm_step *s, fm_error *err)
{
    const fm_layer_spec *spec = fm_step_spec(s);
    fm_cut cut = fm_cut_start(s->room);
    fm_tensor scores = fm_cut_take(&cut, s->rows, spec->route.experts);
    fm_tensor outs = fm_cut_take(&cut, s->rows * spec->route.k, s->x.cols), shared = {0}, score = {0};
    int32_t n = s->rows * spec->route.k, distinct;
    uint64_t ticket, started = fm_now_ns();

    FM_TRY(route(s, scores, &distinct, &ticket, err));
    s->model->layer_ns[s->layer].route += fm_now_ns() - started;
    fm_expert_store_enter(s->model->store, s->layer, distinct);
    FM_TRY(waves(s, &cut, outs, n, ticket, &score, err));
    if (spec->shared_intermediate_size) shared = s->y;
    s->op->combine(s->backend, s->x, outs, s->room->pick, n, shared, score);
    return FM_OK;
}
