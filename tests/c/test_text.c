/* The manifest's grammar and the status texts: what is read, what is refused and with which words, in any locale. */
#include <locale.h>

#include "base/hash.h"
#include "base/text.h"
#include "check.h"

static fm_text text_of(const char *text, size_t length)
{
    return (fm_text){"manifest", text, text + length, 0};
}

/* The first line of a text that lies in a block of exactly its size, so that a sanitizer sees every byte beyond. */
typedef struct {
    char *block;
    fm_line line;
    bool more;
    fm_status status;
    fm_error err;
} first;

static first read_first(const char *text, size_t length)
{
    first f = {0};
    f.block = malloc(length ? length : 1);
    memcpy(f.block, text, length);
    fm_text t = text_of(f.block, length);
    f.status = fm_text_next(&t, &f.line, &f.more, &f.err);
    return f;
}

static void test_lines(void)
{
    const char *text = "# a comment\n\n   \nlayer  index=3 mixer=delta \n  # indented\nend";
    fm_text t = text_of(text, strlen(text));
    fm_line line;
    bool more = false, has;
    fm_span span;
    int32_t n;

    CHECK(fm_text_next(&t, &line, &more, NULL) == FM_OK && more && line.number == 4 && line.fields == 2);
    CHECK(fm_span_is(line.keyword, "layer") && !fm_span_is(line.keyword, "laye") && !fm_span_is(line.keyword, "layers"));
    CHECK(fm_line_i32(&line, "index", 0, 9, &n, NULL) == FM_OK && n == 3);
    CHECK(fm_line_done(&line, NULL) == FM_FORMAT); /* mixer was not asked for */
    CHECK(fm_line_has(&line, "mixer", &has) == FM_OK && has && fm_line_done(&line, NULL) == FM_FORMAT);
    CHECK(fm_line_has(&line, "mixe", &has) == FM_OK && !has);
    CHECK(fm_line_span(&line, "mixer", &span, NULL) == FM_OK && fm_span_is(span, "delta"));
    CHECK(fm_line_done(&line, NULL) == FM_OK);
    CHECK(fm_text_next(&t, &line, &more, NULL) == FM_OK && more && line.number == 6 && line.fields == 0);
    CHECK(fm_text_next(&t, &line, &more, NULL) == FM_OK && !more);
    CHECK(fm_text_next(&t, &line, &more, NULL) == FM_OK && !more);
}

#define REFUSED(text, words) refused(text, sizeof(text) - 1, words)

static void refused(const char *text, size_t length, const char *words)
{
    first f = read_first(text, length);
    CHECK_THAT(f.status == FM_FORMAT && strstr(f.err.message, "manifest line 1: ") && strstr(f.err.message, words),
               "\"%s\": %d %s", text, f.status, f.err.message);
    free(f.block);
}

static void test_refused_lines(void)
{
    char many[400] = "k";
    REFUSED("k word", "\"word\" is not key=value");
    REFUSED("k =1", "is not key=value");
    REFUSED("k a=1 b=2 a=1", "a is given twice");
    REFUSED("k a=\0", "byte 5 is a control character");
    REFUSED("k\ta=1", "byte 2 is a control character");
    REFUSED("k a=1\r\n", "control character");
    REFUSED("k a=\x7f", "control character");
    for (int i = 0; i < FM_TEXT_FIELDS; i++) sprintf(many + strlen(many), " f%d=1", i);
    first f = read_first(many, strlen(many));
    CHECK(f.status == FM_OK && f.line.fields == FM_TEXT_FIELDS);
    free(f.block);
    strcat(many, " g=1");
    refused(many, strlen(many), "more than 32 fields");
}

/* ---- numbers ------------------------------------------------------------------------------------ */

static fm_line line_of(const char *value, char *room, size_t size)
{
    fm_line line;
    bool more;
    int length = snprintf(room, size, "k v=%s", value);
    fm_text t = text_of(room, (size_t)length);
    CHECK(fm_text_next(&t, &line, &more, NULL) == FM_OK && more);
    return line;
}

