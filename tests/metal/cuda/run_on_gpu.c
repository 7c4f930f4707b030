/*
 * The emulator's emu_run on an NVIDIA GPU: link with -Wl,--wrap=emu_run, and the Metal device, the fake device and all that
 * checks them run unchanged, while kernels run on 32 real lanes. GPU_RUN says what to do:
 *     record FILE    run on the CPU, and list which kernel was wanted with which function constants
 *     run FOLDER     run cubins that were compiled from that list (compile.sh)
 *     time FOLDER    and time each dispatch, the weights in several copies, so that no cache holds them
 * The driver is loaded at run time: nothing of CUDA is needed to build this.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "emulator.h"

int __real_emu_run(const emu_kernel *k, const emu_binding *buffer, const size_t *threadgroup, const int32_t *constant,
                   const uint8_t *set, emu_size groups, emu_size threads, char *error, size_t room);

/* ---- the driver ---------------------------------------------------------------- */

typedef unsigned long long gpu_memory;
typedef void *gpu_handle;

static struct {
    int (*init)(unsigned);
    int (*device)(int *, int);
    int (*retain)(gpu_handle *, int);
    int (*use)(gpu_handle);
    int (*alloc)(gpu_memory *, size_t);
    int (*free)(gpu_memory);
    int (*to)(gpu_memory, const void *, size_t);
    int (*from)(void *, gpu_memory, size_t);
    int (*copy)(gpu_memory, gpu_memory, size_t);
    int (*load)(gpu_handle *, const char *);
    int (*function)(gpu_handle *, gpu_handle, const char *);
    int (*attribute)(gpu_handle, int, int);
    int (*launch)(gpu_handle, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, gpu_handle, void **, void **);
    int (*sync)(void);
    int (*name)(int, const char **);
    int (*event)(gpu_handle *, unsigned);
    int (*mark)(gpu_handle, gpu_handle);
    int (*between)(float *, gpu_handle, gpu_handle);
} gpu;

static void must(int result, const char *what)
{
    const char *name = "?";
    if (!result) return;
    if (gpu.name) gpu.name(result, &name);
    fprintf(stderr, "GPU: %s: %s\n", what, name);
    exit(3);
}

static void open_driver(void)
{
    static const struct {
        void *at;
        const char *name;
    } wanted[] = {
        {&gpu.init, "cuInit"},
        {&gpu.device, "cuDeviceGet"},
        {&gpu.retain, "cuDevicePrimaryCtxRetain"},
        {&gpu.use, "cuCtxSetCurrent"},
        {&gpu.alloc, "cuMemAlloc_v2"},
        {&gpu.free, "cuMemFree_v2"},
        {&gpu.to, "cuMemcpyHtoD_v2"},
        {&gpu.from, "cuMemcpyDtoH_v2"},
        {&gpu.copy, "cuMemcpyDtoD_v2"},
        {&gpu.load, "cuModuleLoad"},
        {&gpu.function, "cuModuleGetFunction"},
        {&gpu.attribute, "cuFuncSetAttribute"},
        {&gpu.launch, "cuLaunchKernel"},
        {&gpu.sync, "cuCtxSynchronize"},
        {&gpu.name, "cuGetErrorName"},
        {&gpu.event, "cuEventCreate"},
        {&gpu.mark, "cuEventRecord"},
        {&gpu.between, "cuEventElapsedTime"},
    };
    void *driver = dlopen("libcuda.so.1", RTLD_NOW);
    int device;
    gpu_handle context;
    if (!driver) {
        fprintf(stderr, "GPU: there is no libcuda.so.1 here\n");
        exit(3);
    }
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        void *f = dlsym(driver, wanted[i].name);
        if (!f) {
            fprintf(stderr, "GPU: the driver has no %s\n", wanted[i].name);
            exit(3);
        }
        memcpy(wanted[i].at, &f, sizeof f);
    }
    must(gpu.init(0), "cuInit");
    must(gpu.device(&device, 0), "cuDeviceGet");
    must(gpu.retain(&context, device), "cuDevicePrimaryCtxRetain");
    must(gpu.use(context), "cuCtxSetCurrent");
}

