/* Routed experts, the sum of what they give, and the scratch. */
#include <string.h>

#include "backend/metal/metal_verbs.h"

/* ---- scratch -------------------------------------------------------------------- */

#define PART_SLOTS 128 /* parts of one row's attention side by side */

static size_t hidden_bytes(const fm_limits *l)
{
    return fm_align_up((size_t)l->picks * (size_t)l->intermediate_size * sizeof(float), 256);
}

/* Of one row, a part is less than half as much again as the widest activation, and what is merged three times that. */
size_t fm_metal_parts_bytes(const fm_limits *l)
{
    return (PART_SLOTS * 3 / 2) * fm_align_up((size_t)l->cols * sizeof(float), 256);
}

static size_t lists_bytes(const fm_limits *l)
{
    return (size_t)l->picks * sizeof(fm_p_run) + ((size_t)l->rows + 2) * sizeof(int32_t);
}

size_t fm_metal_parts_at(const fm_limits *l)
{
    return hidden_bytes(l);
}

size_t fm_metal_lists_at(const fm_limits *l)
{
    return hidden_bytes(l) + fm_metal_parts_bytes(l);
}

size_t fm_metal_scratch_bytes(const fm_limits *l)
{
    return fm_metal_lists_at(l) + lists_bytes(l);
}

static void *list_room(const fm_metal *m)
{
    return (uint8_t *)m->scratch->host + fm_metal_lists_at(&m->limits);
}

/* ---- experts --------------------------------------------------------------------- */

/* Picks of the same expert, at most FM_TILE in a run; how many runs there are. */
static int32_t list_runs(fm_p_run *run, const fm_pick *pick, int32_t n, int32_t *longest)
{
    int32_t runs = 0;
    *longest = 1;
    for (int32_t i = 0; i < n; i++) {
        fm_p_run *last = runs ? &run[runs - 1] : NULL;
        if (!last || pick[i].slot != last->slot || last->n == FM_TILE) {
            last = &run[runs++];
            *last = (fm_p_run){.first = i, .slot = pick[i].slot};
        }
        last->row[last->n++] = pick[i].row;
        if (last->n > *longest) *longest = last->n;
    }
    return runs;
}

/* All slots up to the last that is used: they are addressed from the first on. */
static void read_slots(fm_launch *l, const fm_pick *pick, int32_t n, fm_buf *slots, size_t slot_bytes)
{
    int32_t last = 0;
    for (int32_t i = 0; i < n; i++) last = pick[i].slot > last ? pick[i].slot : last;
    fm_metal_read(l, 1, slots, 0, ((size_t)last + 1) * slot_bytes);
}

