/* Lines of "keyword key=value key=value" with line numbers: the manifest's grammar. */
#ifndef FM_TEXT_H
#define FM_TEXT_H

#include <stdbool.h>

#include "base/status.h"

#define FM_TEXT_FIELDS 32

typedef struct {
    const char *at;
    size_t length;
} fm_span;

/* One line, cut into its keyword and fields. Spans point into the text. */
typedef struct {
    const char *name; /* of the text, for messages */
    int32_t number;   /* of the line, from 1 */
    fm_span keyword;
    int32_t fields;
    fm_span key[FM_TEXT_FIELDS], value[FM_TEXT_FIELDS];
    uint64_t used; /* bit i: field i was asked for */
} fm_line;

/* Walks a text; `name` is used in messages ("manifest"). */
typedef struct {
    const char *name, *at, *end;
    int32_t number;
} fm_text;

/* The next line that is not blank and not a # comment. *more = false at the end.
 * FM_FORMAT: no keyword, a field without '=', a key twice, too many fields, a NUL or control byte. */
fm_status fm_text_next(fm_text *text, fm_line *line, bool *more, fm_error *err);

bool fm_span_is(fm_span span, const char *word);

/* Values of a field. FM_FORMAT names line, key and text when it is missing,
 * not a number, or out of [min, max]. The _or forms give `otherwise` when missing. */
fm_status fm_line_span(fm_line *line, const char *key, fm_span *out, fm_error *err);
fm_status fm_line_u64(fm_line *line, const char *key, uint64_t min, uint64_t max, uint64_t *out, fm_error *err);
fm_status fm_line_u64_or(fm_line *line, const char *key, uint64_t min, uint64_t max, uint64_t otherwise, uint64_t *out,
                         fm_error *err);
fm_status fm_line_i32(fm_line *line, const char *key, int32_t min, int32_t max, int32_t *out, fm_error *err);
fm_status fm_line_i32_or(fm_line *line, const char *key, int32_t min, int32_t max, int32_t otherwise, int32_t *out,
                         fm_error *err);
fm_status fm_line_f64(fm_line *line, const char *key, double *out, fm_error *err); /* finite */
fm_status fm_line_has(fm_line *line, const char *key, bool *out);

/* Comma-separated values of one field; exactly `n`, or up to `n` with the count in *got. */
fm_status fm_line_f64_list(fm_line *line, const char *key, int32_t n, double *out, fm_error *err);
fm_status fm_line_hex64_list(fm_line *line, const char *key, int32_t n, uint64_t *out, int32_t *got, fm_error *err);

/* FM_FORMAT if some field was never asked for: an unknown word is an error. */
fm_status fm_line_done(const fm_line *line, fm_error *err);

/* FM_FORMAT with the line number in front of the message. */
fm_status fm_line_fail(const fm_line *line, fm_error *err, const char *format, ...) __attribute__((format(printf, 3, 4)));

#endif
