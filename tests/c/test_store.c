/* The expert store over real files: what is resident, what a failed read leaves behind, ways of reading, checks at first touch. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/hash.h"
#include "base/memory.h"
#include "check.h"
#include "store/expert_store.h"

/* ---- a pread that can be told to fail -------------------------------------------------- */

enum { FINE, IO_ERROR, END_OF_FILE, ONE_BYTE, INTERRUPTED, HANGS };
static atomic_int calls, fail_at, fail_how, fail_times;

ssize_t pread(int fd, void *to, size_t n, off_t from)
{
    int call = atomic_fetch_add(&calls, 1), at = atomic_load(&fail_at);
    if (at >= 0 && call >= at && call < at + atomic_load(&fail_times)) switch (atomic_load(&fail_how)) {
        case IO_ERROR: errno = EIO; return -1;
        case END_OF_FILE: return 0;
        case INTERRUPTED: errno = EINTR; return -1;
        case HANGS:
            while (atomic_load(&fail_how) == HANGS) usleep(1000);
            break;
        case ONE_BYTE: n = n > 1 && (uintptr_t)to % 4096 ? 1 : n; break; /* a short read, where alignment allows one */
        default: break;
        }
    return syscall(SYS_pread64, fd, to, n, from);
}

static void fail(int at, int times, int how)
{
    atomic_store(&calls, 0);
    atomic_store(&fail_at, at);
    atomic_store(&fail_times, times);
    atomic_store(&fail_how, how);
}

/* ---- a model of files ------------------------------------------------------------------- */

enum { LAYERS = 3, EXPERTS = 8, PART_A = 5000, PART_B = 192, SLOT = 8192 };

static char directory[] = "/tmp/flashmoe_store_XXXXXX";

static uint8_t byte_of(int layer, int expert, int part, int i)
{
    return (uint8_t)(layer * 71 + expert * 13 + part * 101 + i * 7 + (i >> 8));
}

/* Two files: part A in regular strides at an odd offset, part B one expert at a time in reverse order. */
static void write_files(void)
{
    char path[2][128];
    for (int f = 0; f < 2; f++) {
        snprintf(path[f], sizeof path[f], "%s/%c.bin", directory, 'a' + f);
        FILE *file = fopen(path[f], "wb");
        for (int i = 0; i < 13; i++) fputc(0xee, file);
        for (int l = 0; l < LAYERS; l++)
            for (int n = 0; n < EXPERTS; n++) {
                int e = f ? EXPERTS - 1 - n : n, bytes = f ? PART_B : PART_A;
                for (int i = 0; i < bytes; i++) fputc(byte_of(l, e, f, i), file);
            }
        fclose(file);
    }
}

typedef struct {
    fm_file *files;
    fm_reader *reader;
    fm_expert_store *store;
    void *memory;
    int32_t slots;
    fm_expert_part part[LAYERS][2];
    fm_extent each[LAYERS][EXPERTS];
    fm_expert_layer layer[LAYERS];
    uint64_t sums[LAYERS][EXPERTS];
    fm_finite_run run;
} model;

static void open_model(model *m, int32_t slots, bool direct, int32_t split, int32_t threads)
{
    const char *names[] = {"a.bin", "b.bin"};
    const uint64_t sizes[] = {13 + LAYERS * EXPERTS * PART_A, 13 + LAYERS * EXPERTS * PART_B};
    memset(m, 0, sizeof *m);
    m->slots = slots;
    CHECK(fm_files_open(directory, names, sizes, 2, direct, &m->files, NULL) == FM_OK);
    for (int l = 0; l < LAYERS; l++) {
        m->part[l][0] = (fm_expert_part){0, 13 + (uint64_t)l * EXPERTS * PART_A, PART_A, NULL, PART_A, 0};
        for (int e = 0; e < EXPERTS; e++) m->each[l][e] = (fm_extent){1, 13 + (uint64_t)(l * EXPERTS + EXPERTS - 1 - e) * PART_B};
        m->part[l][1] = (fm_expert_part){1, 0, 0, m->each[l], PART_B, 5056};
        m->layer[l] = (fm_expert_layer){EXPERTS, 2, m->part[l], 0, NULL, 5056 + PART_B, NULL};
    }
    fm_reader_options how = {m->files, threads, split, direct};
    CHECK(fm_pages_map((size_t)slots * SLOT, &m->memory, NULL) == FM_OK);
    CHECK(fm_reader_open(&how, &m->reader, NULL) == FM_OK);
    const fm_expert_store_options store = {
        .layout = {LAYERS, m->layer, m->files},
        .reader = m->reader,
        .memory = m->memory,
        .slot_bytes = SLOT,
        .slots = slots,
        .evict = FM_EVICT_LRU,
        .patience_ns = 200000000,
    };
    CHECK(fm_expert_store_open(&store, &m->store, NULL) == FM_OK);
}

