/* An open model: weights, store, scratch, budget; and the turn its sessions take. */
#ifndef FM_MODEL_H
#define FM_MODEL_H

#include <pthread.h>

#include "base/system.h"
#include "model/activations.h"
#include "model/trace.h"
#include "model/weights.h"

/* Tokens for which a session's KV cache has room at first, and by which it grows. */
#define FM_KV_STEP 256

struct fm_model {
    fm_manifest manifest;
    fm_model_options options; /* defaults filled in; strings not kept */
    fm_file *files;
    fm_backend *backend;
    fm_weights weights;
    fm_activations room;
    fm_reader *reader;
    fm_expert_store *store; /* NULL: a model without experts */
    fm_buf *slots;
    size_t slot_bytes; /* one slot, a multiple of a page */
    int32_t max_slots, min_slots;
    fm_memory_state (*system_memory)(void); /* fm_system_memory; another in tests */
    uint64_t relieved_ns;                   /* when slots were last given back to the system */
    size_t scratch_bytes;                   /* activations, the device's own, the reader's buffers */
    size_t state_bytes;                     /* recurrent state of one session, both copies */
    size_t kv_row_bytes;                    /* one token, all layers */
    uint64_t session_bytes;                 /* held by open sessions */
    uint64_t expert_file_bytes;
    uint64_t fingerprint; /* 0: not asked for yet */
    fm_trace trace;
    fm_layer_ns *layer_ns; /* [layers] */
    int32_t sessions;
    pthread_mutex_t turn;
};

/* Where the system is short of memory, give back an eighth of the expert slots, half of them if it is critical: at most once
 * in FM_RELIEF_NS, never below what a token needs, and for good. The caller has the turn, and no step is under way. */
#define FM_RELIEF_NS 1000000000u
void fm_model_relieve(fm_model *model);

/* Account for `bytes` more (or fewer) held by sessions; expert slots give way. FM_BUDGET when they
 * cannot. The caller has the turn. */
fm_status fm_model_charge(fm_model *model, int64_t bytes, fm_error *err);

/* fm_model_fingerprint for who has the turn. */
fm_status fm_model_identify(fm_model *model, uint64_t *out, fm_error *err);

#endif
