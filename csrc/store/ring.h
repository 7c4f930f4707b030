/* Many reads in flight from one thread: Linux's io_uring, by its system calls alone. */
#ifndef FM_RING_H
#define FM_RING_H

#include "base/status.h"

typedef struct fm_ring fm_ring;

/* Room for `depth` reads. FM_UNSUPPORTED: this system or its policy has no io_uring. */
fm_status fm_ring_open(int32_t depth, fm_ring **out, fm_error *err);
void fm_ring_close(fm_ring *ring); /* nothing may be in flight; NULL is fine */

/* Queue a read; at most `depth` are queued or in flight. */
void fm_ring_read(fm_ring *ring, int fd, void *to, size_t bytes, uint64_t from, uint64_t tag);

/* Hand in what is queued and wait for one read to end: its tag, and bytes read or a negative errno;
 * -EAGAIN for one that the kernel would not take. */
void fm_ring_next(fm_ring *ring, uint64_t *tag, int32_t *result);

#endif
