/* The pool: every piece once, nothing after the return, also when workers have gone to sleep. */
#include <stdatomic.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/threads.h"
#include "check.h"

typedef struct {
    atomic_int times[500];
    atomic_int workers;
    int plain[500];
} tally;

static void count(void *context, int32_t piece, int32_t worker)
{
    tally *t = context;
    atomic_fetch_add(&t->times[piece], 1);
    atomic_fetch_or(&t->workers, 1 << worker);
    t->plain[piece] += piece + 1; /* a race here is for the thread sanitizer */
}

static void nothing(void *context, int32_t piece, int32_t worker)
{
    (void)context, (void)piece, (void)worker;
}

static void test_pool(int32_t threads)
{
    fm_pool *pool;
    tally t = {0};
    int32_t rounds = 0;

    CHECK(fm_pool_open(threads, &pool, NULL) == FM_OK && fm_pool_threads(pool) == threads);
    for (int32_t pieces = 0; pieces <= 500; pieces += 1 + pieces / 3, rounds++) {
        memset(&t, 0, sizeof t);
        fm_pool_run(pool, pieces, count, &t);
        for (int32_t i = 0; i < 500; i++)
            CHECK(atomic_load(&t.times[i]) == (i < pieces) && t.plain[i] == (i < pieces ? i + 1 : 0));
        CHECK(atomic_load(&t.workers) < 1 << threads);
        if (rounds % 5 == 0) usleep(2000); /* long enough for workers to sleep */
    }
    uint64_t start = fm_now_ns();
    for (int32_t i = 0; i < 2000; i++) fm_pool_run(pool, 2 * threads, nothing, NULL);
    fprintf(stderr, "%d threads: %.1f us an empty run\n", threads, (double)(fm_now_ns() - start) / 2000 / 1000);
    fm_pool_close(pool);
}

static void test_memory(void)
{
    void *block;
    size_t out;
    CHECK(fm_pages_map(10000, &block, NULL) == FM_OK && (uintptr_t)block % FM_PAGE == 0);
    uint8_t *bytes = block;
    for (int i = 0; i < 10000; i++) CHECK(bytes[i] == 0);
    memset(block, 7, 10000);
    CHECK(fm_pages_grow(&block, 10000, 1 << 20, NULL) == FM_OK);
    bytes = block;
    CHECK(bytes[0] == 7 && bytes[9999] == 7 && bytes[(1 << 20) - 1] == 0);
    memset(block, 9, 1 << 20);
    fm_pages_discard(block, 5000, 10000); /* whole pages inside: 8192 .. 12288 */
    CHECK(bytes[8191] == 9 && bytes[8192] == 0 && bytes[12287] == 0 && bytes[12288] == 9);
    fm_pages_unmap(block, 1 << 20);
    CHECK(fm_pages_map(SIZE_MAX - 5, &block, NULL) == FM_MEMORY);
    CHECK(!fm_size_mul(SIZE_MAX / 2, 3, &out) && !fm_size_add(SIZE_MAX, 1, &out) && fm_size_mul(6, 7, &out) && out == 42);
}

int main(void)
{
    fm_pool *pool;
    for (int32_t threads = 1; threads <= 4; threads++) test_pool(threads);
    CHECK(fm_pool_open(0, &pool, NULL) == FM_ARGUMENT);
    CHECK(fm_cores() >= 1);
    test_memory();
    return done();
}
