/* With and without, in turns; then the faster one, for a while. */
#include "store/trial.h"

#define BLOCK 4      /* steps alike, so that what one leaves for the next is paid by its own side */
#define BLOCKS 8     /* of a trial: with, without, without, with, ... */
#define SHORTEST 128 /* steps that an answer holds at first; twice as many each time */
#define LONGEST 4096

bool fm_trial_on(const fm_trial *t)
{
    return t->rest ? t->pays : (t->step / BLOCK + 1) / 2 % 2 == 0;
}

void fm_trial_took(fm_trial *t, uint64_t ns)
{
    if (t->rest) {
        t->rest--;
        return;
    }
    t->ns[fm_trial_on(t)] += ns;
    if (++t->step < BLOCK * BLOCKS) return;
    t->pays = t->ns[1] < t->ns[0];
    t->pause = !t->pause ? SHORTEST : t->pause < LONGEST ? 2 * t->pause : LONGEST;
    t->rest = t->pause;
    t->step = 0;
    t->ns[0] = t->ns[1] = 0;
}
