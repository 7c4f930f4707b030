/* Routed experts: each expert's rows gathered, gate and up, then down; and their weighted sum. */
#include "backend/cpu/cpu.h"

#include <string.h>

#define GROUPS 512          /* experts of one go */
#define ROWS FM_EXPERT_ROWS /* rows of an expert that one piece gathers at a time */

typedef struct {
    fm_cpu *c;
    const fm_expert_shape *s;
    const fm_pick *pick;
    int32_t n, step; /* picks; output rows of a matrix that one piece makes */
    int32_t pieces;  /* an expert */
    int32_t groups;
    int32_t first[GROUPS + 1]; /* picks of group g: first[g] .. first[g + 1] */
    const uint8_t *slots;
    size_t slot_bytes;
    fm_rows x;      /* all rows of the step */
    fm_rows hidden; /* all picks */
    float *outs;
} experts_job;

/* The step's rows of pick[first .. first + n) side by side in `at`. */
static fm_rows gather(const experts_job *j, int32_t first, int32_t n, uint8_t *at)
{
    fm_rows r = j->x;
    r.rows = n;
    if (r.q) {
        fm_q8_room room = fm_cpu_take_q8(&at, n, r.cols);
        for (int32_t i = 0; i < n; i++) {
            size_t row = (size_t)j->pick[first + i].row, to = (size_t)i;
            memcpy(room.q + to * r.q_stride, j->x.q + row * r.q_stride, r.q_stride);
            memcpy(room.scale + to * r.block_stride, j->x.scale + row * r.block_stride, r.block_stride * sizeof(float));
            memcpy(room.sum + to * r.block_stride, j->x.sum + row * r.block_stride, r.block_stride * sizeof(float));
        }
        r.q = room.q;
        r.scale = room.scale;
        r.sum = room.sum;
    }
    if (!fm_cpu_wants_q8(j->c, j->s->gate_quant) || !fm_cpu_wants_q8(j->c, j->s->up_quant)) {
        float *x = (float *)(void *)at;
        for (int32_t i = 0; i < n; i++)
            memcpy(x + (size_t)i * r.x_stride, j->x.x + (size_t)j->pick[first + i].row * r.x_stride,
                   (size_t)r.cols * sizeof(float));
        r.x = x;
    }
    return r;
}

/* out[i][r - first] = row i of x times row r of one of an expert's matrices, r = first .. last. */
static void product(const experts_job *j, fm_quant quant, int32_t rows, int32_t cols, uint32_t at, int32_t slot, int32_t first,
                    int32_t last, fm_rows x, float *out, size_t stride)
{
    const uint8_t *weights = j->slots + (size_t)slot * j->slot_bytes + at;
    fm_matrix whole = fm_matrix_at(quant, rows, cols, weights), w = fm_cpu_band(&whole, first, last);
    if (!fm_cpu_wants_q8(j->c, quant)) x.q = NULL;
    j->c->k->matmul(&w, 0, w.rows, &x, out, stride);
}

/* swiglu(gate, up) of pick `i`, columns first .. last, as the down product wants it. */
static void keep_hidden(const experts_job *j, int32_t i, int32_t first, int32_t last, float *gate, const float *up)
{
    fm_cpu *c = j->c;
    int32_t n = last - first, inner = j->s->intermediate_size;
    c->k->swiglu(gate, gate, up, n);
    if (!fm_cpu_wants_q8(c, j->s->down_quant)) {
        memcpy(c->hidden + (size_t)i * (size_t)inner + first, gate, (size_t)n * sizeof *gate);
        return;
    }
    size_t stride = fm_q8_stride(inner), block = (size_t)i * (stride / FM_Q8_BLOCK) + (size_t)(first / FM_Q8_BLOCK);
    c->k->quantise(gate, n, c->hidden_q8.q + (size_t)i * stride + first, c->hidden_q8.scale + block, c->hidden_q8.sum + block);
}

static void gate_up_piece(void *context, int32_t piece, int32_t worker)
{
    const experts_job *j = context;
    const fm_expert_shape *s = j->s;
    int32_t group = piece / j->pieces, first = piece % j->pieces * j->step, end = j->first[group + 1];
    int32_t last = first + j->step < s->intermediate_size ? first + j->step : s->intermediate_size;
    size_t wide = (size_t)(last - first);
    uint8_t *at = j->c->worker + (size_t)worker * j->c->worker_bytes;
    float *gate = fm_cpu_take(&at, ROWS * wide * sizeof *gate), *up = fm_cpu_take(&at, ROWS * wide * sizeof *up);

    for (int32_t from = j->first[group], n; from < end; from += n) {
        n = end - from < ROWS ? end - from : ROWS;
        int32_t slot = j->pick[from].slot;
        fm_rows x = gather(j, from, n, at);
        product(j, s->gate_quant, s->intermediate_size, s->hidden_size, s->gate_at, slot, first, last, x, gate, wide);
        product(j, s->up_quant, s->intermediate_size, s->hidden_size, s->up_at, slot, first, last, x, up, wide);
        for (int32_t i = 0; i < n; i++) keep_hidden(j, from + i, first, last, gate + (size_t)i * wide, up + (size_t)i * wide);
    }
}

