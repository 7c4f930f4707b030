/* One range of a file, read by one thread: through the page cache, around it, or out of a mapping. */
#include "store/ways.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/memory.h"

#define SMALL ((uint32_t)128 << 10) /* shorter parts that start inside a page come through the page cache */
#define MOST ((size_t)1 << 30)      /* of one pread: Linux stops at 2 GiB - 4 KiB, macOS refuses 2 GiB */

fm_status fm_read_ended(const fm_file *file, size_t wanted, uint64_t from, size_t got, int error, fm_error *err)
{
    struct stat st;
    if (fstat(file->buffered, &st) == 0 && (uint64_t)st.st_size < file->size)
        return fm_fail(
            err, FM_IO, "%s: wanted %zu bytes at offset %llu, got %zu: the file was cut from %llu to %llu bytes while in use",
            file->path, wanted, (unsigned long long)from, got, (unsigned long long)file->size, (unsigned long long)st.st_size);
    if (error)
        return fm_fail(err, FM_IO, "%s: wanted %zu bytes at offset %llu, got %zu: %s", file->path, wanted,
                       (unsigned long long)from, got, strerror(error));
    return fm_fail(err, FM_IO, "%s: wanted %zu bytes at offset %llu, got %zu", file->path, wanted, (unsigned long long)from, got);
}

/* Read up to `room` bytes and at least `wanted`, of which `got` are there. A direct read that stopped between
 * two pages cannot go on from there; its rest comes through the page cache. */
static fm_status read_rest(const fm_file *file, int fd, uint8_t *to, size_t room, size_t wanted, uint64_t from, size_t got,
                           fm_error *err)
{
    while (got < wanted) {
        size_t n = room - got < MOST ? room - got : MOST;
        ssize_t r = pread(got % FM_PAGE ? file->buffered : fd, to + got, n, (off_t)(from + got));
        if (r < 0 && errno == EINTR) continue;
        if (r <= 0) return fm_read_ended(file, wanted, from, got, r < 0 ? errno : 0, err);
        got += (size_t)r;
    }
    return FM_OK;
}

fm_status fm_read_all(const fm_file *file, void *to, size_t n, uint64_t from, fm_error *err)
{
    return read_rest(file, file->buffered, to, n, n, from, 0, err);
}

/* ---- through the page cache ------------------------------------------------------- */

static fm_status read_buffered(const fm_file *file, const fm_read *r, fm_bounce *own, fm_error *err)
{
    (void)own;
    return fm_read_all(file, r->to, r->bytes, r->from, err);
}

#ifdef F_RDADVISE
static void announce_buffered(const fm_file *file, const fm_read *r)
{
    struct radvisory range = {.ra_offset = (off_t)r->from, .ra_count = (int)r->bytes};
    fcntl(file->buffered, F_RDADVISE, &range);
}
#else
#define announce_buffered NULL /* POSIX_FADV_WILLNEED gained nothing: benchmarks/EXPERIMENTS.md */
#endif

/* ---- around it -------------------------------------------------------------------- */

fm_status fm_span_of(const fm_file *file, const fm_read *r, fm_bounce *own, fm_span *out, fm_error *err)
{
    size_t skip = (size_t)(r->from % FM_PAGE), room = fm_align_up(skip + r->bytes, FM_PAGE);

    bool aligned = !skip && room == r->bytes && (uintptr_t)r->to % FM_PAGE == 0;

    *out = (fm_span){file->direct, r->to, r->from, r->bytes, r->bytes, 0};
    if (file->direct < 0 || (skip && r->bytes < SMALL)) out->fd = file->buffered;
    if (aligned || out->fd == file->buffered) return FM_OK;
    if (own->bytes < room) {
        void *block;
        FM_TRY(fm_pages_map(room, &block, err));
        fm_pages_unmap(own->block, own->bytes);
        *own = (fm_bounce){block, room};
    }
    *out = (fm_span){file->direct, own->block, r->from - skip, room, skip + r->bytes, skip};
    return FM_OK;
}

fm_status fm_span_finish(const fm_file *file, const fm_read *r, const fm_span *s, size_t got, fm_error *err)
{
    FM_TRY(read_rest(file, s->fd, s->to, s->room, s->wanted, s->from, got, err));
    if (s->to != r->to) memcpy(r->to, s->to + s->skip, r->bytes);
    return FM_OK;
}

static fm_status read_direct(const fm_file *file, const fm_read *r, fm_bounce *own, fm_error *err)
{
    fm_span span;
    FM_TRY(fm_span_of(file, r, own, &span, err));
    return fm_span_finish(file, r, &span, 0, err);
}

/* ---- out of a mapping ------------------------------------------------------------- */

/*
 * Touching a page beyond the file's end, or one that the disk cannot give, is a SIGBUS, not an error. So the
 * size is looked up before every read. A file cut in the very middle of a copy, and for plain mapping a bad
 * sector, still end the process: reasons not to use a mapping for anything but comparison.
 */
static fm_status still_there(const fm_file *file, const fm_read *r, fm_error *err)
{
    struct stat st;
    if (fstat(file->buffered, &st) != 0) return fm_read_ended(file, r->bytes, r->from, 0, errno, err);
    uint64_t size = (uint64_t)st.st_size < file->size ? (uint64_t)st.st_size : file->size;
    if (r->from <= size && r->bytes <= size - r->from) return FM_OK;
    return fm_read_ended(file, r->bytes, r->from, r->from < size ? (size_t)(size - r->from) : 0, 0, err);
}

static fm_status read_mapped(const fm_file *file, const fm_read *r, fm_bounce *own, fm_error *err)
{
    (void)own;
    FM_TRY(still_there(file, r, err));
    memcpy(r->to, file->map + r->from, r->bytes);
    return FM_OK;
}

#ifdef __linux__
static fm_status read_populated(const fm_file *file, const fm_read *r, fm_bounce *own, fm_error *err)
{
    size_t skip = (size_t)(r->from % (uint64_t)sysconf(_SC_PAGESIZE)), room = skip + r->bytes;
    uint8_t *first = file->map + (r->from - skip);
    FM_TRY(still_there(file, r, err));
    while (madvise(first, room, FM_POPULATE_READ) != 0) {
        if (errno == EINTR) continue;
        return fm_read_ended(file, r->bytes, r->from, 0, errno == EFAULT ? EIO : errno, err);
    }
    fm_status status = read_mapped(file, r, own, err);
    madvise(first, room, MADV_DONTNEED); /* the pages stay in the cache, but no longer count as this process's */
    return status;
}
#else
#define read_populated read_mapped /* never reached: fm_files_open refuses this way */
#endif

/* ---- the table -------------------------------------------------------------------- */

const fm_read_way *fm_read_way_of(fm_read_kind kind)
{
    static const fm_read_way ways[] = {
        [FM_READ_BUFFERED] = {false, false, 0, read_buffered, announce_buffered},
        [FM_READ_DIRECT] = {true, false, 0, read_direct, NULL},
        [FM_READ_POPULATE] = {false, true, MADV_RANDOM, read_populated, NULL},
        [FM_READ_MMAP] = {false, true, MADV_NORMAL, read_mapped, NULL},
        [FM_READ_URING] = {true, false, 0, NULL, NULL},
    };
    return &ways[kind];
}
