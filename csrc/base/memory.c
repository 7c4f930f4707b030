/* Page-aligned blocks straight from the system, so that they can shrink as well as grow. */
#include "base/memory.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif

/* Blocks of this size, weights and expert slots, are worth huge pages. */
#define LARGE ((size_t)32 << 20)

/* What a block of `bytes` really takes. */
static size_t whole_pages(size_t bytes)
{
    return fm_align_up(bytes ? bytes : 1, FM_PAGE);
}

fm_status fm_pages_map(size_t bytes, void **out, fm_error *err)
{
    if (bytes > SIZE_MAX / 2) return fm_fail(err, FM_MEMORY, "%zu bytes are more than memory can address", bytes);
    void *block = mmap(NULL, whole_pages(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (block == MAP_FAILED) return fm_fail(err, FM_MEMORY, "no memory for %zu bytes: %s", bytes, strerror(errno));
#ifdef MADV_HUGEPAGE
    if (bytes >= LARGE) madvise(block, whole_pages(bytes), MADV_HUGEPAGE); /* only a hint: fewer faults, fewer TLB misses */
#endif
    *out = block;
    return FM_OK;
}

void fm_pages_unmap(void *block, size_t bytes)
{
    if (block) munmap(block, whole_pages(bytes));
}

#ifdef __linux__
static void *move(void *block, size_t bytes, size_t new_bytes)
{
    return mremap(block, whole_pages(bytes), whole_pages(new_bytes), MREMAP_MAYMOVE);
}
#else
static void *move(void *block, size_t bytes, size_t new_bytes)
{
    void *bigger = mmap(NULL, whole_pages(new_bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (bigger == MAP_FAILED) return MAP_FAILED;
    memcpy(bigger, block, bytes);
    munmap(block, whole_pages(bytes));
    return bigger;
}
#endif

fm_status fm_pages_grow(void **block, size_t bytes, size_t new_bytes, fm_error *err)
{
    if (whole_pages(new_bytes) <= whole_pages(bytes)) return FM_OK;
    if (new_bytes > SIZE_MAX / 2) return fm_fail(err, FM_MEMORY, "%zu bytes are more than memory can address", new_bytes);
    void *bigger = move(*block, bytes, new_bytes);
    if (bigger == MAP_FAILED)
        return fm_fail(err, FM_MEMORY, "no memory to grow from %zu to %zu bytes: %s", bytes, new_bytes, strerror(errno));
    *block = bigger;
    return FM_OK;
}

void fm_pages_discard(void *block, size_t at, size_t bytes)
{
    /* the system's pages may be larger than ours (16 or 64 KiB on arm64): it would round the range up, over live bytes */
    long system = sysconf(_SC_PAGESIZE);
    size_t page = system > (long)FM_PAGE ? (size_t)system : FM_PAGE;
    size_t first = fm_align_up(at, page), end = (at + bytes) / page * page;
    if (end <= first) return;
    uint8_t *from = (uint8_t *)block + first;
#ifdef __linux__
    madvise(from, end - first, MADV_DONTNEED);
#else
    /* elsewhere MADV_DONTNEED keeps the contents: a fresh mapping in the same place does not */
    mmap(from, end - first, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
#endif
}
