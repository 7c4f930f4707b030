/*
 * Any bytes as a saved session: refused with the session as it was, or loaded and used.
 *
 * The first byte says what is repaired before the session sees the rest, so that damage gets past the checks before it.
 */
#include <string.h>

#include "base/hash.h"
#include "fuzz.h"
#include "session/state.h"
#include "tiny_model.h"

enum { BODY_SUM = 1, HEADER_SUM = 2, MODEL = 4, SIZES = 8, LENGTH = 16 };

/* As session/snapshot.c has it. */
typedef struct {
    char magic[8];
    uint32_t version, kv;
    char device[16];
    uint64_t model, bytes, state_bytes;
    int32_t position, layers;
    uint64_t body, header;
} header;

enum { BEFORE = 5 };

static fm_model *model;
static fm_session *session;
static uint8_t *before, *after; /* what the session remembers before an input that is refused, and after it */
static uint64_t bytes_before;

static void save(uint8_t *out)
{
    MUST(fm_session_save(session, out, bytes_before, NULL) == FM_OK);
}

/* The session has BEFORE tokens again. */
static void begin(void)
{
    static float logits[BEFORE * VOCAB];
    fm_session_reset(session);
    MUST(run(session, BEFORE, 64, logits, NULL) == FM_OK);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    fm_model_options o = {.threads = 1, .prefill_rows = 64};
    MUST(mkdtemp(directory) != NULL);
    write_model();
    model = open_model(&o);
    MUST(model && fm_session_open(model, &session, NULL) == FM_OK);
    remove_model(); /* its files are open */
    begin();
    bytes_before = fm_session_snapshot_bytes(session);
    before = must(bytes_before);
    after = must(bytes_before);
    save(before);
    return 0;
}

/* The bytes of what this model would save at the position that the header has. */
static uint64_t right_size(const header *h)
{
    int32_t was = session->position;
    session->position = h->position < 0 || h->position > CONTEXT ? 0 : h->position;
    uint64_t bytes = fm_session_snapshot_bytes(session);
    session->position = was;
    return bytes;
}

static void repair(uint8_t what, uint8_t *data, uint64_t size)
{
    header h;
    if (size < sizeof h) return;
    memcpy(&h, data, sizeof h);
    if (what & MODEL) MUST(fm_model_fingerprint(model, &h.model, NULL) == FM_OK);
    if (what & SIZES) {
        h.bytes = right_size(&h);
        h.state_bytes = model->state_bytes / 2;
    }
    if (what & BODY_SUM) h.body = fm_xxh3(data + sizeof h, size - sizeof h);
    if (what & HEADER_SUM) h.header = fm_xxh3(&h, offsetof(header, header));
    memcpy(data, &h, sizeof h);
}

/* It says what it is: saved again it is the same, but for what lies behind the position; and it can go on. */
static void use(const uint8_t *snapshot, uint64_t size)
{
    header h, again;
    float logits[VOCAB];
    int32_t id = token(3);
    memcpy(&h, snapshot, sizeof h);
    MUST(h.position >= 0 && h.position <= CONTEXT);
    MUST(fm_session_position(session) == h.position && fm_session_snapshot_bytes(session) == size);
    uint8_t *copy = must(size);
    MUST(fm_session_save(session, copy, size, NULL) == FM_OK);
    memcpy(&again, copy, sizeof again);
    MUST(memcmp(&h, &again, offsetof(header, body)) == 0);
    MUST(h.position % 64 || memcmp(copy, snapshot, size) == 0);
    free(copy);
    fm_status status = fm_session_eval(session, &id, 1, logits, 1, NULL);
    MUST(status == FM_OK || status == FM_NUMERIC || (status == FM_FULL && h.position == CONTEXT));
    begin();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fm_error err = {0};
    header h = {0};

    if (!size) return 0;
    uint8_t what = *data++;
    uint64_t length = --size;
    if (size >= sizeof h && what & LENGTH) {
        memcpy(&h, data, sizeof h);
        length = right_size(&h);
    }
    uint8_t *snapshot = must(length); /* its end is the end of the block */
    memcpy(snapshot, data, size < length ? size : length);
    repair(what, snapshot, length);

    fm_status status = fm_session_load(session, snapshot, length, &err);
    if (status == FM_OK) {
        use(snapshot, length);
    } else {
        MUST(status == FM_FORMAT || status == FM_INTEGRITY);
        MUST(err.status == status && err.message[0]);
        MUST(fm_session_position(session) == BEFORE);
        save(after);
        MUST(memcmp(before, after, bytes_before) == 0);
    }
    free(snapshot);
    return 0;
}