static void test_whole_numbers(void)
{
    const char *bad[] = {"+1", "0x1", "1.0", "1e3", "18446744073709551616", "99999999999999999999999", "1,2", "-", "--1", "x"};
    char room[200];
    uint64_t u = 7;
    int32_t i = 7;
    fm_error err = {0};

    fm_line line = line_of("18446744073709551615", room, sizeof room);
    CHECK(fm_line_u64(&line, "v", 0, UINT64_MAX, &u, &err) == FM_OK && u == UINT64_MAX);
    CHECK(fm_line_i32(&line, "v", INT32_MIN, INT32_MAX, &i, &err) == FM_FORMAT && i == 7);
    line = line_of("-2147483648", room, sizeof room);
    CHECK(fm_line_i32(&line, "v", INT32_MIN, INT32_MAX, &i, &err) == FM_OK && i == INT32_MIN);
    CHECK(fm_line_u64(&line, "v", 0, UINT64_MAX, &u, &err) == FM_FORMAT && u == UINT64_MAX);
    line = line_of("10", room, sizeof room);
    CHECK(fm_line_u64(&line, "v", 10, 10, &u, &err) == FM_OK && u == 10);
    CHECK(fm_line_u64(&line, "v", 11, 20, &u, &err) == FM_FORMAT && strstr(err.message, "v=10 is not in 11 .. 20"));
    CHECK(fm_line_u64(&line, "v", 0, 9, &u, &err) == FM_FORMAT);
    CHECK(fm_line_i32(&line, "w", 0, 9, &i, &err) == FM_FORMAT && strstr(err.message, "k has no w"));
    CHECK(fm_line_i32_or(&line, "w", 0, 9, 99, &i, &err) == FM_OK && i == 99);
    CHECK(fm_line_i32_or(&line, "v", 0, 9, 99, &i, &err) == FM_FORMAT); /* there, and wrong: no way around it */
    CHECK(fm_line_u64_or(&line, "w", 0, 9, 98, &u, &err) == FM_OK && u == 98);
    for (size_t b = 0; b < sizeof bad / sizeof *bad; b++) {
        line = line_of(bad[b], room, sizeof room);
        CHECK_THAT(fm_line_u64(&line, "v", 0, UINT64_MAX, &u, &err) == FM_FORMAT && u == 98, "%s", bad[b]);
        CHECK_THAT(fm_line_i32(&line, "v", INT32_MIN, INT32_MAX, &i, &err) == FM_FORMAT && i == 99, "%s", bad[b]);
    }
    line = line_of("", room, sizeof room);
    CHECK(fm_line_u64(&line, "v", 0, 9, &u, &err) == FM_FORMAT && strstr(err.message, "v is empty"));
}

/* What %.17g writes comes back to the bit. */
static void test_doubles(void)
{
    const char *bad[] = {"nan",   "inf",  "-inf",  "1e309", "1e99999999999999999999",
                         "0x1p3", "1..2", "1.2.3", "e5",    "1e",
                         "1e+",   ".",    "-",     "1,5",   "+1",
                         "1 ",    "1f",   "--1",   "1-1",   "1e5.5"};
    char room[200], written[40];
    double got = 7;
    uint64_t seed = 5;

    for (int i = 0; i < 20000; i++) {
        union {
            uint64_t bits;
            double value;
        } x = {.bits = noise_bits(&seed)};
        if (!isfinite(x.value)) continue;
        snprintf(written, sizeof written, "%.17g", x.value);
        for (char *c = written; *c; c++) *c = *c == ',' ? '.' : *c; /* what the locale made of it */
        fm_line line = line_of(written, room, sizeof room);
        CHECK_THAT(fm_line_f64(&line, "v", &got, NULL) == FM_OK && memcmp(&got, &x.value, 8) == 0, "%s", written);
    }
    got = 7;
    for (size_t b = 0; b < sizeof bad / sizeof *bad; b++) {
        fm_line line = line_of(bad[b][1] == ' ' ? "1_" : bad[b], room, sizeof room);
        CHECK_THAT(fm_line_f64(&line, "v", &got, NULL) == FM_FORMAT && got == 7, "%s", bad[b]);
    }
}

/* As many digits as there is room for, and no more. */
static void test_long_numbers(void)
{
    char digits[256], room[sizeof digits + 8];
    double got;
    for (size_t n = 1; n < sizeof digits; n++) {
        memset(digits, '0', n);
        digits[n - 1] = '7';
        digits[n] = 0;
        fm_line line = line_of(digits, room, sizeof room);
        fm_status status = fm_line_f64(&line, "v", &got, NULL);
        CHECK_THAT(status == (n < 56 ? FM_OK : FM_FORMAT) && (status != FM_OK || got == 7), "%zu digits", n);
    }
}

