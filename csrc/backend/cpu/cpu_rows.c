/* Verbs that treat every row alike: embed, norm, matmul, add, swiglu, gate. */
#include "backend/cpu/cpu.h"

/* ---- products ------------------------------------------------------------ */

typedef struct {
    const fm_kernels *k;
    fm_rows x;
    fm_q8_room room;
    size_t stride, blocks;
} quantise_job;

static void quantise_piece(void *context, int32_t row, int32_t worker)
{
    (void)worker;
    const quantise_job *j = context;
    j->k->quantise(j->x.x + (size_t)row * j->x.x_stride, j->x.cols, j->room.q + (size_t)row * j->stride,
                   j->room.scale + (size_t)row * j->blocks, j->room.sum + (size_t)row * j->blocks);
}

fm_rows fm_cpu_rows(fm_cpu *c, const float *x, int32_t rows, int32_t cols, bool q8, fm_q8_room room)
{
    fm_rows r = {.rows = rows, .cols = cols, .x = x, .x_stride = (size_t)cols};
    if (!q8) return r;
    r.q_stride = fm_q8_stride(cols);
    r.block_stride = r.q_stride / FM_Q8_BLOCK;
    quantise_job j = {c->k, r, room, r.q_stride, r.block_stride};
    fm_pool_run(c->pool, rows, quantise_piece, &j);
    r.q = room.q;
    r.scale = room.scale;
    r.sum = room.sum;
    return r;
}

int32_t fm_cpu_step(const fm_matrix *w, int32_t rows)
{
    /* about 64 KiB of weights, or less when many rows make each of them dear */
    int32_t bits = w->quant.kind == FM_AFFINE ? w->quant.bits : w->quant.kind == FM_F32 ? 32 : 16;
    int64_t step = 65536 * 8 / ((int64_t)w->cols * bits + 1) + 1;
    if (rows > 8) step = step / 2 + 1;
    if (step > 256) step = 256;
    return (int32_t)((step + 15) / 16 * 16);
}

typedef struct {
    const fm_kernels *k;
    fm_matrix w;
    fm_rows x;
    float *out;
    int32_t step;
} matmul_job;

static void matmul_piece(void *context, int32_t piece, int32_t worker)
{
    (void)worker;
    const matmul_job *j = context;
    int32_t first = piece * j->step, last = first + j->step;
    if (last > j->w.rows) last = j->w.rows;
    j->k->matmul(&j->w, first, last, &j->x, j->out, (size_t)j->w.rows);
}

static void matmul(fm_backend *b, fm_tensor out, fm_tensor weight, fm_tensor x, bool exact)
{
    fm_cpu *c = fm_cpu_of(b);
    matmul_job j = {.k = c->k, .w = fm_cpu_matrix(weight), .out = fm_cpu_floats(out)};
    j.x = fm_cpu_rows(c, fm_cpu_floats(x), x.rows, x.cols, !exact && fm_cpu_wants_q8(c, weight.quant), c->input);
    j.step = fm_cpu_step(&j.w, x.rows);
    fm_pool_run(c->pool, fm_pieces(j.w.rows, j.step), matmul_piece, &j);
}

void fm_cpu_matmul(fm_backend *b, fm_tensor out, fm_tensor weight, fm_tensor x)
{
    matmul(b, out, weight, x, false);
}

void fm_cpu_matmul_exact(fm_backend *b, fm_tensor out, fm_tensor weight, fm_tensor x)
{
    matmul(b, out, weight, x, true);
}

/* ---- one row, one piece --------------------------------------------------- */

typedef struct {
    const fm_kernels *k;
    float *out;
    const float *x, *y;
    int32_t cols, y_cols;
    float eps;
} rows_job;

static void norm_piece(void *context, int32_t row, int32_t worker)
{
    (void)worker;
    const rows_job *j = context;
    size_t at = (size_t)row * (size_t)j->cols;
    j->k->norm(j->out + at, j->x + at, j->y, j->cols, j->eps);
}

void fm_cpu_norm(fm_backend *b, fm_tensor out, fm_tensor x, fm_tensor weight, float eps)
{
    fm_cpu *c = fm_cpu_of(b);
    rows_job j = {c->k, fm_cpu_floats(out), fm_cpu_floats(x), fm_cpu_floats(weight), x.cols, 0, eps};
    fm_pool_run(c->pool, x.rows, norm_piece, &j);
}

static void swiglu_piece(void *context, int32_t row, int32_t worker)
{
    (void)worker;
    const rows_job *j = context;
    size_t at = (size_t)row * (size_t)j->cols;
    j->k->swiglu(j->out + at, j->x + at, j->y + at, j->cols);
}

void fm_cpu_swiglu(fm_backend *b, fm_tensor out, fm_tensor gate, fm_tensor up)
{
    fm_cpu *c = fm_cpu_of(b);
    rows_job j = {c->k, fm_cpu_floats(out), fm_cpu_floats(gate), fm_cpu_floats(up), gate.cols, 0, 0};
    fm_pool_run(c->pool, gate.rows, swiglu_piece, &j);
}

static void gate_piece(void *context, int32_t row, int32_t worker)
{
    (void)worker;
    const rows_job *j = context;
    size_t at = (size_t)row * (size_t)j->cols;

    if (j->y_cols == j->cols) {
        j->k->gate(j->out + at, j->x + at, j->y + at, j->cols);
        return;
    }
    float one = 1, share; /* one gate for the whole row */
    j->k->gate(&share, &one, j->y + row, 1);
    for (int32_t i = 0; i < j->cols; i++) j->out[at + (size_t)i] = j->x[at + (size_t)i] * share;
}

void fm_cpu_gate(fm_backend *b, fm_tensor out, fm_tensor x, fm_tensor gate)
{
    fm_cpu *c = fm_cpu_of(b);
    rows_job j = {c->k, fm_cpu_floats(out), fm_cpu_floats(x), fm_cpu_floats(gate), x.cols, gate.cols, 0};
    fm_pool_run(c->pool, x.rows, gate_piece, &j);
}

void fm_cpu_add(fm_backend *b, fm_tensor out, fm_tensor x, fm_tensor y)
{
    (void)b;
    float *o = fm_cpu_floats(out);
    const float *p = fm_cpu_floats(x), *q = fm_cpu_floats(y);
    for (size_t i = 0, n = (size_t)x.rows * (size_t)x.cols; i < n; i++) o[i] = p[i] + q[i];
}

void fm_cpu_embed(fm_backend *b, fm_tensor out, fm_tensor table, const int32_t *ids)
{
    (void)b;
    fm_matrix m = fm_cpu_matrix(table);
    for (int32_t r = 0; r < out.rows; r++) fm_matrix_decode_row(&m, ids[r], fm_cpu_floats(out) + (size_t)r * (size_t)out.cols);
}
