/* The reader over one large file: every way of reading gives the same bytes, and only those; what is cut, checked or refused. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/memory.h"
#include "base/threads.h"
#include "check.h"
#include "store/read.h"

enum { SIZE = (9 << 20) + 777, READS = 7, GUARD = 64, ROOM = 5 << 20 };

static char directory[] = "/var/tmp/flashmoe_read_XXXXXX";
static const char *const big = "big.bin";
static const char *const words[] = {"buffered", "direct", "populate", "mmap", "uring"};
static uint8_t *content; /* [SIZE], what is in the file */
static atomic_int preads;

/* A file system that refuses O_DIRECT when a file is opened, or not before it is read. */
static enum { TAKES_DIRECT, REFUSES_OPEN, REFUSES_READ } file_system;

int openat(int at, const char *name, int flags, ...)
{
    if (file_system == REFUSES_OPEN && flags & O_DIRECT) {
        errno = EINVAL;
        return -1;
    }
    return (int)syscall(SYS_openat, at, name, flags, 0);
}

ssize_t pread(int fd, void *to, size_t n, off_t from)
{
    atomic_fetch_add(&preads, 1);
    if (file_system == REFUSES_READ && fcntl(fd, F_GETFL) & O_DIRECT) {
        errno = EINVAL;
        return -1;
    }
    return syscall(SYS_pread64, fd, to, n, from);
}

/* A kernel that will not take a read into the ring now: every `refuse`th hand-in fails with `refusal`. */
static atomic_int hand_ins, refuse, refusal;

long syscall(long number, ...)
{
    static long (*real)(long, ...);
    va_list list;
    long a[6];

    va_start(list, number);
    for (int i = 0; i < 6; i++) a[i] = va_arg(list, long);
    va_end(list);
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, "syscall");
    int every = number == SYS_io_uring_enter ? atomic_load(&refuse) : 0;
    if (every && atomic_fetch_add(&hand_ins, 1) % every == 0) {
        errno = atomic_load(&refusal);
        return -1;
    }
    return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

static void path_of(const char *name, char out[128])
{
    snprintf(out, 128, "%s/%s", directory, name);
}

static void write_file(const char *name, size_t bytes)
{
    char path[128];
    path_of(name, path);
    FILE *file = fopen(path, "wb");
    CHECK(file && fwrite(content, 1, bytes, file) == bytes);
    if (file) fclose(file);
}

static void remove_file(const char *name)
{
    char path[128];
    path_of(name, path);
    unlink(path);
}

/* ---- the same bytes, however they are read --------------------------------------------------- */

/* Offset, length, and how far from a page the target starts. */
typedef struct {
    uint64_t from;
    uint32_t bytes, shift;
    int32_t group;
} range;

static const range ranges[READS] = {
    {0, 2 << 20, 0, 0},                          /* aligned throughout: straight into place */
    {4096 * 3, 1 << 20, 8, 1},                   /* an aligned range, a target that is not */
    {4097, (1 << 20) + 1, 1, 1},                 /* nothing aligned */
    {SIZE - (3 << 20) - 5, (3 << 20) + 5, 5, 2}, /* to the last byte of a file of odd size */
    {SIZE - 1, 1, 0, 2},
    {8191, 2, 4095, 3}, /* two bytes on two pages */
    {4096, (4 << 20) + 4095, 0, 4},
};

typedef struct {
    uint8_t *at[READS];
    atomic_int checked[READS];
} targets;

static bool is_right(const targets *t, int i)
{
    return memcmp(t->at[i], content + ranges[i].from, ranges[i].bytes) == 0;
}

/* A group is checked once, when all its bytes are there. */
static fm_status check_group(void *context, int32_t group, fm_error *err)
{
    targets *t = context;
    atomic_fetch_add(&t->checked[group], 1);
    for (int i = 0; i < READS; i++)
        if (ranges[i].group == group && !is_right(t, i)) return fm_fail(err, FM_INTEGRITY, "read %d is not there", i);
    return FM_OK;
}

