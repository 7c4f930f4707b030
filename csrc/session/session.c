/* fm_session_*: one sequence; checks, the layer loop, logits. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "session/state.h"
#include "session/step.h"

fm_status fm_session_open(fm_model *model, fm_session **out, fm_error *err)
{
    fm_session *s = calloc(1, sizeof *s);
    if (!s) return fm_fail(err, FM_MEMORY, "no memory for a session");
    s->model = model;
    pthread_mutex_lock(&model->turn);
    fm_status status = fm_state_open(s, err);
    if (status == FM_OK) model->sessions++;
    else fm_state_close(s);
    pthread_mutex_unlock(&model->turn);
    if (status == FM_OK) *out = s;
    else free(s);
    return status;
}

void fm_session_close(fm_session *session)
{
    if (!session) return;
    pthread_mutex_lock(&session->model->turn);
    fm_state_close(session);
    session->model->sessions--;
    pthread_mutex_unlock(&session->model->turn);
    free(session);
}

int32_t fm_session_position(const fm_session *session)
{
    return session->position;
}

void fm_session_reset(fm_session *session)
{
    pthread_mutex_lock(&session->model->turn);
    fm_state_reset(session);
    pthread_mutex_unlock(&session->model->turn);
}

void fm_session_cancel(fm_session *session)
{
    atomic_store(&session->cancel, 1);
}

void fm_session_describe(const fm_session *session, fm_session_stats *out)
{
    *out = session->stats;
}

/* ---- eval ------------------------------------------------------------------- */

static fm_status check(const fm_session *s, const int32_t *tokens, int32_t n, int32_t wanted, fm_error *err)
{
    const fm_model *m = s->model;
    if (n < 1 || n > m->room.rows) return fm_fail(err, FM_ARGUMENT, "%d tokens at once are not in 1 .. %d", n, m->room.rows);
    if (wanted < 0 || wanted > n) return fm_fail(err, FM_ARGUMENT, "logits of %d of %d tokens", wanted, n);
    for (int32_t i = 0; i < n; i++)
        if (tokens[i] < 0 || tokens[i] >= m->manifest.spec.vocab_size)
            return fm_fail(err, FM_ARGUMENT, "token %d is %d, the vocabulary has 0 .. %d", i, tokens[i],
                           m->manifest.spec.vocab_size - 1);
    if (n > m->manifest.spec.max_positions - s->position)
        return fm_fail(err, FM_FULL, "%d tokens after %d are more than the model's context of %d", n, s->position,
                       m->manifest.spec.max_positions);
    return FM_OK;
}

fm_tensor fm_step_rope(const fm_step *s, int32_t rope)
{
    fm_tensor t = s->room->table;
    t.offset += (size_t)rope * s->room->table_stride;
    t.rows = s->rows;
    t.cols = s->model->manifest.spec.rope[rope].dims;
    return t;
}

/* Cosines and sines of the step's positions, in double: positions reach 10^6 and bases 10^7. */
static void fill_ropes(const fm_step *s)
{
    const fm_model_spec *spec = &s->model->manifest.spec;
    for (int32_t i = 0; i < spec->ropes; i++) {
        const fm_rope_spec *rope = &spec->rope[i];
        fm_tensor t = fm_step_rope(s, i);
        float *row = (float *)(void *)((uint8_t *)s->op->host(t.buf) + t.offset);
        for (int32_t r = 0; r < s->rows; r++, row += rope->dims)
            for (int32_t j = 0; j < rope->dims / 2; j++) {
                double angle = (double)(s->position + r) * rope->inv_freq[j];
                row[j] = (float)(cos(angle) * rope->scale);
                row[rope->dims / 2 + j] = (float)(sin(angle) * rope->scale);
            }
    }
}

static fm_status all_finite(const float *x, size_t n, const char *what, fm_error *err)
{
    for (size_t i = 0; i < n; i++)
        if (!isfinite(x[i]))
            return fm_fail(err, FM_NUMERIC, "%s %zu is not finite; if weights are sound, try kv_dtype=\"bf16\"", what, i);
    return FM_OK;
}

/* Rows [first, first + n) of a tensor. */
static fm_tensor rows_from(fm_tensor t, int32_t first, int32_t n)
{
    t.offset += (size_t)first * (size_t)t.cols * sizeof(float);
    t.rows = n;
    return t;
}

static const float *host_floats(const fm_step *s, fm_tensor t)
{
    return (const float *)(const void *)((const uint8_t *)s->op->host(t.buf) + t.offset);
}

