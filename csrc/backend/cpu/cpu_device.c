/* The CPU as a device: memory, scratch, and an order in which everything is done at once. */
#include "backend/cpu/cpu.h"

#include <stdlib.h>

static void cpu_close(fm_backend *b)
{
    fm_cpu *c = fm_cpu_of(b);
    if (!c) return;
    fm_pool_close(c->pool);
    if (c->scratch) fm_pages_unmap(c->scratch, c->scratch_bytes);
    free(c);
}

static fm_status cpu_open(const fm_device_options *options, fm_backend **out, fm_error *err)
{
    fm_status status;
    fm_cpu *c = calloc(1, sizeof *c);
    if (!c) return fm_fail(err, FM_MEMORY, "no memory for the device");
    c->base.ops = &fm_cpu_ops;
    c->threads = options->threads;
    FM_TRY_UNDO(fm_kernels_select(options->kernels, &c->k, err));
    FM_TRY_UNDO(fm_pool_open(options->threads, &c->pool, err));
    *out = &c->base;
    return FM_OK;
undo:
    cpu_close(&c->base);
    return status;
}

static const char *cpu_variant(const fm_backend *b)
{
    return ((const fm_cpu *)b)->k->name;
}

/* ---- memory ------------------------------------------------------------- */

static fm_status cpu_alloc(fm_backend *b, size_t bytes, fm_buf_kind kind, fm_buf **out, fm_error *err)
{
    (void)b, (void)kind;
    void *host;
    fm_buf *buf = calloc(1, sizeof *buf);
    if (!buf) return fm_fail(err, FM_MEMORY, "no memory for a buffer");
    fm_status status = fm_pages_map(bytes, &host, err);
    if (status != FM_OK) {
        free(buf);
        return status;
    }
    *buf = (fm_buf){host, bytes};
    *out = buf;
    return FM_OK;
}

static size_t cpu_largest(const fm_backend *b)
{
    (void)b;
    return SIZE_MAX / 2;
}

static size_t cpu_room(const fm_backend *b)
{
    (void)b;
    return SIZE_MAX;
}

static fm_status cpu_grow(fm_backend *b, fm_buf *buf, size_t bytes, fm_error *err)
{
    (void)b;
    void *host = buf->host;
    FM_TRY(fm_pages_grow(&host, buf->bytes, bytes, err));
    *buf = (fm_buf){host, bytes};
    return FM_OK;
}

static void cpu_discard(fm_backend *b, fm_buf *buf, size_t at, size_t bytes)
{
    (void)b;
    fm_pages_discard(buf->host, at, bytes);
}

static void cpu_release(fm_backend *b, fm_buf *buf)
{
    (void)b;
    if (!buf) return;
    fm_pages_unmap(buf->host, buf->bytes);
    free(buf);
}

static void *cpu_host(fm_buf *buf)
{
    return buf->host;
}

/* ---- scratch ------------------------------------------------------------ */

static size_t q8_bytes(int32_t rows, int32_t cols)
{
    size_t stride = fm_q8_stride(cols);
    return (size_t)rows * (stride + 2 * (stride / FM_Q8_BLOCK) * sizeof(float)) + 3 * 64;
}

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* The queries of one attention tile at most, whatever the layer's group. */
static int32_t tile_queries(const fm_limits *l)
{
    return l->heads_per_kv > 8 ? 8 * l->heads_per_kv : 64;
}

/* Attention over split keys: four parts of a tile for each thread and what is merged of them. */
static size_t parts_floats(const fm_limits *l, int32_t threads)
{
    return (size_t)(4 * threads + 1) * fm_attend_part(tile_queries(l), l->head_dim);
}

