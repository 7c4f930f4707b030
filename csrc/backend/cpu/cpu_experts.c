/* Routed experts: each expert's rows gathered, gate and up, then down; and their weighted sum. */
#include "backend/cpu/cpu.h"

#include <string.h>

#define STEP FM_EXPERT_STEP

typedef struct {
    fm_cpu *c;
    const fm_expert_shape *s;
    const fm_pick *pick;
    int32_t n, steps; /* picks; pieces an expert */
    int32_t groups;
    int32_t first[513]; /* picks of group g: first[g] .. first[g + 1] */
    const uint8_t *slots;
    size_t slot_bytes;
    fm_rows x;      /* all rows of the step */
    fm_rows hidden; /* all picks */
    float *outs;
} experts_job;

/* The rows of one group side by side, in the thread's own memory. */
static fm_rows gather(const experts_job *j, int32_t group, int32_t worker, float **free_at)
{
    int32_t first = j->first[group], rows = j->first[group + 1] - first;
    uint8_t *at = j->c->worker + (size_t)worker * j->c->worker_bytes;
    fm_rows r = j->x;
    r.rows = rows;

    if (r.q) {
        int8_t *q = (int8_t *)at;
        float *scale = (float *)(void *)(at + (size_t)rows * r.q_stride), *sum = scale + (size_t)rows * r.block_stride;
        for (int32_t i = 0; i < rows; i++) {
            size_t row = (size_t)j->pick[first + i].row;
            memcpy(q + (size_t)i * r.q_stride, j->x.q + row * r.q_stride, r.q_stride);
            memcpy(scale + (size_t)i * r.block_stride, j->x.scale + row * r.block_stride, r.block_stride * sizeof(float));
            memcpy(sum + (size_t)i * r.block_stride, j->x.sum + row * r.block_stride, r.block_stride * sizeof(float));
        }
        r.q = q;
        r.scale = scale;
        r.sum = sum;
        at = (uint8_t *)(sum + (size_t)rows * r.block_stride);
        at += -(uintptr_t)at & 63;
    }
    float *x = (float *)(void *)at;
    for (int32_t i = 0; i < rows; i++)
        memcpy(x + (size_t)i * r.x_stride, j->x.x + (size_t)j->pick[first + i].row * r.x_stride, (size_t)r.cols * sizeof(float));
    r.x = x;
    *free_at = x + (size_t)rows * r.x_stride;
    return r;
}

/* out[r][i - first] = rows first .. last of one of the group's matrices, with or without int8 codes. */
static void product(const experts_job *j, fm_quant quant, int32_t rows, int32_t cols, uint32_t at, int32_t group, int32_t first,
                    int32_t last, fm_rows x, float *out, size_t stride)
{
    const uint8_t *slot = j->slots + (size_t)j->pick[j->first[group]].slot * j->slot_bytes;
    fm_matrix whole = fm_matrix_at(quant, rows, cols, slot + at), w = fm_cpu_band(&whole, first, last);
    if (!fm_cpu_wants_q8(j->c, quant)) x.q = NULL;
    j->c->k->matmul(&w, 0, w.rows, &x, out, stride);
}

static void gate_up_piece(void *context, int32_t piece, int32_t worker)
{
    const experts_job *j = context;
    const fm_expert_shape *s = j->s;
    int32_t group = piece / j->steps, first = piece % j->steps * STEP;
    int32_t last = first + STEP < s->intermediate_size ? first + STEP : s->intermediate_size;
    float *gate;
    fm_rows x = gather(j, group, worker, &gate);
    float *up = gate + (size_t)x.rows * STEP;

    product(j, s->gate_quant, s->intermediate_size, s->hidden_size, s->gate_at, group, first, last, x, gate, STEP);
    product(j, s->up_quant, s->intermediate_size, s->hidden_size, s->up_at, group, first, last, x, up, STEP);
    for (int32_t i = 0; i < x.rows; i++)
        j->c->k->swiglu(j->c->hidden + (size_t)(j->first[group] + i) * (size_t)s->intermediate_size + first,
                        gate + (size_t)i * STEP, up + (size_t)i * STEP, last - first);
}

static void down_piece(void *context, int32_t piece, int32_t worker)
{
    (void)worker;
    const experts_job *j = context;
    const fm_expert_shape *s = j->s;
    int32_t group = piece / j->steps, first = piece % j->steps * STEP, at = j->first[group];
    int32_t last = first + STEP < s->hidden_size ? first + STEP : s->hidden_size;
    fm_rows x = j->hidden;

    x.rows = j->first[group + 1] - at;
    x.x += (size_t)at * x.x_stride;
    if (x.q) {
        x.q += (size_t)at * x.q_stride;
        x.scale += (size_t)at * x.block_stride;
        x.sum += (size_t)at * x.block_stride;
    }
    product(j, s->down_quant, s->hidden_size, s->intermediate_size, s->down_at, group, first, last, x,
            j->outs + (size_t)at * (size_t)s->hidden_size + first, (size_t)s->hidden_size);
}

/* Up to 512 experts that stand together in `pick`. */
static void some_experts(experts_job *j)
{
    fm_cpu *c = j->c;
    const fm_expert_shape *s = j->s;

    j->steps = fm_pieces(s->intermediate_size, STEP);
    fm_pool_run(c->pool, j->groups * j->steps, gate_up_piece, j);
    j->hidden = fm_cpu_rows(c, c->hidden, j->n, s->intermediate_size, fm_cpu_wants_q8(c, s->down_quant), c->hidden_q8);
    j->steps = fm_pieces(s->hidden_size, STEP);
    fm_pool_run(c->pool, j->groups * j->steps, down_piece, j);
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
            if (j.groups == 512) break;
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
    int32_t n, cols;
} combine_job;

/* A band of columns of every row, so that each sum runs in the order of the picks. */
static void combine_piece(void *context, int32_t piece, int32_t worker)
{
    (void)worker;
    const combine_job *j = context;
    int32_t first = piece * 512, n = j->cols - first < 512 ? j->cols - first : 512;
    for (int32_t i = 0; i < j->n; i++)
        j->k->axpy(j->x + (size_t)j->pick[i].row * (size_t)j->cols + first, j->pick[i].share,
                   j->outs + (size_t)i * (size_t)j->cols + first, n);
}

void fm_cpu_combine(fm_backend *b, fm_tensor x, fm_tensor outs, const fm_pick *pick, int32_t n)
{
    fm_cpu *c = fm_cpu_of(b);
    combine_job j = {c->k, fm_cpu_floats(x), fm_cpu_floats(outs), pick, n, x.cols};
    fm_pool_run(c->pool, fm_pieces(x.cols, 512), combine_piece, &j);
}
