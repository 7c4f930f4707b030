/* An open model: weights, store, scratch, budget; and the turn its sessions take. */
#ifndef FM_MODEL_H
#define FM_MODEL_H

#include <pthread.h>

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
    size_t scratch_bytes;   /* activations, the device's own, the reader's buffers */
    size_t state_bytes;     /* recurrent state of one session, both copies */
    size_t kv_row_bytes;    /* one token, all layers */
    uint64_t session_bytes; /* held by open sessions */
    uint64_t expert_file_bytes;
    fm_trace trace;
    fm_layer_ns *layer_ns; /* [layers] */
    int32_t sessions;
    pthread_mutex_t turn;
};

/* Account for `bytes` more (or fewer) held by sessions; expert slots give way. FM_BUDGET when they
 * cannot. The caller has the turn. */
fm_status fm_model_charge(fm_model *model, int64_t bytes, fm_error *err);

#endif