void fm_metal_experts(fm_backend *b, fm_tensor outs, fm_tensor x, fm_buf *slots, size_t slot_bytes, const fm_pick *pick,
                      int32_t n, const fm_expert_shape *s)
{
    fm_metal *m = fm_metal_of(b);
    if (n < 1) return;
    fm_p_run *run = list_room(m);
    int32_t inner = s->intermediate_size, tile, runs = list_runs(run, pick, n, &tile);
    size_t bytes, made = (size_t)n * (size_t)inner * sizeof(float);
    const uint32_t threads[3] = {FM_SIMDGROUPS * FM_LANES, 1, 1};

    int32_t band = fm_metal_band(inner, (uint32_t)runs, FM_BAND / 2);
    fm_constants c = {{fm_metal_format(s->gate_quant), fm_metal_format(s->up_quant), tile, band}};
    fm_p_gate_up p = {.slot_bytes = slot_bytes,
                      .gate_at = s->gate_at,
                      .up_at = s->up_at,
                      .gate = fm_metal_matrix(s->gate_quant, inner, s->hidden_size, &bytes),
                      .up = fm_metal_matrix(s->up_quant, inner, s->hidden_size, &bytes)};
    fm_launch l = fm_metal_begin(b, "experts_gate_up", &c, &p, sizeof p);
    read_slots(&l, pick, n, slots, slot_bytes);
    fm_metal_upload(&l, 2, run, (size_t)runs * sizeof *run);
    fm_metal_in(&l, 3, x);
    fm_metal_write(&l, 4, m->scratch, 0, made);
    fm_metal_threadgroup(&l, fm_metal_stage(tile));
    fm_metal_run(&l, (uint32_t[]){fm_metal_pieces((size_t)inner, (size_t)(FM_SIMDGROUPS * band)), (uint32_t)runs, 1}, threads);

    band = fm_metal_band(s->hidden_size, (uint32_t)runs, FM_BAND);
    c = (fm_constants){{fm_metal_format(s->down_quant), 0, tile, band}};
    fm_p_down d = {
        .slot_bytes = slot_bytes, .down_at = s->down_at, .down = fm_metal_matrix(s->down_quant, s->hidden_size, inner, &bytes)};
    l = fm_metal_begin(b, "experts_down", &c, &d, sizeof d);
    read_slots(&l, pick, n, slots, slot_bytes);
    fm_metal_upload(&l, 2, run, (size_t)runs * sizeof *run);
    fm_metal_read(&l, 3, m->scratch, 0, made);
    fm_metal_write(&l, 4, outs.buf, outs.offset, (size_t)n * (size_t)s->hidden_size * sizeof(float));
    fm_metal_threadgroup(&l, fm_metal_stage(tile));
    fm_metal_run(&l, (uint32_t[]){fm_metal_pieces((size_t)s->hidden_size, (size_t)(FM_SIMDGROUPS * band)), (uint32_t)runs, 1},
                 threads);
}

/* ---- combine ---------------------------------------------------------------------- */

/* Shares row by row, a row's in the order of the picks: those of row r are from[start[r] .. start[r + 1]). */
static void list_rows(const fm_pick *pick, int32_t n, int32_t rows, int32_t *start, fm_p_share *from)
{
    memset(start, 0, ((size_t)rows + 1) * sizeof *start);
    for (int32_t i = 0; i < n; i++) start[pick[i].row + 1]++;
    for (int32_t r = 0; r < rows; r++) start[r + 1] += start[r];
    for (int32_t i = 0; i < n; i++) from[start[pick[i].row]++] = (fm_p_share){i, pick[i].share};
    memmove(start + 1, start, (size_t)rows * sizeof *start); /* every start had become its row's end */
    start[0] = 0;
}

void fm_metal_combine(fm_backend *b, fm_tensor x, fm_tensor outs, const fm_pick *pick, int32_t n, fm_tensor shared,
                      fm_tensor score)
{
    if (n < 1) return;
    fm_p_share *from = list_room(fm_metal_of(b));
    int32_t *start = (int32_t *)(void *)(from + n);
    fm_constants c = {{0}};
    fm_p_combine p = {.rows = x.rows, .cols = x.cols, .shared = shared.buf != NULL, .scored = score.buf != NULL};
    list_rows(pick, n, x.rows, start, from);

    fm_launch l = fm_metal_begin(b, "combine", &c, &p, sizeof p);
    fm_metal_out(&l, 1, x);
    fm_metal_read(&l, 2, outs.buf, outs.offset, (size_t)n * (size_t)x.cols * sizeof(float));
    fm_metal_upload(&l, 3, start, ((size_t)x.rows + 1) * sizeof *start);
    fm_metal_upload(&l, 4, from, (size_t)n * sizeof *from);
    if (p.shared) fm_metal_in(&l, 5, shared);
    else fm_metal_unread(&l, 5, x);
    if (p.scored) fm_metal_in(&l, 6, score);
    else fm_metal_unread(&l, 6, x);
    fm_metal_run(&l, (uint32_t[]){fm_metal_pieces((size_t)x.cols, FM_ROW_THREADS), (uint32_t)x.rows, 1},
                 (uint32_t[]){FM_ROW_THREADS, 1, 1});
}
