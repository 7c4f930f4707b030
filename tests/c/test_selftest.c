/* The selftest finds every verb that is wrong, and nothing where all are right. */
#include "backend/cpu/cpu.h"
#include "check.h"
#include "selftest/selftest.h"

/* ---- a device with one verb that is wrong --------------------------------------------- */

typedef enum { OFF, BEHIND, NOTHING, HOWS } how; /* one number is off; one behind the end is written; nothing is done */

static how wrong_how;

static void spoil(fm_tensor t)
{
    float *last = fm_cpu_floats(t) + (size_t)t.rows * (size_t)t.cols - 1;
    if (wrong_how == OFF) *last += 0.05f * (1 + fabsf(*last));
    if (wrong_how == BEHIND) last[1] = 0;
}

/* `field` of the table, wrong in `result`. */
#define WRONG(name, field, result, parameters, ...)              \
    static void wrong_##name parameters                          \
    {                                                            \
        if (wrong_how != NOTHING) fm_cpu_ops.field(__VA_ARGS__); \
        spoil(result);                                           \
    }                                                            \
    static void put_##name(fm_backend_ops *ops)                  \
    {                                                            \
        ops->field = wrong_##name;                               \
    }

#define B fm_backend *b
#define T fm_tensor
WRONG(embed, embed, out, (B, T out, T table, const int32_t *ids), b, out, table, ids)
WRONG(norm, norm, out, (B, T out, T x, T weight, float eps), b, out, x, weight, eps)
WRONG(matmul, matmul, out, (B, T out, T weight, T x), b, out, weight, x)
WRONG(matmul_exact, matmul_exact, out, (B, T out, T weight, T x), b, out, weight, x)
WRONG(project, project, p[n - 1].out, (B, const fm_projection *p, int32_t n, T x), b, p, n, x)
WRONG(add, add, out, (B, T out, T x, T y), b, out, x, y)
WRONG(swiglu, swiglu, out, (B, T out, T gate, T up), b, out, gate, up)
WRONG(gate, gate, out, (B, T out, T x, T gate), b, out, x, gate)
WRONG(append_kv, append_kv, h->q, (B, const fm_heads *h), b, h)
WRONG(attend, attend, out, (B, T out, T q, T keys, T values, const fm_attention_shape *s, int32_t position), b, out, q, keys,
      values, s, position)
WRONG(conv, conv, out, (B, T out, T x, T taps, T to, T from), b, out, x, taps, to, from)
WRONG(conv_state, conv, to, (B, T out, T x, T taps, T to, T from), b, out, x, taps, to, from)
WRONG(decay, delta_gates, decay, (B, T decay, T beta, T a_log, T dt_bias), b, decay, beta, a_log, dt_bias)
WRONG(beta, delta_gates, beta, (B, T decay, T beta, T a_log, T dt_bias), b, decay, beta, a_log, dt_bias)
WRONG(delta, delta, out, (B, T out, T qkv, T decay, T beta, T to, T from, const fm_delta_shape *s, int32_t position), b, out, qkv,
      decay, beta, to, from, s, position)
WRONG(delta_state, delta, to, (B, T out, T qkv, T decay, T beta, T to, T from, const fm_delta_shape *s, int32_t position), b, out,
      qkv, decay, beta, to, from, s, position)
WRONG(gated_norm, gated_norm, out, (B, T out, T x, T z, T weight, float eps), b, out, x, z, weight, eps)
WRONG(experts, experts, outs,
      (B, T outs, T x, fm_buf *slots, size_t slot_bytes, const fm_pick *pick, int32_t n, const fm_expert_shape *s), b, outs, x,
      slots, slot_bytes, pick, n, s)
WRONG(combine, combine, x, (B, T x, T outs, const fm_pick *pick, int32_t n, T shared, T score), b, x, outs, pick, n, shared,
      score)

/* What goes into a cache shows when attend reads it. */
static void wrong_key(B, const fm_heads *h)
{
    spoil(h->k);
    fm_cpu_ops.append_kv(b, h);
}

static void wrong_value(B, const fm_heads *h)
{
    spoil(h->v);
    fm_cpu_ops.append_kv(b, h);
}

static void put_key(fm_backend_ops *ops)
{
    ops->append_kv = wrong_key;
}

static void put_value(fm_backend_ops *ops)
{
    ops->append_kv = wrong_value;
}

typedef struct {
    const char *verb; /* whose rows must fail */
    void (*put)(fm_backend_ops *ops);
} mistake;

static const mistake mistakes[] = {
    {"embed", put_embed},         {"norm", put_norm},
    {"matmul", put_matmul},       {"matmul_exact", put_matmul_exact},
    {"project", put_project},     {"add", put_add},
    {"swiglu", put_swiglu},       {"gate", put_gate},
    {"append_kv", put_append_kv}, {"attend", put_attend},
    {"conv", put_conv},           {"delta_gates", put_decay},
    {"delta", put_delta},         {"gated_norm", put_gated_norm},
    {"experts", put_experts},     {"combine", put_combine}, /* one for every verb so far; more of the same follow */
    {"conv", put_conv_state},     {"delta_gates", put_beta},
    {"delta", put_delta_state},
};

/* ---- what the selftest says of it ------------------------------------------------------ */

typedef struct {
    const char *verb;
    int32_t rows, failed, elsewhere; /* elsewhere: failures of other verbs */
    char message[512];
} heard;

