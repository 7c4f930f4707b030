/* Which slot goes next: by lists and heap, against the order written out. */
#include "check.h"
#include "store/evict.h"

enum { SLOTS = 40 };

static bool busy[SLOTS];

static bool is_busy(const void *context, int32_t slot)
{
    (void)context;
    return busy[slot];
}

static fm_evict *open_evict(fm_evict_kind kind, int32_t slots)
{
    fm_evict *e;
    CHECK(fm_evict_open(kind, slots, &e, NULL) == FM_OK);
    return e;
}

static int32_t choose(const fm_evict *e)
{
    return fm_evict_choose(e, is_busy, NULL, false);
}

static void test_order(void)
{
    fm_evict *e = open_evict(FM_EVICT_LRU, 4);
    for (int32_t i = 0; i < 4; i++) {
        CHECK(choose(e) == i); /* empty ones first */
        fm_evict_fill(e, i);
        CHECK(fm_evict_is_fresh(e, i));
    }
    CHECK(choose(e) == -1 && fm_evict_choose(e, is_busy, NULL, true) == 0 && fm_evict_fresh(e) == 4);
    for (int32_t i = 0; i < 3; i++) fm_evict_use(e, i, 1, false, 0);
    CHECK(choose(e) == 0);
    fm_evict_use(e, 0, 2, false, 0);
    CHECK(choose(e) == 1);
    fm_evict_stage(e, 3); /* staged ones before those that are kept */
    CHECK(choose(e) == 3);
    busy[3] = busy[1] = true;
    CHECK(choose(e) == 2);
    busy[3] = busy[1] = false;
    fm_evict_empty(e, 2);
    CHECK(choose(e) == 2);
    fm_evict_empty(e, 3);
    fm_evict_resize(e, 2);
    CHECK(choose(e) == 1);
    fm_evict_resize(e, 4);
    CHECK(choose(e) >= 2);
    fm_evict_close(e);
}

/* A sweep over more than there is leaves what is kept, whatever the policy. */
static void test_scan(void)
{
    for (fm_evict_kind kind = FM_EVICT_LRU; kind <= FM_EVICT_STATIC; kind++) {
        fm_evict *e = open_evict(kind, SLOTS);
        for (int32_t i = 0; i < SLOTS; i++) {
            fm_evict_fill(e, choose(e));
            fm_evict_use(e, i, 1, true, 8);
        }
        bool gone[SLOTS] = {false};
        int32_t different = 0;
        for (int32_t i = 0; i < 50; i++) {
            int32_t slot = choose(e);
            different += !gone[slot];
            gone[slot] = true;
            fm_evict_empty(e, slot);
            fm_evict_fill(e, slot);
            fm_evict_use(e, slot, 1, true, 0);
        }
        CHECK_THAT(different <= 10, "kind %d: %d slots", (int)kind, different);
        fm_evict_close(e);
    }
}

/* LFU against looking at every slot. */
static void test_least_used(void)
{
    fm_evict *e = open_evict(FM_EVICT_LFU, SLOTS);
    uint64_t uses[SLOTS] = {0}, used[SLOTS] = {0}, clock = 0, seed = 3;
    for (int32_t i = 0; i < SLOTS; i++) {
        fm_evict_fill(e, i);
        fm_evict_use(e, i, uses[i] = 1, false, 0);
        used[i] = ++clock;
    }
    for (int round = 0; round < 3000; round++) {
        int32_t slot = (int32_t)(noise_bits(&seed) % SLOTS), best = -1;
        if (noise_bits(&seed) % 8 == 0) {
            uses[slot] = 0;
            fm_evict_empty(e, slot);
            fm_evict_fill(e, slot);
        }
        fm_evict_use(e, slot, ++uses[slot], false, 0);
        used[slot] = ++clock;
        for (int32_t i = 0; i < SLOTS; i++) busy[i] = noise_bits(&seed) % 3 == 0;
        for (int32_t i = 0; i < SLOTS; i++)
            if (!busy[i] && (best < 0 || uses[i] < uses[best] || (uses[i] == uses[best] && used[i] < used[best]))) best = i;
        CHECK(choose(e) == best);
    }
    memset(busy, 0, sizeof busy);
    fm_evict_close(e);
}

/* What was used twice goes after what was used once. */
static void test_segments(void)
{
    fm_evict *e = open_evict(FM_EVICT_SLRU, 5);
    for (int32_t i = 0; i < 5; i++) {
        fm_evict_fill(e, i);
        fm_evict_use(e, i, 1, false, 0);
    }
    fm_evict_use(e, 0, 2, false, 0);
    fm_evict_use(e, 1, 2, false, 0);
    CHECK(choose(e) == 2);
    for (int32_t i = 2; i < 5; i++) fm_evict_use(e, i, 2, false, 0); /* five fifths do not fit: 0 is back on probation */
    CHECK(choose(e) == 0);
    fm_evict_close(e);
}

int main(void)
{
    test_order();
    test_scan();
    test_least_used();
    test_segments();
    return done();
}
