/* Products, and the verbs that treat every row alike. */
#include "backend/metal/metal_verbs.h"

fm_p_matrix fm_metal_matrix(fm_quant quant, int32_t rows, int32_t cols, size_t *bytes)
{
    fm_matrix_layout layout = {0};
    fm_matrix_measure(quant, rows, cols, &layout, NULL); /* sizes were checked when the model was opened */
    *bytes = layout.bytes;
    return (fm_p_matrix){layout.scales_at, layout.biases_at, rows, cols, FM_FLOAT_BITS, 0};
}

/* ---- products ------------------------------------------------------------------ */

void fm_metal_matmul(fm_backend *b, fm_tensor out, fm_tensor weight, fm_tensor x)
{
    size_t bytes;
    int32_t tile = x.rows < FM_TILE ? x.rows : FM_TILE;
    uint32_t tiles = fm_metal_pieces((size_t)x.rows, (size_t)tile);
    int32_t band = fm_metal_band(weight.rows, tiles, FM_BAND);
    fm_constants c = {{fm_metal_format(weight.quant), 0, tile, band}};
    fm_p_product p = {.w = fm_metal_matrix(weight.quant, weight.rows, weight.cols, &bytes), .rows = x.rows};

    fm_launch l = fm_metal_begin(b, "matvec", &c, &p, sizeof p);
    fm_metal_read(&l, 1, weight.buf, weight.offset, bytes);
    fm_metal_in(&l, 2, x);
    fm_metal_out(&l, 3, out);
    fm_metal_threadgroup(&l, fm_metal_stage(tile));
    fm_metal_run(&l, (uint32_t[]){fm_metal_pieces((size_t)weight.rows, (size_t)(FM_SIMDGROUPS * band)), tiles, 1},
                 (uint32_t[]){FM_SIMDGROUPS * FM_LANES, 1, 1});
}

/* Products of the same rows need nothing of each other, so no barrier comes between them. */
void fm_metal_project(fm_backend *b, const fm_projection *p, int32_t n, fm_tensor x)
{
    for (int32_t i = 0; i < n; i++) fm_metal_matmul(b, p[i].out, p[i].weight, x);
}

void fm_metal_embed(fm_backend *b, fm_tensor out, fm_tensor table, const int32_t *ids)
{
    size_t bytes;
    fm_constants c = {{fm_metal_format(table.quant)}};
    fm_p_matrix p = fm_metal_matrix(table.quant, table.rows, table.cols, &bytes);

    fm_launch l = fm_metal_begin(b, "embed", &c, &p, sizeof p);
    fm_metal_read(&l, 1, table.buf, table.offset, bytes);
    fm_metal_upload(&l, 2, ids, (size_t)out.rows * sizeof *ids);
    fm_metal_out(&l, 3, out);
    fm_metal_run(&l, (uint32_t[]){fm_metal_pieces((size_t)out.cols, FM_ROW_THREADS), (uint32_t)out.rows, 1},
                 (uint32_t[]){FM_ROW_THREADS, 1, 1});
}

/* ---- rows ---------------------------------------------------------------------- */

void fm_metal_norm(fm_backend *b, fm_tensor out, fm_tensor x, fm_tensor weight, float eps)
{
    fm_constants c = {{0}};
    fm_p_rows p = {.rows = x.rows, .cols = x.cols, .eps = eps};

    fm_launch l = fm_metal_begin(b, "rms_norm", &c, &p, sizeof p);
    fm_metal_in(&l, 1, x);
    fm_metal_in(&l, 2, weight);
    fm_metal_out(&l, 3, out);
    fm_metal_run(&l, (uint32_t[]){(uint32_t)x.rows, 1, 1}, (uint32_t[]){FM_ROW_THREADS, 1, 1});
}

void fm_metal_gated_norm(fm_backend *b, fm_tensor out, fm_tensor x, fm_tensor z, fm_tensor weight, float eps)
{
    fm_constants c = {{0}};
    int32_t heads = x.rows * (x.cols / weight.cols);
    fm_p_rows p = {.rows = heads, .cols = weight.cols, .eps = eps};

    fm_launch l = fm_metal_begin(b, "gated_norm", &c, &p, sizeof p);
    fm_metal_in(&l, 1, x);
    fm_metal_in(&l, 2, weight);
    fm_metal_in(&l, 3, z);
    fm_metal_out(&l, 4, out);
    fm_metal_run(&l, (uint32_t[]){fm_metal_pieces((size_t)heads, FM_ROW_THREADS / FM_LANES), 1, 1},
                 (uint32_t[]){FM_ROW_THREADS, 1, 1});
}

/* out = f(x, y), number by number. */
static void pairwise(fm_backend *b, const char *kernel, fm_tensor out, fm_tensor x, fm_tensor y)
{
    fm_constants c = {{0}};
    fm_p_flat p = {(uint64_t)x.rows * (uint64_t)x.cols};

    fm_launch l = fm_metal_begin(b, kernel, &c, &p, sizeof p);
    fm_metal_in(&l, 1, x);
    fm_metal_in(&l, 2, y);
    fm_metal_out(&l, 3, out);
    fm_metal_run(&l, (uint32_t[]){fm_metal_pieces(p.n, FM_ROW_THREADS), 1, 1}, (uint32_t[]){FM_ROW_THREADS, 1, 1});
}

void fm_metal_add(fm_backend *b, fm_tensor out, fm_tensor x, fm_tensor y)
{
    pairwise(b, "add", out, x, y);
}

void fm_metal_swiglu(fm_backend *b, fm_tensor out, fm_tensor gate, fm_tensor up)
{
    pairwise(b, "swiglu", out, gate, up);
}

void fm_metal_gate(fm_backend *b, fm_tensor out, fm_tensor x, fm_tensor gate)
{
    pairwise(b, "gate", out, x, gate);
}
