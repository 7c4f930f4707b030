/*
 * test_fake CASE: a small host runs z = 2 x + 1 on the fake device, as two kernels of one encoder. CASE plants a mistake in it.
 * Exit 0: the answer is right and nothing is alive at the end; 1: it says what was not.
 */
#import <Metal/Metal.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fake_metal.h"

#define N 1000u
#define WIDTH 64u

static const char *which;
static const char source[] = "kernel void scale(constant P &p) {}\nkernel void sums (constant P &p) {}\n";

typedef struct {
    uint32_t n;
    float by;
} parameters;

typedef struct {
    id<MTLDevice> device;
    id<MTLCommandQueue> queue;
    id<MTLLibrary> library;
    id<MTLComputePipelineState> multiply, add;
    id<MTLBuffer> x, y, z;
} host;

static int bug(const char *name)
{
    return strcmp(which, name) == 0;
}

static void die(const char *what)
{
    printf("%s\n", what);
    exit(1);
}

static const char *said(NSError *error)
{
    return error.localizedDescription.UTF8String;
}

/* ---- what is made once ------------------------------------------------------------------- */

static id<MTLComputePipelineState> pipeline(host *h, int32_t adds, NSUInteger index)
{
    NSError *error = nil;
    MTLFunctionConstantValues *values = [[MTLFunctionConstantValues alloc] init];
    if (!bug("no constant")) [values setConstantValue:&adds type:MTLDataTypeInt atIndex:index];
    id<MTLFunction> f = [h->library newFunctionWithName:[NSString stringWithUTF8String:bug("no kernel") ? "scal" : "scale"]
                                         constantValues:values
                                                  error:&error];
    [values release];
    if (!f) die(said(error));
    MTLComputePipelineDescriptor *how = [[MTLComputePipelineDescriptor alloc] init];
    how.computeFunction = f;
    id<MTLComputePipelineState> state = [h->device newComputePipelineStateWithDescriptor:how
                                                                                 options:MTLPipelineOptionNone
                                                                              reflection:NULL
                                                                                   error:&error];
    [how release];
    if (!bug("leak a function")) [f release];
    if (!state) die(said(error));
    return state;
}

static id<MTLBuffer> buffer(host *h, NSUInteger bytes)
{
    id<MTLBuffer> b =
        [h->device newBufferWithLength:bytes
                               options:bug("contents of private") ? MTLResourceStorageModePrivate : MTLResourceStorageModeShared];
    if (!b) die("no buffer");
    return b;
}

static void open_host(host *h)
{
    NSError *error = nil;
    h->device = MTLCreateSystemDefaultDevice();
    if (!h->device) die("no device");
    h->queue = [h->device newCommandQueue];
    MTLCompileOptions *options = [[MTLCompileOptions alloc] init];
    if (!bug("fast maths")) options.fastMathEnabled = NO;
    h->library = [h->device newLibraryWithSource:[NSString stringWithUTF8String:source] options:options error:&error];
    [options release];
    if (!h->library) die(said(error));
    h->multiply = pipeline(h, 0, 2);
    h->add = pipeline(h, bug("wrong constant") ? 0 : 1, bug("constant elsewhere") ? 3 : 2);
    h->x = buffer(h, N * sizeof(float));
    h->y = buffer(h, N * sizeof(float));
    h->z = buffer(h, (bug("short buffer") ? N - 1 : N) * sizeof(float));
    for (uint32_t i = 0; i < N; i++) ((float *)h->x.contents)[i] = (float)i;
}

static void close_host(host *h)
{
    [h->x release];
    [h->y release];
    if (!bug("leak a buffer")) [h->z release];
    [h->multiply release];
    [h->add release];
    [h->library release];
    [h->queue release];
    [h->device release];
    if (bug("release twice")) [h->device release];
    if (bug("use after release")) [h->device newCommandQueue];
}

/* ---- one command buffer -------------------------------------------------------------------- */

static void dispatch(id<MTLComputeCommandEncoder> e, NSUInteger groups, NSUInteger threads)
{
    [e dispatchThreadgroups:MTLSizeMake(groups, 1, 1) threadsPerThreadgroup:MTLSizeMake(threads, 1, 1)];
}