/* Logits of the last `wanted` rows, a few rows at a time. */
static fm_status logits(fm_step *s, float *out, int32_t wanted, fm_error *err)
{
    const fm_weights *w = &s->model->weights;
    const fm_model_spec *spec = &s->model->manifest.spec;
    size_t vocab = (size_t)spec->vocab_size;

    for (int32_t first = s->rows - wanted; first < s->rows; first += FM_LOGIT_ROWS) {
        int32_t n = s->rows - first < FM_LOGIT_ROWS ? s->rows - first : FM_LOGIT_ROWS;
        fm_cut cut = fm_cut_start(s->room);
        fm_tensor normed = fm_cut_take(&cut, n, spec->hidden_size), rows = fm_cut_take(&cut, n, spec->vocab_size);
        s->op->norm(s->backend, normed, rows_from(s->x, first, n), w->norm, spec->norm_eps);
        s->op->matmul(s->backend, rows, spec->tied ? w->embed : w->lm_head, normed);
        FM_TRY(s->op->wait(s->backend, s->op->submit(s->backend), err));
        memcpy(out, host_floats(s, rows), (size_t)n * vocab * sizeof(float));
        FM_TRY(all_finite(out, (size_t)n * vocab, "logit", err));
        out += (size_t)n * vocab;
    }
    return FM_OK;
}

static fm_status forward(fm_step *s, const int32_t *tokens, float *out, int32_t wanted, fm_error *err)
{
    fill_ropes(s);
    s->op->embed(s->backend, s->x, s->model->weights.embed, tokens);
    for (s->layer = 0; s->layer < s->model->manifest.spec.layers; s->layer++) {
        if (atomic_load_explicit(&s->session->cancel, memory_order_relaxed)) return fm_fail(err, FM_CANCELLED, "cancelled");
        fm_error why = {0};
        fm_status status = fm_layer(s, &why);
        if (status == FM_NUMERIC) return fm_fail(err, status, "layer %d: %s", s->layer, why.message);
        if (status != FM_OK) return fm_fail(err, status, "%s", why.message);
    }
    FM_TRY(s->op->wait(s->backend, s->op->submit(s->backend), err));
    fm_tensor last = rows_from(s->x, s->rows - 1, 1);
    FM_TRY(all_finite(host_floats(s, last), (size_t)last.cols, "activation", err));
    return logits(s, out, wanted, err);
}

static fm_store_stats store_stats(const fm_model *m)
{
    fm_store_stats stats = {0};
    if (m->store) fm_expert_store_describe(m->store, &stats);
    return stats;
}

static void account(fm_session *session, int32_t n, const fm_store_stats *before, uint64_t started)
{
    fm_store_stats after = store_stats(session->model);
    fm_session_stats *t = &session->stats;
    t->tokens += (uint64_t)n;
    t->experts_used += after.needed - before->needed;
    t->experts_hit += after.hits - before->hits;
    t->bytes_read += after.bytes_read - before->bytes_read;
    t->read_wait_ns += after.wait_ns - before->wait_ns;
    t->eval_ns += fm_now_ns() - started;
}

static fm_status eval(fm_session *session, const int32_t *tokens, int32_t n, float *out, int32_t wanted, fm_error *err)
{
    fm_model *m = session->model;
    FM_TRY(check(session, tokens, n, wanted, err));
    FM_TRY(fm_state_grow(session, session->position + n, err));

    fm_step step = {
        .session = session,
        .model = m,
        .backend = m->backend,
        .op = m->backend->ops,
        .room = &m->room,
        .rows = n,
        .position = session->position,
        .x = fm_tensor_first(m->room.x, n),
        .normed = fm_tensor_first(m->room.normed, n),
        .y = fm_tensor_first(m->room.y, n),
    };
    fm_store_stats before = store_stats(m);
    uint64_t started = fm_now_ns();
    FM_TRY(forward(&step, tokens, out, wanted, err));
    session->now = !session->now; /* only now: a failure leaves the old state */
    session->position += n;
    account(session, n, &before, started);
    return FM_OK;
}

fm_status fm_session_eval(fm_session *session, const int32_t *tokens, int32_t n, float *logits_out, int32_t wanted, fm_error *err)
{
    pthread_mutex_lock(&session->model->turn);
    fm_status status = eval(session, tokens, n, logits_out, wanted, err);
    pthread_mutex_unlock(&session->model->turn);
    if (status == FM_CANCELLED) atomic_store(&session->cancel, 0);
    return status;
}
