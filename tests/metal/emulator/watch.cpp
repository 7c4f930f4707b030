/*
 * What the instrumentation of ThreadSanitizer calls, for kernels: an access must lie in what is bound, must not change
 * what is bound `const`, and must be ordered with the accesses of other threads to the same bytes. Barriers order the
 * memory they name, within a simdgroup or a threadgroup; nothing orders threadgroups, and only emu_barrier dispatches.
 */
#include "watch.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

namespace emu::watch
{
namespace
{
constexpr uint32_t RANGES = 160, PAGE = 4096, BUCKETS = 1 << 16, NAMES = 1024;
constexpr int KINDS = 3; /* of Memory: a bit each */

struct Range {
    uintptr_t from, to;
    Memory kind;
    bool writable;
    bool quiet; /* nobody can change it during this dispatch */
    const char *name;
};

/* Who accessed: dispatch 10 bits, threadgroup 20, thread 10, clock 24. 0: nobody. */
struct Mark {
    uint64_t who;
    uint32_t pc; /* from the start of this library */
};

struct Cell {
    Mark write, read[2]; /* two readers: whoever writes differs from one of them */
};

struct Page {
    Page *next;
    uintptr_t number;
    uint32_t epoch;
    bool bytes;             /* a cell for each byte; else for each 4 */
    bool read;              /* `seen` has bits set */
    Cell *cells;            /* NULL until somebody may have written */
    uint8_t seen[PAGE / 8]; /* bytes that dispatches read for which they were constant */
};

bool on;
Range range[RANGES];
uint32_t ranges, device_ranges, last_range;
Page *bucket[BUCKETS], *last_page;
uint32_t epoch = 1, dispatch;
const char *names[NAMES]; /* of the kernels of this epoch's dispatches */
uint64_t me;              /* dispatch, threadgroup and thread */
uintptr_t image;          /* where this library lies */
uint32_t my_simdgroup, simdgroup_count;
uint32_t clock_of[KINDS][EMU_LANES], fence[KINDS][EMU_LANES];

/* ---- marks ---- */

uint64_t dispatch_and_group(uint64_t who)
{
    return who >> 34;
}
uint32_t thread_of(uint64_t who)
{
    return who >> 24 & 1023;
}

bool ordered(uint64_t who, Memory kind)
{
    if (!who || who >> 24 == me >> 24) return true;                                    /* nobody, or this thread */
    if (dispatch_and_group(who) != dispatch_and_group(me)) return kind == THREADGROUP; /* of another group: not this memory */
    uint32_t simdgroup = thread_of(who) / EMU_LANES, then = who & 0xffffff;
    return then < (simdgroup == my_simdgroup ? clock_of : fence)[kind][simdgroup];
}

uint64_t myself(Memory kind)
{
    return me | (clock_of[kind][my_simdgroup] & 0xffffff);
}

/* ---- reports ---- */

/* The line of a program counter, as " at file.metal:12"; nothing where no tool tells. */
const char *line_of(uint32_t pc, char (&text)[200])
{
    Dl_info info;
    char command[700];
    text[0] = 0;
    if (!dladdr((const void *)emu_kernels, &info)) return text;
    snprintf(command, sizeof command, "addr2line -e '%s' 0x%x 2>/dev/null", info.dli_fname, pc - 1);
    FILE *tool = popen(command, "r");
    char line[180];
    if (!tool) return text;
    if (fgets(line, sizeof line, tool) && line[0] != '?') {
        const char *slash = strrchr(line, '/');
        line[strcspn(line, " \n")] = 0;
        snprintf(text, sizeof text, " at %s", slash ? slash + 1 : line);
    }
    pclose(tool);
    return text;
}

const Range *around(uintptr_t at)
{
    for (uint32_t i = 0; i < ranges; i++)
        if (at >= range[i].from && at < range[i].to) return &range[i];
    return nullptr;
}

[[noreturn]] void race(uintptr_t at, const char *now, const char *before, Mark then, uintptr_t pc)
{
    char here[200], there[200], who[160];
    const Range *r = around(at);
    on = false;
    if (!then.who) snprintf(who, sizeof who, "an earlier dispatch");
    else if (then.who >> 54 != me >> 54)
        snprintf(who, sizeof who, "thread %u of kernel %s", thread_of(then.who), names[(then.who >> 54) % NAMES]);
    else if (dispatch_and_group(then.who) != dispatch_and_group(me))
        snprintf(who, sizeof who, "thread %u of threadgroup %u", thread_of(then.who), (uint32_t)(then.who >> 34 & 0xfffff));
    else snprintf(who, sizeof who, "thread %u", thread_of(then.who));
    fail("race on %s+%zu: %s%s after %s by %s%s, with no barrier between", r ? r->name : "?", r ? at - r->from : 0, now,
         line_of(uint32_t(pc - image), here), before, who, then.pc ? line_of(then.pc, there) : "");
}

[[noreturn]] void out_of_range(uintptr_t at, size_t n, bool write, uintptr_t pc)
{
    char here[200];
    on = false;
    line_of(uint32_t(pc - image), here);
    const Range *r = around(at), *near = nullptr;
    if (r && write && !r->writable) fail("write to '%s', which is const%s", r->name, here);
    if (r)
        fail("%s of %zu bytes at byte %zu of '%s', which has %zu%s", write ? "write" : "read", n, at - r->from, r->name,
             (size_t)(r->to - r->from), here);
    for (uint32_t i = 0; i < ranges; i++)
        if (at >= range[i].to && (!near || range[i].to > near->to)) near = &range[i];
    if (near && at - near->to < (1 << 20))
        fail("%s of %zu bytes %zu bytes behind the end of '%s', which has %zu%s", write ? "write" : "read", n, at - near->to,
             near->name, (size_t)(near->to - near->from), here);
    fail("%s of %zu bytes outside of everything that is bound%s", write ? "write" : "read", n, here);
}

/* ---- accesses ---- */

bool holds(const Range &r, uintptr_t at, size_t n, bool write)
{
    return at >= r.from && at + n <= r.to && (!write || r.writable);
}

/* NULL: a constant of the shader text. */
const Range *find(uintptr_t at, size_t n, bool write, uintptr_t pc)
{
    if (last_range < ranges && holds(range[last_range], at, n, write)) return &range[last_range];
    for (last_range = 0; last_range < ranges; last_range++)
        if (holds(range[last_range], at, n, write)) return &range[last_range];
    Dl_info info;
    if (!write && dladdr((const void *)at, &info) && (uintptr_t)info.dli_fbase == image) return nullptr;
    out_of_range(at, n, write, pc);
}

void *get(size_t bytes)
{
    void *at = calloc(1, bytes);
    if (!at) fail("no memory to watch accesses");
    return at;
}

Page *page_of(uintptr_t at)
{
    uintptr_t number = at / PAGE;
    Page *p = last_page;
    if (!p || p->number != number) {
        Page **from = &bucket[number * 0x9e3779b97f4a7c15u >> 48];
        for (p = *from; p && p->number != number;) p = p->next;
        if (!p) {
            p = (Page *)get(sizeof *p);
            p->number = number;
            p->next = *from;
            *from = p;
        }
        last_page = p;
    }
    if (p->epoch != epoch) {
        p->epoch = epoch;
        if (p->read) memset(p->seen, 0, sizeof p->seen);
        p->read = p->bytes = false;
        free(p->cells);
        p->cells = nullptr;
    }
    return p;
}

/* Give a page cells, and one for each byte if the access wants that. */
void make_cells(Page *p, bool bytes)
{
    if (!p->cells) {
        p->cells = (Cell *)get((bytes ? PAGE : PAGE / 4) * sizeof(Cell));
        p->bytes = bytes;
    } else if (bytes && !p->bytes) {
        Cell *fine = (Cell *)get(PAGE * sizeof(Cell));
        for (uint32_t i = 0; i < PAGE; i++) fine[i] = p->cells[i / 4];
        free(p->cells);
        p->cells = fine;
        p->bytes = true;
    }
}

void read_cell(Cell &c, Memory kind, uintptr_t at, uintptr_t pc, Mark now)
{
    if (!ordered(c.write.who, kind)) race(at, "read", "write", c.write, pc);
    int i = c.read[0].who >> 24 == me >> 24 ? 0 : c.read[1].who >> 24 == me >> 24 ? 1 : ordered(c.read[0].who, kind) ? 0 : 1;
    c.read[i] = now;
}

void write_cell(Cell &c, Memory kind, uintptr_t at, uintptr_t pc, Mark now)
{
    if (!ordered(c.write.who, kind)) race(at, "write", "write", c.write, pc);
    for (const Mark &r : c.read)
        if (!ordered(r.who, kind)) race(at, "write", "read", r, pc);
    c.write = now;
}

void touch(Page *p, uintptr_t at, size_t n, const Range &r, bool write, uintptr_t pc)
{
    uint32_t first = at % PAGE;
    if (r.quiet) {
        for (uint32_t i = first; i < first + n; i++) p->seen[i / 8] |= uint8_t(1 << i % 8);
        p->read = true;
        if (!p->cells) return;
    } else if (write && p->read) {
        for (uint32_t i = first; i < first + n; i++)
            if (p->seen[i / 8] >> i % 8 & 1) race(at, "write", "read", {0, 0}, pc);
    }
    make_cells(p, p->bytes || (at | n) % 4);
    Mark now = {myself(r.kind), uint32_t(pc - image)};
    uint32_t step = p->bytes ? 1 : 4;
    for (uint32_t i = first; i < first + n; i += step)
        (write ? write_cell : read_cell)(p->cells[i / step], r.kind, at + i - first, pc, now);
}

const unsigned char *stack_from;
size_t stack_bytes;

void access(const void *where, size_t n, bool write, void *return_address)
{
    uintptr_t at = (uintptr_t)where, pc = (uintptr_t)return_address;
    if (!on || at - (uintptr_t)stack_from < stack_bytes || !n) return;
    const Range *r = find(at, n, write, pc);
    if (!r) return;
    while (n) {
        size_t here = PAGE - at % PAGE < n ? PAGE - at % PAGE : n;
        touch(page_of(at), at, here, *r, write, pc);
        at += here;
        n -= here;
    }
}
} // namespace

void begin(const emu_kernel *k, const void *stacks, size_t bytes)
{
    Dl_info info;
    image = dladdr((const void *)emu_kernels, &info) ? (uintptr_t)info.dli_fbase : 0;
    stack_from = (const unsigned char *)stacks;
    stack_bytes = bytes;
    ranges = device_ranges = 0;
    if (++dispatch == NAMES) barrier();
    names[dispatch] = k->name;
}

void allow(const void *at, size_t bytes, Memory kind, bool writable, const char *name)
{
    if (ranges == RANGES) fail("more than %u ranges", RANGES);
    range[ranges++] = {(uintptr_t)at, (uintptr_t)at + bytes, kind, writable, false, name};
    if (kind == DEVICE) device_ranges = ranges;
}

void group(uint32_t simdgroups)
{
    ranges = device_ranges;
    simdgroup_count = simdgroups;
    memset(clock_of, 0, sizeof clock_of);
    memset(fence, 0, sizeof fence);
    for (uint32_t i = 0; i < ranges; i++) {
        range[i].quiet = !range[i].writable;
        for (uint32_t j = 0; j < ranges; j++)
            if (range[j].writable && range[i].from < range[j].to && range[j].from < range[i].to) range[i].quiet = false;
    }
}

void thread(uint64_t group, uint32_t index)
{
    my_simdgroup = index / EMU_LANES;
    me = (uint64_t)dispatch << 54 | (group & 0xfffff) << 34 | (uint64_t)index << 24;
    on = true;
}

void meet(Scope scope, int memory)
{
    for (int kind = 0; kind < KINDS; kind++) {
        if (!(memory & kind)) continue;
        if (scope == IN_SIMDGROUP) clock_of[kind][my_simdgroup]++;
        for (uint32_t i = 0; i < simdgroup_count && scope == IN_THREADGROUP; i++) fence[kind][i] = ++clock_of[kind][i];
    }
}

void atomic(const void *at, size_t bytes)
{
    uintptr_t pc = (uintptr_t)__builtin_return_address(0);
    if (on) find((uintptr_t)at, bytes, true, pc);
}

void end()
{
    on = false;
}

void barrier()
{
    epoch++;
    dispatch = 0;
}
} // namespace emu::watch

