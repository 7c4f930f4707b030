/* Encoding: every dispatch is checked and recorded with all that it uses. */
#include "fake.h"

#include <string.h>

@interface FakeEncoder : NSObject <MTLComputeCommandEncoder> {
  @public
    FakeCommandBuffer *command;
    int32_t serial, ended;
    FakePipeline *pipeline;
    emu_binding bound[FAKE_ARGUMENTS]; /* since the pipeline was set */
    size_t group_bytes[FAKE_ARGUMENTS];
}
@end

static int32_t index_of(NSUInteger index)
{
    if (index >= FAKE_ARGUMENTS) fake_fatal("argument %lu: the last one is %d", index, FAKE_ARGUMENTS - 1);
    return (int32_t)index;
}

static size_t volume(MTLSize s)
{
    return s.width * s.height * s.depth;
}

static emu_size size_of(MTLSize s)
{
    return (emu_size){(uint32_t)s.width, (uint32_t)s.height, (uint32_t)s.depth};
}

static void check_arguments(const FakeEncoder *e)
{
    const char *kernel = e->pipeline->function->called;
    const emu_param *param;
    int32_t n = emu_params(e->pipeline->function->kernel, &param);
    for (int32_t i = 0; i < n; i++) {
        const emu_param *p = &param[i];
        if (p->is_threadgroup) {
            if (!e->group_bytes[p->index]) fake_fatal("%s: threadgroup(%d) '%s' has no length", kernel, p->index, p->name);
        } else if (!e->bound[p->index].at) {
            fake_fatal("%s: buffer(%d) '%s' is not bound since the pipeline was set", kernel, p->index, p->name);
        } else if (e->bound[p->index].bytes < p->least) {
            fake_fatal("%s: buffer(%d) '%s': %zu bytes are bound, the argument takes %zu", kernel, p->index, p->name,
                       e->bound[p->index].bytes, p->least);
        }
    }
}

static void check_sizes(const FakeEncoder *e, MTLSize groups, MTLSize threads)
{
    const char *kernel = e->pipeline->function->called;
    size_t total = 0;
    if (!volume(groups) || !volume(threads)) fake_fatal("%s: a dispatch of no threads", kernel);
    if (volume(threads) > e->pipeline->most)
        fake_fatal("%s: %zu threads in a threadgroup, the pipeline takes %lu", kernel, volume(threads), e->pipeline->most);
    for (int32_t i = 0; i < FAKE_ARGUMENTS; i++) total += e->group_bytes[i];
    if (total > FAKE_GROUP_BYTES)
        fake_fatal("%s: %zu bytes of threadgroup memory, there are %d", kernel, total, FAKE_GROUP_BYTES);
}

@implementation FakeEncoder

- (void)open
{
    if (ended) fake_fatal("encoding after endEncoding");
}

- (void)setComputePipelineState:(id<MTLComputePipelineState>)state
{
    [self open];
    if (!state) fake_fatal("setComputePipelineState of nil");
    pipeline = state;
    fake_keep(command, state);
    memset(bound, 0, sizeof bound);
    memset(group_bytes, 0, sizeof group_bytes);
}

- (void)setBytes:(const void *)bytes length:(NSUInteger)length atIndex:(NSUInteger)index
{
    [self open];
    if (!bytes || !length || length > FAKE_SET_BYTES)
        fake_fatal("setBytes of %lu bytes at index %lu: 1 to %d are possible", length, index, FAKE_SET_BYTES);
    bound[index_of(index)] = (emu_binding){fake_copy(command, bytes, length), length};
    fake_counted(FAKE_BYTES_SET, length);
}

- (void)setBuffer:(id<MTLBuffer>)buffer offset:(NSUInteger)offset atIndex:(NSUInteger)index
{
    [self open];
    FakeBuffer *b = buffer;
    if (!b) fake_fatal("setBuffer of nil at index %lu", index);
    if (offset >= b->bytes) fake_fatal("setBuffer at index %lu: offset %lu of a buffer of %zu bytes", index, offset, b->bytes);
    bound[index_of(index)] = (emu_binding){b->host + offset, b->bytes - offset};
    fake_keep(command, b);
}

- (void)setThreadgroupMemoryLength:(NSUInteger)length atIndex:(NSUInteger)index
{
    [self open];
    if (length % 16) fake_fatal("threadgroup memory of %lu bytes: a multiple of 16 is wanted", length);
    group_bytes[index_of(index)] = length;
}

- (void)dispatchThreadgroups:(MTLSize)groups threadsPerThreadgroup:(MTLSize)threads
{
    [self open];
    if (!pipeline) fake_fatal("a dispatch with no pipeline");
    check_sizes(self, groups, threads);
    check_arguments(self);
    fake_entry *e = fake_append(command);
    e->pipeline = pipeline;
    e->groups = size_of(groups);
    e->threads = size_of(threads);
    memcpy(e->buffer, bound, sizeof bound);
    memcpy(e->group_bytes, group_bytes, sizeof group_bytes);
    fake_counted(FAKE_DISPATCHES, 1);
    if (serial) fake_append(command);
}

- (void)memoryBarrierWithScope:(MTLBarrierScope)scope
{
    [self open];
    if (scope != MTLBarrierScopeBuffers) fake_fatal("a barrier of scope %lu, only buffers are known here", (unsigned long)scope);
    fake_append(command);
    fake_counted(FAKE_BARRIERS, 1);
}

- (void)endEncoding
{
    [self open];
    ended = 1;
    fake_append(command); /* what follows sees all of this */
    command->encoder = nil;
}

- (void)dealloc
{
    if (!ended) fake_fatal("an encoder was released without endEncoding");
    FakeCommandBuffer *of = command;
    [super dealloc];
    [of release];
}

@end

id<MTLComputeCommandEncoder> fake_encoder(FakeCommandBuffer *c, MTLDispatchType type)
{
    if (fake_fails(FAKE_ENCODER)) return nil;
    FakeEncoder *e = [FakeEncoder alloc];
    e->command = [c retain];
    e->serial = type == MTLDispatchTypeSerial;
    c->encoder = e;
    fake_counted(FAKE_ENCODERS, 1);
    return [e autorelease];
}
