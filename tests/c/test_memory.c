/* Every allocation of the core fails, once and from then on: FM_MEMORY or the right bits, nothing lost. */
#include "check.h"

#ifndef __linux__
int main(void)
{
    return 77; /* its linker has no --wrap */
}
#else

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/mman.h>

#include "tiny_model.h"

static atomic_int calls, first, times;
static atomic_long blocks, pages; /* allocated and not yet given back */

static bool fails(void)
{
    int call = atomic_fetch_add(&calls, 1), at = atomic_load(&first);
    return call >= at && call - at < atomic_load(&times);
}

/* The next calls `at` .. `at + n - 1` fail; how many there were since the last time. */
static int fail(int at, int n)
{
    atomic_store(&times, 0);
    int before = atomic_exchange(&calls, 0);
    atomic_store(&first, at);
    atomic_store(&times, n);
    return before;
}

/* ---- what the linker puts in the place of the C library's, for the core alone --------------- */

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *block, size_t n);
void __real_free(void *block);
void *__real_mmap(void *where, size_t n, int protection, int flags, int fd, off_t at);
void *__real_mremap(void *block, size_t n, size_t more, int flags);
int __real_munmap(void *block, size_t n);
int __real_pthread_create(pthread_t *thread, const pthread_attr_t *how, void *(*run)(void *), void *argument);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *block, size_t n);
void __wrap_free(void *block);
void *__wrap_mmap(void *where, size_t n, int protection, int flags, int fd, off_t at);
void *__wrap_mremap(void *block, size_t n, size_t more, int flags);
int __wrap_munmap(void *block, size_t n);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *how, void *(*run)(void *), void *argument);

static void *counted(void *block)
{
    if (block) atomic_fetch_add(&blocks, 1);
    return block;
}

void *__wrap_malloc(size_t n)
{
    return fails() ? NULL : counted(__real_malloc(n));
}

void *__wrap_calloc(size_t n, size_t size)
{
    return fails() ? NULL : counted(__real_calloc(n, size));
}

void *__wrap_realloc(void *block, size_t n)
{
    if (fails()) return NULL;
    void *more = __real_realloc(block, n);
    if (!block) counted(more);
    return more;
}

void __wrap_free(void *block)
{
    if (block) atomic_fetch_sub(&blocks, 1);
    __real_free(block);
}

void *__wrap_mmap(void *where, size_t n, int protection, int flags, int fd, off_t at)
{
    if (fails()) {
        errno = ENOMEM;
        return MAP_FAILED;
    }
    void *block = __real_mmap(where, n, protection, flags, fd, at);
    if (block != MAP_FAILED) atomic_fetch_add(&pages, (long)n);
    return block;
}

void *__wrap_mremap(void *block, size_t n, size_t more, int flags)
{
    if (fails()) {
        errno = ENOMEM;
        return MAP_FAILED;
    }
    void *moved = __real_mremap(block, n, more, flags);
    if (moved != MAP_FAILED) atomic_fetch_add(&pages, (long)more - (long)n);
    return moved;
}

int __wrap_munmap(void *block, size_t n)
{
    atomic_fetch_sub(&pages, (long)n);
    return __real_munmap(block, n);
}

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *how, void *(*run)(void *), void *argument)
{
    return fails() ? EAGAIN : __real_pthread_create(thread, how, run, argument);
}

/* ---- a life of a model -------------------------------------------------------------------- */

enum { PROMPT = 50, MORE = 300, STEP = 64 };

typedef struct {
    fm_read_kind read;
    fm_evict_kind evict;
    fm_kv_kind kv;
} kind;

static float want[MORE * VOCAB], got[MORE * VOCAB];

