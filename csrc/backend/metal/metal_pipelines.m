/* What is compiled: the library of all kernels, one pipeline for each kernel and its constants, and the archive of both. */
#include "backend/metal/metal.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backend/metal/metal_source.h"
#include "base/hash.h"

static const char *said(NSError *error)
{
    return error ? error.localizedDescription.UTF8String : "Metal gives no reason";
}

static NSURL *file_url(const char *path)
{
    return [NSURL fileURLWithPath:[NSString stringWithUTF8String:path]];
}

/* The kernels that Apple's compiler made when this wheel was built, in a file beside this library; nil: there is none. */
static id<MTLLibrary> prebuilt(fm_metal *m)
{
    static const char name[] = "flashmoe.metallib";
    Dl_info here;
    char path[1024];
    if (!dladdr(&fm_metal_ops, &here) || !here.dli_fname) return nil;
    const char *slash = strrchr(here.dli_fname, '/');
    size_t folder = slash ? (size_t)(slash - here.dli_fname) + 1 : 0;
    if (folder + sizeof name > sizeof path) return nil;
    memcpy(path, here.dli_fname, folder);
    memcpy(path + folder, name, sizeof name);
    if (access(path, R_OK) != 0) return nil;
    return [m->device newLibraryWithURL:file_url(path) error:NULL]; /* of another macOS perhaps: then the text is compiled */
}

/* Fast maths would take infinities and NaN for impossible; softmax needs the first and errors must show the second. */
static fm_status compile_source(fm_metal *m, fm_error *err)
{
    NSError *error = nil;
    MTLCompileOptions *options = [[MTLCompileOptions alloc] init];
    options.fastMathEnabled = NO;
    options.languageVersion = MTLLanguageVersion3_0;
    m->library = [m->device newLibraryWithSource:[NSString stringWithUTF8String:fm_metal_source] options:options error:&error];
    [options release];
    if (m->library) return FM_OK;
    return fm_fail(err, FM_DEVICE, "%s: the shaders do not compile: %s", m->variant, said(error));
}

/* Pipelines of earlier runs with the same text. Without them everything works, only the first token is later. */
static void open_archive(fm_metal *m, const char *cache)
{
    char path[1024];
    unsigned long long text = fm_xxh3(fm_metal_source, strlen(fm_metal_source));
    int n = snprintf(path, sizeof path, "%s/metal-%016llx.archive", cache, text);
    if (n < 0 || (size_t)n >= sizeof path) return;
    m->archive_at = [file_url(path) retain];
    MTLBinaryArchiveDescriptor *how = [[MTLBinaryArchiveDescriptor alloc] init];
    how.url = access(path, R_OK) == 0 ? m->archive_at : nil;
    m->archive = [m->device newBinaryArchiveWithDescriptor:how error:NULL];
    if (!m->archive && how.url) { /* made by another driver */
        how.url = nil;
        m->archive = [m->device newBinaryArchiveWithDescriptor:how error:NULL];
    }
    [how release];
}

fm_status fm_metal_compile(fm_metal *m, const char *cache, fm_error *err)
{
    m->library = prebuilt(m);
    if (!m->library) FM_TRY(compile_source(m, err));
    if (cache) open_archive(m, cache);
    return FM_OK;
}

void fm_metal_forget(fm_metal *m)
{
    @autoreleasepool {
        if (m->archive && m->archive_grew) [m->archive serializeToURL:m->archive_at error:NULL]; /* a cache: failing costs time only */
        for (int32_t i = 0; i < m->pipelines; i++) [m->pipeline[i].state release];
        [m->archive release];
        [m->archive_at release];
        [m->library release];
    }
    free(m->pipeline);
}

/* ---- pipelines ---------------------------------------------------------------- */

static id<MTLFunction> function_of(fm_metal *m, const char *kernel, const int32_t *constant, int32_t n, NSError **error)
{
    MTLFunctionConstantValues *values = [[MTLFunctionConstantValues alloc] init];
    for (int32_t i = 0; i < n; i++) [values setConstantValue:&constant[i] type:MTLDataTypeInt atIndex:(NSUInteger)i];
    id<MTLFunction> function = [m->library newFunctionWithName:[NSString stringWithUTF8String:kernel]
                                                constantValues:values
                                                         error:error];
    [values release];
    return function;
}

static id<MTLComputePipelineState> state_of(fm_metal *m, id<MTLFunction> function, NSError **error)
{
    MTLComputePipelineDescriptor *how = [[MTLComputePipelineDescriptor alloc] init];
    how.computeFunction = function;
    if (m->archive) {
        how.binaryArchives = [NSArray arrayWithObject:m->archive];
        if ([m->archive addComputePipelineFunctionsWithDescriptor:how error:NULL]) m->archive_grew = true;
    }
    id<MTLComputePipelineState> state = [m->device newComputePipelineStateWithDescriptor:how
                                                                                  options:MTLPipelineOptionNone
                                                                               reflection:NULL
                                                                                    error:error];
    [how release];
    return state;
}

static fm_status build(fm_metal *m, const char *kernel, const int32_t *constant, int32_t n, id<MTLComputePipelineState> *out,
                       fm_error *err)
{
    NSError *error = nil;
    id<MTLFunction> function = function_of(m, kernel, constant, n, &error);
    if (!function) return fm_fail(err, FM_DEVICE, "kernel %s does not compile: %s", kernel, said(error));
    *out = state_of(m, function, &error);
    [function release];
    if (!*out) return fm_fail(err, FM_DEVICE, "kernel %s gives no pipeline: %s", kernel, said(error));
    if ((*out).threadExecutionWidth == 32) return FM_OK;
    fm_fail(err, FM_UNSUPPORTED, "kernel %s: %s runs %d lanes together, the kernels are written for 32", kernel, m->variant,
            (int)(*out).threadExecutionWidth);
    [*out release];
    return FM_UNSUPPORTED;
}

static fm_metal_pipeline *find(fm_metal *m, const char *kernel, const int32_t *constant, int32_t n)
{
    for (int32_t i = 0; i < m->pipelines; i++) {
        fm_metal_pipeline *p = &m->pipeline[i];
        if (p->constants == n && memcmp(p->constant, constant, (size_t)n * sizeof *constant) == 0 &&
            (p->kernel == kernel || strcmp(p->kernel, kernel) == 0))
            return p;
    }
    return NULL;
}

const fm_metal_pipeline *fm_metal_pipeline_of(fm_metal *m, const char *kernel, const int32_t *constant, int32_t n)
{
    fm_metal_pipeline *p = find(m, kernel, constant, n), made = {.kernel = kernel, .constants = n};
    if (p) return p;
    if (m->pipelines == m->pipeline_room) {
        int32_t room = m->pipeline_room ? 2 * m->pipeline_room : 64;
        fm_metal_pipeline *more = realloc(m->pipeline, (size_t)room * sizeof *more);
        if (!more) {
            fm_metal_fail(m, FM_MEMORY, "no memory for %d pipelines", room);
            return NULL;
        }
        m->pipeline = more;
        m->pipeline_room = room;
    }
    fm_error why = {0};
    fm_status status;
    @autoreleasepool {
        status = build(m, kernel, constant, n, &made.state, &why);
    }
    if (status != FM_OK) {
        fm_metal_fail(m, status, "%s", why.message);
        return NULL;
    }
    memcpy(made.constant, constant, (size_t)n * sizeof *constant);
    p = &m->pipeline[m->pipelines++];
    *p = made;
    return p;
}