static void test_lists(void)
{
    char room[200];
    double x[3];
    uint64_t h[2];
    int32_t got = 7;
    const char *bad[] = {"1,2", "1,2,3,", "1,2,3,4", ",1,2", "1,,3", "1,2,"};
    const char *bad_hex[] = {"0123456789abcdef,",
                             ",0123456789abcdef",
                             "0123456789abcde",
                             "0123456789abcdef0",
                             "0123456789ABCDEF",
                             "0123456789abcdeg",
                             "0123456789abcdef,0123456789abcdef,0123456789abcdef"};

    fm_line line = line_of("1,-2.5,3e-2", room, sizeof room);
    CHECK(fm_line_f64_list(&line, "v", 3, x, NULL) == FM_OK && x[0] == 1 && x[1] == -2.5 && x[2] == 0.03);
    for (size_t b = 0; b < sizeof bad / sizeof *bad; b++) {
        line = line_of(bad[b], room, sizeof room);
        CHECK_THAT(fm_line_f64_list(&line, "v", 3, x, NULL) == FM_FORMAT, "%s", bad[b]);
    }
    line = line_of("0123456789abcdef,fedcba9876543210", room, sizeof room);
    CHECK(fm_line_hex64_list(&line, "v", 2, h, &got, NULL) == FM_OK && got == 2);
    CHECK(h[0] == 0x0123456789abcdefu && h[1] == 0xfedcba9876543210u);
    line = line_of("0123456789abcdef", room, sizeof room);
    CHECK(fm_line_hex64_list(&line, "v", 2, h, &got, NULL) == FM_OK && got == 1);
    for (size_t b = 0; b < sizeof bad_hex / sizeof *bad_hex; b++) {
        line = line_of(bad_hex[b], room, sizeof room);
        CHECK_THAT(fm_line_hex64_list(&line, "v", 2, h, &got, NULL) == FM_FORMAT && got == 1, "%s", bad_hex[b]);
    }
}

/* Any bytes at all: an answer, and no byte read beyond the text. */
static void test_noise(void)
{
    const char some[] = "k =,1a\n#.-e\0";
    uint64_t seed = 3;
    for (int round = 0; round < 20000; round++) {
        char text[48];
        size_t length = noise_bits(&seed) % sizeof text;
        for (size_t i = 0; i < length; i++) text[i] = some[noise_bits(&seed) % sizeof some];
        first f = read_first(text, length);
        double x[2];
        uint64_t u;
        int32_t n;
        fm_error err;
        CHECK(f.status == FM_OK || f.status == FM_FORMAT);
        if (f.status == FM_OK && f.more) {
            fm_line_f64_list(&f.line, "a", 2, x, &err);
            fm_line_hex64_list(&f.line, "a", 1, &u, &n, &err);
            fm_line_i32(&f.line, "1", 0, 9, &n, &err);
            fm_line_done(&f.line, &err);
        }
        free(f.block);
    }
}

/* ---- the rest of the ground floor -------------------------------------------------------------- */

static void test_status(void)
{
    fm_error err = {0};
    char room[2000];
    memset(room, 'x', sizeof room - 1);
    room[sizeof room - 1] = 0;
    CHECK(fm_fail(NULL, FM_IO, "%s", room) == FM_IO);
    CHECK(fm_fail(&err, FM_FULL, "%s", room) == FM_FULL && err.status == FM_FULL &&
          strlen(err.message) == sizeof err.message - 1);
    CHECK(fm_fail(&err, FM_IO, "file %d", 5) == FM_IO && strcmp(err.message, "file 5") == 0);
    for (int a = FM_OK; a >= FM_NUMERIC; a--)
        for (int b = FM_OK; b > a; b--) CHECK(strcmp(fm_status_text((fm_status)a), fm_status_text((fm_status)b)) != 0);
}

int main(void)
{
    const char *comma[] = {"C", "de_DE.UTF-8", "fr_FR.UTF-8", "de_DE"};
    test_lines();
    test_refused_lines();
    test_whole_numbers();
    test_long_numbers();
    test_lists();
    test_noise();
    test_status();
    for (size_t i = 0; i < sizeof comma / sizeof *comma; i++)
        if (setlocale(LC_ALL, comma[i])) test_doubles();
    CHECK(fm_xxh3("", 0) == 0x2d06800538d394c2u); /* the value of XXH3's own specification */
    return done();
}