/* ---- what the compiler calls ---- */

#define HERE __builtin_return_address(0)
#define ACCESS(BYTES)                               \
    void __tsan_read##BYTES(void *at)               \
    {                                               \
        emu::watch::access(at, BYTES, false, HERE); \
    }                                               \
    void __tsan_write##BYTES(void *at)              \
    {                                               \
        emu::watch::access(at, BYTES, true, HERE);  \
    }                                               \
    void __tsan_unaligned_read##BYTES(void *at)     \
    {                                               \
        emu::watch::access(at, BYTES, false, HERE); \
    }                                               \
    void __tsan_unaligned_write##BYTES(void *at)    \
    {                                               \
        emu::watch::access(at, BYTES, true, HERE);  \
    }

extern "C" {
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)

void __tsan_init() {}

void *__tsan_memcpy(void *to, const void *from, size_t n)
{
    emu::watch::access(from, n, false, HERE);
    emu::watch::access(to, n, true, HERE);
    return memcpy(to, from, n);
}

void *__tsan_memmove(void *to, const void *from, size_t n)
{
    emu::watch::access(from, n, false, HERE);
    emu::watch::access(to, n, true, HERE);
    return memmove(to, from, n);
}

void *__tsan_memset(void *to, int value, size_t n)
{
    emu::watch::access(to, n, true, HERE);
    return memset(to, value, n);
}
}
