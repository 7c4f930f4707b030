/* One layer: mixer, then feed-forward. */
#include "session/step.h"

fm_status fm_layer(fm_step *s, fm_error *err)
{
    if (fm_step_spec(s)->mixer == FM_MIXER_ATTENTION) fm_mixer_attention(s);
    else fm_mixer_delta(s);

    if (fm_step_spec(s)->ffn == FM_FFN_MOE) return fm_ffn_moe(s, err);
    fm_ffn_dense(s);
    return FM_OK;
}
