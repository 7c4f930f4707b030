/* The ways of reading one range of a file, rows of one table. Whole, or an error that names file, offset, wanted and got. */
#ifndef FM_WAYS_H
#define FM_WAYS_H

#include "store/read.h"

#define FM_POPULATE_READ 22 /* MADV_POPULATE_READ, Linux 5.14; older headers lack the name */

/* A thread's own aligned memory, for direct reads that are not aligned themselves. */
typedef struct {
    void *block;
    size_t bytes;
} fm_bounce;

typedef struct {
    bool direct; /* needs a descriptor that goes around the page cache, where the file system has one */
    bool map;    /* needs the file mapped */
    int advice;  /* told about the mapping when it is made */
    /* Read one piece on the calling thread. NULL: one thread keeps many in flight (store/ring.h). */
    fm_status (*read)(const fm_file *file, const fm_read *r, fm_bounce *own, fm_error *err);
    /* Say that a piece will be read soon. NULL: nothing is gained by it. */
    void (*announce)(const fm_file *file, const fm_read *r);
} fm_read_way;

const fm_read_way *fm_read_way_of(fm_read_kind kind);

/* What a read around the page cache asks of the file: whole pages, into `r->to` itself where everything is aligned.
 * A short one inside pages, such as the scales of a checkpoint opened in place, takes the page cache all the same: it
 * needs no buffer, and such parts together are small enough to stay in the cache, which saves most of the requests. */
typedef struct {
    int fd;
    uint8_t *to;
    uint64_t from;
    size_t room, wanted; /* ask for `room` bytes, be content with `wanted`: the file may end between */
    size_t skip;         /* bytes before the piece */
} fm_span;

fm_status fm_span_of(const fm_file *file, const fm_read *r, fm_bounce *own, fm_span *out, fm_error *err);
/* `got` bytes of it have come: read the rest and put the piece where it belongs. */
fm_status fm_span_finish(const fm_file *file, const fm_read *r, const fm_span *span, size_t got, fm_error *err);

/* Describe a read that ended early, with `error` (an errno, or 0) and what the file looks like now. */
fm_status fm_read_ended(const fm_file *file, size_t wanted, uint64_t from, size_t got, int error, fm_error *err);

#endif
