/* macOS has words for these; Linux needs none, or has none that mean the same. */
#include "base/system.h"

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

#else

fm_memory_state fm_system_memory(void)
{
    return FM_MEMORY_FINE;
}

void fm_system_thread_is_awaited(void) {}

#endif
