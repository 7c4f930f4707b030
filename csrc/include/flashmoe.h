#ifndef FLASHMOE_H
#define FLASHMOE_H

#include <stddef.h>
#include <stdint.h>

/*
 * flashmoe: run mixture-of-experts language models whose experts stay on disk.
 *
 *   fm_model     weights on one device, its threads and its memory budget
 *   fm_session   one sequence: KV cache, recurrent state, logits
 *
 * These rules hold for every function, so the comments below only say more:
 *
 *   errors     FM_OK or a negative fm_status. On failure out-parameters are
 *              untouched and `err`, when not NULL, says what went wrong.
 *              FM_ARGUMENT for a NULL that is not said to be fine; functions
 *              without a status do nothing then.
 *   ownership  What you open you close, sessions before their model. Pointers
 *              you pass in are read during the call and never kept.
 *   threads    A model may be shared by threads; sessions of one model take
 *              turns. A session belongs to one thread at a time,
 *              fm_session_cancel excepted. There is no global state.
 *   units      Sizes in bytes, times in nanoseconds, positions in tokens.
 */

#ifdef __cplusplus
extern "C" {
#endif

/* ---- errors ------------------------------------------------------------ */

#define FM_STATUS_MAP(X)                                           \
    X(OK, 0, "ok")                                                 \
    X(ARGUMENT, -1, "an argument is out of range")                 \
    X(MEMORY, -2, "out of memory")                                 \
    X(IO, -3, "a file could not be opened, or a read fell short")  \
    X(FORMAT, -4, "a file's contents are not what they must be")   \
    X(UNSUPPORTED, -5, "this build or device cannot do that")      \
    X(DEVICE, -6, "the device reported a failure")                 \
    X(FULL, -7, "the session has no room for more tokens")         \
    X(BUSY, -8, "something opened from it is still open")          \
    X(CANCELLED, -9, "it was cancelled")                           \
    X(BUDGET, -10, "over the memory budget")                       \
    X(INTEGRITY, -11, "bytes on disk do not match their checksum") \
    X(NUMERIC, -12, "NaN or infinity where a finite number must be")

typedef enum {
#define X(name, code, text) FM_##name = code,
    FM_STATUS_MAP(X)
#undef X
} fm_status;

typedef struct {
    fm_status status;
    char message[512]; /* one sentence; names the file and the offset */
} fm_error;

/* A static sentence for a status; never NULL. */
const char *fm_status_text(fm_status status);

/* ---- model ------------------------------------------------------------- */

typedef struct fm_model fm_model;

/* How numbers are kept in the KV cache. */
typedef enum { FM_KV_F32, FM_KV_F16, FM_KV_BF16 } fm_kv_kind;

/* How expert bytes come from disk. */
typedef enum {
    FM_READ_BUFFERED, /* through the page cache */
    FM_READ_DIRECT,   /* around it, where the file system can; else FM_READ_BUFFERED, and the info says so */
    FM_READ_POPULATE, /* a mapping whose pages are asked for range by range; Linux 5.14 or later */
    FM_READ_MMAP,     /* a mapping that is merely touched, for comparison: a bad sector ends the process */
    FM_READ_URING     /* around the page cache, one thread with read_threads reads in flight; Linux 5.6 or later */
} fm_read_kind;

/* Which expert gives up its slot. */
typedef enum {
    FM_EVICT_AUTO,  /* FM_EVICT_LFU */
    FM_EVICT_LRU,   /* least recently used */
    FM_EVICT_LFU,   /* least frequently used */
    FM_EVICT_SLRU,  /* segmented LRU: what was used twice goes after what was used once */
    FM_EVICT_STATIC /* none: what was there first stays, and the others share a few slots */
} fm_evict_kind;

/* When an expert that was read is compared with the checksum that the manifest has for it, if it has one. */
typedef enum {
    FM_VERIFY_FIRST,  /* the first time it is read */
    FM_VERIFY_ALWAYS, /* each time */
    FM_VERIFY_OFF     /* never: damaged bytes are computed with */
} fm_verify_kind;

/* Zeroed options mean the defaults written here. */
typedef struct {
    const char *device;        /* "cpu" or "metal"; NULL: "cpu" */
    const char *cache;         /* a directory where a device keeps what it compiled; NULL: nowhere */
    uint64_t memory;           /* ceiling for what the model and its sessions hold; 0: none */
    int32_t threads;           /* 0: every core this process may use */
    int32_t experts_per_token; /* 0: the model's own */
    int32_t read_threads;      /* reads in flight; 0: 8 */
    int32_t read_split;        /* a record is read in this many pieces; 0: 1 */
    int32_t read_timeout_ms;   /* FM_IO if no expert comes from the disk for so long; 0: never */
    int32_t prefill_rows;      /* tokens that go through a layer at once; 0: by budget */
    int32_t expert_slots;      /* 0: as many as the budget allows */
    fm_kv_kind kv;
    fm_read_kind read;
    fm_evict_kind evict;
    fm_verify_kind verify;
    int32_t serial;                 /* 1: read all, then compute all: nothing is read while something is computed */
    int32_t no_guess;               /* 1: no reading of what the next layer may need */
    const volatile int32_t *cancel; /* set to 1 while the model is being opened: FM_CANCELLED soon. NULL: nobody does */
} fm_model_options;

typedef struct {
    const char *device, *kernels;
    int32_t layers, hidden_size, vocab_size, experts, experts_per_token;
    int32_t native_experts_per_token, max_positions, threads, read_threads;
    int32_t prefill_rows; /* most tokens one eval may append */
    int32_t expert_slots, min_expert_slots;
    fm_kv_kind kv;
    fm_read_kind read; /* what is done, not what was asked for */
    fm_evict_kind evict;
    fm_verify_kind verify;
    int32_t serial, no_guess;
    int32_t read_split;
    int32_t read_direct;        /* 1: the page cache is not used, but for short unaligned parts */
    uint64_t memory;            /* the ceiling; 0: none */
    uint64_t resident_bytes;    /* weights kept for the model's whole life */
    uint64_t scratch_bytes;     /* activations of one step, read buffers */
    uint64_t expert_bytes;      /* the largest expert: one slot */
    uint64_t expert_file_bytes; /* all experts, on disk */
    uint64_t state_bytes;       /* recurrent state of one session */
    uint64_t kv_bytes_per_token;
    uint64_t held_bytes; /* now: all of the above that is allocated */
} fm_model_info;

/*
 * Open the model that `manifest` (text, `length` bytes) describes; its files
 * lie in `directory`. Reads the resident weights and touches no expert.
 * FM_FORMAT names the manifest line or the file and offset.
 * FM_BUDGET spells out the sum that does not fit.
 */
fm_status fm_model_open(const char *manifest, size_t length, const char *directory, const fm_model_options *options,
                        fm_model **out, fm_error *err);

/* FM_BUSY, and nothing happens, while a session is open on it. NULL is fine. */
fm_status fm_model_close(fm_model *model);

void fm_model_describe(fm_model *model, fm_model_info *out);

/*
 * A number that another model, another quantisation of it or another experts_per_token does not have: a hash of shapes,
 * formats and experts' checksums, and of samples of the weights. Reads a few bytes of each layer's first expert where
 * there are no checksums; FM_IO if that fails.
 */
fm_status fm_model_fingerprint(fm_model *model, uint64_t *out, fm_error *err);

/*
 * Record which experts the routers pick; on = 0 stops. What was recorded is forgotten. A line is: number of
 * the eval, row in it, layer, then the row's experts, ascending, padded with -1 to the most that any layer takes.
 */
void fm_model_record(fm_model *model, int32_t on);

/* Copy the first `lines` lines, of 3 + experts_per_token numbers each; how many there are. */
int64_t fm_model_recorded(fm_model *model, int32_t *out, int64_t lines);

/* How often each expert was picked since the model was opened: out[layers][experts]. */
void fm_model_expert_uses(fm_model *model, int64_t *out, int32_t experts);

/* Where the time of each layer went since the model was opened, in nanoseconds as the host saw them: out[layers][4]:
 * the mixer; norm, scores and choice of experts; waiting for experts to be read; the rest of the feed-forward. */
void fm_model_layer_ns(fm_model *model, int64_t *out);

/* ---- devices ------------------------------------------------------------ */

/* The names of this build's devices, the first `room` of them; how many there are. */
int32_t fm_devices(const char **names, int32_t room);

typedef struct {
    const char *device; /* "cpu" or "metal" */
    const char *cache;  /* as fm_model_options has it */
    int32_t threads;    /* 0: 1 */
    int32_t quick;      /* 1: every verb, but few cases of each */
    int32_t large;      /* 1: instead, the sizes of real models: gigabytes, and minutes */
} fm_selftest_options;

typedef struct {
    const char *verb;
    char what[96];
    double error, bound; /* squared error over energy, and the most it may be; NaN if the verb failed or gave one */
    int32_t ok;
    char message[512]; /* what the device said, if it failed */
} fm_selftest_row;

typedef void (*fm_selftest_tell)(void *context, const fm_selftest_row *row);

/* Every verb of a device against the scalar CPU device, each case told in turn. FM_DEVICE if one was wrong; FM_UNSUPPORTED
 * where there is no such device. */
fm_status fm_selftest(const fm_selftest_options *options, fm_selftest_tell tell, void *context, fm_error *err);

/* ---- disk -------------------------------------------------------------- */

typedef struct {
    fm_read_kind read;
    int32_t read_threads, read_split;
    uint64_t ns;     /* stop after about so long */
    int32_t batches; /* or after so many; 0: by time alone */
    int32_t cold;    /* 1: first ask the system to drop the files' pages from its cache */
    uint64_t seed;   /* which experts */
} fm_probe_options;

typedef struct {
    uint64_t bytes, ns, experts; /* read, and the time that took */
    int32_t batches, direct;     /* direct: as fm_model_info's read_direct */
} fm_probe_result;

/*
 * How fast a way of reading gives the experts of the model that `manifest`
 * describes: random experts of random layers, as many at once as one token
 * needs in one layer, through the reader that fm_session_eval uses. FM_ARGUMENT
 * for a model without experts; FM_UNSUPPORTED where there is no such way.
 */
fm_status fm_probe_reads(const char *manifest, size_t length, const char *directory, const fm_probe_options *options,
                         fm_probe_result *out, fm_error *err);

/* ---- session ----------------------------------------------------------- */

typedef struct fm_session fm_session;

typedef struct {
    uint64_t tokens;             /* evaluated since the session was opened */
    uint64_t experts_used;       /* distinct experts needed, summed over layers and steps */
    uint64_t experts_hit;        /* of those, already in memory */
    uint64_t bytes_read;         /* expert bytes that came from files */
    uint64_t read_wait_ns;       /* waiting for expert bytes */
    uint64_t experts_guessed;    /* read because the next layer might need them */
    uint64_t guesses_used;       /* of those, needed */
    uint64_t guess_bytes_wasted; /* of the others */
    uint64_t eval_ns;            /* inside fm_session_eval or fm_sessions_eval */
} fm_session_stats;

fm_status fm_session_open(fm_model *model, fm_session **out, fm_error *err);

void fm_session_close(fm_session *session);

/*
 * Append `n` tokens (1 .. prefill_rows) and compute the logits of the last
 * `wanted` of them (0 .. n) into logits[wanted][vocab_size]. Blocks; returns
 * FM_CANCELLED within one layer of fm_session_cancel, or a tenth of a second where it waits for the disk.
 *
 * All or nothing: after any failure the session's position is what it was.
 * FM_FULL     the tokens would not fit the context
 * FM_BUDGET   their KV rows would not fit the memory budget
 * FM_IO       an expert could not be read whole; no expert is ever skipped
 * FM_NUMERIC  the result is not finite
 */
fm_status fm_session_eval(fm_session *session, const int32_t *tokens, int32_t n, float *logits, int32_t wanted, fm_error *err);

/* What fm_session_eval is given, for one of several sessions. */
typedef struct {
    fm_session *session;
    const int32_t *tokens;
    int32_t n;
    float *logits;
    int32_t wanted;
    const volatile int32_t *cancel; /* set to 1: as fm_session_cancel, but for this call alone. NULL: nobody does */
} fm_append;

/*
 * fm_session_eval for several distinct sessions of one model at once; their
 * `n` add up to at most prefill_rows. Every session gets the bits it would get
 * alone; an expert that several of them need is read once, and counts in the
 * stats of each session by its share of the rows.
 *
 * All or nothing: after any failure every session is where it was, and
 * `at_fault`, when not NULL, holds the index of the part that failed, or -1 if
 * it was none of them in particular. Cancelling one session stops them all.
 */
fm_status fm_sessions_eval(const fm_append *parts, int32_t count, int32_t *at_fault, fm_error *err);

int32_t fm_session_position(const fm_session *session);

/* Forget every token. */
void fm_session_reset(fm_session *session);

/* Make a running eval return FM_CANCELLED soon, or the next one at once. Any thread, any signal handler. */
void fm_session_cancel(fm_session *session);

/* Take back a cancel that no eval has seen. */
void fm_session_resume(fm_session *session);

void fm_session_describe(const fm_session *session, fm_session_stats *out);

/*
 * A snapshot is all that a session remembers: KV caches as far as its position, and recurrent state. The same
 * session gives the same bytes; all of them are covered by checksums.
 */
uint64_t fm_session_snapshot_bytes(const fm_session *session);

/* Write the snapshot into `out`, which has `bytes`: fm_session_snapshot_bytes. FM_ARGUMENT if that is not its size. */
fm_status fm_session_save(fm_session *session, void *out, uint64_t bytes, fm_error *err);

/*
 * Go on where a session was saved, by the same model on the same kind of device, whatever this one had before: its
 * evals then give the bits that those of the saved session would have given.
 *
 * All or nothing: after any failure the session is where it was.
 * FM_FORMAT     not a snapshot, or one of another model, device or kv kind; says which
 * FM_INTEGRITY  a snapshot that was cut or changed
 * FM_BUDGET     its KV caches would not fit the memory budget
 */
fm_status fm_session_load(fm_session *session, const void *snapshot, uint64_t bytes, fm_error *err);

/* ---- sampling ---------------------------------------------------------- */

typedef struct {
    float temperature; /* 0: take the largest logit */
    float top_p;       /* 1: off */
    float min_p;       /* 0: off */
    int32_t top_k;     /* 0: off */
} fm_sampling;

/*
 * Pure: the same logits, options and *rng give the same token; advances *rng.
 * Order: temperature, top_k, top_p, min_p, draw. FM_NUMERIC on NaN logits.
 */
fm_status fm_sample(const float *logits, int32_t n, const fm_sampling *how, uint64_t *rng, int32_t *out, fm_error *err);

/* ln softmax(logits)[id]; NaN if there is no such id. */
float fm_logprob(const float *logits, int32_t n, int32_t id);

#ifdef __cplusplus
}
#endif

#endif