static void close_model(model *m)
{
    fm_expert_store_close(m->store);
    fm_reader_close(m->reader);
    fm_files_close(m->files, 2);
    fm_pages_unmap(m->memory, (size_t)m->slots * SLOT);
}

static bool holds(const model *m, int32_t slot, int layer, int expert)
{
    const uint8_t *at = (const uint8_t *)m->memory + (size_t)slot * SLOT;
    for (int i = 0; i < PART_A; i++)
        if (at[i] != byte_of(layer, expert, 0, i)) return false;
    for (int i = 0; i < PART_B; i++)
        if (at[5056 + i] != byte_of(layer, expert, 1, i)) return false;
    return true;
}

static fm_status fetch(model *m, int layer, const int32_t *id, int32_t k, int32_t *slot, fm_error *err)
{
    bool hit[EXPERTS];
    fm_status status = fm_expert_store_begin(m->store, layer, id, k, 0, slot, hit, err);
    return status == FM_OK ? fm_expert_store_finish(m->store, err) : status;
}

/* ---- tests ---------------------------------------------------------------------------------- */

static void test_bytes(void)
{
    for (int direct = 0; direct < 2; direct++)
        for (int split = 1; split <= 4; split += 3)
            for (int slots = 3; slots <= LAYERS * EXPERTS; slots += 7) {
                model m;
                uint64_t seed = (uint64_t)slots;
                open_model(&m, slots, direct, split, 1 + direct * 3);
                for (int round = 0; round < 60; round++) {
                    int32_t layer = (int32_t)(noise_bits(&seed) % LAYERS), id[3], slot[3], k = 0;
                    for (int32_t e = 0; e < EXPERTS && k < 3; e++)
                        if (noise_bits(&seed) % 3 == 0) id[k++] = e;
                    if (!k) continue;
                    CHECK(fetch(&m, layer, id, k, slot, NULL) == FM_OK);
                    for (int32_t i = 0; i < k; i++)
                        CHECK_THAT(holds(&m, slot[i], layer, id[i]), "direct %d split %d slots %d", direct, split, slots);
                }
                fm_store_stats stats;
                fm_expert_store_describe(m.store, &stats);
                CHECK(stats.hits > 0 && stats.hits < stats.needed);
                CHECK(stats.bytes_read == (stats.needed - stats.hits) * (PART_A + PART_B));
                close_model(&m);
            }
}

/* Every read of a fetch fails once, in every way: the fetch fails whole or is right, and the next one is right. */
static void test_failures(void)
{
    for (int direct = 0; direct < 2; direct++)
        for (int how = IO_ERROR; how <= INTERRUPTED; how++)
            for (int at = 0; at < 12; at++) {
                model m;
                int32_t warm[] = {0, 5}, id[] = {0, 1, 4, 6}, slot[4];
                fm_error err = {0};
                open_model(&m, 6, direct, 1, 3);
                fail(-1, 0, FINE);
                CHECK(fetch(&m, 1, warm, 2, slot, &err) == FM_OK);
                fail(at, how == INTERRUPTED || how == ONE_BYTE ? 50 : 1, how);
                fm_status status = fetch(&m, 1, id, 4, slot, &err);
                int made = atomic_load(&calls);
                fail(-1, 0, FINE);
                if (how == INTERRUPTED || how == ONE_BYTE || made <= at) {
                    CHECK_THAT(status == FM_OK, "direct %d how %d at %d: %s", direct, how, at, err.message);
                    for (int i = 0; i < 4; i++) CHECK(holds(&m, slot[i], 1, id[i]));
                } else {
                    CHECK(status == FM_IO);
                    CHECK_THAT(strstr(err.message, "layer 1 expert") && strstr(err.message, ".bin: wanted"), "%s", err.message);
                }
                CHECK(fetch(&m, 1, id, 4, slot, &err) == FM_OK);
                for (int i = 0; i < 4; i++) CHECK(holds(&m, slot[i], 1, id[i]));
                CHECK(fetch(&m, 1, warm, 2, slot, &err) == FM_OK && holds(&m, slot[0], 1, 0) && holds(&m, slot[1], 1, 5));
                close_model(&m);
            }
}

