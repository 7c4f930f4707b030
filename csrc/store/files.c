/* The model's files: opened once, by plain names inside one directory, of the size that was promised. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* O_DIRECT */
#endif
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/memory.h"
#include "store/ways.h"

static bool is_plain_name(const char *name)
{
    return name[0] && strcmp(name, ".") != 0 && strcmp(name, "..") != 0 && !strchr(name, '/') && strlen(name) <= 255;
}

/* A descriptor whose reads go around the page cache, or -1: some file systems refuse at once, some at the first read. */
static int open_direct(int directory, const char *name)
{
#ifdef O_DIRECT
    int fd = openat(directory, name, O_RDONLY | O_CLOEXEC | O_DIRECT);
    void *page;
    if (fd < 0 || fm_pages_map(FM_PAGE, &page, NULL) != FM_OK) return fd;
    if (pread(fd, page, FM_PAGE, 0) < 0 && errno == EINVAL) {
        close(fd);
        fd = -1;
    }
    fm_pages_unmap(page, FM_PAGE);
#else
    int fd = openat(directory, name, O_RDONLY | O_CLOEXEC);
    if (fd >= 0) fcntl(fd, F_NOCACHE, 1);
#endif
    return fd;
}

static fm_status map_file(fm_file *file, fm_read_kind kind, fm_error *err)
{
    if (!file->size) return FM_OK;
    void *map = mmap(NULL, file->size, PROT_READ, MAP_SHARED, file->buffered, 0);
    if (map == MAP_FAILED)
        return fm_fail(err, errno == ENOMEM ? FM_MEMORY : FM_IO,
                       "%s: cannot map %llu bytes: %s; read with \"buffered\" or \"direct\"", file->path,
                       (unsigned long long)file->size, strerror(errno));
    file->map = map;
    if (kind == FM_READ_POPULATE && madvise(map, 0, FM_POPULATE_READ) != 0)
        return fm_fail(err, FM_UNSUPPORTED, "MADV_POPULATE_READ needs Linux 5.14 or later; read with \"buffered\" or \"direct\"");
    madvise(map, file->size, fm_read_way_of(kind)->advice);
    return FM_OK;
}

static fm_status open_one(int directory, const char *where, const char *name, uint64_t size, fm_read_kind kind, fm_file *file,
                          fm_error *err)
{
    struct stat st;

    if (!is_plain_name(name)) return fm_fail(err, FM_FORMAT, "\"%s\" is not a plain file name inside %s", name, where);
    size_t folder = strlen(where), length = strlen(name);
    file->path = malloc(folder + length + 2);
    if (!file->path) return fm_fail(err, FM_MEMORY, "no memory for a path");
    memcpy(file->path, where, folder);
    file->path[folder] = '/';
    memcpy(file->path + folder + 1, name, length + 1);
    file->buffered = openat(directory, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe must not wait for its writer */
    if (file->buffered < 0 || fstat(file->buffered, &st) != 0) return fm_fail(err, FM_IO, "%s: %s", file->path, strerror(errno));
    if (!S_ISREG(st.st_mode)) return fm_fail(err, FM_FORMAT, "%s is not a regular file", file->path);
    if ((uint64_t)st.st_size != size)
        return fm_fail(err, FM_FORMAT, "%s has %llu bytes, but must have %llu", file->path, (unsigned long long)st.st_size,
                       (unsigned long long)size);
    file->size = size;
    if (fm_read_way_of(kind)->direct) file->direct = open_direct(directory, name); /* -1 where the file system has none */
    return fm_read_way_of(kind)->map ? map_file(file, kind, err) : FM_OK;
}

fm_status fm_files_open(const char *directory, const char *const *path, const uint64_t *size, int32_t n, fm_read_kind kind,
                        fm_file **out, fm_error *err)
{
    fm_status status = FM_OK;
    fm_file *files = calloc((size_t)n + 1, sizeof *files);
    if (!files) return fm_fail(err, FM_MEMORY, "no memory for %d files", n);
    for (int32_t i = 0; i < n; i++) files[i].buffered = files[i].direct = -1;

    int at = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (at < 0) status = fm_fail(err, FM_IO, "%s: %s", directory, strerror(errno));
    for (int32_t i = 0; status == FM_OK && i < n; i++) status = open_one(at, directory, path[i], size[i], kind, &files[i], err);
    if (at >= 0) close(at);
    if (status != FM_OK) {
        fm_files_close(files, n);
        return status;
    }
    *out = files;
    return FM_OK;
}

void fm_files_expect_random(const fm_file *files, int32_t n)
{
#ifdef POSIX_FADV_RANDOM
    for (int32_t i = 0; i < n; i++) posix_fadvise(files[i].buffered, 0, 0, POSIX_FADV_RANDOM);
#else
    for (int32_t i = 0; i < n; i++) fcntl(files[i].buffered, F_RDAHEAD, 0);
#endif
}

void fm_files_drop_cache(const fm_file *files, int32_t n)
{
#ifdef POSIX_FADV_DONTNEED
    for (int32_t i = 0; i < n; i++) posix_fadvise(files[i].buffered, 0, 0, POSIX_FADV_DONTNEED);
#else
    (void)files; /* macOS has no such call */
    (void)n;
#endif
}

bool fm_files_direct(const fm_file *files, int32_t n)
{
    for (int32_t i = 0; i < n; i++)
        if (files[i].direct < 0) return false;
    return true;
}

void fm_files_close(fm_file *files, int32_t n)
{
    for (int32_t i = 0; files && i < n; i++) {
        if (files[i].map) munmap(files[i].map, files[i].size);
        if (files[i].buffered >= 0) close(files[i].buffered);
        if (files[i].direct >= 0) close(files[i].direct);
        free(files[i].path);
    }
    free(files);
}
