/* The GPU's side: one thread that runs what was committed, in order, when it may. */
#include "fake.h"

#include <pthread.h>
#include <stdlib.h>
#include <time.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t more = PTHREAD_COND_INITIALIZER, finished = PTHREAD_COND_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_t worker;
static FakeCommandBuffer **waiting; /* oldest first */
static int32_t waits, wait_room, running;
static uint64_t last, wanted; /* turns: of the newest one, and up to which somebody waits */

/* An Apple GPU takes denormal numbers for zero. */
static void flush_denormals(void)
{
#if defined(__x86_64__)
    __builtin_ia32_ldmxcsr(__builtin_ia32_stmxcsr() | 0x8040);
#elif defined(__aarch64__)
    uint64_t control;
    __asm__ volatile("mrs %0, fpcr" : "=r"(control));
    __asm__ volatile("msr fpcr, %0" : : "r"(control | 1u << 24));
#endif
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* What a run that is made to fail says; the words of macOS. */
static NSError *made_to_fail(void)
{
    switch (fake_metal_options()->error) {
    case MTLCommandBufferErrorInternal: return fake_error(MTLCommandBufferErrorInternal, "Impacting Interactivity (made to)");
    case MTLCommandBufferErrorNotPermitted:
        return fake_error(MTLCommandBufferErrorNotPermitted,
                          "Insufficient Permission (to submit GPU work from background) (made to)");
    case MTLCommandBufferErrorOutOfMemory: return fake_error(MTLCommandBufferErrorOutOfMemory, "Insufficient Memory (made to)");
    default: return fake_error(MTLCommandBufferErrorTimeout, "Caused GPU Timeout Error (made to)");
    }
}

/* Why it failed, or nil. */
static NSError *execute(FakeCommandBuffer *c)
{
    char text[768];
    if (fake_fails(FAKE_LOST)) c->device->lost = 1;
    if (c->device->lost) return fake_error(MTLCommandBufferErrorDeviceRemoved, "Device Removed (made to)");
    if (fake_fails(FAKE_RUN)) return made_to_fail();
    if (fake_run(c->entry, c->entries, text, sizeof text) == 0) return nil;
    if (!fake_metal_options()->soft) fake_fatal("%s", text);
    return fake_error(MTLCommandBufferErrorPageFault, "Caused GPU Address Fault Error (%s)", text);
}

static FakeCommandBuffer *next(void)
{
    pthread_mutex_lock(&lock);
    while (!waits || (fake_metal_options()->lazy && waiting[0]->turn > wanted)) pthread_cond_wait(&more, &lock);
    FakeCommandBuffer *c = waiting[0];
    for (int32_t i = 1; i < waits; i++) waiting[i - 1] = waiting[i];
    waits--;
    running = 1;
    pthread_mutex_unlock(&lock);
    return c;
}

static void *work(void *unused)
{
    flush_denormals();
    for (;;) {
        FakeCommandBuffer *c = next();
        @autoreleasepool {
            c->from = now();
            NSError *why = execute(c);
            c->to = now();
            fake_finish(c, why);
        }
        pthread_mutex_lock(&lock);
        c->finished = 1;
        running = 0;
        [c release];
        pthread_cond_broadcast(&finished);
        pthread_mutex_unlock(&lock);
    }
    return unused;
}

static void start(void)
{
    if (pthread_create(&worker, NULL, work, NULL) != 0) fake_fatal("no thread");
    pthread_detach(worker);
}

void fake_submit(FakeCommandBuffer *c)
{
    pthread_once(&once, start);
    pthread_mutex_lock(&lock);
    waiting = fake_room(waiting, waits, &wait_room, sizeof *waiting);
    waiting[waits++] = [c retain];
    c->turn = ++last;
    c->state = MTLCommandBufferStatusCommitted;
    pthread_cond_signal(&more);
    pthread_mutex_unlock(&lock);
}

static void want(uint64_t turn)
{
    if (wanted < turn) wanted = turn;
    pthread_cond_signal(&more);
}

void fake_want(FakeCommandBuffer *c)
{
    pthread_mutex_lock(&lock);
    want(c->turn);
    pthread_mutex_unlock(&lock);
}

void fake_wait(FakeCommandBuffer *c)
{
    if (pthread_equal(pthread_self(), worker)) fake_fatal("a completed handler waits for a command buffer");
    pthread_mutex_lock(&lock);
    want(c->turn);
    while (!c->finished) pthread_cond_wait(&finished, &lock);
    pthread_mutex_unlock(&lock);
}

void fake_wait_oldest(FakeQueue *q)
{
    pthread_mutex_lock(&lock);
    while (q->unfinished == FAKE_QUEUE) {
        if (!waits && !running) fake_fatal("%d command buffers were made and none of them is committed", FAKE_QUEUE);
        if (waits) want(waiting[0]->turn);
        pthread_cond_wait(&finished, &lock);
    }
    pthread_mutex_unlock(&lock);
}
