/*
 * The Metal device: what its files share. metal_device.m opens it and owns memory and order, metal_pipelines.m
 * what is compiled, metal_launch.m how a dispatch is put together; metal_verbs*.m say which kernel a verb is.
 *
 * Manual retain and release, no classes of our own: state is in C structs, so that the same text also runs on
 * other Objective-C runtimes.
 */
#ifndef FM_METAL_H
#define FM_METAL_H

#import <Foundation/Foundation.h>
#import <Metal/Metal.h>

#include "backend/metal/metal_ops.h"
#include "base/memory.h"

struct fm_buf {
    id<MTLBuffer> buffer; /* over `host`, nothing is copied */
    void *host;
    size_t bytes;
};

#define FM_METAL_CONSTANTS 8 /* most function constants of a kernel */
#define FM_METAL_RANGES 96   /* most ranges between two barriers */
#define FM_METAL_BOUND 16    /* most buffers of a dispatch */

typedef struct {
    const char *kernel; /* as the verbs spell it: a literal */
    int32_t constant[FM_METAL_CONSTANTS], constants;
    id<MTLComputePipelineState> state;
} fm_metal_pipeline;

/* Bytes [from, to) of a buffer that a dispatch reads, or also writes. */
typedef struct {
    const fm_buf *buf;
    size_t from, to;
    bool written;
} fm_metal_range;

/* A command buffer that was committed; and what must live until it has run. */
typedef struct {
    id<MTLCommandBuffer> buffer;
    uint64_t ticket;
    id<MTLBuffer> *upload;
    int32_t uploads, upload_room;
    const char *first, *last; /* its kernels */
    int32_t kernels;
} fm_metal_work;

#define FM_METAL_IN_FLIGHT 64

typedef struct {
    fm_backend base;
    id<MTLDevice> device;
    id<MTLCommandQueue> queue;
    id<MTLLibrary> library;
    id<MTLBinaryArchive> archive; /* nil: compiled kernels are not kept */
    NSURL *archive_at;
    bool archive_grew;
    fm_metal_pipeline *pipeline;
    int32_t pipelines, pipeline_room;

    fm_metal_work now; /* what is being encoded; now.buffer is nil when nothing is queued */
    id<MTLComputeCommandEncoder> encoder;
    fm_metal_range range[FM_METAL_RANGES]; /* since the last barrier */
    int32_t ranges;
    fm_metal_work flight[FM_METAL_IN_FLIGHT]; /* oldest first */
    int32_t flights;
    uint64_t ticket, done;
    fm_error failure; /* the first one: later work is not even queued */

    fm_limits limits;
    fm_buf *scratch;
    char variant[96];
} fm_metal;

static inline fm_metal *fm_metal_of(fm_backend *b)
{
    return (fm_metal *)b;
}

/* Remember a failure; verbs cannot report one, `wait` does. */
void fm_metal_fail(fm_metal *m, fm_status status, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* ---- metal_pipelines.m ---- */

fm_status fm_metal_compile(fm_metal *m, const char *cache, fm_error *err);
void fm_metal_forget(fm_metal *m);

/* The pipeline of a kernel with these constants, compiled when it is first asked for; NULL after a failure. */
const fm_metal_pipeline *fm_metal_pipeline_of(fm_metal *m, const char *kernel, const int32_t *constant, int32_t n);

/* ---- metal_launch.m: one dispatch ---- */

typedef struct {
    fm_metal *m;
    const fm_metal_pipeline *pipeline; /* NULL: the device has failed, nothing is queued */
    fm_metal_range range[FM_METAL_BOUND];
    int32_t ranges;
} fm_launch;

/* Function constant i is constant[i]. */
fm_launch fm_metal_kernel(fm_metal *m, const char *kernel, const int32_t *constant, int32_t n);
void fm_metal_params(fm_launch *l, const void *params, size_t bytes); /* at index 0 */

/* Bind a buffer from `offset` on, of which the kernel reads `bytes`; or reads and writes them. Barriers follow from this. */
void fm_metal_read(fm_launch *l, int32_t index, fm_buf *buf, size_t offset, size_t bytes);
void fm_metal_write(fm_launch *l, int32_t index, fm_buf *buf, size_t offset, size_t bytes);

/* Bind numbers of the host, copied now. */
void fm_metal_upload(fm_launch *l, int32_t index, const void *host, size_t bytes);

void fm_metal_threadgroup(fm_launch *l, size_t bytes);
void fm_metal_run(fm_launch *l, const uint32_t groups[3], const uint32_t threads[3]);

#endif
