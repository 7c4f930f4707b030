/* Batches of reads on threads, or on one thread with a ring. How one range is read: store/ways.c. */
#include "store/read.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/system.h"
#include "store/ring.h"
#include "store/ways.h"

#define SPLITTABLE ((uint32_t)1 << 20) /* shorter reads are not cut up */

typedef struct {
    fm_read read;
    int32_t group;
} piece;

/* What one expert of the batch still waits for. */
typedef struct {
    int32_t left; /* pieces not in memory; never 0 if one fails or is dropped */
    atomic_bool ready;
} progress;

/* A read in flight in the ring. */
typedef struct {
    piece piece;
    fm_bounce own;
    fm_span span;
    bool busy;
} lane;

struct fm_reader {
    fm_reader_options how;
    pthread_t *thread;
    int32_t threads, started;
    fm_ring *ring; /* with `lane`, of the one thread that FM_READ_URING has */
    lane *lane;    /* [how.threads] */

    pthread_mutex_t lock;
    pthread_cond_t work, idle;
    bool closing;

    /* the batch in flight, under the lock */
    piece *pieces;
    int32_t count, room, next, done;
    progress *group; /* `ready` alone is also read without the lock */
    int32_t groups, groups_room, ready;
    fm_read_check check;
    void *context;
    fm_status status;
    int32_t failed_group;
    fm_error why;
};

/* ---- the end of a piece ------------------------------------------------------------- */

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
    if (status != FM_OK) return;
    atomic_store_explicit(&r->group[group].ready, true, memory_order_release);
    r->ready++;
    pthread_cond_broadcast(&r->idle);
}

/* `read` is false for what is only counted, since the batch has failed already. Under the lock. */
static void end_piece(fm_reader *r, const piece *p, bool read, fm_status status, const fm_error *why)
{
    note(r, status, p->group, why);
    if (read && status == FM_OK && --r->group[p->group].left == 0) finish_group(r, p->group);
    if (++r->done == r->count) pthread_cond_broadcast(&r->idle);
}

/* ---- on threads ---------------------------------------------------------------------- */

static void *serve(void *argument)
{
    fm_reader *r = argument;
    const fm_read_way *way = fm_read_way_of(r->how.kind);
    fm_bounce own = {0};

    fm_system_thread_is_awaited();
    pthread_mutex_lock(&r->lock);
    for (;;) {
        while (!r->closing && r->next >= r->count) pthread_cond_wait(&r->work, &r->lock);
        if (r->closing && r->next >= r->count) break;
        piece p = r->pieces[r->next++];
        bool wanted = r->status == FM_OK;
        int32_t later = r->next + r->threads - 1; /* nobody has begun that one */
        bool announce = wanted && way->announce && later < r->count;
        piece soon = r->pieces[announce ? later : 0];
        pthread_mutex_unlock(&r->lock);

        fm_error why = {0};
        if (announce) way->announce(&r->how.file[soon.read.file], &soon.read);
        fm_status status = wanted ? way->read(&r->how.file[p.read.file], &p.read, &own, &why) : FM_OK;

        pthread_mutex_lock(&r->lock);
        end_piece(r, &p, wanted, status, &why);
    }
    pthread_mutex_unlock(&r->lock);
    fm_pages_unmap(own.block, own.bytes);
    return NULL;
}

/* ---- on one thread, with a ring ------------------------------------------------------ */

static lane *idle_lane(fm_reader *r)
{
    for (int32_t i = 0; i < r->how.threads; i++)
        if (!r->lane[i].busy) return &r->lane[i];
    return NULL;
}

/* Queue as many of the batch's pieces as there are lanes; how many are in flight then. Under the lock. */
static int32_t fill_lanes(fm_reader *r)
{
    int32_t busy = 0;
    for (lane *l; r->next < r->count && (l = idle_lane(r));) {
        fm_error why = {0};
        fm_status status = FM_OK;
        const fm_read *read = &r->pieces[r->next].read;

        l->piece = r->pieces[r->next++];
        l->busy = r->status == FM_OK;
        if (l->busy) status = fm_span_of(&r->how.file[read->file], read, &l->own, &l->span, &why);
        if (status != FM_OK) l->busy = false;
        if (l->busy) fm_ring_read(r->ring, l->span.fd, l->span.to, l->span.room, l->span.from, (uint64_t)(l - r->lane));
        else end_piece(r, &l->piece, false, status, &why);
    }
    for (int32_t i = 0; i < r->how.threads; i++) busy += r->lane[i].busy;
    return busy;
}

