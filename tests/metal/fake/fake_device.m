/* The device and its buffers. */
#include "fake.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 16384u /* of Apple's machines */

id<MTLDevice> MTLCreateSystemDefaultDevice(void)
{
    fake_metal_options();
    return fake_fails(FAKE_DEVICE) ? nil : [FakeDevice alloc];
}

/* ---- buffers -------------------------------------------------------------------------- */

@implementation FakeBuffer

- (NSUInteger)length
{
    return bytes;
}

- (void *)contents
{
    if (hidden) fake_fatal("contents of a private buffer");
    return host;
}

- (void)dealloc
{
    char *at = host;
    size_t n = bytes;
    FakeDevice *of = device;
    void (^give)(void *, NSUInteger) = freed;
    int32_t owned = ours;
    [super dealloc]; /* refuses what is in use */
    if (owned) free(at);
    if (give) {
        give(at, n);
        _Block_release(give);
    }
    of->allocated -= n;
    [of release];
}

@end

static FakeBuffer *buffer_of(FakeDevice *device, size_t bytes, MTLResourceOptions options)
{
    if (!bytes) fake_fatal("a buffer of 0 bytes");
    if (bytes > fake_metal_options()->max_buffer || fake_fails(FAKE_BUFFER)) return nil;
    FakeBuffer *b = [FakeBuffer alloc];
    b->device = [device retain];
    b->bytes = bytes;
    b->hidden = (options & 0xf0) == MTLResourceStorageModePrivate;
    device->allocated += bytes;
    fake_counted(FAKE_BUFFERS, 1);
    return b;
}

/* Memory of its own; nobody may count on what is in it. */
static FakeBuffer *fresh(FakeDevice *device, size_t bytes, MTLResourceOptions options)
{
    FakeBuffer *b = buffer_of(device, bytes, options);
    if (!b) return nil;
    b->ours = 1;
    b->host = malloc(bytes);
    if (!b->host) fake_fatal("no memory for a buffer of %zu bytes", bytes);
    memset(b->host, 0xff, bytes);
    return b;
}

/* ---- device ------------------------------------------------------------------------------ */

@implementation FakeDevice

- (NSString *)name
{
    return fake_string("Fake GPU");
}

- (uint64_t)recommendedMaxWorkingSetSize
{
    return fake_metal_options()->working_set;
}

- (NSUInteger)currentAllocatedSize
{
    return allocated;
}

- (NSUInteger)maxBufferLength
{
    return fake_metal_options()->max_buffer;
}

- (BOOL)supportsFamily:(MTLGPUFamily)family
{
    return !fake_fails(FAKE_FAMILY) && family <= MTLGPUFamilyApple7;
}

- (id<MTLCommandQueue>)newCommandQueue
{
    FakeQueue *q = [FakeQueue alloc];
    q->device = [self retain];
    return q;
}

- (id<MTLBuffer>)newBufferWithLength:(NSUInteger)length options:(MTLResourceOptions)options
{
    return fresh(self, length, options);
}

- (id<MTLBuffer>)newBufferWithBytes:(const void *)bytes length:(NSUInteger)length options:(MTLResourceOptions)options
{
    if (!bytes) fake_fatal("newBufferWithBytes of NULL");
    FakeBuffer *b = fresh(self, length, options);
    if (b) memcpy(b->host, bytes, length);
    return b;
}

- (id<MTLBuffer>)newBufferWithBytesNoCopy:(void *)bytes
                                   length:(NSUInteger)length
                                  options:(MTLResourceOptions)options
                              deallocator:(void (^)(void *, NSUInteger))deallocator
{
    if (!bytes || (uintptr_t)bytes % (uintptr_t)sysconf(_SC_PAGESIZE) || length % PAGE)
        fake_fatal("newBufferWithBytesNoCopy of %lu bytes at %p: whole pages of %u bytes are wanted", length, bytes, PAGE);
    if ((options & 0xf0) != MTLResourceStorageModeShared) fake_fatal("newBufferWithBytesNoCopy with a private storage mode");
    if (msync(bytes, length, MS_ASYNC) != 0)
        fake_fatal("newBufferWithBytesNoCopy of %lu bytes at %p: not all is mapped", length, bytes);
    FakeBuffer *b = buffer_of(self, length, options);
    if (!b) return nil;
    b->host = bytes;
    if (deallocator) b->freed = _Block_copy(deallocator);
    return b;
}

- (id<MTLLibrary>)newLibraryWithSource:(NSString *)source options:(MTLCompileOptions *)options error:(NSError **)error
{
    if (!options || options.fastMathEnabled) fake_fatal("fast maths is on: infinities and NaN would be lost");
    if (!source) fake_fatal("newLibraryWithSource of nil");
    return fake_library(source.UTF8String, error);
}

- (id<MTLLibrary>)newLibraryWithURL:(NSURL *)url error:(NSError **)error
{
    fake_give(error, fake_error(1, "%s: this device reads no compiled library", url.fileSystemRepresentation));
    return nil;
}

- (id<MTLComputePipelineState>)newComputePipelineStateWithDescriptor:(MTLComputePipelineDescriptor *)descriptor
                                                             options:(MTLPipelineOption)options
                                                          reflection:(MTLComputePipelineReflection **)reflection
                                                               error:(NSError **)error
{
    if (options != MTLPipelineOptionNone || reflection) fake_fatal("this device has no reflection");
    return fake_pipeline(descriptor, error);
}

- (id<MTLBinaryArchive>)newBinaryArchiveWithDescriptor:(MTLBinaryArchiveDescriptor *)descriptor error:(NSError **)error
{
    return fake_archive(descriptor, error);
}

@end
