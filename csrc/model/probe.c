/* fm_probe_reads: how fast a way of reading gives a model's experts, without the rest of the model. */
#include <stdlib.h>

#include "base/clock.h"
#include "base/memory.h"
#include "model/manifest.h"

typedef struct {
    fm_manifest manifest;
    fm_file *files;
    fm_reader *reader;
    fm_expert_store *store; /* room for the experts of one token in one layer */
    void *memory;
    size_t slot_bytes;
    int32_t slots;
    int32_t *moe, moes; /* layers that have experts */
    int32_t *id, *slot; /* [slots]: the batch */
    bool *hit;
} probe;

static uint64_t random_next(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

/* k distinct ids below n, ascending: Knuth's selection sampling. */
static void pick(int32_t n, int32_t k, uint64_t *seed, int32_t *id)
{
    for (int32_t i = 0, got = 0; got < k; i++)
        if ((int32_t)(random_next(seed) % (uint64_t)(n - i)) < k - got) id[got++] = i;
}

/* Checksums are looked at once in an expert's life, so they are not part of what a read costs. */
static fm_status find_experts(probe *p, fm_error *err)
{
    const fm_model_spec *spec = &p->manifest.spec;

    p->moe = calloc((size_t)spec->layers, sizeof *p->moe);
    if (!p->moe) return fm_fail(err, FM_MEMORY, "no memory for %d layers", spec->layers);
    for (int32_t i = 0; i < spec->layers; i++) {
        fm_expert_layer *l = &p->manifest.experts[i];
        if (!l->experts) continue;
        l->xxh3 = NULL;
        l->runs = 0;
        p->moe[p->moes++] = i;
        if (spec->layer[i].route.k > p->slots) p->slots = spec->layer[i].route.k;
        if (l->bytes > p->slot_bytes) p->slot_bytes = l->bytes;
    }
    if (!p->moes) return fm_fail(err, FM_ARGUMENT, "this model has no experts on disk");
    p->slot_bytes = fm_align_up(p->slot_bytes, FM_PAGE);
    p->id = calloc((size_t)p->slots, sizeof *p->id);
    p->slot = calloc((size_t)p->slots, sizeof *p->slot);
    p->hit = calloc((size_t)p->slots, sizeof *p->hit);
    if (!p->id || !p->slot || !p->hit) return fm_fail(err, FM_MEMORY, "no memory for %d experts", p->slots);
    return FM_OK;
}

static fm_status open_store(probe *p, const char *directory, const fm_probe_options *o, fm_error *err)
{
    const fm_manifest *m = &p->manifest;

    FM_TRY(fm_files_open(directory, (const char *const *)m->path, m->file_bytes, m->files, o->read, &p->files, err));
    fm_files_expect_random(p->files, m->files);
    if (o->cold) fm_files_drop_cache(p->files, m->files);
    const fm_reader_options how = {p->files, o->read_threads, o->read_split, o->read};
    FM_TRY(fm_pages_map((size_t)p->slots * p->slot_bytes, &p->memory, err));
    FM_TRY(fm_reader_open(&how, &p->reader, err));
    const fm_expert_store_options store = {
        .layout = {m->spec.layers, m->experts, p->files},
        .reader = p->reader,
        .memory = p->memory,
        .slot_bytes = p->slot_bytes,
        .slots = p->slots,
        .evict = FM_EVICT_LRU,
    };
    return fm_expert_store_open(&store, &p->store, err);
}

/* Batches as decoding has them: one token's experts of one layer. */
static fm_status read_batches(probe *p, const fm_probe_options *o, fm_probe_result *out, fm_error *err)
{
    uint64_t seed = o->seed, started = fm_now_ns();
    fm_store_stats stats;
    fm_probe_result r = {.direct = fm_files_direct(p->files, p->manifest.files)};

    while (!r.batches || (r.ns < o->ns && (!o->batches || r.batches < o->batches))) {
        int32_t layer = p->moe[random_next(&seed) % (uint64_t)p->moes];
        int32_t k = p->manifest.spec.layer[layer].route.k;
        pick(p->manifest.experts[layer].experts, k, &seed, p->id);
        FM_TRY(fm_expert_store_begin(p->store, layer, p->id, k, 0, p->slot, p->hit, err));
        FM_TRY(fm_expert_store_finish(p->store, err));
        r.batches++;
        r.ns = fm_now_ns() - started;
    }
    fm_expert_store_describe(p->store, &stats);
    r.bytes = stats.bytes_read;
    r.experts = stats.needed - stats.hits;
    *out = r;
    return FM_OK;
}

static void tear_down(probe *p)
{
    fm_expert_store_close(p->store);
    fm_reader_close(p->reader);
    if (p->memory) fm_pages_unmap(p->memory, (size_t)p->slots * p->slot_bytes);
    if (p->files) fm_files_close(p->files, p->manifest.files);
    fm_manifest_free(&p->manifest);
    free(p->moe);
    free(p->id);
    free(p->slot);
    free(p->hit);
}

fm_status fm_probe_reads(const char *manifest, size_t length, const char *directory, const fm_probe_options *options,
                         fm_probe_result *out, fm_error *err)
{
    probe p = {0};

    FM_NEED(manifest, err);
    FM_NEED(directory, err);
    FM_NEED(options, err);
    FM_NEED(out, err);
    if ((unsigned)options->read > FM_READ_URING || options->read_threads < 1 || options->read_threads > 256 ||
        options->read_split < 1 || options->read_split > 64)
        return fm_fail(err, FM_ARGUMENT, "read %d with %d threads and split %d", (int)options->read, options->read_threads,
                       options->read_split);
    fm_status status = fm_manifest_parse(manifest, length, 0, &p.manifest, err);
    if (status == FM_OK) status = find_experts(&p, err);
    if (status == FM_OK) status = open_store(&p, directory, options, err);
    if (status == FM_OK) status = read_batches(&p, options, out, err);
    tear_down(&p);
    return status;
}
