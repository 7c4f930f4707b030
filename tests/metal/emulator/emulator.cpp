#include "fibers.h"
#include "watch.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#ifdef EMU_ADDRESS /* kernels are built with AddressSanitizer */
#include <sanitizer/asan_interface.h>
static constexpr size_t STACK = 256 << 10;
static void poison(const void *at, size_t bytes)
{
    __asan_poison_memory_region(at, bytes);
}
static void unpoison(const void *at, size_t bytes)
{
    __asan_unpoison_memory_region(at, bytes);
}
#else
static constexpr size_t STACK = 64 << 10;
static void poison(const void *, size_t) {}
static void unpoison(const void *, size_t) {}
#endif

namespace emu
{
namespace
{
constexpr size_t STRIDE = STACK + 4096 + 832; /* not a power of two: stacks would share sets of the cache */
constexpr uint64_t CANARY = 0x5afe57acc5afe57a;
constexpr uint32_t ARRAYS = 32, GAP = 64;
constexpr size_t ARENA = EMU_GROUP_BYTES + (ARRAYS + EMU_BUFFERS + 2) * (GAP + 16);

enum Kind { ENDED, SIMD, BARRIER };

struct Wait { /* what a lane waits for */
    Kind kind;
    const char *what;
    Site site;
    uint32_t thread;
    int memory;
};

struct Area { /* an array of threadgroup memory */
    void *at;
    size_t bytes;
};

/* The dispatch that runs, and who runs in it. */
struct Run {
    const emu_kernel *kernel;
    void *buffer[EMU_BUFFERS], *threadgroup[EMU_BUFFERS];
    size_t dynamic[EMU_BUFFERS];
    uint32_t groups[3], threads[3], group[3];
    uint64_t group_index;
    uint32_t count, simdgroups; /* threads and simdgroups of a threadgroup */

    uint32_t simdgroup_order[EMU_LANES], full_order[EMU_LANES], last_order[EMU_LANES];
    uint32_t simdgroup_at, lane_at; /* places in these */
    uint32_t thread;                /* who runs */
    Wait lane_wait, group_wait;     /* what the first one of this round waits for */
    uint32_t flip;

    Area array[ARRAYS];
    size_t used;       /* bytes of threadgroup memory */
    size_t arena_used; /* with the gaps */