static void test_bytes(const fm_file *file, fm_read_kind kind, int32_t split, int32_t threads)
{
    fm_reader *reader;
    fm_reader_options how = {file, threads, split, kind};
    fm_read reads[READS];
    void *block[READS];
    int32_t group[READS], failed = -1;
    targets t = {0};
    fm_error err = {0};

    CHECK(fm_reader_open(&how, &reader, &err) == FM_OK);
    for (int i = 0; i < READS; i++) {
        CHECK(fm_pages_map(ROOM, &block[i], &err) == FM_OK);
        memset(block[i], 0xa5, ROOM);
        t.at[i] = (uint8_t *)block[i] + FM_PAGE + ranges[i].shift;
        reads[i] = (fm_read){0, ranges[i].from, ranges[i].bytes, t.at[i]};
        group[i] = ranges[i].group;
    }
    CHECK(fm_reader_start(reader, reads, group, READS, check_group, &t, &err) == FM_OK);
    CHECK_THAT(fm_reader_wait(reader, &failed, &err) == FM_OK, "%s split %d threads %d: %s", words[kind], split, threads,
               err.message);
    for (int i = 0; i < READS; i++) {
        CHECK_THAT(is_right(&t, i), "read %d, %s split %d threads %d", i, words[kind], split, threads);
        for (int g = 1; g <= GUARD; g++) CHECK(t.at[i][-g] == 0xa5 && t.at[i][ranges[i].bytes + g - 1] == 0xa5);
        fm_pages_unmap(block[i], ROOM);
    }
    for (int g = 0; g <= 4; g++) CHECK(atomic_load(&t.checked[g]) == 1);
    fm_reader_close(reader);
}

/* A read of a megabyte or more is cut into `split` pieces, a shorter one is not. */
static void test_pieces(const fm_file *file)
{
    uint8_t *to = must(4 << 20);
    const uint32_t bytes[] = {4 << 20, 1 << 20, (1 << 20) - 1};
    for (int32_t split = 1; split <= 7; split++)
        for (int i = 0; i < 3; i++) {
            fm_reader *reader;
            fm_reader_options how = {file, 3, split, FM_READ_BUFFERED};
            fm_read read = {0, 100, bytes[i], to};
            int32_t group = 0;
            CHECK(fm_reader_open(&how, &reader, NULL) == FM_OK);
            atomic_store(&preads, 0);
            CHECK(fm_reader_start(reader, &read, &group, 1, NULL, NULL, NULL) == FM_OK);
            CHECK(fm_reader_wait(reader, &group, NULL) == FM_OK && memcmp(to, content + 100, bytes[i]) == 0);
            CHECK_THAT(atomic_load(&preads) == (i < 2 ? split : 1), "%d reads of %u bytes, split %d", atomic_load(&preads),
                       bytes[i], split);
            fm_reader_close(reader);
        }
    free(to);
}

/* ---- failures ---------------------------------------------------------------------------------- */

/* One group fails, the reader goes on. Closing it with a batch in flight waits for that batch. */
static void test_after_failure(const fm_file *file, fm_read_kind kind)
{
    fm_reader *reader;
    fm_reader_options how = {file, 2, 3, kind};
    uint8_t *to = must(4 << 20);
    fm_read good = {0, 5, 3 << 20, to}, beyond = {0, SIZE - 100, 200, to + (3 << 20)};
    fm_read both[] = {good, beyond};
    int32_t group[] = {0, 1}, failed = -1;
    fm_error err = {0};

    CHECK(fm_reader_open(&how, &reader, &err) == FM_OK);
    CHECK(fm_reader_start(reader, both, group, 2, NULL, NULL, &err) == FM_OK);
    CHECK(fm_reader_wait(reader, &failed, &err) == FM_IO && failed == 1);
    CHECK_THAT(strstr(err.message, "big.bin: wanted") && strstr(err.message, "at offset"), "%s", err.message);
    CHECK(fm_reader_start(reader, &good, group, 1, NULL, NULL, &err) == FM_OK);
    CHECK(fm_reader_wait(reader, &failed, &err) == FM_OK && memcmp(to, content + 5, 3 << 20) == 0);
    memset(to, 0, 3 << 20);
    CHECK(fm_reader_start(reader, &good, group, 1, NULL, NULL, &err) == FM_OK);
    fm_reader_close(reader);
    CHECK(memcmp(to, content + 5, 3 << 20) == 0);
    free(to);
}

