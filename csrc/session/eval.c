/* fm_sessions_eval: rows of one or several sequences go through all layers together. */
#include <math.h>
#include <string.h>

#include "base/clock.h"
#include "session/state.h"
#include "session/step.h"

/* ---- checks ----------------------------------------------------------------- */

static fm_status check(const fm_append *p, int32_t rows_before, fm_error *err)
{
    const fm_model *m = p->session->model;
    const fm_model_spec *spec = &m->manifest.spec;
    if (p->n < 1 || p->n > m->room.rows)
        return fm_fail(err, FM_ARGUMENT, "%d tokens at once are not in 1 .. %d", p->n, m->room.rows);
    if (p->n > m->room.rows - rows_before)
        return fm_fail(err, FM_ARGUMENT, "%d tokens, and %d of other sessions, are more than the %d of one step", p->n,
                       rows_before, m->room.rows);
    if (p->wanted < 0 || p->wanted > p->n) return fm_fail(err, FM_ARGUMENT, "logits of %d of %d tokens", p->wanted, p->n);
    for (int32_t i = 0; i < p->n; i++)
        if (p->tokens[i] < 0 || p->tokens[i] >= spec->vocab_size)
            return fm_fail(err, FM_ARGUMENT, "token %d is %d, the vocabulary has 0 .. %d", i, p->tokens[i], spec->vocab_size - 1);
    if (p->n > spec->max_positions - p->session->position)
        return fm_fail(err, FM_FULL, "%d tokens after %d are more than the model's context of %d", p->n, p->session->position,
                       spec->max_positions);
    return FM_OK;
}

/* What must hold before the model's turn is taken. */
static fm_status check_sessions(const fm_append *part, int32_t parts, int32_t *at_fault, fm_error *err)
{
    FM_NEED(part, err);
    if (parts < 1) return fm_fail(err, FM_ARGUMENT, "%d sessions", parts);
    for (*at_fault = 0; *at_fault < parts; ++*at_fault) {
        const fm_session *session = part[*at_fault].session;
        FM_NEED(session, err);
        FM_NEED(part[*at_fault].tokens, err);
        if (part[*at_fault].wanted > 0) FM_NEED(part[*at_fault].logits, err);
        if (session->model != part->session->model) return fm_fail(err, FM_ARGUMENT, "the sessions are not all of one model");
        for (int32_t i = 0; i < *at_fault; i++)
            if (part[i].session == session) return fm_fail(err, FM_ARGUMENT, "a session is there twice");
    }
    *at_fault = -1;
    return FM_OK;
}

/* ---- what a step needs ---------------------------------------------------------- */

fm_tensor fm_step_rope(const fm_step *s, int32_t rope)
{
    fm_tensor t = s->room->table;
    t.offset += (size_t)rope * s->room->table_stride;
    t.rows = s->rows;
    t.cols = s->model->manifest.spec.rope[rope].dims;
    return t;
}

static float *host_floats(const fm_step *s, fm_tensor t)
{
    return (float *)(void *)((uint8_t *)s->op->host(t.buf) + t.offset);
}

/* Cosines and sines of the step's positions, in double: positions reach 10^6 and bases 10^7. */
static void fill_ropes(const fm_step *s)
{
    const fm_model_spec *spec = &s->model->manifest.spec;
    for (int32_t i = 0; i < spec->ropes; i++) {
        const fm_rope_spec *rope = &spec->rope[i];
        float *row = host_floats(s, fm_step_rope(s, i));
        for (const fm_append *p = s->part; p < s->part + s->parts; p++)
            for (int32_t r = 0; r < p->n; r++, row += rope->dims)
                for (int32_t j = 0; j < rope->dims / 2; j++) {
                    double angle = (double)(p->session->position + r) * rope->inv_freq[j];
                    row[j] = (float)(cos(angle) * rope->scale);
                    row[rope->dims / 2 + j] = (float)(sin(angle) * rope->scale);
                }
    }
}

static void embed(const fm_step *s)
{
    for (int32_t i = 0, row = 0; i < s->parts; row += s->part[i].n, i++)
        s->op->embed(s->backend, fm_step_rows(s->x, row, s->part[i].n), s->model->weights.embed, s->part[i].tokens);
}

/* The first part whose session was cancelled, or -1. */
static int32_t first_cancelled(const fm_step *s)
{
    for (int32_t i = 0; i < s->parts; i++)
        if (atomic_load_explicit(&s->part[i].session->cancel, memory_order_relaxed) || (s->part[i].cancel && *s->part[i].cancel))
            return i;
    return -1;
}

bool fm_step_cancelled(const fm_step *s)
{
    return first_cancelled(s) >= 0;
}

static fm_status finish(const fm_step *s, fm_error *err)
{
    return s->op->wait(s->backend, s->op->submit(s->backend), err);
}

/* ---- finite numbers --------------------------------------------------------------- */