    bool failed;
    char *error;
    size_t error_bytes;
};

Run run;
Fiber fiber[EMU_THREADS], host;
unsigned char *stacks;
alignas(64) unsigned char slot[2][EMU_LANES * EMU_SLOT];
unsigned char *arena; /* threadgroup memory, behind the stacks */
int32_t chosen_order;
pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;

/* A failure before any thread runs. */
__attribute__((format(printf, 1, 2))) int refuse(const char *format, ...)
{
    int n = snprintf(run.error, run.error_bytes, "%s: ", run.kernel->name);
    va_list args;
    va_start(args, format);
    if (n >= 0 && (size_t)n < run.error_bytes) vsnprintf(run.error + n, run.error_bytes - (size_t)n, format, args);
    va_end(args);
    return -1;
}

uint32_t lanes_of(uint32_t simdgroup)
{
    uint32_t left = run.count - simdgroup * EMU_LANES;
    return left < EMU_LANES ? left : EMU_LANES;
}

uint32_t simdgroup_now()
{
    return run.thread / EMU_LANES;
}

void place(uint32_t index, const uint32_t (&size)[3], uint32_t (&at)[3])
{
    at[0] = index % size[0];
    at[1] = index / size[0] % size[1];
    at[2] = index / size[0] / size[1];
}

const char *file_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

const char *describe(const Wait &w, char (&text)[160])
{
    if (w.kind == ENDED) snprintf(text, sizeof text, "has returned");
    else snprintf(text, sizeof text, "waits at %s in %s:%d", w.what, file_name(w.site.file), w.site.line);
    return text;
}

bool same(const Wait &a, const Wait &b)
{
    return a.kind == b.kind && a.site.file == b.site.file && a.site.line == b.site.line && a.site.column == b.site.column;
}

[[noreturn]] void diverged(const Wait &first, const Wait &now, const char *who)
{
    char a[160], b[160];
    fail("%s do not meet: thread %u %s, thread %u %s", who, first.thread, describe(first, a), now.thread, describe(now, b));
}

/* Go on in the thread that the two places name. */
void go_on()
{
    uint32_t from = run.thread, simdgroup = run.simdgroup_order[run.simdgroup_at];
    const uint32_t *order = lanes_of(simdgroup) == EMU_LANES ? run.full_order : run.last_order;
    run.thread = simdgroup * EMU_LANES + order[run.lane_at];
    watch::thread(run.group_index, run.thread);
    if (run.thread != from) change(fiber[from], fiber[run.thread]);
}

/*
 * A thread stops here. Lanes of a simdgroup go from meeting to meeting in turns, simdgroups from barrier to barrier;
 * the last one to arrive checks that all wait for the same, and lets the first one go on.
 */
void arrive(const Wait &w)
{
    if (run.lane_at == 0) run.lane_wait = w;
    if (!same(run.lane_wait, w)) diverged(run.lane_wait, w, "lanes of a simdgroup");
    if (++run.lane_at < lanes_of(simdgroup_now())) return go_on();
    run.lane_at = 0;
    if (w.kind == SIMD) {
        run.flip ^= 1;
        watch::meet(IN_SIMDGROUP, w.memory);
        return go_on();
    }
    if (run.simdgroup_at == 0) run.group_wait = run.lane_wait;
    if (!same(run.group_wait, w)) diverged(run.group_wait, w, "threads of a threadgroup");
    if (++run.simdgroup_at < run.simdgroups) return go_on();
    run.simdgroup_at = 0;
    if (w.kind == ENDED) {
        change(fiber[run.thread], host);
    } else {
        watch::meet(IN_THREADGROUP, w.memory);
        go_on();
    }
}

/* Where every fiber begins. */
void thread_main()
{
    Thread t{};
    t.buffer = run.buffer;
    t.threadgroup = run.threadgroup;
    t.index = run.thread;
    t.lane = run.thread % EMU_LANES;
    t.simdgroup = run.thread / EMU_LANES;
    t.simdgroups = run.simdgroups;
    t.width = EMU_LANES;
    place(run.thread, run.threads, t.in_group);
    for (int i = 0; i < 3; i++) {
        t.group[i] = run.group[i];
        t.threads[i] = run.threads[i];
        t.groups[i] = run.groups[i];
        t.grid[i] = run.groups[i] * run.threads[i];
        t.in_grid[i] = run.group[i] * run.threads[i] + t.in_group[i];
    }
    run.kernel->call(t);
    arrive({ENDED, "", {"", 0, 0}, run.thread, NONE});
    __builtin_unreachable();
}

uint64_t *canary(uint32_t thread)
{
    return (uint64_t *)(stacks + thread * STRIDE);
}

/* Threadgroup memory, filled with bytes that are NaN as float, half and bfloat. */
void *take_memory(size_t bytes, const char *name)
{
    bytes = bytes ? bytes : 1;
    run.used += (bytes + 15) & ~(size_t)15;
    if (run.used > EMU_GROUP_BYTES) fail("'%s' brings threadgroup memory to %zu bytes, of %d", name, run.used, EMU_GROUP_BYTES);
    unsigned char *at = arena + run.arena_used + GAP;
    run.arena_used += GAP + ((bytes + 15) & ~(size_t)15);
    unpoison(at, bytes);
    memset(at, 0xff, bytes);
    watch::allow(at, bytes, THREADGROUP, true, name);
    return at;
}

/* A permutation of n things. */
uint64_t nth(uint64_t i, uint64_t n)
{
    if (chosen_order == 0) return i;
    if (chosen_order == 1) return n - 1 - i;
    uint64_t step = n > 4 ? n * 5 / 8 : 1, a, b;
    for (;; step++) {
        for (a = step, b = n; b;) {
            uint64_t rest = a % b;
            a = b;
            b = rest;
        }
        if (a == 1) break;
    }
    return (i * step + n / 3) % n;
}

void run_group()
{
    poison(arena, ARENA);
    memset(run.array, 0, sizeof run.array);
    run.used = run.arena_used = 0;
    run.simdgroup_at = run.lane_at = 0;
    watch::group(run.simdgroups);
    for (int32_t i = 0; i < run.kernel->param_count; i++) {
        const emu_param *p = &run.kernel->params[i];
        if (p->is_threadgroup) run.threadgroup[p->index] = take_memory(run.dynamic[p->index], p->name);
    }
    for (uint32_t i = 0; i < run.count; i++) {
        *canary(i) = CANARY;
        prepare(fiber[i], stacks + i * STRIDE, STACK, thread_main);
    }
    run.thread = run.simdgroup_order[0] * EMU_LANES;
    run.thread += (lanes_of(run.simdgroup_order[0]) == EMU_LANES ? run.full_order : run.last_order)[0];
    watch::thread(run.group_index, run.thread);
    change(host, fiber[run.thread]);
    watch::end();
    for (uint32_t i = 0; i < run.count && !run.failed; i++)
        if (*canary(i) != CANARY) {
            refuse("thread %u takes more than %zu bytes of stack", i, STACK);
            run.failed = true;
        }
}

int bind_arguments(const emu_binding *buffer, const size_t *threadgroup_bytes)
{
    size_t total = 0;
    for (int32_t i = 0; i < run.kernel->param_count; i++) {
        const emu_param *p = &run.kernel->params[i];
        if (p->is_threadgroup) {
            run.dynamic[p->index] = threadgroup_bytes[p->index];
            total += (threadgroup_bytes[p->index] + 15) & ~(size_t)15;
            if (!threadgroup_bytes[p->index]) return refuse("threadgroup(%d) '%s' has no length", p->index, p->name);
            continue;
        }
        const emu_binding *b = &buffer[p->index];
        if (!b->at) return refuse("buffer(%d) '%s' is not bound", p->index, p->name);
        if (b->bytes < p->least)
            return refuse("buffer(%d) '%s': %zu bytes bound, the argument takes %zu", p->index, p->name, b->bytes, p->least);
        run.buffer[p->index] = b->at;
        watch::allow(b->at, b->bytes, DEVICE, !p->read_only, p->name);
    }
    if (total > EMU_GROUP_BYTES) return refuse("%zu bytes of threadgroup memory, of %d", total, EMU_GROUP_BYTES);
    return 0;
}

int set_constants(const int32_t *constant, const uint8_t *set)
{
    for (int32_t i = 0; i < run.kernel->constant_count; i++)
        if (!set[run.kernel->constants[i]]) return refuse("function constant %d is not set", run.kernel->constants[i]);
    for (const Constant *c = emu_constant_values; c->index >= 0; c++) {
        *c->value = set[c->index] ? constant[c->index] : INT32_MIN;
        watch::allow(c->value, sizeof *c->value, DEVICE, false, "a function constant");
    }
    return 0;
}

int set_sizes(emu_size groups, emu_size threads)
{
    const uint32_t g[3] = {groups.x, groups.y, groups.z}, t[3] = {threads.x, threads.y, threads.z};
    memcpy(run.groups, g, sizeof g);
    memcpy(run.threads, t, sizeof t);
    uint64_t count = (uint64_t)t[0] * t[1] * t[2], all = (uint64_t)g[0] * g[1] * g[2];
    if (!count || !all || count > EMU_THREADS || t[1] > EMU_THREADS || t[2] > EMU_THREADS)
        return refuse("%ux%ux%u threads in %ux%ux%u threadgroups: wants 1 to %d threads and at least one threadgroup", t[0], t[1],
                      t[2], g[0], g[1], g[2], EMU_THREADS);
    run.count = (uint32_t)count;
    run.simdgroups = (run.count + EMU_LANES - 1) / EMU_LANES;
    for (uint32_t i = 0; i < run.simdgroups; i++) run.simdgroup_order[i] = (uint32_t)nth(i, run.simdgroups);
    for (uint32_t i = 0; i < EMU_LANES; i++) run.full_order[i] = (uint32_t)nth(i, EMU_LANES);
    uint32_t last = lanes_of(run.simdgroups - 1);
    for (uint32_t i = 0; i < last; i++) run.last_order[i] = (uint32_t)nth(i, last);
    return 0;
}

int run_all()
{
    uint64_t all = (uint64_t)run.groups[0] * run.groups[1] * run.groups[2];
    for (uint64_t i = 0; i < all && !run.failed; i++) {
        run.group_index = nth(i, all);
        run.group[0] = (uint32_t)(run.group_index % run.groups[0]);
        run.group[1] = (uint32_t)(run.group_index / run.groups[0] % run.groups[1]);
        run.group[2] = (uint32_t)(run.group_index / run.groups[0] / run.groups[1]);
        run_group();
    }
    return run.failed ? -1 : 0;
}

int make_stacks()
{
    if (stacks) return 0;
    void *at =
        mmap(nullptr, EMU_THREADS * STRIDE + ARENA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) return refuse("no memory for the stacks of %d threads", EMU_THREADS);
    stacks = (unsigned char *)at;
    arena = stacks + EMU_THREADS * STRIDE;
    return 0;
}
} // namespace

void fail(const char *format, ...)
{
    uint32_t at[3];
    watch::end();
    place(run.thread, run.threads, at);
    int n = snprintf(run.error, run.error_bytes, "%s[threadgroup %u,%u,%u thread %u,%u,%u]: ", run.kernel->name, run.group[0],
                     run.group[1], run.group[2], at[0], at[1], at[2]);
    va_list args;
    va_start(args, format);
    if (n >= 0 && (size_t)n < run.error_bytes) vsnprintf(run.error + n, run.error_bytes - (size_t)n, format, args);
    va_end(args);
    run.failed = true;
    change(fiber[run.thread], host); /* and the threads stay as they are, for ever */
    __builtin_unreachable();
}

void barrier(Scope scope, int memory, const char *what, Site site)
{
    arrive({scope == IN_SIMDGROUP ? SIMD : BARRIER, what, site, run.thread, memory});
}

const void *meet(const void *value, size_t bytes, const char *what, Site site)
{
    memcpy(slot[run.flip] + run.thread % EMU_LANES * bytes, value, bytes);
    arrive({SIMD, what, site, run.thread, NONE});
    return slot[run.flip ^ 1];
}

void atomic(const void *at, size_t bytes)
{
    watch::atomic(at, bytes);
}

uint32_t lane()
{
    return run.thread % EMU_LANES;
}

uint32_t lanes()
{
    return lanes_of(simdgroup_now());
}

void *group_memory(uint32_t ordinal, size_t bytes, const char *name)
{
    if (ordinal >= ARRAYS) fail("'%s' is threadgroup array %u, of %u", name, ordinal, ARRAYS);
    Area *a = &run.array[ordinal];
    if (!a->at) *a = {take_memory(bytes, name), bytes};
    return a->at;
}
} // namespace emu

