/* Texts of the statuses, and the one way to describe a failure. */
#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>

fm_status fm_fail(fm_error *err, fm_status status, const char *format, ...)
{
    if (!err) return status;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(err->message, sizeof err->message, format, arguments);
    va_end(arguments);
    err->status = status;
    return status;
}

const char *fm_status_text(fm_status status)
{
    switch (status) {
#define X(name, code, text) \
    case FM_##name: return text;
        FM_STATUS_MAP(X)
#undef X
    }
    return "an unknown status";
}
