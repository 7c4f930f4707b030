/* The model's files: opened once, by plain names inside one directory, of the size that was promised. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* O_DIRECT */
#endif
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store/read.h"

static bool is_plain_name(const char *name)
{
    return name[0] && strcmp(name, ".") != 0 && strcmp(name, "..") != 0 && !strchr(name, '/') && strlen(name) <= 255;
}

#ifdef O_DIRECT
static int open_direct(int directory, const char *name)
{
    return openat(directory, name, O_RDONLY | O_CLOEXEC | O_DIRECT);
}
#else
static int open_direct(int directory, const char *name)
{
    int fd = openat(directory, name, O_RDONLY | O_CLOEXEC);
    if (fd >= 0) fcntl(fd, F_NOCACHE, 1);
    return fd;
}
#endif

static fm_status open_one(int directory, const char *where, const char *name, uint64_t size, bool direct, fm_file *file,
                          fm_error *err)
{
    struct stat st;

    if (!is_plain_name(name)) return fm_fail(err, FM_FORMAT, "\"%s\" is not a plain file name inside %s", name, where);
    size_t length = strlen(where) + strlen(name) + 2;
    file->path = malloc(length);
    if (!file->path) return fm_fail(err, FM_MEMORY, "no memory for a path");
    snprintf(file->path, length, "%s/%s", where, name);
    file->buffered = openat(directory, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe must not wait for its writer */
    if (file->buffered < 0 || fstat(file->buffered, &st) != 0) return fm_fail(err, FM_IO, "%s: %s", file->path, strerror(errno));
    if (!S_ISREG(st.st_mode)) return fm_fail(err, FM_FORMAT, "%s is not a regular file", file->path);
    if ((uint64_t)st.st_size != size)
        return fm_fail(err, FM_FORMAT, "%s has %llu bytes, but must have %llu", file->path, (unsigned long long)st.st_size,
                       (unsigned long long)size);
    file->size = size;
    if (direct) file->direct = open_direct(directory, name); /* -1 where the file system has none */
    return FM_OK;
}

fm_status fm_files_open(const char *directory, const char *const *path, const uint64_t *size, int32_t n, bool direct,
                        fm_file **out, fm_error *err)
{
    fm_status status = FM_OK;
    fm_file *files = calloc((size_t)n + 1, sizeof *files);
    if (!files) return fm_fail(err, FM_MEMORY, "no memory for %d files", n);
    for (int32_t i = 0; i < n; i++) files[i].buffered = files[i].direct = -1;

    int at = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (at < 0) status = fm_fail(err, FM_IO, "%s: %s", directory, strerror(errno));
    for (int32_t i = 0; status == FM_OK && i < n; i++) status = open_one(at, directory, path[i], size[i], direct, &files[i], err);
    if (at >= 0) close(at);
    if (status != FM_OK) {
        fm_files_close(files, n);
        return status;
    }
    *out = files;
    return FM_OK;
}

void fm_files_close(fm_file *files, int32_t n)
{
    for (int32_t i = 0; files && i < n; i++) {
        if (files[i].buffered >= 0) close(files[i].buffered);
        if (files[i].direct >= 0) close(files[i].direct);
        free(files[i].path);
    }
    free(files);
}
