/*
 * Expert weights on disk, the most useful ones also in memory.
 *
 * Memory is a set of slots, one expert each, that the caller provides and may
 * resize between fetches. The store knows nothing of devices: it fills host
 * memory and is told, by ticket numbers, until when a device may still be
 * reading a slot. One thread at a time.
 */
#ifndef FM_EXPERT_STORE_H
#define FM_EXPERT_STORE_H

#include "store/read.h"
#include "quant/quant.h"

/*
 * One piece of every expert of a layer. Expert e lies at `base + e * stride` of
 * `file`, or, where `each` is given, at each[e].
 */
typedef struct {
    int32_t file;
    uint64_t at;
} fm_extent;

typedef struct {
    int32_t file;
    uint64_t base, stride;
    const fm_extent *each; /* [experts], or NULL */
    uint32_t bytes;
    uint32_t at; /* where it goes in the slot */
} fm_expert_part;

/* A run of stored numbers in a slot that must be finite (scales, biases, float weights). */
typedef struct {
    fm_number kind;
    uint32_t at, count;
} fm_finite_run;

typedef struct {
    int32_t experts; /* 0: the layer has none on disk */
    int32_t parts;
    const fm_expert_part *part;
    int32_t runs;
    const fm_finite_run *run;
    uint32_t bytes;       /* of one expert in a slot */
    const uint64_t *xxh3; /* [experts] of the slot's bytes, or NULL: none recorded */
} fm_expert_layer;

typedef struct {
    int32_t layers;
    const fm_expert_layer *layer; /* owned by the caller, for the store's life */
    const fm_file *file;
} fm_expert_layout;

typedef struct {
    uint64_t needed, hits, bytes_read, wait_ns;
    uint64_t guessed, guesses_used, guess_bytes_wasted; /* read by fm_expert_store_guess; of those, then asked for; the others */
} fm_store_stats;

typedef struct fm_expert_store fm_expert_store;

typedef struct {
    fm_expert_layout layout;
    fm_reader *reader;
    void *memory; /* `slots` slots of `slot_bytes` each */
    size_t slot_bytes;
    int32_t slots;
    fm_evict_kind evict;
    fm_verify_kind verify; /* of checksums, where there are any; finite runs are checked at the first read */
    uint64_t patience_ns;  /* FM_IO if no expert comes for so long; 0: never */
} fm_expert_store_options;

fm_status fm_expert_store_open(const fm_expert_store_options *options, fm_expert_store **out, fm_error *err);
void fm_expert_store_close(fm_expert_store *store); /* waits for reads in flight, however long; NULL is fine */

/* From now on whoever waits for reads asks `stop` about fifty times a second: true is FM_CANCELLED. NULL: nobody is asked.
 * Reads that are waited for no longer go on: what they bring is there later, and until then their slots are taken. */
void fm_expert_store_watch(fm_expert_store *store, bool (*stop)(const void *context), const void *context);

/* A step comes to `layer`, where it needs `distinct` experts. If a pass through all layers needs more than there
 * are slots, what is resident stays, and the rest goes through a few slots. */
void fm_expert_store_enter(fm_expert_store *store, int32_t layer, int32_t distinct);

/* A row picked this expert. */
void fm_expert_store_count(fm_expert_store *store, int32_t layer, int32_t expert);

/*
 * Begin to make experts id[0..k) of `layer` resident (distinct, ascending) and put their slots in
 * out[0..k); those that are there already are marked in hit[0..k) and may be used at once, the
 * others once they have arrived or after fm_expert_store_finish, which must follow. `done` is the
 * device's last finished ticket.
 * FM_BUSY       the device still reads too many slots: wait for a ticket, call again; nothing changed
 * FM_ARGUMENT   k is larger than the number of slots
 * FM_IO, FM_INTEGRITY, FM_NUMERIC   one of them was read ahead of time, and that failed
 * FM_IO, FM_CANCELLED   earlier reads do not end, and are waited for no longer
 */
fm_status fm_expert_store_begin(fm_expert_store *store, int32_t layer, const int32_t *id, int32_t k, uint64_t done, int32_t *out,
                                bool *hit, fm_error *err);

/* Whether a slot that begin gave holds its expert already. */
bool fm_expert_store_arrived(fm_expert_store *store, int32_t slot);

/* Wait until more of the reads have ended well than at the last call; false: fm_expert_store_finish knows why not. */
bool fm_expert_store_wait(fm_expert_store *store);

/*
 * Wait until all of them are in memory. After a failure experts that were not read whole are in no slot.
 * FM_IO: read failed, fell short or takes too long; FM_INTEGRITY: checksum; FM_NUMERIC: NaN or infinity. Messages
 * name layer, expert, file, offset. FM_CANCELLED: fm_expert_store_watch.
 */
fm_status fm_expert_store_finish(fm_expert_store *store, fm_error *err);

/*
 * Read what is going to be asked for: those of id[0..n) of `layer` (NULL: 0..n) that are not resident, in this
 * order, as far as there are slots to spare. Does nothing while other reads are in flight. What was read is
 * kept until it is used or fm_expert_store_enter comes to a later layer. A read that fails is told by the begin
 * that needs it. False: nothing is in flight, for want of slots or because all are resident.
 */
bool fm_expert_store_ahead(fm_expert_store *store, int32_t layer, const int32_t *id, int32_t n, uint64_t done);

/* The same for a guess: a few experts, given up when begin has something to read. */
void fm_expert_store_guess(fm_expert_store *store, int32_t layer, const int32_t *id, int32_t n, uint64_t done);

/* Whether to guess in the present step. Steps with and without guesses take turns now and then; between, the faster way holds. */
bool fm_expert_store_guesses(fm_expert_store *store);

/* A step that could have guessed took so long. */
void fm_expert_store_took(fm_expert_store *store, uint64_t ns);

/* The device reads these slots until `ticket` is done. */
void fm_expert_store_lend(fm_expert_store *store, const int32_t *slot, int32_t k, uint64_t ticket);

/* Use only the first `slots` slots from now on (1 .. what open was given). Experts above are forgotten.
 * FM_BUSY: a slot above is lent beyond `done`. FM_IO, FM_CANCELLED: reads in flight do not end. */
fm_status fm_expert_store_resize(fm_expert_store *store, int32_t slots, uint64_t done, fm_error *err);

int32_t fm_expert_store_slots(const fm_expert_store *store);
/* Whether an expert is in memory. */
bool fm_expert_store_holds(fm_expert_store *store, int32_t layer, int32_t expert);
void fm_expert_store_describe(const fm_expert_store *store, fm_store_stats *out);
/* How often each expert was picked: [layers][width]. */
const uint64_t *fm_expert_store_uses(const fm_expert_store *store, int32_t *width);

#endif
