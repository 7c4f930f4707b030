/* Whether something pays, found out by doing it and leaving it, in turns, and looking at the clock. */
#ifndef FM_TRIAL_H
#define FM_TRIAL_H

#include <stdbool.h>
#include <stdint.h>

/* Zeroed is a trial that begins. */
typedef struct {
    uint64_t ns[2]; /* of the steps without and with it */
    int32_t step;   /* of this trial, or of the time after it */
    int32_t rest;   /* steps until the next trial; 0 while one is under way */
    int32_t pause;  /* how many there were last time */
    bool pays;
} fm_trial;

/* Whether to do it in the present step. */
bool fm_trial_on(const fm_trial *trial);

/* The step took so long. */
void fm_trial_took(fm_trial *trial, uint64_t ns);

#endif
