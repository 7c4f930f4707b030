/* Reading whole ranges, on the caller's thread or on many; the only file that reads experts. */
#include "store/read.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/memory.h"

#define MOST ((size_t)1 << 30)         /* of one pread: Linux stops at 2 GiB - 4 KiB, macOS refuses 2 GiB */
#define SPLITTABLE ((uint32_t)1 << 20) /* shorter reads are not cut up */

/* ---- one range ---------------------------------------------------------------- */

/* A read that ended early, with what the file looks like now. */
static fm_status short_read(const fm_file *file, int fd, size_t wanted, uint64_t from, size_t got, int error, fm_error *err)
{
    struct stat st;
    if (fstat(fd, &st) == 0 && (uint64_t)st.st_size < file->size)
        return fm_fail(
            err, FM_IO, "%s: wanted %zu bytes at offset %llu, got %zu: the file was cut from %llu to %llu bytes while in use",
            file->path, wanted, (unsigned long long)from, got, (unsigned long long)file->size, (unsigned long long)st.st_size);
    if (error)
        return fm_fail(err, FM_IO, "%s: wanted %zu bytes at offset %llu, got %zu: %s", file->path, wanted,
                       (unsigned long long)from, got, strerror(error));
    return fm_fail(err, FM_IO, "%s: wanted %zu bytes at offset %llu, got %zu", file->path, wanted, (unsigned long long)from, got);
}

/* Read up to `room` bytes and at least `wanted`. */
static fm_status read_range(const fm_file *file, int fd, uint8_t *to, size_t room, size_t wanted, uint64_t from, fm_error *err)
{
    size_t got = 0;
    while (got < wanted) {
        size_t n = room - got < MOST ? room - got : MOST;
        ssize_t r = pread(fd, to + got, n, (off_t)(from + got));
        if (r < 0 && errno == EINTR) continue;
        if (r <= 0) return short_read(file, fd, wanted, from, got, r < 0 ? errno : 0, err);
        got += (size_t)r;
    }
    return FM_OK;
}

fm_status fm_read_all(const fm_file *file, void *to, size_t n, uint64_t from, fm_error *err)
{
    return read_range(file, file->buffered, to, n, n, from, err);
}

/* ---- many, on threads ------------------------------------------------------------ */

typedef struct {
    fm_read read;
    int32_t group;
} piece;

/* A thread's own aligned memory for direct reads that are not aligned themselves. */
typedef struct {
    void *block;
    size_t bytes;
} bounce;

/* What one expert of the batch still waits for. */
typedef struct {
    int32_t left; /* pieces not in memory; never 0 if one fails or is dropped */
    atomic_bool ready;
} progress;

struct fm_reader {
    fm_reader_options how;
    pthread_t *thread;
    int32_t started;

    pthread_mutex_t lock;
    pthread_cond_t work, idle;
    bool closing;

    /* the batch in flight, under the lock */
    piece *pieces;
    int32_t count, room, next, done;
    progress *group; /* `ready` alone is also read without the lock */
    int32_t groups, groups_room;
    fm_read_check check;
    void *context;
    fm_status status;
    int32_t failed_group;
    fm_error why;
};

static fm_status read_direct(const fm_file *file, const fm_read *r, bounce *own, fm_error *err)
{
    uint64_t first = r->from / FM_PAGE * FM_PAGE;
    size_t skip = (size_t)(r->from - first), room = fm_align_up(skip + r->bytes, FM_PAGE);

    if (!skip && room == r->bytes && (uintptr_t)r->to % FM_PAGE == 0)
        return read_range(file, file->direct, r->to, r->bytes, r->bytes, r->from, err);
    if (own->bytes < room) {
        void *block;
        FM_TRY(fm_pages_map(room, &block, err));
        fm_pages_unmap(own->block, own->bytes);
        *own = (bounce){block, room};
    }
    FM_TRY(read_range(file, file->direct, own->block, room, skip + r->bytes, first, err));
    memcpy(r->to, (uint8_t *)own->block + skip, r->bytes);
    return FM_OK;
}

static fm_status read_piece(const fm_reader *reader, const fm_read *r, bounce *own, fm_error *err)
{
    const fm_file *file = &reader->how.file[r->file];
    if (reader->how.direct && file->direct >= 0) return read_direct(file, r, own, err);
    return fm_read_all(file, r->to, r->bytes, r->from, err);
}

/* The first failure of a batch is the one that is told. */
static void note(fm_reader *r, fm_status status, int32_t group, const fm_error *why)
{
    if (status == FM_OK || r->status != FM_OK) return;
    r->status = status;
    r->failed_group = group;
    r->why = *why;
}

/* All of a group is in memory. Called under the lock, which is let go while the group is looked at. */
static void finish_group(fm_reader *r, int32_t group)
{
    fm_error why = {0};
    fm_status status = FM_OK;

    if (r->check) {
        pthread_mutex_unlock(&r->lock);
        status = r->check(r->context, group, &why);
        pthread_mutex_lock(&r->lock);
        note(r, status, group, &why);
    }
    if (status == FM_OK) atomic_store_explicit(&r->group[group].ready, true, memory_order_release);
}

