/*
 * The Metal device on the fake one: every verb against the scalar CPU, its life, and what it says of failures.
 *     device_check selftest|quick|large|life|failures
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/metal/metal_ops.h"
#include "fake_metal.h"

static int failures;

#define CHECK(what)                                                          \
    do {                                                                     \
        if (!(what)) failures++, printf("%d: %s does not hold\n", __LINE__, #what); \
    } while (0)

/* ---- every verb ------------------------------------------------------------------ */

static void tell(void *context, const fm_selftest_row *row)
{
    (void)context;
    if (!row->ok)
        printf("%s, %s: %g is more than %g %s\n", row->verb, row->what, row->error, row->bound, row->message);
}

static void nothing_is_left(void)
{
    char text[256] = "";
    int64_t alive = fake_metal_alive(text, sizeof text);
    if (alive) failures++, printf("alive at the end: %s\n", text);
}

static void selftest(int quick, int large)
{
    const fm_selftest_options o = {.device = "metal", .quick = quick, .large = large};
    fm_error err = {0};
    if (fm_selftest(&o, tell, NULL, &err) != FM_OK) failures++, printf("%s\n", err.message);
    nothing_is_left();
}

/* ---- life ------------------------------------------------------------------------- */

static fm_backend *open_device(const char *cache)
{
    const fm_device_options how = {.threads = 1, .cache = cache};
    const fm_limits limits = {8, 512, 8, 512, 256, 4, 64, 16, 16};
    fm_error err = {0};
    fm_backend *b = NULL;
    if (fm_metal_ops.open(&how, &b, &err) != FM_OK || fm_metal_ops.reserve(b, &limits, &err) != FM_OK) {
        printf("%s\n", err.message);
        exit(1);
    }
    return b;
}

static fm_tensor floats(fm_backend *b, int32_t rows, int32_t cols, float first)
{
    fm_tensor t = {NULL, 0, rows, cols, {.kind = FM_F32}};
    fm_error err = {0};
    if (fm_metal_ops.alloc(b, (size_t)rows * (size_t)cols * sizeof(float), FM_SHARED, &t.buf, &err) != FM_OK) return t;
    float *x = fm_metal_ops.host(t.buf);
    for (int32_t i = 0; i < rows * cols; i++) x[i] = first + (float)i;
    return t;
}

static float first_of(fm_tensor t)
{
    return *(float *)fm_metal_ops.host(t.buf);
}

static int contains(const fm_error *err, const char *text)
{
    return strstr(err->message, text) != NULL;
}

/* Work runs in its order and only what is waited for is sure; a buffer may grow and go while work is queued. */
static void test_life(const char *cache)
{
    const fm_backend_ops *op = &fm_metal_ops;
    fm_error err = {0};
    fm_backend *b = open_device(cache);
    fm_tensor x = floats(b, 2, 256, 1), y = floats(b, 2, 256, 10), z = floats(b, 2, 256, 0);

    uint64_t before = op->done(b);
    op->add(b, z, x, y);
    op->add(b, z, z, y); /* needs what the one before writes */
    op->add(b, x, z, z);
    uint64_t ticket = op->submit(b);
    CHECK(ticket > before && op->submit(b) == ticket); /* nothing queued, nothing begun */
    CHECK(op->wait(b, ticket, &err) == FM_OK && op->done(b) >= ticket);
    CHECK(first_of(z) == 21 && first_of(x) == 42);
    CHECK(op->wait(b, ticket, &err) == FM_OK);

    op->add(b, z, x, x);
    CHECK(op->grow(b, z.buf, 1 << 20, &err) == FM_OK && first_of(z) == 84); /* growing waits */
    op->add(b, y, z, z);
    op->discard(b, x.buf, 0, 0);
    CHECK(first_of(y) == 168);
    op->add(b, y, z, z);
    op->release(b, z.buf); /* releasing waits too */
    CHECK(first_of(y) == 168);
    op->add(b, y, x, x); /* and so does closing */
    op->release(b, x.buf);
    op->release(b, y.buf);
    op->close(b);
    nothing_is_left();
}

