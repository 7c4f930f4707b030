/* The manifest's grammar, read without trust: every span stays inside the text, every number inside its range. */
#include "base/text.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

fm_status fm_line_fail(const fm_line *line, fm_error *err, const char *format, ...)
{
    char what[400];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(what, sizeof what, format, arguments);
    va_end(arguments);
    return fm_fail(err, FM_FORMAT, "%s line %d: %s", line->name, line->number, what);
}

bool fm_span_is(fm_span span, const char *word)
{
    return span.length == strlen(word) && memcmp(span.at, word, span.length) == 0;
}

/* ---- lines -------------------------------------------------------------------- */

static bool same(fm_span a, fm_span b)
{
    return a.length == b.length && memcmp(a.at, b.at, a.length) == 0;
}

static fm_status cut_field(fm_line *line, const char *at, const char *end, fm_error *err)
{
    const char *equals = memchr(at, '=', (size_t)(end - at));
    if (!equals || equals == at)
        return fm_line_fail(line, err, "\"%.*s\" is not key=value", (int)(end - at < 60 ? end - at : 60), at);
    if (line->fields == FM_TEXT_FIELDS) return fm_line_fail(line, err, "more than %d fields", FM_TEXT_FIELDS);
    fm_span key = {at, (size_t)(equals - at)};
    for (int32_t i = 0; i < line->fields; i++)
        if (same(line->key[i], key)) return fm_line_fail(line, err, "%.*s is given twice", (int)key.length, key.at);
    line->key[line->fields] = key;
    line->value[line->fields++] = (fm_span){equals + 1, (size_t)(end - equals - 1)};
    return FM_OK;
}

