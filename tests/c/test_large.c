/* Reads of gigabytes go in pieces that every system takes, whole and in order. */
#include "check.h"

#ifndef __linux__
int main(void)
{
    return 77; /* its linker has no --wrap */
}
#else

#include <errno.h>
#include <limits.h>
#include <sys/mman.h>
#include <unistd.h>

#include "store/ways.h"

#define LINUX_MOST ((size_t)0x7ffff000)

static uint8_t *base;
static uint64_t next; /* where the next read must begin */
static size_t largest, most;
static int calls, wrong;

ssize_t __wrap_pread(int fd, void *to, size_t n, off_t from);

/* A file of any size that takes no memory: it is all one byte, which is written nowhere. */
ssize_t __wrap_pread(int fd, void *to, size_t n, off_t from)
{
    (void)fd;
    calls++;
    wrong += (uint64_t)from != next || (uint8_t *)to != base + next;
    if (n > largest) largest = n;
    if (n > INT_MAX) { /* as macOS does */
        errno = EINVAL;
        return -1;
    }
    if (n > most) n = most;
    next += n;
    return (ssize_t)n;
}

static void read_whole(size_t bytes, size_t at_once)
{
    const fm_file file = {.path = (char *)"large", .buffered = -1, .direct = -1, .size = bytes};
    fm_error err = {0};
    next = 0;
    largest = 0;
    calls = wrong = 0;
    most = at_once;
    CHECK_THAT(fm_read_all(&file, base, bytes, 0, &err) == FM_OK, "%s", err.message);
    CHECK_THAT(next == bytes && !wrong, "%d reads, %llu bytes", calls, (unsigned long long)next);
    CHECK_THAT(largest <= (size_t)1 << 30, "%zu bytes at once", largest);
    CHECK(calls >= (int)(bytes >> 30));
}

int main(void)
{
    const size_t room = (size_t)9 << 30;
    base = mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) return 77;
    read_whole((size_t)2 << 30, LINUX_MOST);
    read_whole(((size_t)3 << 30) + 12345, LINUX_MOST);
    read_whole(room, LINUX_MOST);
    read_whole(((size_t)4 << 30) + 1, ((size_t)1 << 29) + 4096);
    munmap(base, room);
    return done();
}
#endif