static void test_cut_file(fm_read_kind kind)
{
    const char *name = "cut.bin";
    uint64_t size = 1 << 16;
    char path[128];
    fm_file *file;
    fm_reader *reader;
    void *to;
    int32_t group = 0;
    fm_error err = {0};

    write_file(name, 1 << 16);
    path_of(name, path);
    CHECK(fm_files_open(directory, &name, &size, 1, kind, &file, &err) == FM_OK);
    fm_reader_options how = {file, 1, 1, kind};
    CHECK(fm_reader_open(&how, &reader, &err) == FM_OK);
    CHECK(fm_pages_map(1 << 16, &to, &err) == FM_OK);
    CHECK(truncate(path, 10100) == 0);
    fm_read read = {0, 4096, 1 << 15, to};
    CHECK(fm_reader_start(reader, &read, &group, 1, NULL, NULL, &err) == FM_OK);
    CHECK(fm_reader_wait(reader, &group, &err) == FM_IO);
    CHECK_THAT(strstr(err.message, "cut from 65536 to 10100 bytes while in use"), "%s", err.message);

    write_file("other.bin", 777); /* put in its place: the open file is still the one that was promised */
    char other[128];
    path_of("other.bin", other);
    write_file(name, 1 << 16);
    CHECK(rename(other, path) == 0);
    CHECK(fm_reader_start(reader, &read, &group, 1, NULL, NULL, &err) == FM_OK);
    CHECK(fm_reader_wait(reader, &group, &err) == FM_OK && memcmp(to, content + 4096, 1 << 15) == 0);
    fm_reader_close(reader);
    fm_files_close(file, 1);
    fm_pages_unmap(to, 1 << 16);
    remove_file(name);
}

/* The message names file, offset, wanted and got, whichever way the end is met. */
static void test_beyond_the_end(const fm_file *file, fm_read_kind kind)
{
    fm_reader *reader;
    fm_reader_options how = {file, 2, 1, kind};
    uint8_t *to = must(ROOM);
    const struct {
        uint64_t from, got;
        uint32_t bytes;
    } ends[] = {{SIZE - 100, 100, 2000}, {SIZE, 0, 1}, {SIZE - 1200, 1200, 400000}, {SIZE - (1 << 20), 1 << 20, 2 << 20}};

    CHECK(fm_reader_open(&how, &reader, NULL) == FM_OK);
    for (int i = 0; i < 4; i++) {
        fm_read read = {0, ends[i].from, ends[i].bytes, to};
        int32_t group = 0, failed = -1;
        fm_error err = {0};
        CHECK(fm_reader_start(reader, &read, &group, 1, NULL, NULL, NULL) == FM_OK);
        CHECK(fm_reader_wait(reader, &failed, &err) == FM_IO && failed == 0);
        const char *path = strstr(err.message, "big.bin: wanted "), *got = strstr(err.message, ", got ");
        CHECK_THAT(path && got && strstr(err.message, " bytes at offset "), "%s: %s", words[kind], err.message);
        if (!path || !got) continue;
        /* A read around the page cache asks for whole pages: what is before the range counts on both sides. */
        uint64_t offset = strtoull(strstr(err.message, "at offset ") + 10, NULL, 10), before = ends[i].from - offset;
        CHECK_THAT(before < FM_PAGE && strtoull(path + 16, NULL, 10) == ends[i].bytes + before &&
                       strtoull(got + 6, NULL, 10) == ends[i].got + before,
                   "%s: %s", words[kind], err.message);
    }
    fm_reader_close(reader);
    free(to);
}

/* What the ring does not take is read all the same, and what it took before is not lost. */
static void test_refused_hand_ins(const fm_file *file)
{
    const int errors[] = {EAGAIN, EBUSY, EINTR, ENOMEM};
    for (int e = 0; e < 4; e++)
        for (int every = 2; every <= 4; every++) {
            atomic_store(&refusal, errors[e]);
            atomic_store(&hand_ins, 0);
            atomic_store(&refuse, every);
            for (int32_t threads = 1; threads <= 5; threads += 2) test_bytes(file, FM_READ_URING, 4, threads);
            CHECK(atomic_load(&hand_ins) > every);
            atomic_store(&refuse, 0);
        }
}

/* ---- groups that are ready early, and reads that are not wanted any more ------------------------- */

enum { GROUPS = 6 };

typedef struct {
    atomic_bool open; /* checks wait for it */
    atomic_int begun;
    int32_t wrong; /* the group whose check fails, or -1 */
} gate;

static fm_status check_at_gate(void *context, int32_t group, fm_error *err)
{
    gate *g = context;
    atomic_fetch_add(&g->begun, 1);
    while (!atomic_load(&g->open)) usleep(200);
    return group == g->wrong ? fm_fail(err, FM_INTEGRITY, "group %d", group) : FM_OK;
}

/* GROUPS groups of two reads each, one thread: the first group's check holds up everything after it. */
static void start_groups(fm_reader *reader, uint8_t *to, gate *g)
{
    fm_read reads[2 * GROUPS];
    int32_t group[2 * GROUPS];
    for (int i = 0; i < 2 * GROUPS; i++) {
        reads[i] = (fm_read){0, (uint64_t)i * 4096 + 5, 4096, to + i * 4096};
        group[i] = i / 2;
    }
    memset(to, 0, 2 * GROUPS * 4096);
    CHECK(fm_reader_start(reader, reads, group, 2 * GROUPS, g ? check_at_gate : NULL, g, NULL) == FM_OK);
}