static fm_status cut_line(fm_line *line, const char *at, const char *end, fm_error *err)
{
    for (const char *c = at; c < end; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            return fm_line_fail(line, err, "byte %d is a control character", (int)(c - at) + 1);
    bool first = true;
    while (at < end) {
        const char *stop = memchr(at, ' ', (size_t)(end - at));
        if (!stop) stop = end;
        if (stop > at) {
            if (first) line->keyword = (fm_span){at, (size_t)(stop - at)};
            else FM_TRY(cut_field(line, at, stop, err));
            first = false;
        }
        at = stop < end ? stop + 1 : end;
    }
    return FM_OK;
}

static bool is_blank(const char *at, const char *end)
{
    while (at < end && *at == ' ') at++;
    return at == end || *at == '#';
}

fm_status fm_text_next(fm_text *text, fm_line *line, bool *more, fm_error *err)
{
    while (text->at < text->end) {
        const char *at = text->at, *end = memchr(at, '\n', (size_t)(text->end - at));
        if (!end) end = text->end;
        text->at = end < text->end ? end + 1 : end;
        text->number++;
        if (is_blank(at, end)) continue;
        memset(line, 0, sizeof *line);
        line->name = text->name;
        line->number = text->number;
        *more = true;
        return cut_line(line, at, end, err);
    }
    *more = false;
    return FM_OK;
}

/* ---- fields --------------------------------------------------------------------- */

static int32_t find(fm_line *line, const char *key)
{
    for (int32_t i = 0; i < line->fields; i++)
        if (fm_span_is(line->key[i], key)) {
            line->used |= (uint64_t)1 << i;
            return i;
        }
    return -1;
}

fm_status fm_line_has(fm_line *line, const char *key, bool *out)
{
    *out = false;
    for (int32_t i = 0; i < line->fields; i++) *out = *out || fm_span_is(line->key[i], key);
    return FM_OK;
}

fm_status fm_line_span(fm_line *line, const char *key, fm_span *out, fm_error *err)
{
    int32_t i = find(line, key);
    if (i < 0) return fm_line_fail(line, err, "%.*s has no %s", (int)line->keyword.length, line->keyword.at, key);
    if (!line->value[i].length) return fm_line_fail(line, err, "%s is empty", key);
    *out = line->value[i];
    return FM_OK;
}

static fm_status bad_number(const fm_line *line, const char *key, fm_span s, const char *want, fm_error *err)
{
    return fm_line_fail(line, err, "%s=%.*s is not %s", key, (int)(s.length < 40 ? s.length : 40), s.at, want);
}

static bool parse_u64(fm_span s, uint64_t *out)
{
    uint64_t n = 0;
    for (size_t i = 0; i < s.length; i++) {
        if (s.at[i] < '0' || s.at[i] > '9') return false;
        if (__builtin_mul_overflow(n, 10u, &n) || __builtin_add_overflow(n, (uint64_t)(s.at[i] - '0'), &n)) return false;
    }
    *out = n;
    return s.length > 0;
}

fm_status fm_line_u64(fm_line *line, const char *key, uint64_t min, uint64_t max, uint64_t *out, fm_error *err)
{
    fm_span s;
    uint64_t n;
    FM_TRY(fm_line_span(line, key, &s, err));
    if (!parse_u64(s, &n)) return bad_number(line, key, s, "a whole number", err);
    if (n < min || n > max)
        return fm_line_fail(line, err, "%s=%llu is not in %llu .. %llu", key, (unsigned long long)n, (unsigned long long)min,
                            (unsigned long long)max);
    *out = n;
    return FM_OK;
}

fm_status fm_line_u64_or(fm_line *line, const char *key, uint64_t min, uint64_t max, uint64_t otherwise, uint64_t *out,
                         fm_error *err)
{
    if (find(line, key) >= 0) return fm_line_u64(line, key, min, max, out, err);
    *out = otherwise;
    return FM_OK;
}

fm_status fm_line_i32(fm_line *line, const char *key, int32_t min, int32_t max, int32_t *out, fm_error *err)
{
    fm_span s;
    uint64_t n;
    FM_TRY(fm_line_span(line, key, &s, err));
    bool negative = s.at[0] == '-';
    if (negative) s = (fm_span){s.at + 1, s.length - 1};
    if (!parse_u64(s, &n)) return bad_number(line, key, s, "a whole number", err);
    int64_t value = n > INT32_MAX ? (int64_t)INT32_MAX + 1 : (int64_t)n;
    if (negative) value = -value;
    if (value < min || value > max)
        return fm_line_fail(line, err, "%s=%s%.*s is not in %d .. %d", key, negative ? "-" : "",
                            (int)(s.length < 40 ? s.length : 40), s.at, min, max);
    *out = (int32_t)value;
    return FM_OK;
}

fm_status fm_line_i32_or(fm_line *line, const char *key, int32_t min, int32_t max, int32_t otherwise, int32_t *out, fm_error *err)
{
    if (find(line, key) >= 0) return fm_line_i32(line, key, min, max, out, err);
    *out = otherwise;
    return FM_OK;
}

/* A decimal number, whatever the locale's decimal point: digits, then a power of ten. */
static bool parse_f64(fm_span s, double *out)
{
    char text[64];
    size_t length = 0;
    bool digits = false;
    if (s.length == 0 || s.length >= sizeof text - 8) return false;
    long power = 0;
    for (size_t i = 0; i < s.length; i++) {
        char c = s.at[i];
        if (c >= '0' && c <= '9') digits = true;
        else if (c == 'e' || c == 'E') {
            fm_span tail = {s.at + i + 1, s.length - i - 1};
            bool negative = tail.length && tail.at[0] == '-';
            if (tail.length && (tail.at[0] == '-' || tail.at[0] == '+')) tail = (fm_span){tail.at + 1, tail.length - 1};
            uint64_t n;
            if (!digits || !parse_u64(tail, &n) || n > 400) return false;
            power += negative ? -(long)n : (long)n;
            break;
        } else if (c == '.') {
            size_t j = i + 1;
            while (j < s.length && s.at[j] >= '0' && s.at[j] <= '9') j++;
            power -= (long)(j - i - 1);
            if (memchr(s.at, '.', i)) return false;
            continue;
        } else if (!(c == '-' && i == 0)) return false;
        text[length++] = c;
    }
    if (!digits) return false;
    snprintf(text + length, sizeof text - length, "e%ld", power);
    double value = strtod(text, NULL);
    if (!isfinite(value)) return false;
    *out = value;
    return true;
}

fm_status fm_line_f64(fm_line *line, const char *key, double *out, fm_error *err)
{
    fm_span s;
    FM_TRY(fm_line_span(line, key, &s, err));
    if (!parse_f64(s, out)) return bad_number(line, key, s, "a finite number", err);
    return FM_OK;
}

/* ---- lists ------------------------------------------------------------------------ */

/* The part of *rest before the next comma; what follows stays in *rest. *more: a comma promised another item. */
static fm_span next_item(fm_span *rest, bool *more)
{
    const char *comma = memchr(rest->at, ',', rest->length);
    fm_span item = {rest->at, comma ? (size_t)(comma - rest->at) : rest->length};
    size_t taken = item.length + (comma ? 1 : 0);
    *more = comma != NULL;
    *rest = (fm_span){rest->at + taken, rest->length - taken};
    return item;
}

fm_status fm_line_f64_list(fm_line *line, const char *key, int32_t n, double *out, fm_error *err)
{
    fm_span rest;
    bool more = false;
    FM_TRY(fm_line_span(line, key, &rest, err));
    for (int32_t i = 0; i < n; i++) {
        fm_span item = next_item(&rest, &more);
        if (!parse_f64(item, &out[i]))
            return fm_line_fail(line, err, "%s: number %d of %d is missing or not finite", key, i + 1, n);
    }
    if (more) return fm_line_fail(line, err, "%s has more than %d numbers", key, n);
    return FM_OK;
}

static bool parse_hex64(fm_span s, uint64_t *out)
{
    uint64_t n = 0;
    if (s.length != 16) return false;
    for (size_t i = 0; i < 16; i++) {
        char c = s.at[i];
        int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
        if (digit < 0) return false;
        n = n << 4 | (unsigned)digit;
    }
    *out = n;
    return true;
}

fm_status fm_line_hex64_list(fm_line *line, const char *key, int32_t n, uint64_t *out, int32_t *got, fm_error *err)
{
    fm_span rest;
    bool more;
    int32_t i = 0;
    FM_TRY(fm_line_span(line, key, &rest, err));
    do {
        fm_span item = next_item(&rest, &more);
        if (i == n) return fm_line_fail(line, err, "%s has more than %d numbers", key, n);
        if (!parse_hex64(item, &out[i++]))
            return fm_line_fail(line, err, "%s: \"%.*s\" is not 16 hex digits", key, (int)(item.length < 40 ? item.length : 40),
                                item.at);
    } while (more);
    *got = i;
    return FM_OK;
}

fm_status fm_line_done(const fm_line *line, fm_error *err)
{
    for (int32_t i = 0; i < line->fields; i++)
        if (!(line->used >> i & 1))
            return fm_line_fail(line, err, "%.*s has no field %.*s", (int)line->keyword.length, line->keyword.at,
                                (int)line->key[i].length, line->key[i].at);
    return FM_OK;
}
