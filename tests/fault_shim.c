/* LD_PRELOAD shim: the Nth pread from now on fails in a chosen way. For tests/test_read_faults.py. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { NOTHING, IO_ERROR, END_OF_FILE, NO_MEMORY, INTERRUPTED, SHORT, BIT_FLIP };
static atomic_int calls, first, times, how;

/* Count from 0 again; calls `at` .. `at + n - 1` go wrong. Returns how many there were since the last time. */
int fault_set(int at, int n, int kind)
{
    int before = atomic_exchange(&calls, 0);
    atomic_store(&first, at);
    atomic_store(&times, n);
    atomic_store(&how, kind);
    return before;
}

ssize_t pread(int fd, void *to, size_t n, off_t from)
{
    int call = atomic_fetch_add(&calls, 1), at = atomic_load(&first), kind = atomic_load(&how);
    if (kind == NOTHING || call < at || call >= at + atomic_load(&times)) return syscall(SYS_pread64, fd, to, n, from);
    if (kind == IO_ERROR || kind == NO_MEMORY || kind == INTERRUPTED) {
        errno = kind == IO_ERROR ? EIO : kind == NO_MEMORY ? ENOMEM : EINTR;
        return -1;
    }
    if (kind == END_OF_FILE) return 0;
    ssize_t got = syscall(SYS_pread64, fd, to, n, from); /* whole, since direct reads must be */
    if (kind == SHORT && got > 7) return 7;
    if (kind == BIT_FLIP && got > 0) ((unsigned char *)to)[got / 2] ^= 16;
    return got;
}

ssize_t pread64(int fd, void *to, size_t n, off_t from)
{
    return pread(fd, to, n, from);
}