/* The context belongs to a thread, and the fake device runs kernels on one of its own. */
static void begin(void)
{
    static __thread int begun;
    if (begun) return;
    open_driver();
    begun = 1;
}

/* ---- compiled kernels ------------------------------------------------------------ */

/* "matvec 16931 1 4 ...": the kernel and the constants it uses; `separator` between them. */
static void variant(const emu_kernel *k, const int32_t *constant, char separator, char *out, size_t room)
{
    const char *const *name = (const char *const *)k; /* the first member of the table's rows */
    const int32_t *index;
    int32_t n = emu_constants(k, &index);
    size_t used = (size_t)snprintf(out, room, "%s", *name);
    for (int32_t i = 0; i < n; i++)
        used += (size_t)snprintf(out + used, room - used, "%c%d=%d", separator, index[i], constant[index[i]]);
}

static gpu_handle function_of(const emu_kernel *k, const int32_t *constant, const char *folder)
{
    static struct {
        char variant[128];
        gpu_handle function;
    } known[2048];
    static int n;
    char name[128], path[512];
    gpu_handle module;
    variant(k, constant, '_', name, sizeof name);
    for (int i = 0; i < n; i++)
        if (strcmp(known[i].variant, name) == 0) return known[i].function;
    if (n == 2048) must(1, "more than 2048 variants");
    snprintf(path, sizeof path, "%s/%s.cubin", folder, name);
    must(gpu.load(&module, path), path);
    must(gpu.function(&known[n].function, module, *(const char *const *)k), name);
    must(gpu.attribute(known[n].function, 8, 32768), "dynamic shared memory");
    snprintf(known[n].variant, sizeof known[n].variant, "%s", name);
    return known[n++].function;
}

/* ---- a dispatch ------------------------------------------------------------------- */

typedef struct {
    uint8_t *from, *end; /* on the host */
    gpu_memory at;
    int writable;
} region;

/* Buffers that end at the same byte are one: an offset is all that tells them apart. */
static int collect(const emu_binding *buffer, const emu_param *param, int32_t n, region *r)
{
    int regions = 0;
    for (int32_t p = 0; p < n; p++) {
        if (param[p].is_threadgroup || param[p].least) continue;
        const emu_binding *b = &buffer[param[p].index];
        uint8_t *from = b->at, *end = from + b->bytes;
        int i = 0;
        while (i < regions && r[i].end != end) i++;
        if (i == regions) r[regions++] = (region){from, end, 0, 0};
        if (from < r[i].from) r[i].from = from;
        r[i].writable |= !param[p].read_only;
    }
    return regions;
}

static void time_it(gpu_handle f, emu_size g, emu_size t, size_t shared, void **argument, const char *name, const region *r, int n)
{
    enum { COPIES = 16, MOST = 8 };
    gpu_memory copy[COPIES], *weights = argument[1], kept = *weights;
    size_t bytes = (size_t)(r[0].end - r[0].from);
    int copies = 1;
    gpu_handle start, stop;
    float ms, best = 1e9f;
    (void)n;
    copy[0] = kept;
    while (copies < COPIES && copies < MOST && (size_t)copies * bytes < (size_t)600 << 20) {
        if (gpu.alloc(&copy[copies], bytes)) break;
        must(gpu.copy(copy[copies], r[0].at, bytes), "copy");
        copies++;
    }
    must(gpu.event(&start, 0), "event");
    must(gpu.event(&stop, 0), "event");
    for (int round = 0; round < 5; round++) {
        must(gpu.mark(start, NULL), "mark");
        for (int i = 0; i < 32; i++) {
            *weights = copy[i % copies];
            must(gpu.launch(f, g.x, g.y, g.z, t.x, t.y, t.z, (unsigned)shared, NULL, argument, NULL), name);
        }
        must(gpu.mark(stop, NULL), "mark");
        must(gpu.sync(), name);
        must(gpu.between(&ms, start, stop), "time");
        if (ms / 32 < best) best = ms / 32;
    }
    *weights = kept;
    for (int i = 1; i < copies; i++) gpu.free(copy[i]);
    fprintf(stderr, "TIME %s groups %u,%u,%u: %.1f us; first buffer %.1f MB, %.2f TB/s, %d copies\n", name, g.x, g.y, g.z,
            (double)best * 1e3, (double)bytes * 1e-6, (double)bytes / (double)best * 1e-9, copies);
}