static void down_piece(void *context, int32_t piece, int32_t worker)
{
    (void)worker;
    const experts_job *j = context;
    const fm_expert_shape *s = j->s;
    int32_t group = piece / j->pieces, first = piece % j->pieces * j->step, at = j->first[group];
    int32_t last = first + j->step < s->hidden_size ? first + j->step : s->hidden_size;
    fm_rows x = j->hidden;

    x.rows = j->first[group + 1] - at;
    x.x += (size_t)at * x.x_stride;
    if (x.q) {
        x.q += (size_t)at * x.q_stride;
        x.scale += (size_t)at * x.block_stride;
        x.sum += (size_t)at * x.block_stride;
    }
    product(j, s->down_quant, s->hidden_size, s->intermediate_size, s->down_at, j->pick[at].slot, first, last, x,
            j->outs + (size_t)at * (size_t)s->hidden_size + first, (size_t)s->hidden_size);
}

/* Whole experts where there are many; else parts of at least 64 rows, so that all threads have some. */
static void run(experts_job *j, int32_t rows, fm_job job)
{
    int32_t parts = fm_pieces(4 * j->c->threads, j->groups), most = fm_pieces(rows, 64);
    if (parts > most) parts = most;
    j->step = fm_pieces(fm_pieces(rows, parts), 64) * 64;
    j->pieces = fm_pieces(rows, j->step);
    fm_pool_run(j->c->pool, j->groups * j->pieces, job, j);
}

/* Up to GROUPS experts that stand together in `pick`. */
static void some_experts(experts_job *j)
{
    fm_cpu *c = j->c;
    const fm_expert_shape *s = j->s;
    size_t stride = fm_q8_stride(s->intermediate_size);

    run(j, s->intermediate_size, gate_up_piece);
    j->hidden = (fm_rows){.cols = s->intermediate_size, .x = c->hidden, .x_stride = (size_t)s->intermediate_size};
    if (fm_cpu_wants_q8(c, s->down_quant)) {
        j->hidden.q = c->hidden_q8.q;
        j->hidden.scale = c->hidden_q8.scale;
        j->hidden.sum = c->hidden_q8.sum;
        j->hidden.q_stride = stride;
        j->hidden.block_stride = stride / FM_Q8_BLOCK;
    }
    run(j, s->hidden_size, down_piece);
}

void fm_cpu_experts(fm_backend *b, fm_tensor outs, fm_tensor x, fm_buf *slots, size_t slot_bytes, const fm_pick *pick, int32_t n,
                    const fm_expert_shape *s)
{
    fm_cpu *c = fm_cpu_of(b);
    bool q8 = fm_cpu_wants_q8(c, s->gate_quant) || fm_cpu_wants_q8(c, s->up_quant);
    experts_job j = {.c = c, .s = s, .slots = slots->host, .slot_bytes = slot_bytes};
    j.x = fm_cpu_rows(c, fm_cpu_floats(x), x.rows, x.cols, q8, c->input);

    for (int32_t done = 0; done < n; done += j.n) {
        j.pick = pick + done;
        j.outs = fm_cpu_floats(outs) + (size_t)done * (size_t)outs.cols;
        j.groups = 0;
        int32_t i = 0;
        for (; done + i < n; i++) {
            if (i && j.pick[i].slot == j.pick[i - 1].slot) continue;
            if (j.groups == GROUPS) break;
            j.first[j.groups++] = i;
        }
        j.first[j.groups] = j.n = i;
        some_experts(&j);
    }
}

typedef struct {
    const fm_kernels *k;
    float *x;
    const float *outs;
    const fm_pick *pick;
    const float *shared, *score; /* NULL: none */
    int32_t n, rows, cols, step;
} combine_job;

/* A band of columns of every row, so that each sum runs in the order of the picks. */
static void combine_piece(void *context, int32_t piece, int32_t worker)
{
    (void)worker;
    const combine_job *j = context;
    int32_t first = piece * j->step, n = j->cols - first < j->step ? j->cols - first : j->step;
    for (int32_t i = 0; i < j->n; i++)
        j->k->axpy(j->x + (size_t)j->pick[i].row * (size_t)j->cols + first, j->pick[i].share,
                   j->outs + (size_t)i * (size_t)j->cols + first, n);
    for (int32_t r = 0; j->shared && r < j->rows; r++) {
        float one = 1, share;
        j->k->gate(&share, &one, j->score + r, 1);
        size_t at = (size_t)r * (size_t)j->cols + (size_t)first;
        for (int32_t i = 0; i < n; i++, at++) {
            float gated = j->shared[at] * share;
            j->x[at] += gated;
        }
    }
}

void fm_cpu_combine(fm_backend *b, fm_tensor x, fm_tensor outs, const fm_pick *pick, int32_t n, fm_tensor shared, fm_tensor score)
{
    fm_cpu *c = fm_cpu_of(b);
    combine_job j = {c->k, fm_cpu_floats(x), fm_cpu_floats(outs), pick, NULL, NULL, n, x.rows, x.cols, 512};
    if (shared.buf) {
        j.shared = fm_cpu_floats(shared);
        j.score = fm_cpu_floats(score);
    }
    if (n < 64) j.step = x.cols; /* one token's sum is done sooner than handed over */
    fm_pool_run(c->pool, fm_pieces(x.cols, j.step), combine_piece, &j);
}
