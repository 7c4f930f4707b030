/* Whole evals on a tiny model made here: the same bits however it runs and with whom, all or nothing when a read fails,
 * every refusal. */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "model/model.h"
#include "tiny_model.h"

static atomic_int calls, fail_at;

ssize_t pread(int fd, void *to, size_t n, off_t from)
{
    if (atomic_fetch_add(&calls, 1) == atomic_load(&fail_at)) {
        errno = EIO;
        return -1;
    }
    return syscall(SYS_pread64, fd, to, n, from);
}

enum { N = 100 };

static void one_way(const fm_model_options *options, int step, float *out)
{
    fm_session *s = NULL;
    fm_model *m = open_model(options);
    fm_error err = {0};
    if (!m) exit(1);
    CHECK(fm_session_open(m, &s, &err) == FM_OK);
    CHECK_THAT(run(s, N, step, out, &err) == FM_OK, "%s", err.message);
    CHECK(fm_session_position(s) == N);
    CHECK(fm_model_close(m) == FM_BUSY);
    fm_session_close(s);
    CHECK(fm_model_close(m) == FM_OK);
}

static void test_ways(const float *want)
{
    float *got = must((size_t)N * VOCAB * 4);
    double *truth = must((size_t)N * VOCAB * 8);
    for (int i = 0; i < N * VOCAB; i++) truth[i] = (double)want[i];

    for (int slots = K; slots <= 2 * EXPERTS; slots += 2)
        for (int threads = 1; threads <= 3; threads++) {
            fm_model_options o = {.threads = threads,
                                  .expert_slots = slots,
                                  .prefill_rows = 128,
                                  .kv = FM_KV_F32,
                                  .read = threads == 2 ? FM_READ_DIRECT : FM_READ_BUFFERED,
                                  .read_threads = threads};
            one_way(&o, 64, got);
            CHECK_THAT(memcmp(got, want, (size_t)N * VOCAB * 4) == 0, "slots %d threads %d", slots, threads);
        }
    for (int step = 1; step <= 100; step += 33) { /* other steps: the same but for rounding */
        fm_model_options o = {.threads = 2, .prefill_rows = 128, .kv = FM_KV_F32};
        one_way(&o, step, got);
        CHECK_THAT(nmse(got, truth, (size_t)N * VOCAB) < 1e-9, "step %d: %g", step, nmse(got, truth, (size_t)N * VOCAB));
    }
    free(got);
    free(truth);
}

/* Every expert read fails once; the session is where it was, and going on gives the same bits. */
static void test_read_failures(const float *want)
{
    float *got = must((size_t)N * VOCAB * 4);
    fm_model_options o = {.threads = 2, .expert_slots = K, .prefill_rows = 64, .kv = FM_KV_F32, .read_threads = 2};
    fm_model *m = open_model(&o);
    fm_session *s;
    fm_error err = {0};
    int failed = 0;

    CHECK(fm_session_open(m, &s, &err) == FM_OK);
    for (int at = 0; at < 200; at += 3) {
        fm_session_reset(s);
        int32_t ids[64];
        for (int i = 0; i < 64; i++) ids[i] = token(i);
        atomic_store(&calls, 0);
        atomic_store(&fail_at, at);
        fm_status status = fm_session_eval(s, ids, 64, got, 64, &err);
        atomic_store(&fail_at, -1);
        if (status != FM_OK) {
            failed++;
            CHECK(status == FM_IO && strstr(err.message, "w.bin") && strstr(err.message, "expert"));
            CHECK(fm_session_position(s) == 0);
            CHECK(fm_session_eval(s, ids, 64, got, 64, &err) == FM_OK);
        }
        CHECK(memcmp(got, want, 64 * VOCAB * 4) == 0);
        int32_t next = token(64); /* a failure in the middle of a sequence, too */
        atomic_store(&calls, 0);
        atomic_store(&fail_at, at % 6);
        status = fm_session_eval(s, &next, 1, got, 1, &err);
        atomic_store(&fail_at, -1);
        if (status != FM_OK) {
            CHECK(fm_session_position(s) == 64 && fm_session_eval(s, &next, 1, got, 1, &err) == FM_OK);
        }
        CHECK(fm_session_position(s) == 65);
    }
    CHECK(failed > 10);
    fm_session_close(s);
    CHECK(fm_model_close(m) == FM_OK);
    free(got);
}

