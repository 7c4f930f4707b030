/* Two devices, the same tensors on both, and what is told of the difference. */
#include "selftest/selftest.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

#define BEHIND 8192 /* bytes of NaN behind every tensor: who reads them shows it, who writes them is found out */

/* Another NaN behind every buffer, of f32, f16 and bf16 alike: the sum of two is not the third. */
static uint8_t behind(int32_t buffer, size_t n)
{
    return n & 1 ? 0xff : (uint8_t)(0x81 + buffer);
}

/* ---- the same tensors on both ---------------------------------------------------- */

float fm_pair_random(fm_pair *p)
{
    p->seed = p->seed * 6364136223846793005u + 1442695040888963407u;
    return (float)(p->seed >> 40) / (float)(1 << 23) - 1;
}

fm_twin fm_pair_bytes(fm_pair *p, size_t bytes)
{
    fm_twin t = {0};
    if (p->status != FM_OK) return t;
    if (p->bufs == FM_PAIR_BUFFERS) {
        p->status = fm_fail(p->err, FM_ARGUMENT, "the selftest holds more than %d buffers", FM_PAIR_BUFFERS);
        return t;
    }
    FM_BOTH(p, i)
    {
        p->status = p->b[i]->ops->alloc(p->b[i], bytes + BEHIND, FM_SHARED, &p->buf[p->bufs][i], p->err);
        t.on[i].buf = p->buf[p->bufs][i];
        if (p->status != FM_OK) continue;
        uint8_t *end = (uint8_t *)p->b[i]->ops->host(t.on[i].buf) + bytes;
        for (size_t n = 0; n < BEHIND; n++) end[n] = behind(p->bufs, n);
    }
    t.number = p->bufs++;
    return t;
}

/* Whether the NaN behind a tensor are still there. */
static bool is_whole(const fm_pair *p, fm_twin t, int i)
{
    size_t bytes = (size_t)t.on[i].rows * (size_t)t.on[i].cols * sizeof(float);
    const uint8_t *end = (const uint8_t *)p->b[i]->ops->host(t.on[i].buf) + t.on[i].offset + bytes;
    for (size_t n = 0; n < BEHIND; n++)
        if (end[n] != behind(t.number, n)) return false;
    return true;
}

static float *floats(const fm_pair *p, fm_twin t, int i)
{
    return (float *)(void *)((uint8_t *)p->b[i]->ops->host(t.on[i].buf) + t.on[i].offset);
}

fm_twin fm_pair_empty(fm_pair *p, int32_t rows, int32_t cols)
{
    fm_twin t = fm_pair_bytes(p, (size_t)rows * (size_t)cols * sizeof(float));
    FM_BOTH(p, i)
    {
        t.on[i].rows = rows;
        t.on[i].cols = cols;
        t.on[i].quant = (fm_quant){.kind = FM_F32};
        for (int64_t n = 0; n < (int64_t)rows * cols; n++) floats(p, t, i)[n] = NAN;
    }
    return t;
}

fm_twin fm_pair_rows(fm_pair *p, int32_t rows, int32_t cols, float size)
{
    fm_twin t = fm_pair_empty(p, rows, cols);
    for (int64_t n = 0; n < (int64_t)rows * cols && p->status == FM_OK; n++)
        floats(p, t, 0)[n] = floats(p, t, 1)[n] = size * fm_pair_random(p);
    return t;
}

static void put_numbers(fm_pair *p, fm_number kind, size_t n, float low, float size, uint8_t *to)
{
    for (size_t i = 0; i < n; i++, to += fm_number_size(kind)) {
        float x = low + size * fm_pair_random(p);
        fm_numbers_encode(kind, &x, 1, to);
    }
}

void fm_pair_fill_matrix(fm_pair *p, fm_quant quant, int32_t rows, int32_t cols, fm_twin to, size_t at)
{
    fm_matrix_layout l;
    if (p->status == FM_OK) p->status = fm_matrix_measure(quant, rows, cols, &l, p->err);
    if (p->status != FM_OK) return;
    uint8_t *block = (uint8_t *)p->b[0]->ops->host(to.on[0].buf) + at;
    size_t cells = (size_t)rows * (size_t)cols;
    memset(block, 0xff, l.bytes);
    if (quant.kind == FM_AFFINE) {
        for (size_t i = 0; i < l.weight_bytes; i++) block[i] = (uint8_t)(128 + 127 * fm_pair_random(p));
        put_numbers(p, quant.scale, cells / (size_t)quant.group, 0.02f, 0.01f, block + l.scales_at);
        put_numbers(p, quant.scale, cells / (size_t)quant.group, -0.1f, 0.2f, block + l.biases_at);
    } else {
        put_numbers(p, quant.kind, cells, 0, 0.3f, block);
    }
    memcpy((uint8_t *)p->b[1]->ops->host(to.on[1].buf) + at, block, l.bytes);
}

fm_twin fm_pair_matrix(fm_pair *p, fm_quant quant, int32_t rows, int32_t cols)
{
    fm_matrix_layout l = {0};
    if (p->status == FM_OK) p->status = fm_matrix_measure(quant, rows, cols, &l, p->err);
    fm_twin t = fm_pair_bytes(p, l.bytes);
    fm_pair_fill_matrix(p, quant, rows, cols, t, 0);
    FM_BOTH(p, i)
    {
        t.on[i].rows = rows;
        t.on[i].cols = cols;
        t.on[i].quant = quant;
    }
    return t;
}