static void encode(host *h, id<MTLComputeCommandEncoder> e)
{
    NSUInteger groups = (N + WIDTH - 1) / WIDTH;
    static parameters p;
    p = (parameters){N, 2.0f};
    if (bug("no pipeline")) dispatch(e, groups, WIDTH);
    [e setComputePipelineState:h->multiply];
    [e setBytes:&p length:bug("short argument") ? 4 : sizeof p atIndex:0];
    [e setBuffer:h->x offset:bug("wrong offset") ? 4 : 0 atIndex:1];
    if (!bug("unbound")) [e setBuffer:h->y offset:bug("offset past the end") ? N * 4 : 0 atIndex:2];
    dispatch(e, bug("grid one short") ? groups - 1 : groups, bug("too many threads") ? 2048 : WIDTH);
    if (!bug("no barrier")) [e memoryBarrierWithScope:MTLBarrierScopeBuffers];
    [e setComputePipelineState:h->add];
    if (bug("bound before the pipeline")) dispatch(e, groups, WIDTH);
    p = (parameters){N, 1.0f};
    [e setBytes:&p length:sizeof p atIndex:0];
    [e setBuffer:bug("swapped") ? h->z : h->y offset:0 atIndex:1];
    [e setBuffer:bug("swapped") ? h->y : h->z offset:0 atIndex:2];
    if (bug("too many set bytes")) [e setBytes:source length:4097 atIndex:3];
    if (bug("argument index")) [e setBytes:&p length:sizeof p atIndex:31];
    if (bug("odd threadgroup memory")) [e setThreadgroupMemoryLength:40 atIndex:0];
    if (bug("much threadgroup memory")) [e setThreadgroupMemoryLength:32784 atIndex:0];
    if (bug("empty grid")) dispatch(e, 0, WIDTH);
    if (bug("nil buffer")) [e setBuffer:nil offset:0 atIndex:1];
    dispatch(e, groups, WIDTH);
    p = (parameters){0, 0.0f}; /* it was copied */
}

static void end(id<MTLComputeCommandEncoder> e, id<MTLCommandBuffer> c)
{
    if (bug("two encoders")) [c computeCommandEncoderWithDispatchType:MTLDispatchTypeConcurrent];
    if (bug("commit with an open encoder")) [c commit];
    if (!bug("never ended")) [e endEncoding];
    if (bug("ended twice")) [e endEncoding];
    if (bug("encoding after the end")) [e memoryBarrierWithScope:MTLBarrierScopeBuffers];
    if (bug("wait before commit")) [c waitUntilCompleted];
}

static void after_commit(host *h, id<MTLCommandBuffer> c)
{
    if (bug("commit twice")) [c commit];
    if (bug("encoder after commit")) [c computeCommandEncoderWithDispatchType:MTLDispatchTypeSerial];
    if (bug("handler after commit"))
        [c addCompletedHandler:^(id<MTLCommandBuffer> done) {
          (void)done;
        }];
    if (bug("buffer freed in flight")) [h->y release];
    if (bug("pipeline freed in flight")) [h->add release];
}

/* z, once the command buffer has run. */
static void run(host *h)
{
    @autoreleasepool {
        id<MTLCommandBuffer> c = bug("retained") ? [h->queue commandBuffer] : [h->queue commandBufferWithUnretainedReferences];
        if (!c) die("no command buffer");
        id<MTLComputeCommandEncoder> e =
            [c computeCommandEncoderWithDispatchType:bug("serial") ? MTLDispatchTypeSerial : MTLDispatchTypeConcurrent];
        if (!e) die("no encoder");
        encode(h, e);
        end(e, c);
        __block int32_t handled = 0;
        [c addCompletedHandler:^(id<MTLCommandBuffer> done) {
          handled = (int32_t)done.status;
          if (bug("wait in a handler")) [done waitUntilCompleted];
        }];
        if (bug("freed before commit")) [h->y release];
        [c commit];
        after_commit(h, c);
        if (bug("retained")) {
            [h->y release];
            h->y = buffer(h, 4);
        }
        if (bug("polls"))
            while (c.status < MTLCommandBufferStatusCompleted) usleep(1);
        else if (!bug("no wait")) [c waitUntilCompleted];
        if (c.status == MTLCommandBufferStatusError) die(said(c.error));
        if (bug("no wait")) return;
        if (!bug("polls") && handled != MTLCommandBufferStatusCompleted) die("the handler was not called");
        if (c.GPUEndTime < c.GPUStartTime || c.GPUStartTime <= 0) die("no times");
    }
}

static void check(host *h)
{
    const float *z = h->z.contents;
    for (uint32_t i = 0; i < N; i++)
        if (!(z[i] == 2.0f * (float)i + 1.0f)) die("WRONG");
}

/* ---- more than one --------------------------------------------------------------------------- */

