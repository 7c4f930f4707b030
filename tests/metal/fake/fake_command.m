/* Queues and command buffers: what is recorded, and what keeps it alive. */
#include "fake.h"

#include <stdlib.h>
#include <string.h>

@implementation FakeQueue

- (id<MTLCommandBuffer>)make:(int32_t)retains
{
    if (fake_fails(FAKE_COMMAND_BUFFER)) return nil;
    if (unfinished == FAKE_QUEUE) fake_wait_oldest(self);
    FakeCommandBuffer *c = [FakeCommandBuffer alloc];
    c->queue = [self retain];
    c->device = device;
    c->retains = retains;
    unfinished++;
    return [c autorelease];
}

- (id<MTLCommandBuffer>)commandBuffer
{
    return [self make:1];
}

- (id<MTLCommandBuffer>)commandBufferWithUnretainedReferences
{
    return [self make:0];
}

- (void)dealloc
{
    FakeDevice *of = device;
    [super dealloc];
    [of release];
}

@end

/* ---- what a command buffer holds ------------------------------------------------------------ */

fake_entry *fake_append(FakeCommandBuffer *c)
{
    c->entry = fake_room(c->entry, c->entries, &c->entry_room, sizeof *c->entry);
    fake_entry *e = &c->entry[c->entries++];
    memset(e, 0, sizeof *e);
    return e;
}

void fake_keep(FakeCommandBuffer *c, id object)
{
    c->used = fake_room(c->used, c->uses, &c->use_room, sizeof *c->used);
    c->used[c->uses++] = object;
    if (c->retains) [object retain];
    else fake_use(object);
}

void *fake_copy(FakeCommandBuffer *c, const void *bytes, size_t n)
{
    c->copy = fake_room(c->copy, c->copies, &c->copy_room, sizeof *c->copy);
    void *copy = malloc(n);
    if (!copy) fake_fatal("no memory");
    c->copy[c->copies++] = copy;
    return memcpy(copy, bytes, n);
}

static void drop(FakeCommandBuffer *c)
{
    for (int32_t i = 0; i < c->uses; i++) {
        if (c->retains) [c->used[i] release];
        else fake_unuse(c->used[i]);
    }
    for (int32_t i = 0; i < c->copies; i++) free(c->copy[i]);
    free(c->used);
    free(c->copy);
    free(c->entry);
    c->used = NULL;
    c->copy = NULL;
    c->entry = NULL;
    c->uses = c->copies = c->entries = 0;
    c->queue->unfinished--;
}

void fake_finish(FakeCommandBuffer *c, NSError *why)
{
    c->why = [why retain];
    drop(c);
    c->state = why ? MTLCommandBufferStatusError : MTLCommandBufferStatusCompleted;
    for (int32_t i = 0; i < c->handlers; i++) c->handler[i](c);
}

/* ---- its life --------------------------------------------------------------------------------- */

#define POLLS 1000 /* a lazy device begins when it has been asked so often */

@implementation FakeCommandBuffer

- (MTLCommandBufferStatus)status
{
    if (state == MTLCommandBufferStatusCommitted && ++polls > POLLS) fake_want(self);
    return (MTLCommandBufferStatus)state;
}

- (NSError *)error
{
    return state == MTLCommandBufferStatusError ? why : nil;
}

- (CFTimeInterval)GPUStartTime
{
    return state >= MTLCommandBufferStatusCompleted ? from : 0;
}

- (CFTimeInterval)GPUEndTime
{
    return state >= MTLCommandBufferStatusCompleted ? to : 0;
}

- (void)unfinished:(const char *)what
{
    if (state != MTLCommandBufferStatusNotEnqueued) fake_fatal("%s a command buffer that is committed", what);
    if (encoder) fake_fatal("%s a command buffer whose encoder is open", what);
}

- (id<MTLComputeCommandEncoder>)computeCommandEncoderWithDispatchType:(MTLDispatchType)type
{
    [self unfinished:"a new encoder of"];
    return fake_encoder(self, type);
}

- (void)addCompletedHandler:(MTLCommandBufferHandler)block
{
    if (state != MTLCommandBufferStatusNotEnqueued) fake_fatal("a handler is added to a command buffer that is committed");
    handler = fake_room(handler, handlers, &handler_room, sizeof *handler);
    handler[handlers++] = _Block_copy(block);
}

- (void)commit
{
    [self unfinished:"commit of"];
    fake_counted(FAKE_COMMITS, 1);
    fake_submit(self);
}

- (void)waitUntilCompleted
{
    if (state == MTLCommandBufferStatusNotEnqueued) fake_fatal("a wait for a command buffer that was never committed");
    fake_counted(FAKE_WAITS, 1);
    fake_wait(self);
}

- (void)dealloc
{
    if (state == MTLCommandBufferStatusNotEnqueued) drop(self);
    for (int32_t i = 0; i < handlers; i++) _Block_release(handler[i]);
    free(handler);
    [why release];
    FakeQueue *of = queue;
    [super dealloc];
    [of release];
}

@end
