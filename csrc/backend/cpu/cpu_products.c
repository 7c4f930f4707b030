/* Matrix products: one quantisation and one run of the pool for all matrices that read the same rows. */
#include "backend/cpu/cpu.h"

/* ---- rows as int8 codes ---------------------------------------------------- */

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

/* ---- pieces ------------------------------------------------------------------ */

/*
 * Weights stream best in long runs, and threads end together best with short last pieces: so each piece
 * is a share of what is left, as in guided self-scheduling.
 */
#define LEAST 32768 /* bytes of weights worth handing over */
#define PIECES 512

typedef struct {
    int16_t matrix;
    int32_t first, last;
} piece_rows;

typedef struct {
    const fm_kernels *k;
    const fm_projection *p;
    fm_rows x; /* with codes, where some matrix wants them */
    piece_rows piece[PIECES];
    int32_t pieces;
    bool codes[FM_PROJECTIONS];
} project_job;

static size_t row_bytes(fm_tensor w)
{
    size_t bits = w.quant.kind == FM_AFFINE ? (size_t)w.quant.bits : 8 * fm_number_size(w.quant.kind);
    return (size_t)w.cols * bits / 8 + 1;
}

static void cut(project_job *j, int32_t n, int32_t threads)
{
    size_t left = 0;
    for (int32_t i = 0; i < n; i++) left += (size_t)j->p[i].weight.rows * row_bytes(j->p[i].weight);
    for (int32_t i = 0; i < n; i++) {
        int32_t rows = j->p[i].weight.rows;
        for (int32_t first = 0, last; first < rows; first = last) {
            size_t share = left / (2 * (size_t)threads), each = row_bytes(j->p[i].weight);
            size_t take = ((share > LEAST ? share : LEAST) / each + 32) / 32 * 32;
            bool rest = take >= (size_t)(rows - first) || j->pieces >= PIECES - FM_PROJECTIONS;
            last = rest ? rows : first + (int32_t)take;
            j->piece[j->pieces++] = (piece_rows){(int16_t)i, first, last};
            left -= (size_t)(last - first) * each;
        }
    }
}

static void project_piece(void *context, int32_t piece, int32_t worker)
{
    (void)worker;
    const project_job *j = context;
    const piece_rows *at = &j->piece[piece];
    const fm_projection *p = &j->p[at->matrix];
    fm_matrix w = fm_cpu_matrix(p->weight);
    fm_rows x = j->x;

    if (!j->codes[at->matrix]) x.q = NULL;
    j->k->matmul(&w, at->first, at->last, &x, fm_cpu_floats(p->out), (size_t)w.rows);
}

void fm_cpu_project(fm_backend *b, const fm_projection *p, int32_t n, fm_tensor x)
{
    fm_cpu *c = fm_cpu_of(b);
    project_job j = {.k = c->k, .p = p};
    bool any = false;

    for (int32_t i = 0; i < n; i++) any |= j.codes[i] = !p[i].exact && fm_cpu_wants_q8(c, p[i].weight.quant);
    j.x = fm_cpu_rows(c, fm_cpu_floats(x), x.rows, x.cols, any, c->input);
    cut(&j, n, c->threads);
    fm_pool_run(c->pool, j.pieces, project_piece, &j);
}

void fm_cpu_matmul(fm_backend *b, fm_tensor out, fm_tensor weight, fm_tensor x)
{
    fm_cpu_project(b, &(fm_projection){out, weight, false}, 1, x);
}

void fm_cpu_matmul_exact(fm_backend *b, fm_tensor out, fm_tensor weight, fm_tensor x)
{
    fm_cpu_project(b, &(fm_projection){out, weight, true}, 1, x);
}