static void test_checks(void)
{
    model m;
    int32_t id[] = {2, 3}, slot[2];
    fm_error err = {0};
    uint8_t image[5056 + PART_B] = {0};

    open_model(&m, 6, false, 1, 2);
    for (int e = 0; e < EXPERTS; e++) {
        for (int i = 0; i < PART_A; i++) image[i] = byte_of(0, e, 0, i);
        for (int i = 0; i < PART_B; i++) image[5056 + i] = byte_of(0, e, 1, i);
        m.sums[0][e] = fm_xxh3(image, sizeof image);
    }
    m.sums[0][3] ^= 1;
    m.layer[0].xxh3 = m.sums[0];
    CHECK(fetch(&m, 0, id, 1, slot, &err) == FM_OK);
    CHECK(fetch(&m, 0, id, 2, slot, &err) == FM_INTEGRITY && strstr(err.message, "layer 0 expert 3"));
    CHECK(fetch(&m, 0, id, 2, slot, &err) == FM_INTEGRITY); /* not only the first time */
    m.sums[0][3] ^= 1;
    CHECK(fetch(&m, 0, id, 2, slot, &err) == FM_OK && holds(&m, slot[1], 0, 3));

    m.run = (fm_finite_run){FM_BF16, 0, PART_A / 2}; /* these bytes do hold a bf16 that is no number */
    m.layer[2].run = &m.run;
    m.layer[2].runs = 1;
    size_t where = 0;
    for (int i = 0; i < PART_A; i++) image[i] = byte_of(2, 2, 0, i);
    bool finite = fm_numbers_finite(FM_BF16, image, PART_A / 2, &where);
    CHECK(fetch(&m, 2, id, 1, slot, &err) == (finite ? FM_OK : FM_NUMERIC));
    CHECK(finite || strstr(err.message, "NaN or infinite"));
    close_model(&m);
}

static void test_slots(void)
{
    model m;
    int32_t a[] = {0, 1}, b[] = {2, 3}, c[] = {4, 5}, slot[4], big[] = {0, 1, 2, 3, 4};
    bool hit[5];
    fm_error err = {0};

    open_model(&m, 4, false, 1, 2);
    CHECK(fm_expert_store_begin(m.store, 0, big, 5, 0, slot, hit, &err) == FM_ARGUMENT);
    CHECK(fm_expert_store_begin(m.store, 0, (int32_t[]){1, 1}, 2, 0, slot, hit, &err) == FM_ARGUMENT);
    CHECK(fm_expert_store_begin(m.store, 0, (int32_t[]){EXPERTS}, 1, 0, slot, hit, &err) == FM_ARGUMENT);
    CHECK(fetch(&m, 0, a, 2, slot, &err) == FM_OK);
    fm_expert_store_lend(m.store, slot, 2, 7); /* the device reads them until ticket 7 */
    CHECK(fetch(&m, 0, b, 2, slot, &err) == FM_OK);
    fm_expert_store_lend(m.store, slot, 2, 8);
    CHECK(fm_expert_store_begin(m.store, 0, c, 2, 6, slot, hit, &err) == FM_BUSY);
    CHECK(fm_expert_store_begin(m.store, 0, c, 2, 7, slot, hit, &err) == FM_OK);
    CHECK(fm_expert_store_finish(m.store, &err) == FM_OK && holds(&m, slot[0], 0, 4));
    CHECK(fm_expert_store_begin(m.store, 0, b, 2, 8, slot, hit, &err) == FM_OK && hit[0] && hit[1]);
    CHECK(fm_expert_store_finish(m.store, &err) == FM_OK && holds(&m, slot[0], 0, 2));

    CHECK(fm_expert_store_resize(m.store, 2, 7, &err) == FM_BUSY);
    CHECK(fm_expert_store_resize(m.store, 2, 8, &err) == FM_OK && fm_expert_store_slots(m.store) == 2);
    for (int i = 0; i < 3; i++) {
        CHECK(fetch(&m, 1, i % 2 ? a : b, 2, slot, &err) == FM_OK);
        CHECK(slot[0] < 2 && slot[1] < 2 && holds(&m, slot[1], 1, i % 2 ? 1 : 3));
    }
    CHECK(fm_expert_store_resize(m.store, 5, 8, &err) == FM_ARGUMENT);
    close_model(&m);
}

