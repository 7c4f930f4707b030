/*
 * A fixed pool. Handing a job over costs about a microsecond while workers
 * still spin after the last one, and a wake-up when they have gone to sleep.
 */
#include "base/threads.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/clock.h"

#define SPIN_NS 50000           /* how long a worker looks for the next job before it sleeps */

struct fm_pool {
    int32_t         threads;
    pthread_t      *worker;             /* [threads - 1] */
    int32_t         started;

    /* the job; written before `round` is raised, read after */
    fm_job          job;
    void           *context;
    int32_t         pieces;
    atomic_int      next;               /* first piece not taken */
    atomic_int      busy;               /* workers still in this round */
    atomic_uint     round;

    pthread_mutex_t lock;               /* for sleeping only */
    pthread_cond_t  wake;
    atomic_int      sleeping;
    atomic_bool     closing;
};

typedef struct { fm_pool *pool; int32_t number; } worker_start;

static inline void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void take_pieces(fm_pool *p, int32_t worker)
{
    for (;;) {
        int32_t piece = atomic_fetch_add_explicit(&p->next, 1, memory_order_relaxed);
        if (piece >= p->pieces) return;
        p->job(p->context, piece, worker);
    }
}

/* Wait until the round is no longer `seen`: spin a little, then sleep. False when closing. */
static bool next_round(fm_pool *p, unsigned seen)
{
    uint64_t until = fm_now_ns() + SPIN_NS;
    for (int32_t i = 0;; i++) {
        if (atomic_load_explicit(&p->round, memory_order_acquire) != seen) break;
        relax();
        if (i % 64 == 63 && fm_now_ns() > until) {
            pthread_mutex_lock(&p->lock);
            atomic_fetch_add(&p->sleeping, 1);
            while (atomic_load(&p->round) == seen) pthread_cond_wait(&p->wake, &p->lock);
            atomic_fetch_sub(&p->sleeping, 1);
            pthread_mutex_unlock(&p->lock);
            break;
        }
    }
    return !atomic_load(&p->closing);
}

static void *work(void *argument)
{
    worker_start start = *(worker_start *)argument;
    fm_pool *p = start.pool;

    free(argument);
    for (unsigned seen = 0; next_round(p, seen);) {
        seen = atomic_load_explicit(&p->round, memory_order_acquire);
        take_pieces(p, start.number);
        atomic_fetch_sub_explicit(&p->busy, 1, memory_order_release);
    }
    return NULL;
}

static void begin_round(fm_pool *p)
{
    atomic_fetch_add(&p->round, 1);
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
    atomic_store(&pool->closing, true);
    begin_round(pool);
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
    p->job = job;
    p->context = context;
    p->pieces = pieces;
    atomic_store_explicit(&p->next, 0, memory_order_relaxed);
    atomic_store_explicit(&p->busy, p->started, memory_order_relaxed);
    begin_round(p);
    take_pieces(p, 0);

    /* the rest are in their last piece: yield now and then in case one of them has no core */
    for (int32_t i = 1; atomic_load_explicit(&p->busy, memory_order_acquire); i++) {
        relax();
        if (i % 4096 == 0) sched_yield();
    }
}
