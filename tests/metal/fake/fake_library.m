/* What is compiled: a library, its functions with their constants, pipelines, and an archive of them. */
#include "fake.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- settings --------------------------------------------------------------------------- */

@interface FakeCompileOptions : MTLCompileOptions {
    BOOL fast;
    MTLLanguageVersion version;
}
@end

@implementation MTLCompileOptions
@dynamic fastMathEnabled, languageVersion;
@end

@implementation FakeCompileOptions

- (instancetype)init
{
    self = [super init];
    fast = YES; /* as Metal has it */
    return self;
}

- (BOOL)fastMathEnabled
{
    return fast;
}

- (void)setFastMathEnabled:(BOOL)to
{
    fast = to;
}

- (MTLLanguageVersion)languageVersion
{
    return version;
}

- (void)setLanguageVersion:(MTLLanguageVersion)to
{
    version = to;
}

@end

@implementation MTLFunctionConstantValues
- (void)setConstantValue:(const void *)value type:(MTLDataType)type atIndex:(NSUInteger)index
{
    (void)value, (void)type, (void)index;
}
@end

@implementation FakeFunctionConstantValues
- (void)setConstantValue:(const void *)at type:(MTLDataType)type atIndex:(NSUInteger)index
{
    if (index >= FAKE_CONSTANTS) fake_fatal("function constant %lu: there are %d", index, FAKE_CONSTANTS);
    if (type != MTLDataTypeInt)
        fake_fatal("function constant %lu is of type %lu, only int is known here", index, (unsigned long)type);
    memcpy(&value[index], at, sizeof value[index]);
    set[index] = 1;
}
@end

@interface FakeComputePipelineDescriptor : MTLComputePipelineDescriptor {
    id<MTLFunction> function;
    NSArray *archives;
}
@end

@implementation MTLComputePipelineDescriptor
@dynamic computeFunction, binaryArchives;
@end

@implementation FakeComputePipelineDescriptor

- (id<MTLFunction>)computeFunction
{
    return function;
}

- (void)setComputeFunction:(id<MTLFunction>)to
{
    [to retain];
    [function release];
    function = to;
}

- (NSArray *)binaryArchives
{
    return archives;
}

- (void)setBinaryArchives:(NSArray *)to
{
    [to retain];
    [archives release];
    archives = to;
}

- (void)dealloc
{
    [function release];
    [archives release];
    [super dealloc];
}

@end

@interface FakeBinaryArchiveDescriptor : MTLBinaryArchiveDescriptor {
    NSURL *at;
}
@end

@implementation MTLBinaryArchiveDescriptor
@dynamic url;
@end

@implementation FakeBinaryArchiveDescriptor

- (NSURL *)url
{
    return at;
}

- (void)setUrl:(NSURL *)to
{
    [to retain];
    [at release];
    at = to;
}

- (void)dealloc
{
    [at release];
    [super dealloc];
}

@end

/* ---- functions ---------------------------------------------------------------------------- */

@interface FakeLibrary : NSObject <MTLLibrary> {
  @public
    char *source;
}
@end

/* Whether the text has "kernel void NAME(": the emulator may know kernels of other texts. */
static int has_kernel(const char *source, const char *name)
{
    static const char before[] = "kernel void ";
    size_t n = strlen(name);
    for (const char *at = source; (at = strstr(at, before)); at += sizeof before - 1) {
        const char *found = at + sizeof before - 1;
        if (strncmp(found, name, n) == 0 && (found[n] == '(' || isspace((unsigned char)found[n]))) return 1;
    }
    return 0;
}

@implementation FakeLibrary

- (id<MTLFunction>)newFunctionWithName:(NSString *)name
{
    const char *wanted = name.UTF8String;
    const emu_kernel *kernel = emu_find(wanted);
    if (!has_kernel(source, wanted)) return nil;
    if (!kernel) fake_fatal("kernel %s stands in the source but not in the emulator", wanted);
    FakeFunction *f = [FakeFunction alloc];
    f->kernel = kernel;
    snprintf(f->called, sizeof f->called, "%s", wanted);
    return f;
}

- (id<MTLFunction>)newFunctionWithName:(NSString *)name constantValues:(MTLFunctionConstantValues *)values error:(NSError **)error
{
    FakeFunction *f = fake_fails(FAKE_FUNCTION) ? nil : [self newFunctionWithName:name];
    if (!f) {
        fake_give(error, fake_error(3, "no function %s in this library", name.UTF8String));
        return nil;
    }
    FakeFunctionConstantValues *v = (FakeFunctionConstantValues *)values;
    if (!v) fake_fatal("kernel %s: constant values are nil", f->called);
    memcpy(f->constant, v->value, sizeof f->constant);
    memcpy(f->set, v->set, sizeof f->set);
    return f;
}

- (void)dealloc
{
    free(source);
    [super dealloc];
}

@end

@implementation FakeFunction
- (NSString *)name
{
    return fake_string("%s", called);
}
@end

