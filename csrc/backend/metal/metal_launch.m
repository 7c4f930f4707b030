/* One dispatch: what it binds, and the barrier before it if it needs what is still being written. */
#include "backend/metal/metal.h"

#include <stdlib.h>
#include <string.h>

#define INLINE_BYTES 4096 /* Metal copies that much into the command buffer itself */

/* A command buffer and an encoder to put work into. */
static bool open_encoder(fm_metal *m)
{
    if (m->now.buffer) return true;
    @autoreleasepool {
        m->now.buffer = [[m->queue commandBufferWithUnretainedReferences] retain];
        m->encoder = [[m->now.buffer computeCommandEncoderWithDispatchType:MTLDispatchTypeConcurrent] retain];
    }
    if (m->encoder) return true;
    [m->now.buffer release];
    m->now.buffer = nil;
    fm_metal_fail(m, FM_DEVICE, "%s gives no command encoder", m->variant);
    return false;
}

fm_launch fm_metal_kernel(fm_metal *m, const char *kernel, const int32_t *constant, int32_t n)
{
    fm_launch l = {.m = m};
    const fm_metal_pipeline *p = m->failure.status == FM_OK ? fm_metal_pipeline_of(m, kernel, constant, n) : NULL;
    if (!p || !open_encoder(m)) return l;
    l.pipeline = p;
    [m->encoder setComputePipelineState:p->state];
    return l;
}

void fm_metal_params(fm_launch *l, const void *params, size_t bytes)
{
    if (l->pipeline) [l->m->encoder setBytes:params length:bytes atIndex:0];
}

static void bind(fm_launch *l, int32_t index, fm_buf *buf, size_t offset, size_t bytes, bool written)
{
    fm_metal *m = l->m;
    if (!l->pipeline) return;
    if (l->ranges == FM_METAL_BOUND || offset > buf->bytes || bytes > buf->bytes - offset) {
        fm_metal_fail(m, FM_DEVICE, "%s: argument %d wants bytes %zu to %zu of %zu", l->pipeline->kernel, index, offset,
                      offset + bytes, buf->bytes);
        l->pipeline = NULL;
        return;
    }
    [m->encoder setBuffer:buf->buffer offset:offset atIndex:(NSUInteger)index];
    l->range[l->ranges++] = (fm_metal_range){buf, offset, offset + bytes, written};
}

void fm_metal_read(fm_launch *l, int32_t index, fm_buf *buf, size_t offset, size_t bytes)
{
    bind(l, index, buf, offset, bytes, false);
}

void fm_metal_write(fm_launch *l, int32_t index, fm_buf *buf, size_t offset, size_t bytes)
{
    bind(l, index, buf, offset, bytes, true);
}

/* Keep a buffer until the work being encoded has run. */
static bool keep_upload(fm_metal_work *w, id<MTLBuffer> buffer)
{
    if (w->uploads == w->upload_room) {
        int32_t room = w->upload_room ? 2 * w->upload_room : 8;
        id<MTLBuffer> *more = realloc(w->upload, (size_t)room * sizeof *more);
        if (!more) return false;
        w->upload = more;
        w->upload_room = room;
    }
    w->upload[w->uploads++] = buffer;
    return true;
}

void fm_metal_upload(fm_launch *l, int32_t index, const void *host, size_t bytes)
{
    fm_metal *m = l->m;
    if (!l->pipeline) return;
    if (bytes <= INLINE_BYTES) {
        [m->encoder setBytes:host length:bytes atIndex:(NSUInteger)index];
        return;
    }
    id<MTLBuffer> buffer = [m->device newBufferWithBytes:host length:bytes options:MTLResourceStorageModeShared];
    if (!buffer || !keep_upload(&m->now, buffer)) {
        [buffer release];
        fm_metal_fail(m, FM_MEMORY, "%s: no memory for %zu bytes", l->pipeline->kernel, bytes);
        l->pipeline = NULL;
        return;
    }
    [m->encoder setBuffer:buffer offset:0 atIndex:(NSUInteger)index];
}

void fm_metal_threadgroup(fm_launch *l, size_t bytes)
{
    if (l->pipeline) [l->m->encoder setThreadgroupMemoryLength:fm_align_up(bytes, 16) atIndex:0];
}

static bool conflict(const fm_metal_range *a, const fm_metal_range *b)
{
    return a->buf == b->buf && a->from < b->to && b->from < a->to && (a->written || b->written);
}

/* Dispatches of an encoder may run at the same time, unless a barrier stands between them. */
static void order(fm_launch *l)
{
    fm_metal *m = l->m;
    bool wait = m->ranges + l->ranges > FM_METAL_RANGES;
    for (int32_t i = 0; i < l->ranges && !wait; i++)
        for (int32_t j = 0; j < m->ranges && !wait; j++) wait = conflict(&l->range[i], &m->range[j]);
    if (wait) {
        [m->encoder memoryBarrierWithScope:MTLBarrierScopeBuffers];
        m->ranges = 0;
    }
    memcpy(m->range + m->ranges, l->range, (size_t)l->ranges * sizeof *l->range);
    m->ranges += l->ranges;
}

void fm_metal_run(fm_launch *l, const uint32_t groups[3], const uint32_t threads[3])
{
    fm_metal *m = l->m;
    if (!l->pipeline) return;
    size_t most = l->pipeline->state.maxTotalThreadsPerThreadgroup, wanted = (size_t)threads[0] * threads[1] * threads[2];
    if (wanted > most) {
        fm_metal_fail(m, FM_DEVICE, "%s wants %zu threads a threadgroup, %s runs %zu of it", l->pipeline->kernel, wanted,
                      m->variant, most);
        return;
    }
    order(l);
    [m->encoder dispatchThreadgroups:MTLSizeMake(groups[0], groups[1], groups[2])
               threadsPerThreadgroup:MTLSizeMake(threads[0], threads[1], threads[2])];
    if (!m->now.kernels++) m->now.first = l->pipeline->kernel;
    m->now.last = l->pipeline->kernel;
}