/* Reads ahead of use: used once, never in the way of what is asked for, and a failure is told when it matters. */
static void test_ahead(void)
{
    int32_t id[] = {0, 1, 2, 3}, other[] = {4, 5}, slot[4];
    bool hit[4];
    fm_error err = {0};
    fm_store_stats stats;

    model m; /* another layer is asked for first: it does not wait for what nobody has begun to read */
    open_model(&m, 16, false, 1, 2);
    CHECK(fm_expert_store_ahead(m.store, 1, NULL, EXPERTS, 0)); /* 4 of them: a quarter of the slots */
    CHECK(fetch(&m, 0, other, 2, slot, &err) == FM_OK && holds(&m, slot[1], 0, 5));
    CHECK(fetch(&m, 1, id, 4, slot, &err) == FM_OK);
    for (int i = 0; i < 4; i++) CHECK(holds(&m, slot[i], 1, id[i]));
    fm_expert_store_describe(m.store, &stats);
    CHECK(stats.hits == 0 && stats.needed == 6 && stats.bytes_read == 6 * (PART_A + PART_B));
    close_model(&m);

    /* nothing else is asked for: the failure is that of the begin or finish that needs expert 1 */
    open_model(&m, 16, false, 1, 1);
    fail(2, 1, IO_ERROR);
    CHECK(fm_expert_store_ahead(m.store, 1, NULL, EXPERTS, 0));
    fm_expert_store_enter(m.store, 1, 4);
    CHECK(fetch(&m, 1, id, 1, slot, &err) == FM_OK && holds(&m, slot[0], 1, 0));
    CHECK(fetch(&m, 1, id + 2, 2, slot, &err) == FM_OK && holds(&m, slot[0], 1, 2)); /* given up, read again */
    fm_status status = fetch(&m, 1, id, 2, slot, &err);
    CHECK_THAT(status == FM_IO && strstr(err.message, "layer 1 expert 1: ") && strstr(err.message, ".bin: wanted"), "%s",
               err.message);
    CHECK(fetch(&m, 1, id, 4, slot, &err) == FM_OK && holds(&m, slot[1], 1, 1)); /* told once */
    close_model(&m);

    open_model(&m, 16, false, 1, 1); /* a guess gives way, and is counted */
    fail(-1, 0, FINE);
    fm_expert_store_guess(m.store, 1, id, 4, 0);
    fm_expert_store_enter(m.store, 1, 2);
    CHECK(fm_expert_store_begin(m.store, 1, (int32_t[]){0, 7}, 2, 0, slot, hit, &err) == FM_OK && !hit[1]);
    CHECK(fm_expert_store_finish(m.store, &err) == FM_OK && holds(&m, slot[0], 1, 0) && holds(&m, slot[1], 1, 7));
    fm_expert_store_enter(m.store, 2, 2);
    fm_expert_store_describe(m.store, &stats);
    CHECK(stats.guesses_used <= 1 && stats.guessed <= 4);
    CHECK(stats.guess_bytes_wasted == (stats.guessed - stats.guesses_used) * (5056 + PART_B));
    close_model(&m);

    open_model(&m, 16, false, 1, 1); /* closed with reads in flight */
    CHECK(fm_expert_store_ahead(m.store, 1, NULL, EXPERTS, 0));
    CHECK(fm_expert_store_resize(m.store, 4, 0, &err) == FM_OK);
    fm_expert_store_enter(m.store, 2, EXPERTS); /* what did arrive is not fresh any more, and leaves room */
    CHECK(fm_expert_store_ahead(m.store, 2, NULL, EXPERTS, 0));
    close_model(&m);
}

/* True from the third time on. */
static bool stops(const void *asked)
{
    return atomic_fetch_add((atomic_int *)(uintptr_t)asked, 1) >= 2;
}

