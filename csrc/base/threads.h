/* A fixed pool that runs the pieces of one job and waits for all of them. */
#ifndef FM_THREADS_H
#define FM_THREADS_H

#include "base/status.h"

typedef struct fm_pool fm_pool;

/* One piece of a job. `worker` is 0 .. threads-1; pieces are taken in order. */
typedef void (*fm_job)(void *context, int32_t piece, int32_t worker);

/* `threads` counts the caller, so 1 starts none. Workers block every signal. */
fm_status fm_pool_open(int32_t threads, fm_pool **out, fm_error *err);
void fm_pool_close(fm_pool *pool);
int32_t fm_pool_threads(const fm_pool *pool);

/* Run job(context, 0 .. pieces-1) and return when all are done. The caller
 * takes part as worker 0. One run at a time. */
void fm_pool_run(fm_pool *pool, int32_t pieces, fm_job job, void *context);

/* Cores this process may use (affinity and cgroup quota respected), at least 1. */
int32_t fm_cores(void);

#endif
