/* Reading expert bytes: files, many reads at once on threads, whole or not at all. The only file that reads experts. */
#ifndef FM_READ_H
#define FM_READ_H

#include <stdbool.h>

#include "base/status.h"

/* One file of the model, open for the model's life. */
typedef struct {
    char *path;
    uint64_t size;        /* what the manifest says and fstat confirmed */
    int buffered, direct; /* descriptors; direct is -1 where it is not needed or the file system has none */
    uint8_t *map;         /* the whole file, where it is read out of a mapping */
} fm_file;

/* Open every file of directory/path[i] for one way of reading, and check it has size[i] bytes.
 * FM_IO: cannot be opened or mapped. FM_FORMAT: another size. FM_UNSUPPORTED: this system has not that way. */
fm_status fm_files_open(const char *directory, const char *const *path, const uint64_t *size, int32_t n, fm_read_kind kind,
                        fm_file **out, fm_error *err);
/* Whether every one of them is read around the page cache. */
bool fm_files_direct(const fm_file *files, int32_t n);
/* From now on reads through the page cache jump about: bring in what is asked for at once, and no more. */
void fm_files_expect_random(const fm_file *files, int32_t n);
/* Ask the system to drop their pages from its cache. */
void fm_files_drop_cache(const fm_file *files, int32_t n);
void fm_files_close(fm_file *files, int32_t n);

/* Read exactly n bytes at `from` or fail with FM_IO naming path, offset, wanted and got. */
fm_status fm_read_all(const fm_file *file, void *to, size_t n, uint64_t from, fm_error *err);

/* One piece of an expert. */
typedef struct {
    int32_t file;
    uint64_t from;
    uint32_t bytes;
    uint8_t *to;
} fm_read;

/*
 * A batch of reads in flight. The reader's threads take reads in order; when the
 * last read of one group (an expert) is in memory, `check` looks at it on that
 * thread. Failures are collected: the first one is what fm_reader_wait returns.
 */
typedef fm_status (*fm_read_check)(void *context, int32_t group, fm_error *err);

typedef struct fm_reader fm_reader;

typedef struct {
    const fm_file *file;
    int32_t threads;   /* reads in flight, each on its own thread but for FM_READ_URING; >= 1 */
    int32_t split;     /* pieces a read of a megabyte or more is cut into; >= 1 */
    fm_read_kind kind; /* what the files were opened for */
} fm_reader_options;

/* FM_UNSUPPORTED: FM_READ_URING where there is no io_uring. */
fm_status fm_reader_open(const fm_reader_options *options, fm_reader **out, fm_error *err);
void fm_reader_close(fm_reader *reader); /* waits for what is in flight; NULL is fine */

/* Start reads[0..n): group[i] says which expert read i belongs to. `reads` and `group` are
 * copied. FM_MEMORY; nothing has started then. One batch in flight at a time. */
fm_status fm_reader_start(fm_reader *reader, const fm_read *reads, const int32_t *group, int32_t n, fm_read_check check,
                          void *context, fm_error *err);

/* Wait for the batch. On failure *group is the first one that failed, and every read has still ended:
 * no thread writes anywhere. */
fm_status fm_reader_wait(fm_reader *reader, int32_t *group, fm_error *err);

/* What no thread has begun to read is not read any more. That is no failure: fm_reader_wait, which still
 * has to follow, returns FM_OK, and fm_reader_group_ready tells which groups did arrive. */
void fm_reader_drop(fm_reader *reader);

/* Whether all of a group is in memory and passed its check. May be asked while the batch is in flight and
 * until the next one starts, by the thread that started it; once true, the group's bytes may be used. */
bool fm_reader_group_ready(fm_reader *reader, int32_t group);

/* Wait until more than `known` groups of the batch are ready, or it is over, for `ns` at most. How many are ready now. */
int32_t fm_reader_progress(fm_reader *reader, int32_t known, uint64_t ns, bool *over);

#endif
