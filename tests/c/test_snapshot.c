/* Saved sessions on a tiny model made here: the bits of an uninterrupted one, every cut and flip refused, all or nothing. */
#include "model/model.h"
#include "tiny_model.h"

enum { LONGEST = 300, AFTER = 40 };

static fm_session *session_of(fm_model *m, int n)
{
    static float out[LONGEST * VOCAB];
    fm_session *s = NULL;
    fm_error err = {0};
    CHECK_THAT(fm_session_open(m, &s, &err) == FM_OK, "%s", err.message);
    CHECK_THAT(run(s, n, 64, out, &err) == FM_OK, "%s", err.message);
    return s;
}

/* Logits of the AFTER tokens that follow. */
static void go_on(fm_session *s, float *out)
{
    int32_t ids[AFTER];
    fm_error err = {0};
    for (int i = 0; i < AFTER; i++) ids[i] = token(i * 3);
    CHECK_THAT(fm_session_eval(s, ids, AFTER, out, AFTER, &err) == FM_OK, "%s", err.message);
}

static uint8_t *saved(fm_session *s, uint64_t *bytes)
{
    fm_error err = {0};
    *bytes = fm_session_snapshot_bytes(s);
    uint8_t *out = must(*bytes);
    CHECK(fm_session_save(s, out, *bytes - 1, &err) == FM_ARGUMENT);
    CHECK_THAT(fm_session_save(s, out, *bytes, &err) == FM_OK, "%s", err.message);
    return out;
}

static void test_same_bits(void)
{
    static float want[AFTER * VOCAB], got[AFTER * VOCAB], many[LONGEST * VOCAB];
    static const int lengths[] = {0, 1, 63, 64, 65, 130, LONGEST};
    for (int kv = FM_KV_F32; kv <= FM_KV_BF16; kv++)
        for (int i = 0; i < 7; i++) {
            fm_model_options o = {.threads = 1, .prefill_rows = 64, .kv = (fm_kv_kind)kv};
            fm_model *m = open_model(&o);
            fm_session *first = session_of(m, lengths[i]), *second = session_of(m, 200); /* has something else */
            fm_error err = {0};
            uint64_t bytes, again;
            uint8_t *snapshot = saved(first, &bytes);
            go_on(first, want);
            CHECK_THAT(fm_session_load(second, snapshot, bytes, &err) == FM_OK, "%s", err.message);
            CHECK(fm_session_position(second) == lengths[i]);
            uint8_t *copy = saved(second, &again);
            CHECK(again == bytes && memcmp(copy, snapshot, bytes) == 0);
            go_on(second, got);
            CHECK_THAT(memcmp(got, want, sizeof got) == 0, "kv %d, %d tokens", kv, lengths[i]);
            free(copy);
            fm_session_reset(second); /* what it had before is not in what is saved */
            CHECK(run(second, lengths[i], 64, many, &err) == FM_OK);
            copy = saved(second, &again);
            CHECK_THAT(again == bytes && memcmp(copy, snapshot, bytes) == 0, "kv %d, %d tokens", kv, lengths[i]);
            free(snapshot);
            free(copy);
            fm_session_close(first);
            fm_session_close(second);
            CHECK(fm_model_close(m) == FM_OK);
        }
}

/* Every byte of the header, and many of the rest; every length. */
static void test_damage(void)
{
    fm_model_options o = {.threads = 1, .prefill_rows = 64};
    fm_model *m = open_model(&o);
    fm_session *s = session_of(m, 70), *other = session_of(m, 10);
    fm_error err = {0};
    uint64_t bytes, before, seed = 5;
    uint8_t *snapshot = saved(s, &bytes), *was = saved(other, &before), *cut = NULL;

    for (uint64_t at = 0; at < bytes; at += at < 100 ? 1 : 97) {
        uint8_t bit = (uint8_t)(1u << noise_bits(&seed) % 8);
        snapshot[at] ^= bit;
        fm_status status = fm_session_load(other, snapshot, bytes, &err);
        CHECK_THAT(status == FM_INTEGRITY || status == FM_FORMAT, "byte %d: %d", (int)at, status);
        snapshot[at] ^= bit;
        cut = must(at); /* its end is the end of the block: a sanitizer sees what is read behind it */
        memcpy(cut, snapshot, at);
        CHECK_THAT(fm_session_load(other, cut, at, &err) == FM_INTEGRITY, "%d bytes", (int)at);
        free(cut);
    }
    uint8_t *now = saved(other, &bytes);
    CHECK(bytes == before && memcmp(now, was, bytes) == 0);
    free(now);
    free(was);
    free(snapshot);
    fm_session_close(s);
    fm_session_close(other);
    CHECK(fm_model_close(m) == FM_OK);
}

static void test_strangers(void)
{
    static const struct {
        fm_model_options options;
        const char *says;
    } other[] = {{{.threads = 1, .prefill_rows = 64, .kv = FM_KV_F32}, "f16"},
                 {{.threads = 1, .prefill_rows = 64, .kv = FM_KV_F16, .experts_per_token = 1}, "experts_per_token"}};
    fm_model_options o = {.threads = 1, .prefill_rows = 64, .kv = FM_KV_F16};
    fm_model *m = open_model(&o);
    fm_session *s = session_of(m, 70);
    fm_error err = {0};
    uint64_t bytes;
    uint8_t *snapshot = saved(s, &bytes);
    for (int i = 0; i < 2; i++) {
        fm_model *stranger = open_model(&other[i].options);
        fm_session *t = session_of(stranger, 20);
        CHECK(fm_session_load(t, snapshot, bytes, &err) == FM_FORMAT && fm_session_position(t) == 20);
        CHECK_THAT(strstr(err.message, other[i].says) != NULL, "%s", err.message);
        fm_session_close(t);
        CHECK(fm_model_close(stranger) == FM_OK);
    }
    free(snapshot);
    fm_session_close(s);
    CHECK(fm_model_close(m) == FM_OK);
}

/* A session that must grow to load is charged for it, or refused with nothing changed. */
static void test_budget(void)
{
    fm_model_options o = {.threads = 1, .prefill_rows = 64};
    fm_model *m = open_model(&o);
    fm_session *s = session_of(m, LONGEST), *other = NULL;
    fm_model_info before, after;
    fm_error err = {0};
    uint64_t bytes;
    uint8_t *snapshot = saved(s, &bytes);

    CHECK(fm_session_open(m, &other, &err) == FM_OK);
    fm_model_describe(m, &before);
    m->options.memory = before.held_bytes - (uint64_t)(before.expert_slots - before.min_expert_slots) * before.expert_bytes;
    CHECK(fm_session_load(other, snapshot, bytes, &err) == FM_BUDGET && fm_session_position(other) == 0);
    CHECK_THAT(strstr(err.message, "sessions would hold"), "%s", err.message);
    fm_model_describe(m, &after);
    CHECK(after.held_bytes == before.held_bytes - (uint64_t)(before.expert_slots - after.expert_slots) * after.expert_bytes);
    m->options.memory = 0;
    CHECK_THAT(fm_session_load(other, snapshot, bytes, &err) == FM_OK, "%s", err.message);
    fm_model_describe(m, &after);
    CHECK(after.held_bytes - before.held_bytes == 512 * after.kv_bytes_per_token);
    free(snapshot);
    fm_session_close(s);
    fm_session_close(other);
    CHECK(fm_model_close(m) == FM_OK);
}

int main(void)
{
    CHECK(mkdtemp(directory) != NULL);
    write_model();
    test_same_bits();
    test_damage();
    test_strangers();
    test_budget();
    remove_model();
    return done();
}
