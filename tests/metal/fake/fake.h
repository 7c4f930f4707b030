/* What the files of the fake device share. */
#ifndef FAKE_H
#define FAKE_H

#include <Block.h>
#import <Metal/Metal.h>

#include "emulator.h"
#include "fake_metal.h"

#define FAKE_ARGUMENTS 31      /* buffers of a kernel */
#define FAKE_CONSTANTS 64      /* function constants */
#define FAKE_SET_BYTES 4096    /* most of setBytes */
#define FAKE_GROUP_BYTES 32768 /* most threadgroup memory */
#define FAKE_QUEUE 64          /* most command buffers of a queue that have not run */

@class FakeQueue;

/* ---- fake_state.c ---- */

_Noreturn void fake_fatal(const char *format, ...) __attribute__((format(printf, 1, 2)));
void fake_counted(fake_count what, uint64_t n);
int fake_fails(fake_failure what); /* is it this one's turn? */

/* ---- fake_objects.m ---- */

/* An object of a class, zeroed, with one reference. */
id fake_create(Class of);

/* Objects that committed work uses must outlive it. */
void fake_use(id object);
void fake_unuse(id object);

/* Room for one more item in an array that grows. */
void *fake_room(void *array, int32_t n, int32_t *room, size_t item);

/* ---- fake_foundation.m ---- */

NSString *fake_string(const char *format, ...) __attribute__((format(printf, 1, 2)));
NSError *fake_error(NSInteger code, const char *format, ...) __attribute__((format(printf, 2, 3)));
void fake_give(NSError **out, NSError *error);

/* ---- fake_device.m ---- */

@interface FakeDevice : NSObject <MTLDevice> {
  @public
    _Atomic(size_t) allocated;
    int32_t lost;
}
@end

@interface FakeBuffer : NSObject <MTLBuffer> {
  @public
    FakeDevice *device;
    char *host;
    size_t bytes;
    int32_t ours, hidden; /* `ours`: freed with the buffer; `hidden`: private to the GPU */
    void (^freed)(void *, NSUInteger);
}
@end

/* ---- fake_library.m ---- */

@interface FakeFunctionConstantValues : MTLFunctionConstantValues {
  @public
    int32_t value[FAKE_CONSTANTS];
    uint8_t set[FAKE_CONSTANTS];
}
@end

@interface FakeFunction : NSObject <MTLFunction> {
  @public
    const emu_kernel *kernel;
    char called[64];
    int32_t constant[FAKE_CONSTANTS];
    uint8_t set[FAKE_CONSTANTS];
}
@end

@interface FakePipeline : NSObject <MTLComputePipelineState> {
  @public
    FakeFunction *function;
    NSUInteger most;
}
@end

id<MTLLibrary> fake_library(const char *source, NSError **error);
id<MTLComputePipelineState> fake_pipeline(MTLComputePipelineDescriptor *how, NSError **error);
id<MTLBinaryArchive> fake_archive(MTLBinaryArchiveDescriptor *how, NSError **error);

/* ---- fake_command.m ---- */

/* One entry of a command buffer: a dispatch, or with no pipeline a barrier. */
typedef struct {
    FakePipeline *pipeline;
    emu_binding buffer[FAKE_ARGUMENTS];
    size_t group_bytes[FAKE_ARGUMENTS];
    emu_size groups, threads;
} fake_entry;

@interface FakeCommandBuffer : NSObject <MTLCommandBuffer> {
  @public
    FakeQueue *queue;
    FakeDevice *device;
    int32_t retains; /* what it uses, or else the host has to */
    fake_entry *entry;
    int32_t entries, entry_room;
    void **copy; /* of setBytes */
    int32_t copies, copy_room;
    id *used;
    int32_t uses, use_room;
    id encoder; /* the open one; it holds us, not we it */
    MTLCommandBufferHandler *handler;
    int32_t handlers, handler_room;
    _Atomic(int) state; /* an MTLCommandBufferStatus */
    int32_t polls, finished;
    uint64_t turn; /* among all that were committed */
    double from, to;
    NSError *why;
}
@end

@interface FakeQueue : NSObject <MTLCommandQueue> {
  @public
    FakeDevice *device;
    _Atomic int32_t unfinished; /* command buffers made that have not run */
}
@end

fake_entry *fake_append(FakeCommandBuffer *c);
void fake_keep(FakeCommandBuffer *c, id object); /* until it has run */
void *fake_copy(FakeCommandBuffer *c, const void *bytes, size_t n);
void fake_finish(FakeCommandBuffer *c, NSError *why);

/* ---- fake_encoder.m ---- */

id<MTLComputeCommandEncoder> fake_encoder(FakeCommandBuffer *c, MTLDispatchType type);

/* ---- fake_worker.m ---- */

void fake_submit(FakeCommandBuffer *c); /* takes a reference until it has run */
void fake_wait(FakeCommandBuffer *c);
void fake_want(FakeCommandBuffer *c); /* somebody keeps asking for it: a lazy device begins */
void fake_wait_oldest(FakeQueue *q);

/* ---- fake_run.m ---- */

/* 0, or -1 and what went wrong. */
int fake_run(const fake_entry *entry, int32_t n, char *error, size_t error_bytes);

#endif