static void test_drop(const fm_file *file, fm_read_kind kind)
{
    fm_reader *reader;
    fm_reader_options how = {file, 1, 1, kind};
    uint8_t *to = must(2 * GROUPS * 4096);
    int32_t failed = 77;
    fm_error err = {0};
    gate g = {.wrong = -1};

    CHECK(fm_reader_open(&how, &reader, &err) == FM_OK);
    fm_reader_drop(reader); /* nothing in flight */
    CHECK(!fm_reader_group_ready(reader, 0));
    start_groups(reader, to, &g);
    while (!atomic_load(&g.begun)) usleep(200);
    CHECK(!fm_reader_group_ready(reader, 0)); /* read, not checked */
    fm_reader_drop(reader);
    fm_reader_drop(reader);
    atomic_store(&g.open, true);
    CHECK_THAT(fm_reader_wait(reader, &failed, &err) == FM_OK && failed == 77, "%s", err.message);
    CHECK(fm_reader_group_ready(reader, 0) && memcmp(to, content + 5, 8192) == 0);
    for (int32_t i = 1; i <= GROUPS; i++) CHECK(!fm_reader_group_ready(reader, i));
    CHECK(!fm_reader_group_ready(reader, -1) && atomic_load(&g.begun) == 1);
    for (int i = 8192; i < 2 * GROUPS * 4096; i++)
        if (to[i]) {
            CHECK_THAT(false, "byte %d was read after the drop", i);
            break;
        }

    start_groups(reader, to, NULL); /* the next batch is whole again */
    CHECK(fm_reader_wait(reader, &failed, &err) == FM_OK && memcmp(to, content + 5, 2 * GROUPS * 4096) == 0);
    for (int32_t i = 0; i < GROUPS; i++) CHECK(fm_reader_group_ready(reader, i));
    fm_reader_drop(reader); /* too late to matter */
    CHECK(fm_reader_group_ready(reader, GROUPS - 1) && fm_reader_wait(reader, &failed, &err) == FM_OK);
    fm_reader_close(reader);
    free(to);
}

/* Groups become ready one by one; one that fails its check never does. */
static void test_ready(const fm_file *file, fm_read_kind kind)
{
    fm_reader *reader;
    fm_reader_options how = {file, 4, 1, kind};
    uint8_t *to = must(2 * GROUPS * 4096);
    int32_t failed = -1;

    CHECK(fm_reader_open(&how, &reader, NULL) == FM_OK);
    for (int round = 0; round < 50; round++) {
        gate g = {.open = true, .wrong = round % 2 ? 3 : -1};
        start_groups(reader, to, &g);
        for (int32_t i = 0; i < GROUPS; i++)
            if (fm_reader_group_ready(reader, i)) CHECK(memcmp(to + i * 8192, content + 5 + i * 8192, 8192) == 0);
        if (g.wrong < 0) {
            while (!fm_reader_group_ready(reader, GROUPS - 1)) usleep(50);
            CHECK(memcmp(to + (GROUPS - 1) * 8192, content + 5 + (GROUPS - 1) * 8192, 8192) == 0);
            if (round % 4 == 0) fm_reader_drop(reader);
        }
        fm_status status = fm_reader_wait(reader, &failed, NULL);
        CHECK(g.wrong < 0 ? status == FM_OK : status == FM_INTEGRITY && failed == 3 && !fm_reader_group_ready(reader, 3));
    }
    fm_reader_close(reader);
    free(to);
}

/* ---- what is not a file, and signals -------------------------------------------------------------- */

static void test_special_files(void)
{
    const char *pipe = "pipe", *folder = "folder", *link = "link";
    uint64_t none = 0, size = SIZE;
    char path[128];
    fm_file *file;
    fm_error err = {0};

    path_of(pipe, path);
    CHECK(mkfifo(path, 0600) == 0);
    alarm(20); /* opening a pipe that nobody writes to must not wait for a writer */
    CHECK(fm_files_open(directory, &pipe, &none, 1, FM_READ_DIRECT, &file, &err) == FM_FORMAT && strstr(err.message, "regular"));
    alarm(0);
    unlink(path);

    path_of(folder, path);
    CHECK(mkdir(path, 0700) == 0);
    CHECK(fm_files_open(directory, &folder, &none, 1, FM_READ_BUFFERED, &file, &err) == FM_FORMAT &&
          strstr(err.message, "regular"));
    rmdir(path);

    path_of(link, path); /* the hub's cache is made of links */
    CHECK(symlink(big, path) == 0);
    CHECK(fm_files_open(directory, &link, &size, 1, FM_READ_BUFFERED, &file, &err) == FM_OK);
    fm_files_close(file, 1);
    unlink(path);
}

