/* One layer: mixer, then feed-forward; and where its time went. */
#include "base/clock.h"
#include "session/step.h"

static uint64_t waited(const fm_step *s)
{
    fm_store_stats stats = {0};
    if (s->model->store) fm_expert_store_describe(s->model->store, &stats);
    return stats.wait_ns;
}

fm_status fm_layer(fm_step *s, fm_error *err)
{
    fm_layer_ns *time = &s->model->layer_ns[s->layer];
    uint64_t started = fm_now_ns(), routed = time->route, before = waited(s);
    fm_status status = FM_OK;

    if (fm_step_spec(s)->mixer == FM_MIXER_ATTENTION) fm_mixer_attention(s);
    else fm_mixer_delta(s);
    uint64_t mixed = fm_now_ns();

    if (fm_step_spec(s)->ffn == FM_FFN_MOE) status = fm_ffn_moe(s, err);
    else fm_ffn_dense(s);
    uint64_t wait = waited(s) - before;
    time->mixer += mixed - started;
    time->wait += wait;
    time->ffn += fm_now_ns() - mixed - wait - (time->route - routed);
    return status;
}
