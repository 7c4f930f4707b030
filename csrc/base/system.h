/* What the system is asked or told, where it has words for it. */
#ifndef FM_SYSTEM_H
#define FM_SYSTEM_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

/* How short of memory the whole machine is. */
typedef enum { FM_MEMORY_FINE, FM_MEMORY_SHORT, FM_MEMORY_CRITICAL } fm_memory_state;

/* As macOS says it; FM_MEMORY_FINE where nobody does. */
fm_memory_state fm_system_memory(void);

/* Somebody waits for what this thread does: macOS then gives it a fast core, and its reads come first. */
void fm_system_thread_is_awaited(void);

/* A condition for fm_system_wait. */
void fm_system_condition(pthread_cond_t *condition);

/* As pthread_cond_wait, but for so long at most, whatever becomes of the calendar; false: the time is over. */
bool fm_system_wait(pthread_cond_t *condition, pthread_mutex_t *lock, uint64_t ns);

#endif
