/* Options, counters, failures to come, and the end of the process. */
#include "fake_metal.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

_Noreturn void fake_fatal(const char *format, ...) __attribute__((format(printf, 1, 2)));
void fake_counted(fake_count what, uint64_t n);
int fake_fails(fake_failure what);

static fake_options options = {.max_threads = 1024, .working_set = 1ull << 34, .max_buffer = 1ull << 33};
static pthread_once_t once = PTHREAD_ONCE_INIT;
static _Atomic uint64_t counts[FAKE_COUNTS];
static _Atomic int32_t failures[FAKE_FAILURES];

static const char *const failure_name[FAKE_FAILURES] = {"device", "family",         "source",  "function", "pipeline", "archive",
                                                        "buffer", "command_buffer", "encoder", "run",      "lost"};

void fake_fatal(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    fputs("fake Metal: ", stderr);
    vfprintf(stderr, format, list);
    fputc('\n', stderr);
    abort();
}

/* ---- options ------------------------------------------------------------------- */

static void set_failure(const char *value)
{
    const char *colon = strchr(value, ':');
    size_t n = colon ? (size_t)(colon - value) : strlen(value);
    for (int32_t i = 0; i < FAKE_FAILURES; i++) {
        if (strlen(failure_name[i]) != n || strncmp(failure_name[i], value, n) != 0) continue;
        failures[i] = colon ? atoi(colon + 1) : 1;
        return;
    }
    fake_fatal("FAKE_METAL: fail=%s is no failure", value);
}

static void set(const char *name, const char *value)
{
    unsigned long long n = value ? strtoull(value, NULL, 0) : 1;
    if (strcmp(name, "lazy") == 0) options.lazy = (int32_t)n;
    else if (strcmp(name, "order") == 0) options.order = (int32_t)n;
    else if (strcmp(name, "threads") == 0) options.threads = (int32_t)n;
    else if (strcmp(name, "max_threads") == 0) options.max_threads = (int32_t)n;
    else if (strcmp(name, "soft") == 0) options.soft = (int32_t)n;
    else if (strcmp(name, "error") == 0) options.error = (int32_t)n;
    else if (strcmp(name, "working_set") == 0) options.working_set = n;
    else if (strcmp(name, "max_buffer") == 0) options.max_buffer = n;
    else if (strcmp(name, "fail") == 0 && value) set_failure(value);
    else fake_fatal("FAKE_METAL: there is no option %s", name);
}

static void read_environment(void)
{
    const char *said = getenv("FAKE_METAL");
    char text[256], *rest = text;
    if (!said || !*said) return;
    if (strlen(said) >= sizeof text) fake_fatal("FAKE_METAL is too long");
    memcpy(text, said, strlen(said) + 1);
    for (char *word = strtok_r(text, ",", &rest); word; word = strtok_r(NULL, ",", &rest)) {
        char *value = strchr(word, '=');
        if (value) *value++ = 0;
        set(word, value);
    }
}

fake_options *fake_metal_options(void)
{
    pthread_once(&once, read_environment);
    return &options;
}

/* ---- failures and counters -------------------------------------------------------- */

void fake_metal_fail(fake_failure what, int32_t nth)
{
    fake_metal_options(); /* the environment first, this after it */
    failures[what] = nth;
}

int fake_fails(fake_failure what)
{
    int32_t left = failures[what];
    while (left > 0 && !atomic_compare_exchange_weak(&failures[what], &left, left - 1)) continue;
    return left == 1;
}

void fake_counted(fake_count what, uint64_t n)
{
    counts[what] += n;
}

uint64_t fake_metal_count(fake_count what)
{
    return counts[what];
}

void fake_metal_reset(void)
{
    for (int32_t i = 0; i < FAKE_COUNTS; i++) counts[i] = 0;
}