static void listen(void *context, const fm_selftest_row *row)
{
    heard *h = context;
    h->rows++;
    if (row->ok) return;
    if (!h->verb || strcmp(row->verb, h->verb) == 0) h->failed++;
    else h->elsewhere++;
    snprintf(h->message, sizeof h->message, "%s", row->message);
}

/* The quick selftest of the CPU device with `kernels` and other verbs in its table. */
static fm_status listen_to(const char *kernels, const fm_backend_ops *ops, heard *h, fm_error *err)
{
    const fm_device_options how = {.threads = 1, .kernels = kernels}, ref = {.threads = 1, .kernels = "ref"};
    fm_backend *tested = NULL, *right = NULL;
    fm_status status = fm_cpu_ops.open(&how, &tested, err);
    if (status == FM_OK) status = fm_cpu_ops.open(&ref, &right, err);
    if (status == FM_OK) {
        tested->ops = ops;
        status = fm_selftest_pair(tested, right, 1, strcmp(kernels, "ref") != 0, listen, h, err);
    }
    if (right) fm_cpu_ops.close(right);
    if (tested) fm_cpu_ops.close(tested);
    return status;
}

static void test_every_wrong_verb_is_found(void)
{
    size_t verbs = (sizeof(fm_backend_ops) - offsetof(fm_backend_ops, embed)) / sizeof(void (*)(void));
    size_t n = sizeof mistakes / sizeof *mistakes;
    CHECK(n == verbs + 3);
    for (size_t m = 0; m < n; m++)
        for (wrong_how = OFF; wrong_how < HOWS; wrong_how++) {
            fm_backend_ops ops = fm_cpu_ops;
            heard h = {.verb = mistakes[m].verb};
            fm_error err = {0};
            mistakes[m].put(&ops);
            fm_status status = listen_to("ref", &ops, &h, &err);
            CHECK_THAT(status == FM_DEVICE, "%s, mistake %zu, way %d: %s", h.verb, m, (int)wrong_how, err.message);
            CHECK_THAT(h.failed > 0, "%s, mistake %zu, way %d", h.verb, m, (int)wrong_how);
            bool is_told = wrong_how != BEHIND || strstr(h.message, "behind the end");
            CHECK_THAT(is_told, "%s, mistake %zu: %s", h.verb, m, h.message);
            /* what one of these two does shows through the other alone */
            bool is_pair = strcmp(h.verb, "append_kv") == 0 || strcmp(h.verb, "attend") == 0;
            CHECK_THAT(is_pair || !h.elsewhere, "%s, mistake %zu, way %d: %d of others", h.verb, m, (int)wrong_how, h.elsewhere);
        }
}

static void test_wrong_keys_and_values_are_found(void)
{
    void (*const put[])(fm_backend_ops *) = {put_key, put_value};
    wrong_how = OFF;
    for (size_t i = 0; i < 2; i++) {
        fm_backend_ops ops = fm_cpu_ops;
        heard h = {.verb = "attend"};
        fm_error err = {0};
        put[i](&ops);
        CHECK(listen_to("ref", &ops, &h, &err) == FM_DEVICE);
        CHECK_THAT(h.failed > 0, "put %zu", i);
    }
}

/* ---- what the device itself says --------------------------------------------------------- */

static fm_status fail_wait(fm_backend *b, uint64_t ticket, fm_error *err)
{
    (void)b, (void)ticket;
    return fm_fail(err, FM_DEVICE, "the moon is in the way");
}

static void test_what_the_device_says_is_told(void)
{
    fm_backend_ops ops = fm_cpu_ops;
    heard h = {0};
    fm_error err = {0};
    ops.wait = fail_wait;
    CHECK(listen_to("ref", &ops, &h, &err) == FM_DEVICE);
    CHECK(h.rows > 0 && h.failed == h.rows);
    CHECK(strstr(h.message, "the moon is in the way"));
}

/* ---- devices that are right ---------------------------------------------------------------- */

static void test_all_kernels_pass(void)
{
    static const char *const kernels[] = {"ref", "avx2", "avxvnni", "avx512", "neon", "neon_dot", "neon_i8mm"};
    int32_t passed = 0;
    for (size_t i = 0; i < sizeof kernels / sizeof *kernels; i++) {
        heard h = {0};
        fm_error err = {0};
        fm_status status = listen_to(kernels[i], &fm_cpu_ops, &h, &err);
        if (status != FM_OK && h.rows == 0) continue; /* not on this machine */
        CHECK_THAT(status == FM_OK && h.failed == 0, "%s: %s", kernels[i], err.message);
        CHECK_THAT(h.rows > 100, "%s: %d rows", kernels[i], h.rows);
        passed++;
        fprintf(stderr, "%s: %d rows, %d failed\n", kernels[i], h.rows, h.failed);
    }
    CHECK(passed >= 1);
}

static void test_unknown_device(void)
{
    const fm_selftest_options o = {.device = "abacus", .quick = 1};
    fm_error err = {0};
    CHECK(fm_selftest(&o, NULL, NULL, &err) == FM_UNSUPPORTED);
    CHECK(strstr(err.message, "abacus"));
}

int main(void)
{
    test_every_wrong_verb_is_found();
    test_wrong_keys_and_values_are_found();
    test_what_the_device_says_is_told();
    test_all_kernels_pass();
    test_unknown_device();
    return done();
}