/* A disk that gives no answer is waited for as long as is wanted; what it gives later is right. */
static void test_hanging_disk(void)
{
    int32_t id[] = {0, 1, 2}, other[] = {4, 5}, slot[3];
    fm_error err = {0};
    for (int first = 0; first < 6; first++) { /* which read hangs */
        model m;
        atomic_int asked = 0;
        open_model(&m, 6, false, 1, 1 + first % 3);
        fail(first, 1, HANGS);
        uint64_t started = fm_now_ns();
        CHECK(fetch(&m, 1, id, 3, slot, &err) == FM_IO); /* by patience */
        CHECK_THAT(strstr(err.message, "layer 1 expert ") && strstr(err.message, ".bin: wanted 5000 bytes at offset ") &&
                       strstr(err.message, "no answer in 0.2 s"),
                   "%s", err.message);
        CHECK(fm_now_ns() - started >= 200000000);
        CHECK(fetch(&m, 1, id, 3, slot, &err) == FM_IO); /* it has not come back */
        fm_expert_store_watch(m.store, stops, &asked);
        CHECK(fetch(&m, 2, other, 2, slot, &err) == FM_IO || asked >= 3);
        CHECK(fm_expert_store_resize(m.store, 3, 0, &err) != FM_OK && fm_expert_store_slots(m.store) == 6);
        fm_expert_store_watch(m.store, NULL, NULL);
        fail(-1, 0, FINE);
        CHECK_THAT(fetch(&m, 2, other, 2, slot, &err) == FM_OK, "%s", err.message);
        CHECK(holds(&m, slot[0], 2, 4) && holds(&m, slot[1], 2, 5));
        CHECK_THAT(fetch(&m, 1, id, 3, slot, &err) == FM_OK, "%s", err.message);
        for (int i = 0; i < 3; i++) CHECK(holds(&m, slot[i], 1, id[i]));
        close_model(&m);

        asked = 0; /* by whoever waits */
        open_model(&m, 6, false, 1, 1 + first % 3);
        fm_expert_store_watch(m.store, stops, &asked);
        fail(first, 1, HANGS);
        CHECK(fetch(&m, 1, id, 3, slot, &err) == FM_CANCELLED && asked >= 3 && asked <= 4);
        fm_expert_store_watch(m.store, NULL, NULL);
        fail(-1, 0, FINE);
        CHECK_THAT(fetch(&m, 1, id, 3, slot, &err) == FM_OK, "%s", err.message);
        for (int i = 0; i < 3; i++) CHECK(holds(&m, slot[i], 1, id[i]));
        close_model(&m);
    }
}

static void test_files(void)
{
    fm_file *files;
    fm_error err = {0};
    const char *good = "a.bin", *names[] = {"../a.bin", "/etc/passwd", "..", "", "missing.bin", "."};
    uint64_t size = 13 + LAYERS * EXPERTS * PART_A, wrong = size + 1;

    for (int i = 0; i < 6; i++) {
        fm_status status = fm_files_open(directory, &names[i], &size, 1, false, &files, &err);
        CHECK_THAT(status == (i == 4 ? FM_IO : FM_FORMAT), "%s", names[i]);
    }
    CHECK(fm_files_open(directory, &good, &wrong, 1, false, &files, &err) == FM_FORMAT && strstr(err.message, "must have"));
    CHECK(fm_files_open("/nowhere", &good, &size, 1, false, &files, &err) == FM_IO);
    CHECK(fm_files_open(directory, &good, &size, 1, false, &files, &err) == FM_OK);
    uint8_t bytes[64];
    CHECK(fm_read_all(&files[0], bytes, 64, 13, &err) == FM_OK && bytes[5] == byte_of(0, 0, 0, 5));
    CHECK(fm_read_all(&files[0], bytes, 64, size - 10, &err) == FM_IO && strstr(err.message, "got 10"));
    fm_files_close(files, 1);

    char path[160];
    snprintf(path, sizeof path, "%s/short.bin", directory);
    int fd = open(path, O_CREAT | O_RDWR, 0600);
    CHECK(ftruncate(fd, 4096) == 0);
    const char *name = "short.bin";
    uint64_t all = 4096;
    CHECK(fm_files_open(directory, &name, &all, 1, false, &files, &err) == FM_OK);
    CHECK(ftruncate(fd, 100) == 0);
    CHECK(fm_read_all(&files[0], bytes, 64, 90, &err) == FM_IO && strstr(err.message, "cut from 4096 to 100"));
    fm_files_close(files, 1);
    close(fd);
    unlink(path);
}

int main(void)
{
    CHECK(mkdtemp(directory) != NULL);
    fail(-1, 0, FINE);
    write_files();
    test_files();
    test_bytes();
    test_failures();
    test_checks();
    test_slots();
    test_ahead();
    test_hanging_disk();
    for (int f = 0; f < 2; f++) {
        char path[128];
        snprintf(path, sizeof path, "%s/%c.bin", directory, 'a' + f);
        unlink(path);
    }
    rmdir(directory);
    return done();
}
