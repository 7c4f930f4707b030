/* fm_session_*: one sequence, from open to close. */
#include <stdlib.h>

#include "session/state.h"
#include "session/step.h"

fm_status fm_session_open(fm_model *model, fm_session **out, fm_error *err)
{
    FM_NEED(model, err);
    FM_NEED(out, err);
    fm_session *s = calloc(1, sizeof *s);
    if (!s) return fm_fail(err, FM_MEMORY, "no memory for a session");
    s->model = model;
    pthread_mutex_lock(&model->turn);
    fm_status status = fm_state_open(s, err);
    if (status == FM_OK) model->sessions++;
    else fm_state_close(s);
    pthread_mutex_unlock(&model->turn);
    if (status == FM_OK) *out = s;
    else free(s);
    return status;
}

void fm_session_close(fm_session *session)
{
    if (!session) return;
    pthread_mutex_lock(&session->model->turn);
    fm_state_close(session);
    session->model->sessions--;
    pthread_mutex_unlock(&session->model->turn);
    free(session);
}

int32_t fm_session_position(const fm_session *session)
{
    return session ? session->position : 0;
}

void fm_session_reset(fm_session *session)
{
    if (!session) return;
    pthread_mutex_lock(&session->model->turn);
    fm_state_reset(session);
    pthread_mutex_unlock(&session->model->turn);
}

void fm_session_cancel(fm_session *session)
{
    if (session) atomic_store(&session->cancel, 1);
}

void fm_session_resume(fm_session *session)
{
    if (session) atomic_store(&session->cancel, 0);
}

void fm_session_describe(const fm_session *session, fm_session_stats *out)
{
    if (session && out) *out = session->stats;
}