/* Open, a prompt, save; a second session goes on from there and grows. Whatever was opened is closed. */
static fm_status live(const kind *k, float *out, fm_error *err)
{
    const fm_model_options options = {.threads = 2,
                                      .read_threads = 2,
                                      .expert_slots = K + 1,
                                      .prefill_rows = STEP,
                                      .kv = k->kv,
                                      .read = k->read,
                                      .evict = k->evict,
                                      .memory = 64 << 20};
    fm_model *model = NULL;
    fm_session *one = NULL, *two = NULL;
    void *saved = NULL;
    uint64_t bytes = 0, print = 0;

    fm_status status = fm_model_open(manifest, length, directory, &options, &model, err);
    if (status == FM_OK) fm_model_record(model, 1);
    if (status == FM_OK) status = fm_session_open(model, &one, err);
    if (status == FM_OK) status = run(one, PROMPT, STEP, out, err);
    if (status == FM_OK) saved = __real_malloc(bytes = fm_session_snapshot_bytes(one));
    if (status == FM_OK) status = fm_session_save(one, saved, bytes, err);
    if (status == FM_OK) status = fm_model_fingerprint(model, &print, err);
    if (status == FM_OK) status = fm_session_open(model, &two, err);
    if (status == FM_OK) status = fm_session_load(two, saved, bytes, err);
    for (int32_t n = 0, i = 0; status == FM_OK && i < MORE; i += n) {
        int32_t ids[STEP];
        n = MORE - i < STEP ? MORE - i : STEP;
        for (int32_t j = 0; j < n; j++) ids[j] = token(i + j);
        status = fm_session_eval(two, ids, n, out + (size_t)i * VOCAB, n, err);
        if (status == FM_MEMORY) CHECK(fm_session_position(two) == PROMPT + i);
    }
    const float *last = out + (size_t)(MORE - 1) * VOCAB;
    const fm_sampling how = {.temperature = 1, .top_p = 0.9f, .top_k = 5};
    uint64_t rng = 1;
    int32_t id;
    if (status == FM_OK) status = fm_sample(last, VOCAB, &how, &rng, &id, err);
    __real_free(saved);
    fm_session_close(two);
    fm_session_close(one);
    CHECK(fm_model_close(model) == FM_OK);
    return status;
}

static void sweep(const kind *k)
{
    fm_error err = {0};
    fm_status status = live(k, want, &err);
    if (status == FM_UNSUPPORTED) return; /* this system has no such way of reading */
    CHECK_THAT(status == FM_OK, "%s", err.message);
    fail(0, 0);
    CHECK(live(k, got, &err) == FM_OK);
    int most = fail(0, 0), refused = 0, right = 0;
    long blocks_before = atomic_load(&blocks), pages_before = atomic_load(&pages);
    CHECK(blocks_before == 0 && pages_before == 0);
    for (int n = 1; n <= 1 << 30; n += (1 << 30) - 1)
        for (int at = 0; at < most; at++) {
            err = (fm_error){0};
            fail(at, n);
            memset(got, 0, sizeof got);
            status = live(k, got, &err);
            fail(0, 0);
            refused += status == FM_MEMORY;
            right += status == FM_OK;
            CHECK_THAT(status == FM_OK || status == FM_MEMORY, "allocation %d x %d: %d %s", at, n, status, err.message);
            CHECK_THAT(status != FM_OK || memcmp(got, want, sizeof got) == 0, "allocation %d x %d: other logits", at, n);
            CHECK_THAT(status != FM_MEMORY || err.message[0], "allocation %d x %d: nothing said", at, n);
            CHECK_THAT(blocks == blocks_before && pages == pages_before, "allocation %d x %d: %ld blocks, %ld bytes lost", at, n,
                       blocks - blocks_before, pages - pages_before);
        }
    CHECK(refused > most);
    CHECK(live(k, got, &err) == FM_OK && memcmp(got, want, sizeof got) == 0);
    fprintf(stderr, "%s: %d allocations, each fails once and from then on: %d refused, %d right\n", __FILE__, most, refused,
            right);
}

int main(void)
{
    if (!mkdtemp(directory)) return 1;
    write_model();
    static const kind kinds[] = {
        {FM_READ_BUFFERED, FM_EVICT_LFU, FM_KV_F16},
        {FM_READ_DIRECT, FM_EVICT_LRU, FM_KV_F32},
        {FM_READ_POPULATE, FM_EVICT_SLRU, FM_KV_BF16},
        {FM_READ_URING, FM_EVICT_STATIC, FM_KV_F16},
    };
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) sweep(&kinds[i]);
    CHECK(fm_model_close(open_model(NULL)) == FM_OK);
    remove_model();
    return done();
}
#endif