enum { SESSIONS = 3, STEPS = 2 };
static const int32_t rows_of[STEPS][SESSIONS] = {{64, 20, 40}, {1, 1, 24}};

/* The next rows of three sessions at different places, and where the last row's logits go. */
static void next_rows(fm_session *const *s, int step, int32_t (*ids)[64], float *out, fm_append *part)
{
    for (int i = 0; i < SESSIONS; i++) {
        int32_t n = rows_of[step][i];
        for (int r = 0; r < n; r++) ids[i][r] = token(fm_session_position(s[i]) + r);
        part[i] = (fm_append){s[i], ids[i], n, out + (size_t)i * VOCAB, 1, NULL};
    }
}

/* Together, while any read may fail: the bits of each alone, and after a failure all are where they were. */
static void test_together(void)
{
    float want[STEPS][SESSIONS * VOCAB], got[SESSIONS * VOCAB];
    fm_model_options o = {.threads = 2, .expert_slots = K, .prefill_rows = 128, .kv = FM_KV_F32, .read_threads = 2};
    fm_model *m = open_model(&o);
    fm_session *s[SESSIONS];
    fm_append part[SESSIONS];
    fm_error err = {0};
    int32_t ids[SESSIONS][64], at_fault = 0, failed = 0;

    for (int i = 0; i < SESSIONS; i++) CHECK(fm_session_open(m, &s[i], &err) == FM_OK);
    for (int step = 0; step < STEPS; step++) {
        next_rows(s, step, ids, want[step], part);
        for (int i = 0; i < SESSIONS; i++) CHECK(fm_sessions_eval(&part[i], 1, NULL, &err) == FM_OK);
    }
    for (int at = 0; at < 60; at++) {
        for (int i = 0; i < SESSIONS; i++) fm_session_reset(s[i]);
        for (int step = 0; step < STEPS; step++) {
            next_rows(s, step, ids, got, part);
            atomic_store(&calls, 0);
            atomic_store(&fail_at, at);
            fm_status status = fm_sessions_eval(part, SESSIONS, &at_fault, &err);
            atomic_store(&fail_at, -1);
            if (status != FM_OK) {
                failed++;
                CHECK(status == FM_IO && at_fault == -1 && strstr(err.message, "expert"));
                for (int i = 0; i < SESSIONS; i++) CHECK(fm_session_position(s[i]) == (step ? rows_of[0][i] : 0));
                CHECK(fm_sessions_eval(part, SESSIONS, NULL, &err) == FM_OK);
            }
            CHECK_THAT(memcmp(got, want[step], sizeof got) == 0, "read %d, step %d", at, step);
        }
        CHECK(fm_session_position(s[0]) == 65 && fm_session_position(s[1]) == 21 && fm_session_position(s[2]) == 64);
    }
    CHECK(failed > 20);
    for (int i = 0; i < SESSIONS; i++) fm_session_close(s[i]);
    CHECK(fm_model_close(m) == FM_OK);
}

static void *cancel_soon(void *session)
{
    usleep(3000);
    fm_session_cancel(session);
    return NULL;
}

static fm_memory_state told;

static fm_memory_state memory_state(void)
{
    return told;
}