static int on_gpu(const emu_kernel *k, const emu_binding *buffer, const size_t *threadgroup, const int32_t *constant,
                  emu_size groups, emu_size threads, const char *folder, int timed)
{
    const emu_param *param;
    int32_t n = emu_params(k, &param);
    region r[EMU_BUFFERS];
    gpu_memory pointer[EMU_BUFFERS];
    void *argument[EMU_BUFFERS];
    char name[128];
    begin();
    variant(k, constant, ' ', name, sizeof name);
    gpu_handle f = function_of(k, constant, folder);
    int regions = collect(buffer, param, n, r), arguments = 0;
    for (int i = 0; i < regions; i++) {
        size_t bytes = (size_t)(r[i].end - r[i].from);
        must(gpu.alloc(&r[i].at, bytes), "alloc");
        must(gpu.to(r[i].at, r[i].from, bytes), "to the GPU");
    }
    for (int32_t index = 0; index < EMU_BUFFERS; index++) /* kernels take their buffers in the order of the indices */
        for (int32_t p = 0; p < n; p++) {
            if (param[p].is_threadgroup || param[p].index != index) continue;
            const emu_binding *b = &buffer[index];
            if (param[p].least) {
                argument[arguments++] = b->at; /* by value */
                continue;
            }
            for (int i = 0; i < regions; i++)
                if (r[i].end == (uint8_t *)b->at + b->bytes) pointer[arguments] = r[i].at + (gpu_memory)((uint8_t *)b->at - r[i].from);
            argument[arguments] = &pointer[arguments];
            arguments++;
        }
    must(gpu.launch(f, groups.x, groups.y, groups.z, threads.x, threads.y, threads.z, (unsigned)threadgroup[0], NULL, argument,
                    NULL),
         name);
    must(gpu.sync(), name);
    for (int i = 0; i < regions; i++)
        if (r[i].writable) must(gpu.from(r[i].from, r[i].at, (size_t)(r[i].end - r[i].from)), "from the GPU");
    if (timed) time_it(f, groups, threads, threadgroup[0], argument, name, r, regions);
    for (int i = 0; i < regions; i++) gpu.free(r[i].at);
    return 0;
}

static void record(const emu_kernel *k, const int32_t *constant, const char *file)
{
    char line[128];
    FILE *to = fopen(file, "a");
    if (!to) must(1, file);
    variant(k, constant, ' ', line, sizeof line);
    fprintf(to, "%s\n", line);
    fclose(to);
}

int __wrap_emu_run(const emu_kernel *k, const emu_binding *buffer, const size_t *threadgroup, const int32_t *constant,
                   const uint8_t *set, emu_size groups, emu_size threads, char *error, size_t room);

int __wrap_emu_run(const emu_kernel *k, const emu_binding *buffer, const size_t *threadgroup, const int32_t *constant,
                   const uint8_t *set, emu_size groups, emu_size threads, char *error, size_t room)
{
    const char *how = getenv("GPU_RUN"), *where = how ? strchr(how, ' ') : NULL;
    if (!where) must(1, "GPU_RUN=\"record FILE\", \"run FOLDER\" or \"time FOLDER\"");
    if (strncmp(how, "record", 6) == 0) {
        record(k, constant, where + 1);
        return __real_emu_run(k, buffer, threadgroup, constant, set, groups, threads, error, room);
    }
    return on_gpu(k, buffer, threadgroup, constant, groups, threads, where + 1, how[0] == 't');
}
