/* What the matrices of a model are multiplied with, told to whoever wants to know, e.g. to quantise them by it. */
#ifndef FM_WATCH_H
#define FM_WATCH_H

#include "backend/backend.h"
#include "flashmoe.h"

typedef struct {
    fm_watch watch; /* the device's */
    fm_model_watcher tell;
    void *context;
    float *rows; /* of one expert, side by side */
    size_t room; /* floats */
    bool failed; /* no memory for them */
} fm_model_watch_state;

#endif