void fm_pair_end(fm_pair *p)
{
    for (; p->bufs; p->bufs--)
        for (int i = 0; i < 2; i++) p->b[i]->ops->release(p->b[i], p->buf[p->bufs - 1][i]);
}

/* ---- what is told ------------------------------------------------------------------- */

/* Squared error over energy; NaN where either has one. */
static double distance(const float *got, const float *want, size_t n)
{
    double error = 0, energy = 0;
    for (size_t i = 0; i < n; i++) {
        double d = (double)got[i] - (double)want[i];
        error += d * d;
        energy += (double)want[i] * (double)want[i];
    }
    return error == 0 && energy == 0 ? 0 : error / energy;
}

void fm_pair_check(fm_pair *p, const char *verb, fm_twin out, double bound, const char *format, ...)
{
    fm_selftest_row row = {.verb = verb, .error = (double)NAN, .bound = bound};
    fm_error why = {0};
    va_list list;
    if (p->status != FM_OK) return;
    va_start(list, format);
    vsnprintf(row.what, sizeof row.what, format, list);
    va_end(list);

    for (int i = 1; i >= 0 && why.status == FM_OK; i--) p->b[i]->ops->wait(p->b[i], p->b[i]->ops->submit(p->b[i]), &why);
    if (why.status == FM_OK)
        row.error = distance(floats(p, out, 0), floats(p, out, 1), (size_t)out.on[0].rows * (size_t)out.on[0].cols);
    else snprintf(row.message, sizeof row.message, "%s", why.message);
    row.ok = row.error <= bound; /* NaN is not */
    if (row.ok && !is_whole(p, out, 0)) {
        row.ok = 0;
        snprintf(row.message, sizeof row.message, "wrote behind the end of its result");
    }
    if (!row.ok) p->failed++;
    if (p->tell) p->tell(p->context, &row);
}

/* ---- all of it ------------------------------------------------------------------------ */

static const fm_limits small_limits = {.rows = 64,
                                       .cols = 4096,
                                       .picks = 64,
                                       .hidden_size = 512,
                                       .intermediate_size = 512,
                                       .heads_per_kv = 16,
                                       .head_dim = 256,
                                       .key_dim = 128,
                                       .value_dim = 128};
static const fm_limits large_limits = {.rows = 64,
                                       .cols = 16384,
                                       .picks = 64,
                                       .hidden_size = 4096,
                                       .intermediate_size = 1024,
                                       .heads_per_kv = 16,
                                       .head_dim = 256,
                                       .key_dim = 128,
                                       .value_dim = 128};

fm_status fm_selftest_pair(fm_backend *tested, fm_backend *right, fm_selftest_size size, bool rounds, fm_selftest_tell tell,
                           void *context, fm_error *err)
{
    static void (*const parts[])(fm_pair *) = {fm_selftest_rows, fm_selftest_products, fm_selftest_attention, fm_selftest_delta,
                                               fm_selftest_experts};
    static void (*const large[])(fm_pair *) = {fm_selftest_large};
    fm_pair p = {.b = {tested, right},
                 .quick = size == FM_SELFTEST_QUICK,
                 .rounds = rounds,
                 .tell = tell,
                 .context = context,
                 .seed = 1,
                 .err = err};
    bool is_large = size == FM_SELFTEST_LARGE;
    size_t n = is_large ? 1 : sizeof parts / sizeof *parts;

    for (int i = 0; i < 2; i++) FM_TRY(p.b[i]->ops->reserve(p.b[i], is_large ? &large_limits : &small_limits, err));
    for (size_t i = 0; i < n && p.status == FM_OK; i++) (is_large ? large : parts)[i](&p);
    fm_pair_end(&p);
    FM_TRY(p.status);
    if (p.failed) return fm_fail(err, FM_DEVICE, "%d checks of device %s failed", p.failed, tested->ops->name);
    return FM_OK;
}

static const fm_backend_ops *find(const char *name)
{
    for (const fm_backend_ops *const *ops = fm_backends(); *ops; ops++)
        if (strcmp((*ops)->name, name) == 0) return *ops;
    return NULL;
}

fm_status fm_selftest(const fm_selftest_options *o, fm_selftest_tell tell, void *context, fm_error *err)
{
    FM_NEED(o, err);
    FM_NEED(o->device, err);
    const fm_device_options how = {.threads = o->threads > 0 ? o->threads : 1, .cache = o->cache};
    const fm_device_options definition = {.threads = how.threads, .kernels = "ref"};
    const fm_backend_ops *ops = find(o->device), *cpu = find("cpu");
    fm_backend *tested = NULL, *right = NULL;

    if (!ops) return fm_fail(err, FM_UNSUPPORTED, "this build has no device \"%s\"", o->device);
    FM_NEED(tell, err);
    fm_status status = ops->open(&how, &tested, err);
    if (status == FM_OK) status = cpu->open(&definition, &right, err);
    if (status == FM_OK) {
        bool rounds = ops == cpu && strcmp(ops->variant(tested), "ref") != 0;
        fm_selftest_size size = o->large ? FM_SELFTEST_LARGE : o->quick ? FM_SELFTEST_QUICK : FM_SELFTEST_ALL;
        status = fm_selftest_pair(tested, right, size, rounds, tell, context, err);
    }
    if (right) cpu->close(right);
    if (tested) ops->close(tested);
    return status;
}

int32_t fm_devices(const char **names, int32_t room)
{
    int32_t n = 0;
    for (const fm_backend_ops *const *ops = fm_backends(); *ops; ops++, n++)
        if (names && n < room) names[n] = (*ops)->name;
    return n;
}
