/*
 * A fixed pool. The caller never waits for a worker that has not begun: pieces
 * are taken one by one, and a run ends when the last piece is done, so that a
 * worker without a core (or still asleep) costs nothing but its help.
 */
#include "base/threads.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/system.h"

#define SPIN_NS 50000 /* how long a worker looks for the next job before it sleeps */

#define CLOSED 0x7fffffffu /* a next piece that no job has */

struct fm_pool {
    int32_t threads;
    pthread_t *worker; /* [threads - 1] */
    int32_t started;

    /* round << 32 | next piece. A piece belongs to whoever raises this from the value it saw. */
    atomic_uint_fast64_t state;
    /* the job of the round; written only while the state is CLOSED */
    _Atomic(fm_job) job;
    _Atomic(void *) context;
    atomic_uint pieces, done;

    pthread_mutex_t lock; /* for sleeping only */
    pthread_cond_t wake;
    atomic_int sleeping;
    atomic_bool closing;
};

typedef struct {
    fm_pool *pool;
    int32_t number;
} worker_start;

static inline void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static bool has_work(fm_pool *p)
{
    return (uint32_t)atomic_load(&p->state) < atomic_load(&p->pieces);
}

/* Take pieces until there are none. If the state is still what it was when the job was read, so is the job:
 * whoever reads a newer job also sees that its old state was CLOSED (release and acquire), and the exchange fails. */
static void take_pieces(fm_pool *p, int32_t worker)
{
    for (;;) {
        uint_fast64_t state = atomic_load(&p->state);
        uint32_t piece = (uint32_t)state;
        fm_job job = atomic_load_explicit(&p->job, memory_order_acquire);
        void *context = atomic_load_explicit(&p->context, memory_order_acquire);
        if (piece >= atomic_load_explicit(&p->pieces, memory_order_acquire)) return;
        if (!atomic_compare_exchange_weak(&p->state, &state, state + 1)) continue;
        job(context, (int32_t)piece, worker);
        atomic_fetch_add_explicit(&p->done, 1, memory_order_release);
    }
}

/* Spin a little, then sleep, until there is work. False when closing. */
static bool await_work(fm_pool *p)
{
    uint64_t until = fm_now_ns() + SPIN_NS;
    for (int32_t i = 1; !has_work(p); i++) {
        relax();
        if (i % 64 || fm_now_ns() < until) continue;
        pthread_mutex_lock(&p->lock);
        atomic_fetch_add(&p->sleeping, 1);
        while (!has_work(p) && !atomic_load(&p->closing)) pthread_cond_wait(&p->wake, &p->lock);
        atomic_fetch_sub(&p->sleeping, 1);
        pthread_mutex_unlock(&p->lock);
        if (atomic_load(&p->closing)) return false;
    }
    return true;
}

static void *work(void *argument)
{
    worker_start start = *(worker_start *)argument;
    free(argument);
    fm_system_thread_is_awaited();
    while (await_work(start.pool)) take_pieces(start.pool, start.number);
    return NULL;
}

static void wake_sleepers(fm_pool *p)
{
    if (!atomic_load(&p->sleeping)) return;
    pthread_mutex_lock(&p->lock);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
}

/* Signals belong to the threads of the program, not to ours. */
static int start_quietly(pthread_t *thread, worker_start *start)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(thread, NULL, work, start);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return failed;
}

fm_status fm_pool_open(int32_t threads, fm_pool **out, fm_error *err)
{
    if (threads < 1) return fm_fail(err, FM_ARGUMENT, "%d threads", threads);
    fm_pool *p = calloc(1, sizeof *p);
    if (!p) return fm_fail(err, FM_MEMORY, "no memory for a thread pool");
    p->threads = threads;
    atomic_store(&p->state, CLOSED);
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    p->worker = calloc((size_t)threads, sizeof *p->worker);
    for (int32_t i = 1; p->worker && i < threads; i++) {
        worker_start *start = malloc(sizeof *start);
        if (!start) break;
        *start = (worker_start){p, i};
        if (start_quietly(&p->worker[i - 1], start) != 0) {
            free(start);
            break;
        }
        p->started++;
    }
    if (p->started != threads - 1) {
        int32_t got = p->started;
        fm_pool_close(p);
        return fm_fail(err, FM_MEMORY, "only %d of %d threads could be started", got + 1, threads);
    }
    *out = p;
    return FM_OK;
}

void fm_pool_close(fm_pool *pool)
{
    if (!pool) return;
    pthread_mutex_lock(&pool->lock);
    atomic_store(&pool->closing, true);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
    for (int32_t i = 0; i < pool->started; i++) pthread_join(pool->worker[i], NULL);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->lock);
    free(pool->worker);
    free(pool);
}

int32_t fm_pool_threads(const fm_pool *pool)
{
    return pool->threads;
}

void fm_pool_run(fm_pool *p, int32_t pieces, fm_job job, void *context)
{
    if (pieces <= 1 || p->started == 0) {
        for (int32_t i = 0; i < pieces; i++) job(context, i, 0);
        return;
    }
    uint_fast64_t round = (atomic_load(&p->state) >> 32) + 1;
    atomic_store_explicit(&p->job, job, memory_order_release);
    atomic_store_explicit(&p->context, context, memory_order_release);
    atomic_store_explicit(&p->pieces, (unsigned)pieces, memory_order_release);
    atomic_store_explicit(&p->done, 0, memory_order_relaxed);
    atomic_store(&p->state, round << 32);
    wake_sleepers(p);
    take_pieces(p, 0);

    /* the rest are in their last piece: yield now and then in case one of them has no core */
    for (int32_t i = 1; atomic_load_explicit(&p->done, memory_order_acquire) < (unsigned)pieces; i++) {
        relax();
        if (i % 1024 == 0) sched_yield();
    }
    atomic_store(&p->state, round << 32 | CLOSED);
}
