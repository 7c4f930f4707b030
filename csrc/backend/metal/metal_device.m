/* The Metal device: memory, and the order of work. */
#include "backend/metal/metal.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/metal/metal_verbs.h"
#include "base/memory.h"

#define PAGE 16384u /* Apple's pages: a buffer over existing memory is made of whole ones */

void fm_metal_fail(fm_metal *m, fm_status status, const char *format, ...)
{
    char text[sizeof m->failure.message];
    va_list list;
    if (m->failure.status != FM_OK) return; /* what follows from the first failure says less */
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    fm_fail(&m->failure, status, "%s", text);
}

/* ---- order ------------------------------------------------------------------ */

static void forget_work(fm_metal_work *w)
{
    [w->buffer release];
    for (int32_t i = 0; i < w->uploads; i++) [w->upload[i] release];
    free(w->upload);
    *w = (fm_metal_work){0};
}

/* The oldest work in flight has run. */
static void retire(fm_metal *m)
{
    fm_metal_work *w = &m->flight[0];
    if (w->buffer.status == MTLCommandBufferStatusError)
        fm_metal_fail(m, FM_DEVICE, "the GPU failed in a run of %d kernels, %s to %s: %s", w->kernels, w->first, w->last,
                      w->buffer.error.localizedDescription.UTF8String);
    m->done = w->ticket;
    forget_work(w);
    m->flights--;
    memmove(m->flight, m->flight + 1, (size_t)m->flights * sizeof *w);
}

/* The first n in flight: the queue runs them in order, so that who waits for the last has waited for all. */
static void wait_first(fm_metal *m, int32_t n)
{
    if (n) [m->flight[n - 1].buffer waitUntilCompleted];
    for (; n; n--) {
        if (m->flight[0].buffer.status < MTLCommandBufferStatusCompleted) [m->flight[0].buffer waitUntilCompleted];
        retire(m);
    }
}

static uint64_t metal_submit(fm_backend *b)
{
    fm_metal *m = fm_metal_of(b);
    if (!m->now.buffer) return m->ticket;
    @autoreleasepool {
        [m->encoder endEncoding];
        [m->encoder release];
        m->encoder = nil;
        m->ranges = 0;
        if (m->flights == FM_METAL_IN_FLIGHT) wait_first(m, 1);
        m->now.ticket = ++m->ticket;
        m->flight[m->flights++] = m->now;
        m->now = (fm_metal_work){0};
        [m->flight[m->flights - 1].buffer commit];
    }
    return m->ticket;
}

static uint64_t metal_done(fm_backend *b)
{
    fm_metal *m = fm_metal_of(b);
    @autoreleasepool {
        while (m->flights && m->flight[0].buffer.status >= MTLCommandBufferStatusCompleted) retire(m);
    }
    return m->done;
}

/* After a failure nothing that was queued counts, so all of it is waited for, and the next step starts afresh. */
static fm_status metal_wait(fm_backend *b, uint64_t ticket, fm_error *err)
{
    fm_metal *m = fm_metal_of(b);
    @autoreleasepool {
        int32_t n = 0;
        while (n < m->flights && m->flight[n].ticket <= ticket) n++;
        wait_first(m, n);
        if (m->failure.status == FM_OK) return FM_OK;
        metal_submit(b);
        wait_first(m, m->flights);
    }
    fm_status status = fm_fail(err, m->failure.status, "%s", m->failure.message);
    m->failure = (fm_error){0};
    return status;
}

/* Nothing queued and nothing running: memory may be moved or given back. A failure stays for the next wait. */
static void rest(fm_metal *m)
{
    metal_submit(&m->base);
    @autoreleasepool {
        wait_first(m, m->flights);
    }
}

/* ---- memory ------------------------------------------------------------------ */

static size_t metal_largest(const fm_backend *b)
{
    return (size_t)((const fm_metal *)b)->device.maxBufferLength;
}

/* Above this the system takes memory from the GPU while it works. */
static size_t metal_room(const fm_backend *b)
{
    uint64_t most = ((const fm_metal *)b)->device.recommendedMaxWorkingSetSize;
    return most ? (size_t)most : SIZE_MAX;
}

/* Map `bytes` of memory that the GPU sees as well. */
static fm_status wrap(fm_metal *m, fm_buf *buf, fm_error *err)
{
    buf->buffer = [m->device newBufferWithBytesNoCopy:buf->host
                                               length:buf->bytes
                                              options:MTLResourceStorageModeShared
                                          deallocator:nil];
    if (buf->buffer) return FM_OK;
    return fm_fail(err, FM_MEMORY, "Metal gives no buffer of %zu bytes; at most %zu are possible, %llu are in use", buf->bytes,
                   metal_largest(&m->base), (unsigned long long)m->device.currentAllocatedSize);
}