id<MTLLibrary> fake_library(const char *source, NSError **error)
{
    if (fake_fails(FAKE_SOURCE)) {
        fake_give(error, fake_error(3, "program_source:1:1: error: made to fail"));
        return nil;
    }
    FakeLibrary *l = [FakeLibrary alloc];
    l->source = strdup(source);
    if (!l->source) fake_fatal("no memory for a library");
    return l;
}

/* ---- archives ------------------------------------------------------------------------------- */

static const char magic[] = "fake Metal archive";

/* Lines: a kernel and its constants. */
@interface FakeArchive : NSObject <MTLBinaryArchive> {
  @public
    char **line;
    int32_t lines, room;
}
@end

static void describe(const FakeFunction *f, char *out, size_t bytes)
{
    size_t at = (size_t)snprintf(out, bytes, "%s", f->called);
    for (int32_t i = 0; i < FAKE_CONSTANTS && at < bytes; i++)
        if (f->set[i]) at += (size_t)snprintf(out + at, bytes - at, " %d=%d", i, f->constant[i]);
}

static int holds(const FakeArchive *a, const char *line)
{
    for (int32_t i = 0; i < a->lines; i++)
        if (strcmp(a->line[i], line) == 0) return 1;
    return 0;
}

static void add_line(FakeArchive *a, const char *line)
{
    a->line = fake_room(a->line, a->lines, &a->room, sizeof *a->line);
    a->line[a->lines] = strdup(line);
    if (!a->line[a->lines++]) fake_fatal("no memory for an archive");
}

@implementation FakeArchive

- (BOOL)addComputePipelineFunctionsWithDescriptor:(MTLComputePipelineDescriptor *)descriptor error:(NSError **)error
{
    char text[1024];
    if (fake_fails(FAKE_ARCHIVE)) {
        fake_give(error, fake_error(2, "the archive was made to fail"));
        return NO;
    }
    describe(descriptor.computeFunction, text, sizeof text);
    if (!holds(self, text)) add_line(self, text);
    return YES;
}

- (BOOL)serializeToURL:(NSURL *)url error:(NSError **)error
{
    FILE *f = fopen(url.fileSystemRepresentation, "w");
    if (!f) {
        fake_give(error, fake_error(2, "%s cannot be written", url.fileSystemRepresentation));
        return NO;
    }
    fprintf(f, "%s\n", magic);
    for (int32_t i = 0; i < lines; i++) fprintf(f, "%s\n", line[i]);
    return fclose(f) == 0;
}

- (void)dealloc
{
    for (int32_t i = 0; i < lines; i++) free(line[i]);
    free(line);
    [super dealloc];
}

@end

static int read_lines(FakeArchive *a, FILE *f)
{
    char text[1024];
    int32_t n = 0;
    while (fgets(text, sizeof text, f)) {
        text[strcspn(text, "\n")] = 0;
        if (n++) add_line(a, text);
        else if (strcmp(text, magic) != 0) return 0;
    }
    return n > 0;
}

id<MTLBinaryArchive> fake_archive(MTLBinaryArchiveDescriptor *how, NSError **error)
{
    FakeArchive *a = [FakeArchive alloc];
    if (!how.url) return a;
    FILE *f = fopen(how.url.fileSystemRepresentation, "r");
    int good = f && read_lines(a, f);
    if (f) fclose(f);
    if (good) return a;
    fake_give(error, fake_error(1, "%s is no archive of this device", how.url.fileSystemRepresentation));
    [a release];
    return nil;
}

/* ---- pipelines -------------------------------------------------------------------------------- */

@implementation FakePipeline

- (NSUInteger)maxTotalThreadsPerThreadgroup
{
    return most;
}

- (NSUInteger)threadExecutionWidth
{
    return 32;
}

- (void)dealloc
{
    FakeFunction *of = function;
    [super dealloc]; /* refuses what is in use */
    [of release];
}

@end

static void check_constants(const FakeFunction *f)
{
    const int32_t *wanted;
    int32_t n = emu_constants(f->kernel, &wanted);
    for (int32_t i = 0; i < n; i++)
        if (!f->set[wanted[i]]) fake_fatal("kernel %s: function constant %d has no value", f->called, wanted[i]);
}

static int in_archive(NSArray *archives, const FakeFunction *f)
{
    char text[1024];
    describe(f, text, sizeof text);
    for (NSUInteger i = 0; i < archives.count; i++)
        if (holds([archives objectAtIndex:i], text)) return 1;
    return 0;
}

id<MTLComputePipelineState> fake_pipeline(MTLComputePipelineDescriptor *how, NSError **error)
{
    FakeFunction *f = how.computeFunction;
    if (!f) fake_fatal("a pipeline with no function");
    check_constants(f);
    if (fake_fails(FAKE_PIPELINE)) {
        fake_give(error, fake_error(3, "the compiler was made to fail"));
        return nil;
    }
    fake_counted(in_archive(how.binaryArchives, f) ? FAKE_FROM_ARCHIVE : FAKE_COMPILED, 1);
    FakePipeline *p = [FakePipeline alloc];
    p->function = [f retain];
    p->most = (NSUInteger)fake_metal_options()->max_threads;
    return p;
}