/* A hundred small submissions: more than may be in flight. */
static void test_many_submissions(void)
{
    fm_error err = {0};
    fm_backend *b = open_device(NULL);
    fm_tensor x = floats(b, 1, 64, 1), one = floats(b, 1, 64, 1);
    uint64_t ticket = 0;
    for (int i = 0; i < 200; i++) {
        fm_metal_ops.add(b, x, x, one);
        ticket = fm_metal_ops.submit(b);
    }
    CHECK(fm_metal_ops.wait(b, ticket, &err) == FM_OK && first_of(x) == 201);
    fm_metal_ops.release(b, x.buf);
    fm_metal_ops.release(b, one.buf);
    fm_metal_ops.close(b);
    nothing_is_left();
}

/* ---- failures ---------------------------------------------------------------------- */

static void opening_fails(fake_failure what, fm_status status, const char *says)
{
    const fm_device_options how = {.threads = 1};
    fm_error err = {0};
    fm_backend *b = NULL;
    fake_metal_fail(what, 1);
    fm_status got = fm_metal_ops.open(&how, &b, &err);
    fake_metal_fail(what, 0);
    if (got != status || !contains(&err, says)) failures++, printf("opening with failure %d: %d %s\n", what, got, err.message);
    if (got == FM_OK) fm_metal_ops.close(b);
    nothing_is_left();
}

/* A verb's failure shows at wait, once, with the kernel's name; then the device works again. */
static void verb_fails(fake_failure what, const char *says)
{
    const fm_backend_ops *op = &fm_metal_ops;
    fm_error err = {0};
    fm_backend *b = open_device(NULL);
    fm_tensor x = floats(b, 1, 64, 1), y = floats(b, 1, 64, 0);
    fake_metal_fail(what, 1);
    op->add(b, y, x, x);
    op->add(b, y, y, x);
    fm_status status = op->wait(b, op->submit(b), &err);
    fake_metal_fail(what, 0);
    if (status != FM_DEVICE || !contains(&err, says)) failures++, printf("verb with failure %d: %d %s\n", what, status, err.message);
    op->add(b, y, x, x);
    err = (fm_error){0};
    CHECK(op->wait(b, op->submit(b), &err) == FM_OK && first_of(y) == 2);
    op->release(b, x.buf);
    op->release(b, y.buf);
    op->close(b);
    nothing_is_left();
}

static void test_failures(void)
{
    opening_fails(FAKE_DEVICE, FM_UNSUPPORTED, "no Metal device");
    opening_fails(FAKE_FAMILY, FM_UNSUPPORTED, "older");
    opening_fails(FAKE_SOURCE, FM_DEVICE, "do not compile");
    opening_fails(FAKE_ARCHIVE, FM_OK, "");
    verb_fails(FAKE_FUNCTION, "add");
    verb_fails(FAKE_PIPELINE, "add");
    verb_fails(FAKE_COMMAND_BUFFER, "encoder");
    verb_fails(FAKE_ENCODER, "encoder");
    verb_fails(FAKE_RUN, "add to add");

    fm_error err = {0};
    fm_backend *b = open_device(NULL);
    fm_buf *buf = NULL;
    fake_metal_fail(FAKE_BUFFER, 1);
    CHECK(fm_metal_ops.alloc(b, 100000, FM_SHARED, &buf, &err) == FM_MEMORY && contains(&err, "114688"));
    fake_metal_fail(FAKE_BUFFER, 0);
    fm_metal_ops.close(b);
    nothing_is_left();
}

int main(int n, char **word)
{
    const char *what = n > 1 ? word[1] : "selftest";
    if (strcmp(what, "selftest") == 0) selftest(0, 0);
    else if (strcmp(what, "quick") == 0) selftest(1, 0);
    else if (strcmp(what, "large") == 0) selftest(0, 1);
    else if (strcmp(what, "life") == 0) test_life(n > 2 ? word[2] : NULL), test_many_submissions();
    else if (strcmp(what, "failures") == 0) test_failures();
    else return 2;
    if (failures) printf("%d failures\n", failures);
    return failures != 0;
}