/* One read of the ring has ended: see its piece through, by plain reads where the kernel gave it back. */
static fm_status end_lane(const fm_reader *r, lane *l, int32_t result, fm_error *err)
{
    const fm_read *read = &l->piece.read;
    const fm_file *file = &r->how.file[read->file];
    if (result < 0 && result != -EINTR && result != -EAGAIN)
        return fm_read_ended(file, l->span.wanted, l->span.from, 0, -result, err);
    return fm_span_finish(file, read, &l->span, result > 0 ? (size_t)result : 0, err);
}

static void *serve_ring(void *argument)
{
    fm_reader *r = argument;

    fm_system_thread_is_awaited();
    pthread_mutex_lock(&r->lock);
    for (;;) {
        int32_t busy = fill_lanes(r);
        if (!busy) {
            if (r->closing) break;
            pthread_cond_wait(&r->work, &r->lock);
            continue;
        }
        pthread_mutex_unlock(&r->lock);
        uint64_t tag;
        int32_t result;
        fm_ring_next(r->ring, &tag, &result);
        lane *l = &r->lane[tag];
        fm_error why = {0};
        fm_status status = end_lane(r, l, result, &why);
        pthread_mutex_lock(&r->lock);
        l->busy = false;
        end_piece(r, &l->piece, true, status, &why);
    }
    pthread_mutex_unlock(&r->lock);
    return NULL;
}

/* ---- life ------------------------------------------------------------------------------ */

static fm_status open_ring(fm_reader *r, fm_error *err)
{
    r->lane = calloc((size_t)r->how.threads, sizeof *r->lane);
    if (!r->lane) return fm_fail(err, FM_MEMORY, "no memory for %d reads in flight", r->how.threads);
    return fm_ring_open(r->how.threads, &r->ring, err);
}

/* Signals belong to the program's threads. */
static fm_status start_threads(fm_reader *r, fm_error *err)
{
    sigset_t all, before;

    r->thread = calloc((size_t)r->threads, sizeof *r->thread);
    if (!r->thread) return fm_fail(err, FM_MEMORY, "no memory for %d read threads", r->threads);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (r->started < r->threads && pthread_create(&r->thread[r->started], NULL, r->ring ? serve_ring : serve, r) == 0)
        r->started++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (r->started == r->threads) return FM_OK;
    return fm_fail(err, FM_MEMORY, "only %d of %d read threads could be started", r->started, r->threads);
}

fm_status fm_reader_open(const fm_reader_options *options, fm_reader **out, fm_error *err)
{
    bool ring = !fm_read_way_of(options->kind)->read;
    fm_reader *r = calloc(1, sizeof *r);
    if (!r) return fm_fail(err, FM_MEMORY, "no memory for a reader");
    r->how = *options;
    r->threads = ring ? 1 : options->threads;
    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->work, NULL);
    fm_system_condition(&r->idle);
    fm_status status = ring ? open_ring(r, err) : FM_OK;
    if (status == FM_OK) status = start_threads(r, err);
    if (status != FM_OK) {
        fm_reader_close(r);
        return status;
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
    for (int32_t i = 0; r->lane && i < r->how.threads; i++) fm_pages_unmap(r->lane[i].own.block, r->lane[i].own.bytes);
    fm_ring_close(r->ring);
    free(r->lane);
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
        r->next = r->done = r->ready = 0;
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

int32_t fm_reader_progress(fm_reader *r, int32_t known, uint64_t ns, bool *over)
{
    pthread_mutex_lock(&r->lock);
    while (r->ready <= known && r->done < r->count && ns && fm_system_wait(&r->idle, &r->lock, ns)) continue;
    int32_t ready = r->ready;
    *over = r->done == r->count;
    pthread_mutex_unlock(&r->lock);
    return ready;
}
