/* Which slot is given up: least recently used. Pure. */
#ifndef FM_EVICT_H
#define FM_EVICT_H

#include <stdint.h>

/* A slot as the policy sees it. */
typedef struct {
    uint64_t used;  /* time of last use; 0: empty */
    uint64_t lent;  /* ticket until which a device reads it */
    int32_t pinned; /* part of the fetch under way */
} fm_slot_use;

/* The slot to fill next: an empty one, else the least recently used that is neither pinned nor lent
 * beyond `done`; -1 if there is none. */
int32_t fm_evict_choose(const fm_slot_use *slot, int32_t slots, uint64_t done);

#endif
