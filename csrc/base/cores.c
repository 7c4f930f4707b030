/* How many cores this process may really use. */
#include "base/threads.h"

#include <stdio.h>
#include <unistd.h>

#ifdef __linux__
#include <sched.h>

static int32_t by_affinity(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0) return (int32_t)sysconf(_SC_NPROCESSORS_ONLN);
    return CPU_COUNT(&set);
}

/* The numbers of a file, up to two; how many there were. */
static int read_numbers(const char *path, double *a, double *b)
{
    FILE *file = fopen(path, "re");
    if (!file) return 0;
    int got = fscanf(file, "%lf %lf", a, b);
    fclose(file);
    return got;
}

/* Cores that a cgroup's quota amounts to; 0: no quota. */
static int32_t by_quota(void)
{
    double quota = 0, period = 0, unused;
    if (read_numbers("/sys/fs/cgroup/cpu.max", &quota, &period) != 2 &&
        (read_numbers("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", &quota, &unused) < 1 ||
         read_numbers("/sys/fs/cgroup/cpu/cpu.cfs_period_us", &period, &unused) < 1))
        return 0;
    return quota > 0 && period > 0 ? (int32_t)((quota + period - 1) / period) : 0;
}
#else
static int32_t by_affinity(void)
{
    return (int32_t)sysconf(_SC_NPROCESSORS_ONLN);
}

static int32_t by_quota(void)
{
    return 0;
}
#endif

int32_t fm_cores(void)
{
    int32_t cores = by_affinity(), quota = by_quota();
    if (quota > 0 && quota < cores) cores = quota;
    return cores > 0 ? cores : 1;
}
