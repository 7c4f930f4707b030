/*
 * A Metal device for machines that have none: it checks how it is used, and runs kernels on the CPU through emulator.h,
 * on a thread of its own. Whatever Metal leaves undefined ends the process with a line that begins "fake Metal: ".
 *
 * Stricter than Metal in four points: an argument must be bound after the pipeline was set, a released object may never be
 * asked anything again, memory that is not set yet holds NaN, and shaders are not compiled with fast maths.
 *
 * The environment sets options before the first device is made, FAKE_METAL=lazy,order=3,fail=run:2 for example;
 * their names are those of fake_options, and of fake_failure in lower case.
 */
#ifndef FAKE_METAL_H
#define FAKE_METAL_H

#include <stddef.h>
#include <stdint.h>

#define FAKE_API __attribute__((visibility("default")))

typedef struct {
    int32_t lazy;        /* nothing runs until somebody waits for it */
    int32_t order;       /* dispatches between two barriers: 0 as encoded, 1 from the last to the first, else shuffled by this */
    int32_t threads;     /* order of threads and groups within a dispatch, see emu_order */
    int32_t max_threads; /* of a threadgroup, for every pipeline */
    int32_t soft;        /* what a kernel does wrong fails its command buffer; else it ends the process */
    int32_t error;       /* MTLCommandBufferError of a run that is made to fail; a timeout if nothing is said */
    uint64_t working_set, max_buffer;
} fake_options;

FAKE_API fake_options *fake_metal_options(void);

/* What can be made to fail. */
typedef enum {
    FAKE_DEVICE,         /* there is none */
    FAKE_FAMILY,         /* it is too old */
    FAKE_SOURCE,         /* the text does not compile */
    FAKE_FUNCTION,       /* nor does a kernel with its constants */
    FAKE_PIPELINE,       /* it gives no pipeline */
    FAKE_ARCHIVE,        /* compiled kernels cannot be kept */
    FAKE_BUFFER,         /* no memory */
    FAKE_COMMAND_BUFFER, /* the queue gives none */
    FAKE_ENCODER,        /* the command buffer gives none */
    FAKE_RUN,            /* a command buffer fails while it runs, the ones after it do not */
    FAKE_LOST,           /* that one and all after it */
    FAKE_FAILURES
} fake_failure;

/* The n-th of its kind from now on fails, 1 is the next; 0: none. */
FAKE_API void fake_metal_fail(fake_failure what, int32_t nth);

/* What has been counted since the last reset. */
typedef enum {
    FAKE_COMMITS,
    FAKE_ENCODERS,
    FAKE_DISPATCHES,
    FAKE_BARRIERS,
    FAKE_WAITS, /* calls of waitUntilCompleted */
    FAKE_COMPILED,
    FAKE_FROM_ARCHIVE, /* pipelines that were in an archive */
    FAKE_BUFFERS,
    FAKE_BYTES_SET,
    FAKE_COUNTS
} fake_count;

FAKE_API uint64_t fake_metal_count(fake_count what);
FAKE_API void fake_metal_reset(void);

/* Objects alive, and their classes as text: "2 FakeBuffer, 1 FakeQueue". */
FAKE_API int64_t fake_metal_alive(char *text, size_t bytes);

#endif
