/* Any bytes as lines of fields: numbers are those that the C library reads, or refused. */
#include <math.h>
#include <string.h>

#include "base/text.h"
#include "fuzz.h"
#include "quant/quant.h"

enum { MOST = 5 };

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    return 0;
}

/* What is taken is what strtod takes, to the bit. */
static void check_number(fm_span text, double got)
{
    char copy[128];
    MUST(text.length < sizeof copy && isfinite(got));
    memcpy(copy, text.at, text.length);
    copy[text.length] = '\0';
    char *end;
    double want = strtod(copy, &end);
    MUST(end == copy + text.length && memcmp(&want, &got, sizeof got) == 0);
}

static void check_field(fm_line *line, const char *key)
{
    fm_span text;
    uint64_t u, sums[MOST];
    int32_t i, n;
    double d, list[MOST];
    fm_quant quant;
    char name[32];

    if (fm_line_span(line, key, &text, NULL) != FM_OK) return;
    if (fm_line_u64(line, key, 7, (uint64_t)1 << 40, &u, NULL) == FM_OK) MUST(u >= 7 && u <= (uint64_t)1 << 40);
    if (fm_line_u64_or(line, key, 0, UINT64_MAX, 3, &u, NULL) == FM_OK) MUST(text.at[0] >= '0' && text.at[0] <= '9');
    if (fm_line_i32(line, key, -5, 1000, &i, NULL) == FM_OK) MUST(i >= -5 && i <= 1000);
    if (fm_line_i32_or(line, key, INT32_MIN + 1, INT32_MAX, 3, &i, NULL) == FM_OK && i < 0) MUST(text.at[0] == '-');
    if (fm_line_f64(line, key, &d, NULL) == FM_OK) check_number(text, d);
    for (n = 0; n <= MOST; n++)
        if (fm_line_f64_list(line, key, n, list, NULL) == FM_OK)
            for (i = 0; i < n; i++) MUST(isfinite(list[i]));
    if (fm_line_hex64_list(line, key, MOST, sums, &n, NULL) == FM_OK) MUST(n >= 1 && text.length == (size_t)n * 17 - 1);
    if (fm_quant_parse(text.at, text.length, &quant, NULL) == FM_OK) {
        fm_quant_name(quant, name);
        MUST(fm_span_is(text, name));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fm_text text = {.name = "fuzz", .at = (const char *)data, .end = (const char *)data + size};
    fm_error err = {0};
    fm_line line;
    bool more = true, has;

    while (fm_text_next(&text, &line, &more, &err) == FM_OK && more) {
        MUST(line.keyword.length > 0 && line.fields <= FM_TEXT_FIELDS);
        for (int32_t i = 0; i < line.fields; i++) {
            char key[64];
            if (line.key[i].length >= sizeof key) continue;
            memcpy(key, line.key[i].at, line.key[i].length);
            key[line.key[i].length] = '\0';
            MUST(fm_line_has(&line, key, &has) == FM_OK && has);
            check_field(&line, key);
        }
        if (fm_line_done(&line, &err) != FM_OK) MUST(err.message[0]);
    }
    return 0;
}