/* More command buffers than a queue holds, none of them waited for by us. */
static void many(host *h)
{
    id<MTLCommandBuffer> last = nil;
    for (int32_t i = 0; i < 200; i++) {
        @autoreleasepool {
            [last release];
            last = [[h->queue commandBufferWithUnretainedReferences] retain];
            id<MTLComputeCommandEncoder> e = [last computeCommandEncoderWithDispatchType:MTLDispatchTypeConcurrent];
            encode(h, e);
            [e endEncoding];
            if (!bug("many and none committed")) [last commit];
            else [last retain];
        }
    }
    [last waitUntilCompleted];
    [last release];
}

/* Memory of ours behind a buffer. */
static void no_copy(host *h)
{
    __block int32_t freed = 0;
    void *memory = NULL;
    if (posix_memalign(&memory, 16384, 32768) != 0) die("no memory");
    memset(memory, 7, 32768);
    id<MTLBuffer> b = [h->device newBufferWithBytesNoCopy:bug("half a page") ? (char *)memory + 64 : memory
                                                   length:32768
                                                  options:MTLResourceStorageModeShared
                                              deallocator:^(void *at, NSUInteger length) {
                                                freed = length == 32768;
                                                free(at);
                                              }];
    if (b.contents != memory || b.length != 32768 || *(char *)b.contents != 7) die("WRONG");
    if (h->device.currentAllocatedSize != 3 * N * sizeof(float) + 32768) die("allocated size");
    [b release];
    if (!freed) die("the deallocator was not called");
}

/* Pipelines come from an archive that was written before. */
static void archive(host *h, const char *path)
{
    @autoreleasepool {
        NSError *error = nil;
        NSURL *url = [NSURL fileURLWithPath:[NSString stringWithUTF8String:path]];
        MTLBinaryArchiveDescriptor *how = [[MTLBinaryArchiveDescriptor alloc] init];
        how.url = access(path, R_OK) == 0 ? url : nil;
        id<MTLBinaryArchive> a = [h->device newBinaryArchiveWithDescriptor:how error:&error];
        [how release];
        if (!a) die(said(error));
        int32_t one = 1;
        MTLFunctionConstantValues *values = [[MTLFunctionConstantValues alloc] init];
        [values setConstantValue:&one type:MTLDataTypeInt atIndex:2];
        id<MTLFunction> f = [h->library newFunctionWithName:[NSString stringWithUTF8String:"scale"]
                                             constantValues:values
                                                      error:NULL];
        MTLComputePipelineDescriptor *d = [[MTLComputePipelineDescriptor alloc] init];
        d.computeFunction = f;
        d.binaryArchives = [NSArray arrayWithObject:a];
        fake_metal_reset();
        id<MTLComputePipelineState> p = [h->device newComputePipelineStateWithDescriptor:d options:0 reflection:NULL error:NULL];
        printf("from archive %llu\n", (unsigned long long)fake_metal_count(FAKE_FROM_ARCHIVE));
        if (![a addComputePipelineFunctionsWithDescriptor:d error:NULL] || ![a serializeToURL:url error:NULL]) die("not kept");
        [p release];
        [d release];
        [f release];
        [values release];
        [a release];
    }
}

int main(int argc, char **argv)
{
    static const char *const names[] = {"commits",  "encoders", "dispatches", "barriers",    "waits",
                                        "compiled", "archived", "buffers",    "bytes of set"};
    host h = {0};
    char text[256];
    which = argc > 1 ? argv[1] : "";
    if (bug("no pool")) [NSString stringWithUTF8String:"x"];
    @autoreleasepool {
        open_host(&h);
        if (bug("unknown message")) [(id)h.device endEncoding];
    }
    if (strncmp(which, "many", 4) == 0) many(&h);
    else run(&h);
    check(&h);
    if (bug("no copy") || bug("half a page")) no_copy(&h);
    if (argc > 2) archive(&h, argv[2]);
    if (!bug("no wait")) close_host(&h);
    for (int32_t i = 0; i < FAKE_COUNTS; i++) printf("%s %llu\n", names[i], (unsigned long long)fake_metal_count((fake_count)i));
    /* The device lets go of a command buffer just after its status says that it has ended. */
    for (int32_t i = 0; i < 1000 && bug("polls") && fake_metal_alive(text, sizeof text); i++) usleep(1000);
    if (fake_metal_alive(text, sizeof text)) {
        printf("alive: %s\n", text);
        return 1;
    }
    return 0;
}
