/* Every function of the interface with NULL and with numbers that cannot be: an error or nothing, never the end of the process. */
#include "tiny_model.h"

enum { ROUNDS = 4000 };

static uint64_t seed = 9;

static int64_t number(void)
{
    static const int64_t odd[] = {0, 1, -1, 2, 63, 64, 65, 255, 256, 1 << 20, INT32_MAX, INT32_MIN, INT64_MAX, INT64_MIN, 4096};
    return noise_bits(&seed) % 3 ? odd[noise_bits(&seed) % (sizeof odd / sizeof *odd)] : (int64_t)noise_bits(&seed);
}

/* The pointer, or NULL. */
#define MAYBE(pointer) (noise_bits(&seed) % 2 ? (pointer) : NULL)

static fm_model_options options(void)
{
    static const char *const devices[] = {"cpu", "", "gpu", "metal", "\xff", "%s%n"};
    fm_model_options o = {.threads = 1, .prefill_rows = 64};
    if (noise_bits(&seed) % 8 == 0) o.device = devices[noise_bits(&seed) % 6];
    if (noise_bits(&seed) % 8 == 0) o.memory = (uint64_t)number();
    if (noise_bits(&seed) % 8 == 0) o.threads = (int32_t)(number() | INT32_MIN); /* a thousand threads are allowed, and slow */
    if (noise_bits(&seed) % 8 == 0) o.experts_per_token = (int32_t)number();
    if (noise_bits(&seed) % 8 == 0) o.read_threads = (int32_t)(number() | INT32_MIN);
    if (noise_bits(&seed) % 8 == 0) o.read_split = (int32_t)number();
    if (noise_bits(&seed) % 8 == 0) o.prefill_rows = (int32_t)number();
    if (noise_bits(&seed) % 8 == 0) o.expert_slots = (int32_t)number();
    if (noise_bits(&seed) % 8 == 0) o.kv = (fm_kv_kind)number();
    if (noise_bits(&seed) % 8 == 0) o.read = (fm_read_kind)number();
    if (noise_bits(&seed) % 8 == 0) o.evict = (fm_evict_kind)number();
    if (noise_bits(&seed) % 8 == 0) o.verify = (fm_verify_kind)number();
    return o;
}

static void tell(void *context, const fm_selftest_row *row)
{
    (void)context;
    (void)row;
}

/* A status that there is; what failed says so. */
static void check_status(fm_status status, const fm_error *err)
{
    CHECK_THAT(strcmp(fm_status_text(status), fm_status_text((fm_status)77)) != 0, "%d", (int)status);
    if (err) CHECK(status == FM_OK || (err->status == status && err->message[0]));
}

static void call_model(fm_model *model, int32_t which, fm_error *err)
{
    static int64_t counts[2 * 4096];
    static int32_t lines[16 * 8];
    fm_model_options o = options();
    fm_model_info info;
    fm_model *opened = NULL;
    uint64_t hash;

    switch (which) {
    case 0: {
        fm_status status = fm_model_open(MAYBE(manifest), noise_bits(&seed) % 4 ? length : noise_bits(&seed) % length,
                                         MAYBE(directory), MAYBE(&o), noise_bits(&seed) % 8 ? &opened : NULL, err);
        check_status(status, err);
        CHECK((status == FM_OK) == (opened != NULL));
        CHECK(fm_model_close(opened) == FM_OK);
        break;
    }
    case 1: CHECK(fm_model_close(MAYBE(model)) != FM_ARGUMENT); break; /* busy: a session is open */
    case 2: fm_model_describe(MAYBE(model), MAYBE(&info)); break;
    case 3: check_status(fm_model_fingerprint(MAYBE(model), MAYBE(&hash), err), err); break;
    case 4: fm_model_record(MAYBE(model), (int32_t)number()); break;
    case 5: {
        int64_t most = number();
        CHECK(fm_model_recorded(MAYBE(model), MAYBE(lines), most < 16 ? most : 16) >= 0);
        break;
    }
    case 6: {
        int32_t experts = (int32_t)number();
        fm_model_expert_uses(MAYBE(model), MAYBE(counts), experts < 4096 ? experts : 4096);
        break;
    }
    default: fm_model_layer_ns(MAYBE(model), MAYBE(counts)); break;
    }
}

