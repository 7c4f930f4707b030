/* A trial keeps what is faster, and asks again. */
#include "check.h"
#include "store/trial.h"

/* Steps with the thing take `with`, others `without`: how many of the next n had it. */
static int32_t run(fm_trial *t, int32_t n, uint64_t with, uint64_t without)
{
    int32_t on = 0;
    for (int32_t i = 0; i < n; i++) {
        bool does = fm_trial_on(t);
        on += does;
        fm_trial_took(t, does ? with : without);
    }
    return on;
}

int main(void)
{
    fm_trial pays = {0}, wastes = {0};

    CHECK(run(&pays, 32, 90, 100) == 16); /* half of a trial has it */
    CHECK(run(&pays, 128, 90, 100) == 128);
    CHECK(run(&wastes, 32, 101, 100) == 16);
    CHECK(run(&wastes, 128, 101, 100) == 0);

    /* the next trial finds that things have changed; its answer holds twice as long */
    CHECK(run(&pays, 32, 110, 100) == 16);
    CHECK(run(&pays, 256, 110, 100) == 0);
    CHECK(run(&pays, 32, 110, 100) == 16);

    /* a machine that slows down steadily favours neither side: there and back */
    fm_trial drift = {0};
    uint64_t sum[2] = {0, 0};
    for (uint64_t i = 0; i < 32; i++) {
        bool does = fm_trial_on(&drift);
        sum[does] += 100 + i;
        fm_trial_took(&drift, 100 + i);
    }
    CHECK(sum[0] == sum[1]);
    return done();
}