static fm_status all_finite(const float *x, size_t n, const char *what, fm_error *err)
{
    size_t i;
    if (fm_numbers_finite(FM_F32, x, n, &i)) return FM_OK;
    return fm_fail(err, FM_NUMERIC, "%s %zu is not finite; if weights are sound, try kv_dtype=\"bf16\"", what, i);
}

/* The last activations of every part. */
static fm_status check_activations(const fm_step *s, int32_t *at_fault, fm_error *err)
{
    for (int32_t i = 0, end = 0; i < s->parts; i++) {
        end += s->part[i].n;
        *at_fault = i;
        FM_TRY(all_finite(host_floats(s, fm_step_rows(s->x, end - 1, 1)), (size_t)s->x.cols, "activation", err));
    }
    *at_fault = -1;
    return FM_OK;
}

/* The part whose rows a layer could not go on with, or -1: then what it read from disk is to blame. */
static int32_t first_not_finite(const fm_step *s)
{
    for (int32_t i = 0, row = 0; i < s->parts; row += s->part[i].n, i++) {
        size_t n = (size_t)s->part[i].n * (size_t)s->x.cols;
        if (all_finite(host_floats(s, fm_step_rows(s->normed, row, s->part[i].n)), n, "", NULL) != FM_OK) return i;
    }
    return -1;
}

/* ---- logits ----------------------------------------------------------------------- */

/* Rows of any parts that are multiplied with the vocabulary together. */
typedef struct {
    fm_tensor normed, logits;
    float *to[FM_LOGIT_ROWS];
    int32_t part[FM_LOGIT_ROWS], n;
} logit_rows;

static fm_status flush(fm_step *s, logit_rows *g, int32_t *at_fault, fm_error *err)
{
    const fm_weights *w = &s->model->weights;
    size_t vocab = (size_t)s->model->manifest.spec.vocab_size;
    fm_tensor logits = fm_tensor_first(g->logits, g->n);

    s->op->matmul(s->backend, logits, s->model->manifest.spec.tied ? w->embed : w->lm_head, fm_tensor_first(g->normed, g->n));
    FM_TRY(finish(s, err));
    FM_TRY(check_activations(s, at_fault, err));
    for (int32_t i = 0; i < g->n; i++) {
        memcpy(g->to[i], host_floats(s, fm_step_rows(logits, i, 1)), vocab * sizeof(float));
        *at_fault = g->part[i];
        FM_TRY(all_finite(g->to[i], vocab, "logit", err));
    }
    *at_fault = -1;
    g->n = 0;
    return FM_OK;
}

/* Logits of the last `wanted` rows of every part, a few rows at a time. */
static fm_status logits(fm_step *s, int32_t *at_fault, fm_error *err)
{
    const fm_model_spec *spec = &s->model->manifest.spec;
    fm_cut cut = fm_cut_start(s->room);
    logit_rows g = {.normed = fm_cut_take(&cut, FM_LOGIT_ROWS, spec->hidden_size),
                    .logits = fm_cut_take(&cut, FM_LOGIT_ROWS, spec->vocab_size)};

    for (int32_t i = 0, end = 0; i < s->parts; i++) {
        const fm_append *p = &s->part[i];
        end += p->n;
        for (int32_t r = 0; r < p->wanted; r++) {
            s->op->norm(s->backend, fm_step_rows(g.normed, g.n, 1), fm_step_rows(s->x, end - p->wanted + r, 1),
                        s->model->weights.norm, spec->norm_eps);
            g.to[g.n] = p->logits + (size_t)r * (size_t)spec->vocab_size;
            g.part[g.n++] = i;
            if (g.n == FM_LOGIT_ROWS) FM_TRY(flush(s, &g, at_fault, err));
        }
    }
    return g.n ? flush(s, &g, at_fault, err) : FM_OK;
}

/* ---- eval ------------------------------------------------------------------------- */

static fm_status layers(fm_step *s, int32_t *at_fault, fm_error *err)
{
    for (s->layer = 0; s->layer < s->model->manifest.spec.layers; s->layer++) {
        fm_error why = {0};
        fm_status status = fm_step_cancelled(s) ? fm_fail(&why, FM_CANCELLED, "cancelled") : fm_layer(s, &why);
        if (status == FM_OK) continue;
        if (status == FM_CANCELLED) *at_fault = first_cancelled(s);
        if (status != FM_NUMERIC) return fm_fail(err, status, "%s", why.message);
        *at_fault = first_not_finite(s);
        return fm_fail(err, status, "layer %d: %s", s->layer, why.message);
    }
    return FM_OK;
}

static fm_status forward(fm_step *s, int32_t *at_fault, fm_error *err)
{
    fill_ropes(s);
    embed(s);
    FM_TRY(layers(s, at_fault, err));
    bool wanted = false;
    for (int32_t i = 0; i < s->parts; i++) wanted |= s->part[i].wanted > 0;
    if (wanted) return logits(s, at_fault, err); /* queued behind the layers: one wait for both */
    FM_TRY(finish(s, err));
    return check_activations(s, at_fault, err);
}

