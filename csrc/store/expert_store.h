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
} fm_store_stats;

typedef struct fm_expert_store fm_expert_store;

/* `memory` holds `slots` slots of `slot_bytes` each. The first time an expert is
 * read, its checksum (where there is one) and its finite runs are checked. */
fm_status fm_expert_store_open(const fm_expert_layout *layout, fm_reader *reader, void *memory, size_t slot_bytes, int32_t slots,
                               fm_expert_store **out, fm_error *err);
void fm_expert_store_close(fm_expert_store *store);

/*
 * Begin to make experts id[0..k) of `layer` resident (distinct, ascending) and put their slots in
 * out[0..k); those that were there already are marked in hit[0..k) and may be used at once, the
 * others after fm_expert_store_finish. `done` is the device's last finished ticket.
 * FM_BUSY       the device still reads too many slots: wait for a ticket, call again; nothing changed
 * FM_ARGUMENT   k is larger than the number of slots
 */
fm_status fm_expert_store_begin(fm_expert_store *store, int32_t layer, const int32_t *id, int32_t k, uint64_t done, int32_t *out,
                                bool *hit, fm_error *err);

/*
 * Wait until all of them are in memory. All or nothing: after a failure the experts that were being
 * read are in no slot. FM_IO: read failed or fell short; FM_INTEGRITY: checksum; FM_NUMERIC: NaN or
 * infinity. Messages name layer, expert, file, offset.
 */
fm_status fm_expert_store_finish(fm_expert_store *store, fm_error *err);

/* The device reads these slots until `ticket` is done. Follows every finish. */
void fm_expert_store_lend(fm_expert_store *store, const int32_t *slot, int32_t k, uint64_t ticket);

/* Use only the first `slots` slots from now on (1 .. what open was given). Experts above are forgotten.
 * FM_BUSY: a slot above is lent beyond `done`. */
fm_status fm_expert_store_resize(fm_expert_store *store, int32_t slots, uint64_t done, fm_error *err);

int32_t fm_expert_store_slots(const fm_expert_store *store);
void fm_expert_store_describe(const fm_expert_store *store, fm_store_stats *out);

#endif
