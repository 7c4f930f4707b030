/* io_uring without a library: set up, map, queue, hand in, take out. */
#include "store/ring.h"

#include <errno.h>
#include <string.h>

#ifdef __linux__
#if __has_include(<linux/io_uring.h>)
#include <linux/io_uring.h>
#endif
#endif

#ifdef IORING_FEAT_RW_CUR_POS /* came with IORING_OP_READ, in Linux 5.6 */
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MOST (1u << 30) /* of one read; the rest is the caller's to ask for */

/* A ring that the kernel shares: one side moves the head, the other the tail. */
typedef struct {
    void *block;
    size_t bytes;
    atomic_uint *head, *tail;
    unsigned mask;
} shared;

struct fm_ring {
    int fd;
    shared submit, complete;
    unsigned *order; /* submit ring: indices into `entry` */
    struct io_uring_sqe *entry;
    size_t entry_bytes;
    struct io_uring_cqe *ended;
    unsigned queued;
};

static fm_status share(fm_ring *r, size_t bytes, off_t what, void **out, fm_error *err)
{
    void *block = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, r->fd, what);
    if (block == MAP_FAILED) return fm_fail(err, FM_MEMORY, "no memory for an io_uring: %s", strerror(errno));
    *out = block;
    return FM_OK;
}

static atomic_uint *counter(const shared *s, unsigned at)
{
    return (atomic_uint *)(void *)((char *)s->block + at);
}

static fm_status map_rings(fm_ring *r, const struct io_uring_params *p, fm_error *err)
{
    size_t bytes = p->sq_off.array + p->sq_entries * sizeof *r->order;
    FM_TRY(share(r, bytes, IORING_OFF_SQ_RING, &r->submit.block, err));
    r->submit.bytes = bytes;
    r->submit.tail = counter(&r->submit, p->sq_off.tail);
    r->submit.mask = p->sq_entries - 1;
    r->order = (unsigned *)(void *)((char *)r->submit.block + p->sq_off.array);

    bytes = p->cq_off.cqes + p->cq_entries * sizeof *r->ended;
    FM_TRY(share(r, bytes, IORING_OFF_CQ_RING, &r->complete.block, err));
    r->complete.bytes = bytes;
    r->complete.head = counter(&r->complete, p->cq_off.head);
    r->complete.tail = counter(&r->complete, p->cq_off.tail);
    r->complete.mask = p->cq_entries - 1;
    r->ended = (struct io_uring_cqe *)(void *)((char *)r->complete.block + p->cq_off.cqes);

    void *entries = NULL;
    bytes = p->sq_entries * sizeof *r->entry;
    FM_TRY(share(r, bytes, IORING_OFF_SQES, &entries, err));
    r->entry = entries;
    r->entry_bytes = bytes;
    return FM_OK;
}

fm_status fm_ring_open(int32_t depth, fm_ring **out, fm_error *err)
{
    struct io_uring_params p = {0};
    fm_ring *r = calloc(1, sizeof *r);
    if (!r) return fm_fail(err, FM_MEMORY, "no memory for an io_uring");

    r->fd = (int)syscall(SYS_io_uring_setup, (unsigned)depth, &p);
    fm_status status;
    if (r->fd < 0)
        status = fm_fail(err, FM_UNSUPPORTED, "io_uring cannot be used here (io_uring_setup: %s); read with \"direct\"",
                         strerror(errno));
    else if (!(p.features & IORING_FEAT_RW_CUR_POS))
        status = fm_fail(err, FM_UNSUPPORTED, "io_uring needs Linux 5.6 or later; read with \"direct\"");
    else status = map_rings(r, &p, err);
    if (status != FM_OK) {
        fm_ring_close(r);
        return status;
    }
    *out = r;
    return FM_OK;
}

void fm_ring_close(fm_ring *r)
{
    if (!r) return;
    if (r->entry) munmap(r->entry, r->entry_bytes);
    if (r->complete.block) munmap(r->complete.block, r->complete.bytes);
    if (r->submit.block) munmap(r->submit.block, r->submit.bytes);
    if (r->fd >= 0) close(r->fd);
    free(r);
}

void fm_ring_read(fm_ring *r, int fd, void *to, size_t bytes, uint64_t from, uint64_t tag)
{
    unsigned tail = atomic_load_explicit(r->submit.tail, memory_order_relaxed), at = tail & r->submit.mask;

    r->entry[at] = (struct io_uring_sqe){.opcode = IORING_OP_READ,
                                         .fd = fd,
                                         .addr = (uint64_t)(uintptr_t)to,
                                         .len = bytes < MOST ? (uint32_t)bytes : MOST,
                                         .off = from,
                                         .user_data = tag};
    r->order[at] = at;
    atomic_store_explicit(r->submit.tail, tail + 1, memory_order_release);
    r->queued++;
}

/* The read queued last; the kernel, which looks at the tail only when entered, has not seen it. */
static uint64_t take_back(fm_ring *r)
{
    unsigned tail = atomic_load_explicit(r->submit.tail, memory_order_relaxed) - 1;
    atomic_store_explicit(r->submit.tail, tail, memory_order_release);
    r->queued--;
    return r->entry[tail & r->submit.mask].user_data;
}

void fm_ring_next(fm_ring *r, uint64_t *tag, int32_t *result)
{
    unsigned head = atomic_load_explicit(r->complete.head, memory_order_relaxed);

    while (r->queued || head == atomic_load_explicit(r->complete.tail, memory_order_acquire)) {
        unsigned wait = head == atomic_load_explicit(r->complete.tail, memory_order_acquire);
        long n = syscall(SYS_io_uring_enter, r->fd, r->queued, wait, IORING_ENTER_GETEVENTS, NULL, 0);
        if (n >= 0) r->queued -= (unsigned)n;
        else if (r->queued && errno != EINTR) {
            *tag = take_back(r);
            *result = -EAGAIN;
            return;
        } else if (errno != EINTR) usleep(100); /* what is in flight still ends, and nothing may be left behind */
    }
    *tag = r->ended[head & r->complete.mask].user_data;
    *result = r->ended[head & r->complete.mask].res;
    atomic_store_explicit(r->complete.head, head + 1, memory_order_release);
}

#else

fm_status fm_ring_open(int32_t depth, fm_ring **out, fm_error *err)
{
    (void)depth;
    (void)out;
    return fm_fail(err, FM_UNSUPPORTED, "this build has no io_uring, which is Linux's alone; read with \"direct\"");
}

void fm_ring_close(fm_ring *ring)
{
    (void)ring;
}

void fm_ring_read(fm_ring *ring, int fd, void *to, size_t bytes, uint64_t from, uint64_t tag)
{
    (void)ring;
    (void)fd;
    (void)to;
    (void)bytes;
    (void)from;
    (void)tag;
}

void fm_ring_next(fm_ring *ring, uint64_t *tag, int32_t *result)
{
    (void)ring;
    (void)tag;
    (void)result;
}
#endif
