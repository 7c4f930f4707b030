/* macOS has words for these; Linux needs none, or has none that mean the same. */
#include "base/system.h"

#define SECOND 1000000000u

#ifdef __APPLE__

#include <pthread/qos.h>
#include <sys/sysctl.h>

fm_memory_state fm_system_memory(void)
{
    int level = 0; /* 1, 2 or 4: as DISPATCH_MEMORYPRESSURE_NORMAL, _WARN and _CRITICAL */
    size_t size = sizeof level;
    if (sysctlbyname("kern.memorystatus_vm_pressure_level", &level, &size, NULL, 0) != 0) return FM_MEMORY_FINE;
    return level >= 4 ? FM_MEMORY_CRITICAL : level >= 2 ? FM_MEMORY_SHORT : FM_MEMORY_FINE;
}

void fm_system_thread_is_awaited(void)
{
    pthread_set_qos_class_self_np(QOS_CLASS_USER_INITIATED, 0);
}

void fm_system_condition(pthread_cond_t *condition)
{
    pthread_cond_init(condition, NULL);
}

bool fm_system_wait(pthread_cond_t *condition, pthread_mutex_t *lock, uint64_t ns)
{
    struct timespec most = {(time_t)(ns / SECOND), (long)(ns % SECOND)};
    return pthread_cond_timedwait_relative_np(condition, lock, &most) == 0;
}

#else

#include "base/clock.h"

fm_memory_state fm_system_memory(void)
{
    return FM_MEMORY_FINE;
}

void fm_system_thread_is_awaited(void) {}

void fm_system_condition(pthread_cond_t *condition)
{
    pthread_condattr_t how;
    pthread_condattr_init(&how);
    pthread_condattr_setclock(&how, CLOCK_MONOTONIC);
    pthread_cond_init(condition, &how);
    pthread_condattr_destroy(&how);
}

bool fm_system_wait(pthread_cond_t *condition, pthread_mutex_t *lock, uint64_t ns)
{
    uint64_t end = fm_now_ns() + ns;
    struct timespec until = {(time_t)(end / SECOND), (long)(end % SECOND)};
    return pthread_cond_timedwait(condition, lock, &until) == 0;
}

#endif