static void call_session(fm_model *model, fm_session *session, int32_t which, fm_error *err)
{
    static uint8_t snapshot[1 << 20];
    static float logits[64 * VOCAB];
    static int32_t ids[64];
    fm_session *opened = NULL;
    fm_session_stats stats;
    uint64_t bytes = fm_session_snapshot_bytes(session);
    int32_t n = (int32_t)number(), wanted = (int32_t)number(), at_fault;

    for (int i = 0; i < 64; i++) ids[i] = noise_bits(&seed) % 8 ? i % VOCAB : (int32_t)number();
    CHECK(bytes <= sizeof snapshot);
    switch (which) {
    case 0:
        check_status(fm_session_open(MAYBE(model), noise_bits(&seed) % 2 ? &opened : NULL, err), err);
        fm_session_close(opened);
        break;
    case 1: check_status(fm_session_eval(MAYBE(session), MAYBE(ids), n, MAYBE(logits), wanted, err), err); break;
    case 2: {
        fm_append parts[2] = {
            {.session = MAYBE(session), .tokens = MAYBE(ids), .n = n, .logits = MAYBE(logits), .wanted = wanted},
            {.session = session, .tokens = ids, .n = 1, .logits = logits}};
        int32_t count = (int32_t)number();
        check_status(fm_sessions_eval(MAYBE(parts), count < 2 ? count : 2, MAYBE(&at_fault), err), err);
        break;
    }
    case 3: CHECK(fm_session_position(MAYBE(session)) >= 0); break;
    case 4: fm_session_reset(MAYBE(session)); break;
    case 5: fm_session_cancel(MAYBE(session)); break;
    case 6: fm_session_describe(MAYBE(session), MAYBE(&stats)); break;
    case 7: fm_session_snapshot_bytes(MAYBE(session)); break;
    case 8: {
        uint64_t room = noise_bits(&seed) % 2 ? bytes : (uint64_t)number();
        check_status(fm_session_save(MAYBE(session), MAYBE(snapshot), room, err), err);
        break;
    }
    case 9: {
        uint64_t size = noise_bits(&seed) % 2 ? bytes : (uint64_t)number() % sizeof snapshot;
        check_status(fm_session_load(MAYBE(session), MAYBE(snapshot), size, err), err);
        break;
    }
    case 10: fm_session_resume(MAYBE(session)); break;
    default: fm_session_close(NULL); break;
    }
}

static void call_others(int32_t which, fm_error *err)
{
    static float logits[VOCAB];
    const fm_sampling how = {(float)number(), (float)number(), (float)number(), (int32_t)number()};
    const fm_probe_options probe = {(fm_read_kind)(number() % 6), (int32_t)(number() % 3), (int32_t)(number() % 3), 0, 1, 0, 1};
    fm_selftest_options test = {"none", NULL, (int32_t)number(), 1, 0};
    fm_probe_result result;
    const char *names[8];
    uint64_t rng = 1;
    int32_t id, n = (int32_t)number();

    for (int i = 0; i < VOCAB; i++) logits[i] = noise_bits(&seed) % 50 ? noise(&seed) : (float)NAN;
    switch (which) {
    case 0: check_status(fm_sample(MAYBE(logits), n < VOCAB ? n : VOCAB, MAYBE(&how), MAYBE(&rng), MAYBE(&id), err), err); break;
    case 1: fm_logprob(MAYBE(logits), n < VOCAB ? n : VOCAB, (int32_t)number()); break;
    case 2: CHECK(fm_devices(MAYBE(names), n < 8 ? n : 8) >= 1); break;
    case 3:
        if (noise_bits(&seed) % 2) test.device = NULL;
        check_status(fm_selftest(MAYBE(&test), MAYBE(tell), NULL, err), err);
        break;
    case 4:
        check_status(fm_probe_reads(MAYBE(manifest), length, MAYBE(directory), MAYBE(&probe), MAYBE(&result), err), err);
        break;
    default: CHECK(fm_status_text((fm_status)number()) != NULL); break;
    }
}

int main(void)
{
    static float want[64 * VOCAB], got[64 * VOCAB];
    fm_model_options o = {.threads = 1, .prefill_rows = 64};
    fm_session *session = NULL;
    fm_error err = {0};

    CHECK(mkdtemp(directory) != NULL);
    write_model();
    fm_model *model = open_model(&o);
    CHECK(fm_session_open(model, &session, &err) == FM_OK && run(session, 64, 64, want, &err) == FM_OK);
    for (int32_t i = 0; i < ROUNDS; i++) {
        fm_error why = {0}, *said = MAYBE(&why);
        call_model(model, i % 8, said);
        call_session(model, session, i % 12, said ? memset(said, 0, sizeof *said) : NULL);
        call_others(i % 6, said ? memset(said, 0, sizeof *said) : NULL);
    }
    fm_session_reset(session);
    fm_status status = run(session, 64, 64, got, &err);
    if (status == FM_CANCELLED) status = run(session, 64, 64, got, &err); /* that was asked for */
    CHECK_THAT(status == FM_OK && memcmp(got, want, sizeof got) == 0, "%s", err.message);
    fm_session_close(session);
    CHECK(fm_model_close(model) == FM_OK);
    remove_model();
    return done();
}