static void *serve(void *argument)
{
    fm_reader *r = argument;
    bounce own = {0};

    pthread_mutex_lock(&r->lock);
    for (;;) {
        while (!r->closing && r->next >= r->count) pthread_cond_wait(&r->work, &r->lock);
        if (r->closing && r->next >= r->count) break;
        piece p = r->pieces[r->next++];
        bool wasted = r->status != FM_OK; /* the batch has failed: what is left is only counted */
        pthread_mutex_unlock(&r->lock);

        fm_error why = {0};
        fm_status status = wasted ? FM_OK : read_piece(r, &p.read, &own, &why);

        pthread_mutex_lock(&r->lock);
        note(r, status, p.group, &why);
        if (!wasted && status == FM_OK && --r->group[p.group].left == 0) finish_group(r, p.group);
        if (++r->done == r->count) pthread_cond_broadcast(&r->idle);
    }
    pthread_mutex_unlock(&r->lock);
    fm_pages_unmap(own.block, own.bytes);
    return NULL;
}

fm_status fm_reader_open(const fm_reader_options *options, fm_reader **out, fm_error *err)
{
    sigset_t all, before;
    fm_reader *r = calloc(1, sizeof *r);
    if (!r) return fm_fail(err, FM_MEMORY, "no memory for a reader");
    r->how = *options;
    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->work, NULL);
    pthread_cond_init(&r->idle, NULL);
    r->thread = calloc((size_t)options->threads, sizeof *r->thread);

    sigfillset(&all); /* signals belong to the program's threads */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (r->thread && r->started < options->threads && pthread_create(&r->thread[r->started], NULL, serve, r) == 0)
        r->started++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (r->started != options->threads) {
        int32_t got = r->started;
        fm_reader_close(r);
        return fm_fail(err, FM_MEMORY, "only %d of %d read threads could be started", got, options->threads);
    }
    *out = r;
    return FM_OK;
}

void fm_reader_close(fm_reader *r)
{
    if (!r) return;
    pthread_mutex_lock(&r->lock);
    r->closing = true;
    pthread_cond_broadcast(&r->work);
    pthread_mutex_unlock(&r->lock);
    for (int32_t i = 0; i < r->started; i++) pthread_join(r->thread[i], NULL);
    pthread_cond_destroy(&r->idle);
    pthread_cond_destroy(&r->work);
    pthread_mutex_destroy(&r->lock);
    free(r->thread);
    free(r->pieces);
    free(r->group);
    free(r);
}

/* ---- batches ------------------------------------------------------------------------ */

static fm_status make_room(fm_reader *r, int32_t pieces, int32_t groups, fm_error *err)
{
    if (pieces > r->room) {
        piece *more = realloc(r->pieces, (size_t)pieces * sizeof *more);
        if (!more) return fm_fail(err, FM_MEMORY, "no memory for %d reads", pieces);
        r->pieces = more;
        r->room = pieces;
    }
    if (groups > r->groups_room) {
        progress *more = realloc(r->group, (size_t)groups * sizeof *more);
        if (!more) return fm_fail(err, FM_MEMORY, "no memory for %d experts", groups);
        r->group = more;
        r->groups_room = groups;
    }
    return FM_OK;
}

/* Cut one read at page boundaries of the file into at most `split` pieces. */
static int32_t cut(const fm_reader *r, const fm_read *read, int32_t group, piece *out)
{
    int32_t parts = read->bytes < SPLITTABLE ? 1 : r->how.split, n = 0;
    size_t step = fm_align_up(read->bytes / (uint32_t)parts + 1, FM_PAGE);
    for (uint32_t at = 0; at < read->bytes;) {
        size_t length = n == 0 ? step - read->from % FM_PAGE : step;
        if (parts == 1 || n == parts - 1 || length > read->bytes - at) length = read->bytes - at;
        out[n++] = (piece){{read->file, read->from + at, (uint32_t)length, read->to + at}, group};
        at += (uint32_t)length;
    }
    return n;
}

fm_status fm_reader_start(fm_reader *r, const fm_read *reads, const int32_t *group, int32_t n, fm_read_check check, void *context,
                          fm_error *err)
{
    int32_t groups = 0, count = 0;
    for (int32_t i = 0; i < n; i++)
        if (group[i] >= groups) groups = group[i] + 1;

    pthread_mutex_lock(&r->lock);
    fm_status status = make_room(r, n * r->how.split, groups, err);
    if (status == FM_OK) {
        for (int32_t i = 0; i < groups; i++) r->group[i] = (progress){0};
        r->groups = groups;
        for (int32_t i = 0; i < n; i++) {
            int32_t parts = cut(r, &reads[i], group[i], r->pieces + count);
            r->group[group[i]].left += parts;
            count += parts;
        }
        r->check = check;
        r->context = context;
        r->status = FM_OK;
        r->next = r->done = 0;
        r->count = count;
        pthread_cond_broadcast(&r->work);
    }
    pthread_mutex_unlock(&r->lock);
    return status;
}

fm_status fm_reader_wait(fm_reader *r, int32_t *group, fm_error *err)
{
    pthread_mutex_lock(&r->lock);
    while (r->done < r->count) pthread_cond_wait(&r->idle, &r->lock);
    fm_status status = r->status;
    if (status != FM_OK) {
        *group = r->failed_group;
        if (err) *err = r->why;
    }
    pthread_mutex_unlock(&r->lock);
    return status;
}

void fm_reader_drop(fm_reader *r)
{
    pthread_mutex_lock(&r->lock);
    r->done += r->count - r->next;
    r->next = r->count;
    if (r->done == r->count) pthread_cond_broadcast(&r->idle);
    pthread_mutex_unlock(&r->lock);
}

bool fm_reader_group_ready(fm_reader *r, int32_t group)
{
    return group >= 0 && group < r->groups && atomic_load_explicit(&r->group[group].ready, memory_order_acquire);
}