/* Where the system is short of memory, slots are given back: fewer each time, never fewer than a token needs, the same bits. */
static void test_relief(void)
{
    static const struct {
        fm_memory_state told;
        bool pause; /* long enough since the last time */
        int32_t slots;
    } step[] = {{FM_MEMORY_FINE, true, 12},    {FM_MEMORY_SHORT, true, 11},   {FM_MEMORY_SHORT, false, 11},
                {FM_MEMORY_FINE, true, 11},    {FM_MEMORY_CRITICAL, true, 6}, {FM_MEMORY_CRITICAL, true, 3},
                {FM_MEMORY_CRITICAL, true, K}, {FM_MEMORY_CRITICAL, true, K}};
    fm_model_options o = {.threads = 1, .prefill_rows = 64, .kv = FM_KV_F32};
    fm_model *m = open_model(&o);
    fm_session *s;
    fm_model_info before, now;
    fm_error err = {0};
    enum { STEPS_OF_RELIEF = sizeof step / sizeof *step };
    float want[STEPS_OF_RELIEF * VOCAB], got[VOCAB];

    CHECK(fm_session_open(m, &s, &err) == FM_OK && run(s, STEPS_OF_RELIEF, 1, want, &err) == FM_OK);
    fm_session_reset(s);
    m->system_memory = memory_state;
    for (int i = 0; i < STEPS_OF_RELIEF; i++) {
        int32_t id = token(i);
        fm_model_describe(m, &before);
        told = step[i].told;
        if (step[i].pause) m->relieved_ns = 0;
        CHECK_THAT(fm_session_eval(s, &id, 1, got, 1, &err) == FM_OK, "%s", err.message);
        CHECK(memcmp(got, want + (size_t)i * VOCAB, sizeof got) == 0);
        fm_model_describe(m, &now);
        CHECK_THAT(now.expert_slots == step[i].slots, "step %d: %d slots", i, now.expert_slots);
        CHECK(before.held_bytes - now.held_bytes == (uint64_t)(before.expert_slots - now.expert_slots) * now.expert_bytes);
    }
    fm_session_close(s);
    CHECK(fm_model_close(m) == FM_OK);
}

typedef struct {
    fm_model *model;
    const float *want;
    int wrong;
} sharing;

static void *share(void *argument)
{
    enum { TOKENS = 40 };
    sharing *job = argument;
    float *got = must((size_t)TOKENS * VOCAB * 4);
    fm_error err = {0};
    for (int i = 0; i < 4; i++) {
        fm_session *s = NULL;
        fm_model_info info;
        if (fm_session_open(job->model, &s, &err) != FM_OK || run(s, TOKENS, 8, got, &err) != FM_OK) job->wrong++;
        else job->wrong += memcmp(got, job->want, (size_t)TOKENS * VOCAB * 4) != 0;
        fm_model_describe(job->model, &info);
        fm_session_close(s);
    }
    free(got);
    return NULL;
}

/* Eight threads, each with sessions of its own. */
static void test_sharing(void)
{
    enum { THREADS = 8 };
    fm_model_options o = {.threads = 2, .expert_slots = K, .prefill_rows = 64, .kv = FM_KV_F32, .read_threads = 2};
    fm_model *m = open_model(&o);
    fm_session *alone = NULL;
    fm_error err = {0};
    float *want = must((size_t)40 * VOCAB * 4);
    pthread_t thread[THREADS];
    sharing job[THREADS];

    CHECK(fm_session_open(m, &alone, &err) == FM_OK && run(alone, 40, 8, want, &err) == FM_OK);
    fm_session_close(alone);
    for (int i = 0; i < THREADS; i++) {
        job[i] = (sharing){m, want, 0};
        pthread_create(&thread[i], NULL, share, &job[i]);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(thread[i], NULL);
        CHECK_THAT(job[i].wrong == 0, "thread %d: %d wrong", i, job[i].wrong);
    }
    free(want);
    CHECK(fm_model_close(m) == FM_OK);
}