using namespace emu;

const emu_kernel *emu_find(const char *name)
{
    for (const emu_kernel *k = emu_kernels; k->name; k++)
        if (!strcmp(k->name, name)) return k;
    return nullptr;
}

int32_t emu_params(const emu_kernel *k, const emu_param **out)
{
    *out = k->params;
    return k->param_count;
}

int32_t emu_constants(const emu_kernel *k, const int32_t **indices)
{
    *indices = k->constants;
    return k->constant_count;
}

int emu_run(const emu_kernel *k, const emu_binding buffer[EMU_BUFFERS], const size_t threadgroup_bytes[EMU_BUFFERS],
            const int32_t constant[EMU_CONSTANTS], const uint8_t constant_set[EMU_CONSTANTS], emu_size groups, emu_size threads,
            char *error, size_t error_bytes)
{
    pthread_mutex_lock(&one_at_a_time);
    memset(&run, 0, sizeof run);
    run.kernel = k;
    run.error = error;
    run.error_bytes = error_bytes;
    int failed = make_stacks();
    watch::begin(k, stacks, EMU_THREADS * STRIDE);
    failed = failed || set_sizes(groups, threads) || bind_arguments(buffer, threadgroup_bytes) ||
             set_constants(constant, constant_set) || run_all();
    watch::end();
    if (failed) unpoison(stacks, EMU_THREADS * STRIDE); /* threads that were left where they stood */
    pthread_mutex_unlock(&one_at_a_time);
    return failed ? -1 : 0;
}

void emu_barrier(void)
{
    pthread_mutex_lock(&one_at_a_time);
    watch::barrier();
    pthread_mutex_unlock(&one_at_a_time);
}

void emu_order(int32_t order)
{
    pthread_mutex_lock(&one_at_a_time);
    chosen_order = order;
    pthread_mutex_unlock(&one_at_a_time);
}
