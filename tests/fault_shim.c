/* LD_PRELOAD shim: the Nth read, allocation or change of a file from now on fails in a chosen way. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { NOTHING, IO_ERROR, END_OF_FILE, NO_MEMORY, INTERRUPTED, SHORT, BIT_FLIP, NO_SPACE, KILLED, SLOW,
       QUOTA, READ_ONLY };
enum { READS, CHANGES, ALLOCATIONS, PLAIN_READS, FAMILIES };

static struct {
    atomic_int calls, first, times, how, fired;
} fault[FAMILIES];
static atomic_uintptr_t from, until; /* only allocations of code between these count */

/* Count from 0 again; calls `at` .. `at + n - 1` go wrong. Returns how many there were since the last time. */
int fault_set_of(int family, int at, int n, int kind)
{
    atomic_store(&fault[family].how, NOTHING);
    int before = atomic_exchange(&fault[family].calls, 0);
    atomic_store(&fault[family].first, at);
    atomic_store(&fault[family].times, n);
    atomic_store(&fault[family].how, kind);
    return before;
}

/* How many went wrong since this was asked. */
int fault_fired(int family)
{
    return atomic_exchange(&fault[family].fired, 0);
}

/* Whose allocations fail; nobody's until this is called. */
void fault_code(uintptr_t first, uintptr_t end)
{
    atomic_store(&from, first);
    atomic_store(&until, end);
}

static int due(int family)
{
    int call = atomic_fetch_add(&fault[family].calls, 1), at = atomic_load(&fault[family].first);
    int kind = atomic_load(&fault[family].how);
    if (call < at || call - at >= atomic_load(&fault[family].times)) return NOTHING;
    if (kind != NOTHING) atomic_fetch_add(&fault[family].fired, 1);
    if (kind == KILLED) kill(getpid(), SIGKILL);
    return kind;
}

static int number(int kind)
{
    switch (kind) {
    case NO_MEMORY: return ENOMEM;
    case INTERRUPTED: return EINTR;
    case NO_SPACE: return ENOSPC;
    case QUOTA: return EDQUOT;
    case READ_ONLY: return EROFS;
    default: return EIO;
    }
}

/* ---- reads ------------------------------------------------------------------------ */

static ssize_t read_or_not(int family, long call, int fd, void *to, size_t n, off_t at)
{
    int kind = due(family);
    if (kind == END_OF_FILE) return 0;
    if (kind == SLOW) nanosleep(&(struct timespec){2, 0}, NULL);
    if (kind == IO_ERROR || kind == NO_MEMORY || kind == INTERRUPTED) {
        errno = number(kind);
        return -1;
    }
    if (kind == SHORT && family == PLAIN_READS && n > 7) n = 7;
    ssize_t got = syscall(call, fd, to, n, at);
    if (kind == SHORT && got > 7) return 7; /* the read itself was whole, since direct ones must be */
    if (kind == BIT_FLIP && got > 0) ((unsigned char *)to)[got / 2] ^= 16;
    return got;
}

ssize_t pread(int fd, void *to, size_t n, off_t at)
{
    return read_or_not(READS, SYS_pread64, fd, to, n, at);
}

ssize_t read(int fd, void *to, size_t n)
{
    return fd > 2 ? read_or_not(PLAIN_READS, SYS_read, fd, to, n, 0) : syscall(SYS_read, fd, to, n);
}

ssize_t pread64(int fd, void *to, size_t n, off_t at)
{
    return pread(fd, to, n, at);
}

/* ---- changes of files and names ------------------------------------------------------ */

/* Whether this one fails; a write that does has written half. */
static int refused(void)
{
    int kind = due(CHANGES);
    if (kind == NOTHING) return 0;
    errno = number(kind);
    return 1;
}

ssize_t write(int fd, const void *data, size_t n)
{
    if (fd > 2 && refused()) {
        int why = errno;
        syscall(SYS_write, fd, data, n / 2);
        errno = why;
        return -1;
    }
    return syscall(SYS_write, fd, data, n);
}

ssize_t pwrite(int fd, const void *data, size_t n, off_t at)
{
    if (refused()) {
        int why = errno;
        syscall(SYS_pwrite64, fd, data, n / 2, at);
        errno = why;
        return -1;
    }
    return syscall(SYS_pwrite64, fd, data, n, at);
}

ssize_t pwrite64(int fd, const void *data, size_t n, off_t at)
{
    return pwrite(fd, data, n, at);
}

int fsync(int fd)
{
    return refused() ? -1 : (int)syscall(SYS_fsync, fd);
}

int ftruncate(int fd, off_t size)
{
    return refused() ? -1 : (int)syscall(SYS_ftruncate, fd, size);
}

int ftruncate64(int fd, off_t size)
{
    return ftruncate(fd, size);
}

int posix_fallocate(int fd, off_t at, off_t size)
{
    if (refused()) return errno; /* this one has its error as its result */
    return syscall(SYS_fallocate, fd, 0, at, size) == 0 ? 0 : errno;
}

int posix_fallocate64(int fd, off_t at, off_t size)
{
    return posix_fallocate(fd, at, size);
}

int rename(const char *old, const char *new)
{
    return refused() ? -1 : (int)syscall(SYS_renameat2, AT_FDCWD, old, AT_FDCWD, new, 0);
}

int unlink(const char *path)
{
    return refused() ? -1 : (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0);
}

int mkdir(const char *path, mode_t mode)
{
    return refused() ? -1 : (int)syscall(SYS_mkdirat, AT_FDCWD, path, mode);
}

int open(const char *path, int flags, ...)
{
    va_list more;
    va_start(more, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;
    va_end(more);
    if (flags & O_CREAT && refused()) return -1;
    return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
    va_list more;
    va_start(more, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;
    va_end(more);
    return open(path, flags, mode);
}

/* ---- allocations of the code between two addresses ----------------------------------- */

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);

static int no_memory_for(void *caller)
{
    uintptr_t at = (uintptr_t)caller;
    if (at < atomic_load(&from) || at >= atomic_load(&until) || due(ALLOCATIONS) == NOTHING) return 0;
    errno = ENOMEM;
    return 1;
}

void *malloc(size_t n)
{
    return no_memory_for(__builtin_return_address(0)) ? NULL : __libc_malloc(n);
}

void *calloc(size_t n, size_t size)
{
    return no_memory_for(__builtin_return_address(0)) ? NULL : __libc_calloc(n, size);
}

void *realloc(void *block, size_t n)
{
    return no_memory_for(__builtin_return_address(0)) ? NULL : __libc_realloc(block, n);
}

void *mmap(void *where, size_t n, int protection, int flags, int fd, off_t at)
{
    if (no_memory_for(__builtin_return_address(0))) return MAP_FAILED;
    return (void *)syscall(SYS_mmap, where, n, protection, flags, fd, at);
}

void *mmap64(void *where, size_t n, int protection, int flags, int fd, off_t at)
{
    if (no_memory_for(__builtin_return_address(0))) return MAP_FAILED;
    return (void *)syscall(SYS_mmap, where, n, protection, flags, fd, at);
}

void *mremap(void *old, size_t n, size_t more, int flags, ...)
{
    va_list where;
    va_start(where, flags);
    void *fixed = flags & MREMAP_FIXED ? va_arg(where, void *) : NULL;
    va_end(where);
    if (no_memory_for(__builtin_return_address(0))) return MAP_FAILED;
    return (void *)syscall(SYS_mremap, old, n, more, flags, fixed);
}