/* What one thread needs: an attention tile, a delta head's chunk, or an expert's gathered rows. */
static size_t worker_bytes(const fm_limits *l)
{
    size_t attend = fm_attend_scratch(tile_queries(l), l->head_dim) + 2 * fm_attend_part(tile_queries(l), l->head_dim);
    size_t delta = fm_delta_scratch(l->key_dim);
    size_t rows = FM_EXPERT_ROWS;
    size_t gather = q8_bytes((int32_t)rows, l->hidden_size) + rows * (size_t)l->hidden_size * sizeof(float) + 64;
    size_t gate_up = 2 * (rows * (size_t)l->intermediate_size * sizeof(float) + 64);
    return fm_align_up(larger(larger(attend, delta) * sizeof(float), gather + gate_up), FM_PAGE);
}

static size_t cpu_scratch(const fm_limits *l, int32_t threads)
{
    size_t hidden = (size_t)l->picks * (size_t)l->intermediate_size * sizeof(float) + 64;
    return fm_align_up(q8_bytes(l->rows, l->cols) + q8_bytes(l->picks, l->intermediate_size) + hidden, FM_PAGE) +
           fm_align_up(parts_floats(l, threads) * sizeof(float), FM_PAGE) + (size_t)threads * worker_bytes(l);
}

static fm_status cpu_reserve(fm_backend *b, const fm_limits *limits, fm_error *err)
{
    fm_cpu *c = fm_cpu_of(b);
    size_t bytes = cpu_scratch(limits, c->threads);

    if (c->scratch) return fm_fail(err, FM_BUSY, "the device has its scratch already");
    FM_TRY(fm_pages_map(bytes, &c->scratch, err));
    c->scratch_bytes = bytes;
    c->limits = *limits;
    uint8_t *at = c->scratch;
    c->worker_bytes = worker_bytes(limits);
    c->worker = fm_cpu_take(&at, (size_t)c->threads * c->worker_bytes);
    c->parts_floats = parts_floats(limits, c->threads);
    c->parts = fm_cpu_take(&at, c->parts_floats * sizeof(float));
    c->input = fm_cpu_take_q8(&at, limits->rows, limits->cols);
    c->hidden_q8 = fm_cpu_take_q8(&at, limits->picks, limits->intermediate_size);
    c->hidden = fm_cpu_take(&at, (size_t)limits->picks * (size_t)limits->intermediate_size * sizeof(float));
    return FM_OK;
}

/* ---- order: a verb is done when it returns ------------------------------- */

static uint64_t cpu_submit(fm_backend *b)
{
    return ++fm_cpu_of(b)->ticket;
}

static uint64_t cpu_done(fm_backend *b)
{
    return fm_cpu_of(b)->ticket;
}

static fm_status cpu_wait(fm_backend *b, uint64_t ticket, fm_error *err)
{
    (void)b, (void)ticket, (void)err;
    return FM_OK;
}

const fm_backend_ops fm_cpu_ops = {
    .name = "cpu",
    .key_run = 1,
    .open = cpu_open,
    .close = cpu_close,
    .variant = cpu_variant,
    .alloc = cpu_alloc,
    .largest = cpu_largest,
    .room = cpu_room,
    .grow = cpu_grow,
    .discard = cpu_discard,
    .release = cpu_release,
    .host = cpu_host,
    .reserve = cpu_reserve,
    .scratch = cpu_scratch,
    .submit = cpu_submit,
    .done = cpu_done,
    .wait = cpu_wait,
    .embed = fm_cpu_embed,
    .norm = fm_cpu_norm,
    .matmul = fm_cpu_matmul,
    .matmul_exact = fm_cpu_matmul_exact,
    .project = fm_cpu_project,
    .add = fm_cpu_add,
    .swiglu = fm_cpu_swiglu,
    .gate = fm_cpu_gate,
    .append_kv = fm_cpu_append_kv,
    .attend = fm_cpu_attend,
    .conv = fm_cpu_conv,
    .delta_gates = fm_cpu_delta_gates,
    .delta = fm_cpu_delta,
    .gated_norm = fm_cpu_gated_norm,
    .experts = fm_cpu_experts,
    .combine = fm_cpu_combine,
};
