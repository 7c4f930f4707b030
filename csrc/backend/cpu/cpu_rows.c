/* Verbs that treat every row alike: embed, norm, add, swiglu, gate. */
#include "backend/cpu/cpu.h"

/* ---- one row, one piece --------------------------------------------------- */

typedef struct {
    const fm_kernels *k;
    float *out;
    const float *x, *y;
    int32_t cols;
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
    rows_job j = {c->k, fm_cpu_floats(out), fm_cpu_floats(x), fm_cpu_floats(weight), x.cols, eps};
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
    rows_job j = {c->k, fm_cpu_floats(out), fm_cpu_floats(gate), fm_cpu_floats(up), gate.cols, 0};
    fm_pool_run(c->pool, gate.rows, swiglu_piece, &j);
}

static void gate_piece(void *context, int32_t row, int32_t worker)
{
    (void)worker;
    const rows_job *j = context;
    size_t at = (size_t)row * (size_t)j->cols;

    j->k->gate(j->out + at, j->x + at, j->y + at, j->cols);
}

void fm_cpu_gate(fm_backend *b, fm_tensor out, fm_tensor x, fm_tensor gate)
{
    fm_cpu *c = fm_cpu_of(b);
    rows_job j = {c->k, fm_cpu_floats(out), fm_cpu_floats(x), fm_cpu_floats(gate), x.cols, 0};
    fm_pool_run(c->pool, x.rows, gate_piece, &j);
}

static void add_piece(void *context, int32_t row, int32_t worker)
{
    (void)worker;
    const rows_job *j = context;
    size_t at = (size_t)row * (size_t)j->cols;
    for (int32_t i = 0; i < j->cols; i++, at++) j->out[at] = j->x[at] + j->y[at];
}

void fm_cpu_add(fm_backend *b, fm_tensor out, fm_tensor x, fm_tensor y)
{
    fm_cpu *c = fm_cpu_of(b);
    rows_job j = {c->k, fm_cpu_floats(out), fm_cpu_floats(x), fm_cpu_floats(y), x.cols, 0};
    fm_pool_run(c->pool, x.rows, add_piece, &j);
}

void fm_cpu_embed(fm_backend *b, fm_tensor out, fm_tensor table, const int32_t *ids)
{
    (void)b;
    fm_matrix m = fm_cpu_matrix(table);
    for (int32_t r = 0; r < out.rows; r++) fm_matrix_decode_row(&m, ids[r], fm_cpu_floats(out) + (size_t)r * (size_t)out.cols);
}