static fm_store_stats store_stats(const fm_model *m)
{
    fm_store_stats stats = {0};
    if (m->store) fm_expert_store_describe(m->store, &stats);
    return stats;
}

/* Rows [first, end) of a step's share of `sum`; the shares of all rows add up to it. */
static uint64_t share(uint64_t sum, int32_t first, int32_t end, int32_t rows)
{
    return sum * (uint64_t)end / (uint64_t)rows - sum * (uint64_t)first / (uint64_t)rows;
}

static void account(const fm_step *s, const fm_store_stats *before, uint64_t started)
{
    fm_store_stats after = store_stats(s->model);
    uint64_t hits = after.hits - before->hits, reads = after.needed - before->needed - hits;
    uint64_t bytes = after.bytes_read - before->bytes_read, elapsed = fm_now_ns() - started;
    bool guesses = s->rows == 1 && !s->model->options.serial && !s->model->options.no_guess;

    if (s->model->store && guesses && reads) fm_expert_store_took(s->model->store, elapsed);
    for (int32_t i = 0, first = 0; i < s->parts; first += s->part[i].n, i++) {
        fm_session_stats *t = &s->part[i].session->stats;
        int32_t end = first + s->part[i].n;
        uint64_t hit = share(hits, first, end, s->rows);
        t->tokens += (uint64_t)s->part[i].n;
        t->experts_used += hit + share(reads, first, end, s->rows);
        t->experts_hit += hit;
        t->bytes_read += share(bytes, first, end, s->rows);
        t->experts_guessed += share(after.guessed - before->guessed, first, end, s->rows);
        t->guesses_used += share(after.guesses_used - before->guesses_used, first, end, s->rows);
        t->guess_bytes_wasted += share(after.guess_bytes_wasted - before->guess_bytes_wasted, first, end, s->rows);
        t->read_wait_ns += after.wait_ns - before->wait_ns;
        t->eval_ns += elapsed;
    }
}

static bool is_cancelled(const void *step)
{
    return fm_step_cancelled(step);
}

/* Room for the new rows, and the rows. */
static fm_status run(fm_step *s, int32_t *at_fault, fm_error *err)
{
    for (*at_fault = 0; *at_fault < s->parts; ++*at_fault) {
        fm_session *session = s->part[*at_fault].session;
        FM_TRY(fm_state_grow(session, session->position + s->part[*at_fault].n, err));
    }
    *at_fault = -1;
    return forward(s, at_fault, err);
}

static fm_status eval(const fm_append *part, int32_t parts, int32_t *at_fault, fm_error *err)
{
    fm_model *m = part->session->model;
    int32_t rows = 0;

    fm_model_relieve(m);
    for (*at_fault = 0; *at_fault < parts; rows += part[*at_fault].n, ++*at_fault) FM_TRY(check(&part[*at_fault], rows, err));
    fm_step step = {
        .part = part,
        .parts = parts,
        .model = m,
        .backend = m->backend,
        .op = m->backend->ops,
        .room = &m->room,
        .rows = rows,
        .x = fm_tensor_first(m->room.x, rows),
        .normed = fm_tensor_first(m->room.normed, rows),
        .y = fm_tensor_first(m->room.y, rows),
    };
    fm_store_stats before = store_stats(m);
    fm_trace_step(&m->trace);
    uint64_t started = fm_now_ns();
    if (m->store) fm_expert_store_watch(m->store, is_cancelled, &step);
    fm_status status = run(&step, at_fault, err);
    if (m->store) fm_expert_store_watch(m->store, NULL, NULL);
    if (status != FM_OK) return status;
    for (int32_t i = 0; i < parts; i++) { /* only now: a failure leaves the old states */
        part[i].session->now = !part[i].session->now;
        part[i].session->position += part[i].n;
    }
    account(&step, &before, started);
    return FM_OK;
}

fm_status fm_sessions_eval(const fm_append *parts, int32_t count, int32_t *at_fault, fm_error *err)
{
    int32_t unasked;
    if (!at_fault) at_fault = &unasked;
    FM_TRY(check_sessions(parts, count, at_fault, err));
    pthread_mutex_lock(&parts->session->model->turn);
    fm_status status = eval(parts, count, at_fault, err);
    pthread_mutex_unlock(&parts->session->model->turn);
    for (int32_t i = 0; status == FM_CANCELLED && i < count; i++) atomic_store(&parts[i].session->cancel, 0);
    return status;
}

fm_status fm_session_eval(fm_session *session, const int32_t *tokens, int32_t n, float *logits_out, int32_t wanted, fm_error *err)
{
    const fm_append one = {session, tokens, n, logits_out, wanted, NULL};
    return fm_sessions_eval(&one, 1, NULL, err);
}