static atomic_int caught;

static void catch (int number)
{
    (void)number;
    atomic_fetch_add(&caught, 1);
}

/* While the program's own thread blocks a signal, none of ours may take it. */
static void test_signals(const fm_file *file)
{
    fm_reader *reader;
    fm_pool *pool;
    fm_reader_options how = {file, 4, 1, FM_READ_BUFFERED};
    sigset_t one, before, waiting;

    signal(SIGUSR1, catch);
    CHECK(fm_reader_open(&how, &reader, NULL) == FM_OK);
    CHECK(fm_pool_open(3, &pool, NULL) == FM_OK);
    sigemptyset(&one);
    sigaddset(&one, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &one, &before);
    kill(getpid(), SIGUSR1);
    usleep(20000);
    sigpending(&waiting);
    CHECK(atomic_load(&caught) == 0 && sigismember(&waiting, SIGUSR1) == 1);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    CHECK(atomic_load(&caught) == 1);
    fm_pool_close(pool);
    fm_reader_close(reader);
}

/* ---- every way ------------------------------------------------------------------------------------ */

/* A kernel, or what watches over it, may lack a way; then opening it says so, and says what to take instead. */
static bool can_read(int kind)
{
    uint64_t size = SIZE;
    fm_file *file = NULL;
    fm_reader *reader = NULL;
    fm_error err = {0};

    fm_status status = fm_files_open(directory, &big, &size, 1, (fm_read_kind)kind, &file, &err);
    const fm_reader_options how = {file, 2, 1, (fm_read_kind)kind};
    if (status == FM_OK) status = fm_reader_open(&how, &reader, &err);
    fm_reader_close(reader);
    fm_files_close(file, 1);
    if (status == FM_OK) return true;
    fprintf(stderr, "%s: not here: %s\n", words[kind], err.message);
    CHECK(kind != FM_READ_BUFFERED && kind != FM_READ_DIRECT);
    CHECK_THAT(status == FM_UNSUPPORTED && strstr(err.message, "read with \""), "%s", err.message);
    return false;
}

static void test_way(const fm_file *file, fm_read_kind kind)
{
    for (int32_t split = 1; split <= 8; split *= 2)
        for (int32_t threads = 1; threads <= 4; threads += 3) test_bytes(file, kind, split, threads);
    test_bytes(file, kind, 7, 33);
    test_after_failure(file, kind);
    test_drop(file, kind);
    test_ready(file, kind);
    test_cut_file(kind);
    test_beyond_the_end(file, kind);
    if (kind == FM_READ_URING) test_refused_hand_ins(file);
}

/* Then the page cache is used, and told so. */
static void test_no_direct_reads(fm_read_kind kind)
{
    uint64_t size = SIZE;
    fm_file *file;

    for (file_system = REFUSES_OPEN; file_system <= REFUSES_READ; file_system++) {
        CHECK(fm_files_open(directory, &big, &size, 1, kind, &file, NULL) == FM_OK && !fm_files_direct(file, 1));
        test_bytes(file, kind, 2, 3);
        fm_files_close(file, 1);
    }
    file_system = TAKES_DIRECT;
}

int main(void)
{
    uint64_t seed = 11, size = SIZE;
    fm_file *file;

    CHECK(mkdtemp(directory) != NULL);
    content = must(SIZE);
    for (int i = 0; i < SIZE; i++) content[i] = (uint8_t)noise_bits(&seed);
    write_file(big, SIZE);
    for (int kind = FM_READ_BUFFERED; kind <= FM_READ_URING; kind++) {
        if (!can_read(kind)) continue;
        CHECK(fm_files_open(directory, &big, &size, 1, (fm_read_kind)kind, &file, NULL) == FM_OK);
        fprintf(stderr, "%s: %s the page cache\n", words[kind], fm_files_direct(file, 1) ? "around" : "through");
        test_way(file, (fm_read_kind)kind);
        fm_files_close(file, 1);
        if (kind == FM_READ_DIRECT || kind == FM_READ_URING) test_no_direct_reads((fm_read_kind)kind);
    }
    CHECK(fm_files_open(directory, &big, &size, 1, FM_READ_BUFFERED, &file, NULL) == FM_OK);
    test_pieces(file);
    test_special_files();
    test_signals(file);
    fm_files_close(file, 1);
    remove_file(big);
    rmdir(directory);
    free(content);
    return done();
}