static fm_status metal_alloc(fm_backend *b, size_t bytes, fm_buf_kind kind, fm_buf **out, fm_error *err)
{
    (void)kind; /* memory is shared: host and GPU see the same bytes */
    fm_buf *buf = calloc(1, sizeof *buf);
    if (!buf) return fm_fail(err, FM_MEMORY, "no memory for a buffer");
    buf->bytes = fm_align_up(bytes ? bytes : 1, PAGE);
    fm_status status = fm_pages_map(buf->bytes, &buf->host, err);
    if (status == FM_OK) {
        status = wrap(fm_metal_of(b), buf, err);
        if (status != FM_OK) fm_pages_unmap(buf->host, buf->bytes);
    }
    if (status == FM_OK) *out = buf;
    else free(buf);
    return status;
}

static void metal_release(fm_backend *b, fm_buf *buf)
{
    if (!buf) return;
    rest(fm_metal_of(b));
    [buf->buffer release];
    fm_pages_unmap(buf->host, buf->bytes);
    free(buf);
}

static fm_status metal_grow(fm_backend *b, fm_buf *buf, size_t bytes, fm_error *err)
{
    fm_metal *m = fm_metal_of(b);
    size_t larger = fm_align_up(bytes, PAGE);
    if (larger <= buf->bytes) return FM_OK;
    rest(m);
    [buf->buffer release];
    buf->buffer = nil;
    fm_status status = fm_pages_grow(&buf->host, buf->bytes, larger, err);
    if (status == FM_OK) buf->bytes = larger;
    fm_status wrapped = wrap(m, buf, status == FM_OK ? err : NULL); /* the old block again, if it could not grow */
    return status == FM_OK ? wrapped : status;
}

/* A buffer holds on to its pages: they go when it does. */
static void metal_discard(fm_backend *b, fm_buf *buf, size_t at, size_t bytes)
{
    fm_metal *m = fm_metal_of(b);
    rest(m);
    [buf->buffer release];
    fm_pages_discard(buf->host, at, bytes);
    fm_error why = {0};
    if (wrap(m, buf, &why) != FM_OK) fm_metal_fail(m, why.status, "%s", why.message);
}

static void *metal_host(fm_buf *buf)
{
    return buf->host;
}

static size_t metal_scratch(const fm_limits *limits, int32_t threads)
{
    (void)threads;
    return fm_align_up(fm_metal_scratch_bytes(limits), PAGE);
}

static fm_status metal_reserve(fm_backend *b, const fm_limits *limits, fm_error *err)
{
    fm_metal *m = fm_metal_of(b);
    if (m->scratch) return fm_fail(err, FM_BUSY, "the device has its scratch already");
    FM_TRY(metal_alloc(b, metal_scratch(limits, 1), FM_PRIVATE, &m->scratch, err));
    m->limits = *limits;
    return FM_OK;
}

/* ---- life --------------------------------------------------------------------- */

static void metal_close(fm_backend *b)
{
    fm_metal *m = fm_metal_of(b);
    if (!m) return;
    rest(m);
    metal_release(b, m->scratch);
    fm_metal_forget(m);
    [m->queue release];
    [m->device release];
    free(m);
}

static fm_status open_device(fm_metal *m, const char *cache, fm_error *err)
{
    m->device = MTLCreateSystemDefaultDevice();
    if (!m->device) return fm_fail(err, FM_UNSUPPORTED, "there is no Metal device; use device=\"cpu\"");
    if (![m->device supportsFamily:MTLGPUFamilyApple7])
        return fm_fail(err, FM_UNSUPPORTED, "the GPU %s is older than Apple's M1; use device=\"cpu\"", m->device.name.UTF8String);
    snprintf(m->variant, sizeof m->variant, "%s", m->device.name.UTF8String);
    m->queue = [m->device newCommandQueue];
    if (!m->queue) return fm_fail(err, FM_DEVICE, "%s gives no command queue", m->variant);
    return fm_metal_compile(m, cache, err);
}

static fm_status metal_open(const fm_device_options *options, fm_backend **out, fm_error *err)
{
    fm_metal *m = calloc(1, sizeof *m);
    if (!m) return fm_fail(err, FM_MEMORY, "no memory for the device");
    m->base.ops = &fm_metal_ops;
    fm_status status;
    @autoreleasepool {
        status = open_device(m, options->cache, err);
    }
    if (status == FM_OK) *out = &m->base;
    else metal_close(&m->base);
    return status;
}

static const char *metal_variant(const fm_backend *b)
{
    return ((const fm_metal *)b)->variant;
}

const fm_backend_ops fm_metal_ops = {
    .name = "metal",
    .key_run = 2,
    .open = metal_open,
    .close = metal_close,
    .variant = metal_variant,
    .alloc = metal_alloc,
    .largest = metal_largest,
    .room = metal_room,
    .grow = metal_grow,
    .discard = metal_discard,
    .release = metal_release,
    .host = metal_host,
    .reserve = metal_reserve,
    .scratch = metal_scratch,
    .submit = metal_submit,
    .done = metal_done,
    .wait = metal_wait,
    FM_METAL_VERBS,
};
