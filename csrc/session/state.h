/* What a session remembers: KV caches that grow, recurrent state in two copies. */
#ifndef FM_STATE_H
#define FM_STATE_H

#include "session/step.h"

/* Allocate the recurrent state and account for it. The caller has the model's turn. */
fm_status fm_state_open(fm_session *session, fm_error *err);
void fm_state_close(fm_session *session);

/* Room for `tokens` tokens in every KV cache. */
fm_status fm_state_grow(fm_session *session, int32_t tokens, fm_error *err);

/* As at the beginning of a sequence. */
void fm_state_reset(fm_session *session);

#endif
