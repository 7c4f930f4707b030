/*
 * Expert reads alone: every way of reading x threads x split, cold and warm, random experts of one model.
 *
 *   cmake -S . -B build -DCMAKE_BUILD_TYPE=Release && cmake --build build --target flashmoe_core
 *   cc -O2 -Icsrc/include benchmarks/bench_reads.c $(find build -name libflashmoe_core.a) -lm -lpthread -o bench_reads
 *   ./bench_reads DIR/manifest.fm DIR [MILLISECONDS [WAY[,WAY...] [THREADS,... [SPLIT,...]]]]
 *
 * One JSON line each: GB/s, and the tokens per second that these reads alone would allow with an empty cache.
 * Cold drops the files' pages first; warm reads the same experts as the cold run again.
 */
#define _POSIX_C_SOURCE 200809L
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "flashmoe.h"

static const char *const words[] = {"buffered", "direct", "populate", "mmap", "uring"};

typedef struct {
    char *text;
    size_t length;
    const char *directory;
    int32_t moe_layers; /* batches of one token */
} model;

static bool load(const char *path, model *m)
{
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END) != 0) return false;
    m->length = (size_t)ftell(file);
    m->text = malloc(m->length + 1);
    rewind(file);
    bool whole = m->text && fread(m->text, 1, m->length, file) == m->length;
    fclose(file);
    if (!whole) return false;
    m->text[m->length] = 0;
    for (const char *at = m->text; (at = strstr(at, "\nexperts layer=")); at++) m->moe_layers++;
    return m->moe_layers > 0;
}

/* The numbers of "1,2,4". */
static int32_t numbers(const char *list, int32_t *out, int32_t most)
{
    int32_t n = 0;
    for (char *end; *list && n < most; list = *end ? end + 1 : end) out[n++] = (int32_t)strtol(list, &end, 10);
    return n;
}

static void measure(const model *m, fm_probe_options o)
{
    fm_error err = {0};
    fm_probe_result r;

    for (o.cold = 1; o.cold >= 0; o.cold--) {
        printf("{\"read\": \"%s\", \"threads\": %d, \"split\": %d, \"cold\": %s, ", words[o.read], o.read_threads, o.read_split,
               o.cold ? "true" : "false");
        if (fm_probe_reads(m->text, m->length, m->directory, &o, &r, &err) != FM_OK) {
            printf("\"error\": \"%s\"}\n", err.message);
            return;
        }
        double s = 1e-9 * (double)r.ns;
        printf("\"gb_per_s\": %.3f, \"tokens_per_s\": %.3f, \"experts\": %llu, \"direct\": %s}\n", 1e-9 * (double)r.bytes / s,
               (double)r.batches / m->moe_layers / s, (unsigned long long)r.experts, r.direct ? "true" : "false");
        fflush(stdout);
        o.batches = r.batches;
    }
}

int main(int argc, char **argv)
{
    model m = {0};
    int32_t threads[16], splits[16];
    const char *ways = argc > 4 ? argv[4] : "buffered,direct,populate,mmap,uring";

    if (argc < 3 || !load(argv[1], &m)) {
        fprintf(stderr, "usage: bench_reads MANIFEST DIRECTORY [MILLISECONDS [WAYS [THREADS [SPLITS]]]]; the manifest of a "
                        "model with experts\n");
        return 2;
    }
    m.directory = argv[2];
    int32_t nt = numbers(argc > 5 ? argv[5] : "4,8,16", threads, 16), ns = numbers(argc > 6 ? argv[6] : "1,2,4,8", splits, 16);
    uint64_t seed = 1, ms = argc > 3 ? strtoull(argv[3], NULL, 10) : 300;
    for (size_t w = 0; w < sizeof words / sizeof *words; w++)
        for (int32_t t = 0; strstr(ways, words[w]) && t < nt; t++)
            for (int32_t s = 0; s < ns; s++)
                measure(&m, (fm_probe_options){(fm_read_kind)w, threads[t], splits[s], ms * 1000000, 0, 1, seed++});
    free(m.text);
    return 0;
}
