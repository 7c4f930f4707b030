/* Least recently used, among the slots that are free to go. */
#include "store/evict.h"

int32_t fm_evict_choose(const fm_slot_use *slot, int32_t slots, uint64_t done)
{
    int32_t best = -1;
    for (int32_t i = 0; i < slots; i++) {
        if (slot[i].pinned || slot[i].lent > done) continue;
        if (best < 0 || slot[i].used < slot[best].used) best = i;
    }
    return best;
}
