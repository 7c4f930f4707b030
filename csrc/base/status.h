/* The one error convention: a status and a sentence the caller owns. */
#ifndef FM_STATUS_H
#define FM_STATUS_H

#include "flashmoe.h"

/* Describe a failure in `err` (may be NULL) and return `status`. */
fm_status fm_fail(fm_error *err, fm_status status, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* A pointer that the caller must give. */
#define FM_NEED(pointer, err)                                                     \
    do {                                                                          \
        if (!(pointer)) return fm_fail(err, FM_ARGUMENT, "%s is NULL", #pointer); \
    } while (0)

/* Forward a failure that is already described. */
#define FM_TRY(call)                                      \
    do {                                                  \
        fm_status fm_try_status = (call);                 \
        if (fm_try_status != FM_OK) return fm_try_status; \
    } while (0)

/* The same in a function with a local `status` and a label `undo`. */
#define FM_TRY_UNDO(call)               \
    do {                                \
        status = (call);                \
        if (status != FM_OK) goto undo; \
    } while (0)

#endif
