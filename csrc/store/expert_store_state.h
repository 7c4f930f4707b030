/* What the two halves of the expert store share: what is resident, and what is being read. */
#ifndef FM_EXPERT_STORE_STATE_H
#define FM_EXPERT_STORE_STATE_H

#include "store/evict.h"
#include "store/expert_store.h"
#include "store/trial.h"

#define NOWHERE (-1)

/* A slot as it may or may not be given up. */
typedef struct {
    uint64_t lent; /* ticket until which a device reads it */
    int32_t group; /* of the batch, while it is loading */
    bool pinned;   /* part of the fetch under way */
    bool loading;  /* its expert is being read */
    bool guessed;  /* and nobody has asked for it yet */
} fm_slot_use;

/* Reads in flight, of experts of one layer. */
typedef struct {
    int32_t layer, n;
    int32_t *id, *slot; /* [all_slots] */
    fm_read *reads;     /* [all_slots * parts] */
    int32_t *group;
    int32_t ready; /* of them in memory, as far as is known */
    int32_t quiet; /* waits in a row that brought none */
    bool flying, guess;
} fm_read_batch;

struct fm_expert_store {
    fm_expert_layout layout;
    fm_reader *reader;
    uint8_t *memory;
    size_t slot_bytes;
    int32_t slots, all_slots;
    fm_slot_use *use; /* [all_slots] */
    fm_evict *evict;
    fm_verify_kind verify;
    uint64_t patience_ns;
    bool (*stop)(const void *context);
    const void *stop_context;
    int32_t *holds;   /* [all_slots]: layer * width + expert, or NOWHERE */
    int32_t *place;   /* [layers * width]: slot, or NOWHERE; set while the expert is still being read */
    uint8_t *trusted; /* [layers * width]: checked once already */
    uint64_t *uses;   /* [layers * width]: picks */
    int32_t width;    /* experts of the widest layer */
    int32_t parts;    /* of the expert with most parts */
    bool scan;        /* a pass through the model needs more than all slots */
    fm_store_stats stats;
    fm_read_batch batch;

    int32_t *fetch;  /* [all_slots]: the slots of the fetch under way */
    int32_t *wanted; /* [all_slots]: and what they are to hold */
    int32_t fetched;

    int32_t failed; /* what could not be read, or NOWHERE, and why */
    fm_status status;
    fm_error why;

    fm_trial guessing; /* whether it pays */
};

static inline int32_t fm_expert_key(const fm_expert_store *s, int32_t layer, int32_t expert)
{
    return layer * s->width + expert;
}

/* Wait for what is in flight; what did not arrive is in no slot. After an error it still is in flight. */
fm_status fm_expert_settle(fm_expert_store *store, fm_error *err);

/* The slot holds nothing any more. */
void fm_expert_forget(fm_expert_store *store, int32_t slot);

#endif
