/* Runs a fuzz target on kept inputs, for builds without a fuzzer: the files named, and those of the directories named. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "fuzz.h"

static int inputs;

/* In a block of its exact size: a sanitizer sees what is read behind it. */
static int one_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    long size = -1;
    if (file && fseek(file, 0, SEEK_END) == 0) size = ftell(file);
    uint8_t *data = size < 0 ? NULL : malloc((size_t)size + !size);
    if (data) rewind(file);
    int ok = data && fread(data, 1, (size_t)size, file) == (size_t)size;
    if (file) fclose(file);
    if (ok) {
        LLVMFuzzerTestOneInput(data, (size_t)size);
        inputs++;
    } else {
        fprintf(stderr, "%s cannot be read\n", path);
    }
    free(data);
    return ok;
}

static int one_place(const char *path)
{
    struct stat st;
    char inside[1024];
    int ok = 1;

    if (stat(path, &st) != 0 || !S_ISDIR(st.st_mode)) return one_file(path);
    DIR *folder = opendir(path);
    for (struct dirent *entry; folder && (entry = readdir(folder));) {
        if (entry->d_name[0] == '.') continue;
        snprintf(inside, sizeof inside, "%s/%s", path, entry->d_name);
        ok = one_file(inside) && ok;
    }
    if (folder) closedir(folder);
    return ok && folder;
}

int main(int argc, char **argv)
{
    int ok = 1;
    LLVMFuzzerInitialize(&argc, &argv);
    for (int i = 1; i < argc; i++) ok = one_place(argv[i]) && ok;
    fprintf(stderr, "%d inputs\n", inputs);
    return ok && inputs ? 0 : 1;
}