static void test_refusals(void)
{
    fm_model_options o = {.threads = 1, .prefill_rows = 64};
    fm_model *m = open_model(&o), *none = NULL;
    fm_session *s;
    fm_error err = {0};
    float out[VOCAB];
    int32_t ids[128] = {0}, wrong = VOCAB;

    CHECK(fm_session_open(m, &s, &err) == FM_OK);
    CHECK(fm_session_eval(s, ids, 0, out, 0, &err) == FM_ARGUMENT);
    CHECK(fm_session_eval(s, ids, 65, out, 1, &err) == FM_ARGUMENT);
    CHECK(fm_session_eval(s, ids, 2, out, 3, &err) == FM_ARGUMENT);
    CHECK(fm_session_eval(s, &wrong, 1, out, 1, &err) == FM_ARGUMENT && strstr(err.message, "40"));
    fm_session_cancel(s);
    fm_session_resume(s);
    CHECK(fm_session_eval(s, ids, 1, out, 1, &err) == FM_OK);
    fm_session_reset(s);
    fm_session_cancel(s);
    CHECK(fm_session_eval(s, ids, 1, out, 1, &err) == FM_CANCELLED && fm_session_position(s) == 0);
    CHECK(fm_session_eval(s, ids, 1, out, 1, &err) == FM_OK && fm_session_position(s) == 1);

    pthread_t thread;
    pthread_create(&thread, NULL, cancel_soon, s);
    fm_status status = FM_OK;
    for (int i = 0; i < 100000 && status == FM_OK; i++) {
        if (fm_session_position(s) > CONTEXT - 64) fm_session_reset(s);
        status = fm_session_eval(s, ids, 64, out, 1, &err);
    }
    pthread_join(thread, NULL);
    CHECK(status == FM_CANCELLED);
    fm_session_reset(s);
    for (int i = 0; i < 10; i++) CHECK(fm_session_eval(s, ids, 64, out, 0, &err) == FM_OK);
    CHECK(fm_session_eval(s, ids, 64, out, 1, &err) == FM_FULL && fm_session_position(s) == 640);
    CHECK(fm_session_eval(s, ids, 60, out, 1, &err) == FM_OK && fm_session_eval(s, ids, 1, out, 1, &err) == FM_FULL);
    fm_session_close(s);
    CHECK(fm_model_close(m) == FM_OK);

    const fm_model_options bad[] = {{.threads = -1},     {.prefill_rows = 63},  {.experts_per_token = 7},
                                    {.expert_slots = 1}, {.kv = (fm_kv_kind)9}, {.read_split = 99}};
    for (int i = 0; i < 6; i++)
        CHECK_THAT(fm_model_open(manifest, length, directory, &bad[i], &none, &err) == FM_ARGUMENT && !none, "%d: %s", i,
                   err.message);
    const fm_model_options poor = {.memory = 10000}, device = {.device = "abacus"};
    CHECK(fm_model_open(manifest, length, directory, &poor, &none, &err) == FM_BUDGET && strstr(err.message, "resident weights"));
    CHECK(fm_model_open(manifest, length, directory, &device, &none, &err) == FM_UNSUPPORTED && strstr(err.message, "abacus"));
    CHECK(fm_model_open(manifest, length, "/nowhere", NULL, &none, &err) == FM_IO);
    const int32_t now = 1;
    const fm_model_options given_up = {.cancel = &now};
    CHECK(fm_model_open(manifest, length, directory, &given_up, &none, &err) == FM_CANCELLED && !none);
    for (int at = 0; at < 30; at++) { /* every read of the resident weights fails once */
        atomic_store(&calls, 0);
        atomic_store(&fail_at, at);
        CHECK(fm_model_open(manifest, length, directory, NULL, &none, &err) == FM_IO && !none);
        atomic_store(&fail_at, -1);
    }
}

int main(void)
{
    atomic_store(&fail_at, -1);
    CHECK(mkdtemp(directory) != NULL);
    write_model();
    float *want = must((size_t)N * VOCAB * 4);
    fm_model_options o = {.threads = 1, .prefill_rows = 64, .kv = FM_KV_F32};
    one_way(&o, 64, want);
    test_ways(want);
    test_read_failures(want);
    test_together();
    test_relief();
    test_sharing();
    test_refusals();
    free(want);
    remove_model();
    return done();
}
