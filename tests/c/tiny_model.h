/* A tiny model of both kinds of mixer, made here, and the sessions' tests' way of using it. */
#ifndef FM_TINY_MODEL_H
#define FM_TINY_MODEL_H

#include <stdarg.h>
#include <unistd.h>

#include "check.h"
#include "flashmoe.h"

enum { HIDDEN = 64, VOCAB = 40, EXPERTS = 6, K = 2, WIDE = 32, CONTEXT = 700 };

static char directory[] = "/tmp/flashmoe_session_XXXXXX";
static char manifest[32768];
static size_t length;
static size_t floats; /* written to the one file so far */

__attribute__((format(printf, 1, 2))) static void say(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    length += (size_t)vsnprintf(manifest + length, sizeof manifest - length, format, arguments);
    va_end(arguments);
}

/* A float32 tensor at the next place in the file. */
static void tensor(const char *name, int rows, int cols)
{
    say("tensor name=%s quant=f32 rows=%d cols=%d\nweight file=0 at=%zu rows=%d\n", name, rows, cols, floats * 4, rows);
    floats += (size_t)rows * (size_t)cols;
}

static void moe_tensors(int layer)
{
    char name[64];
    const struct {
        const char *name;
        int rows, cols;
    } all[] = {
        {"ffn_norm", 1, HIDDEN},       {"router", EXPERTS, HIDDEN}, {"shared_score", 1, HIDDEN},
        {"shared_gate", WIDE, HIDDEN}, {"shared_up", WIDE, HIDDEN}, {"shared_down", HIDDEN, WIDE},
    };
    for (int i = 0; i < 6; i++) {
        snprintf(name, sizeof name, "layers.%d.%s", layer, all[i].name);
        tensor(name, all[i].rows, all[i].cols);
    }
}

static void experts(int layer)
{
    static const char *const parts[] = {"gate", "up", "down"};
    say("experts layer=%d gate=f32 up=f32 down=f32\n", layer);
    for (int p = 0; p < 3; p++) {
        say("extent layer=%d part=%s.weight file=0 base=%zu stride=%d\n", layer, parts[p], floats * 4, HIDDEN * WIDE * 4);
        floats += (size_t)EXPERTS * HIDDEN * WIDE;
    }
}

static void write_model(void)
{
    char body[sizeof manifest];
    size_t head;

    tensor("embed", VOCAB, HIDDEN);
    tensor("norm", 1, HIDDEN);
    tensor("lm_head", VOCAB, HIDDEN);
    tensor("layers.0.mixer_norm", 1, HIDDEN);
    tensor("layers.0.qkv", 64, HIDDEN);
    tensor("layers.0.z", 32, HIDDEN);
    tensor("layers.0.b", 2, HIDDEN);
    tensor("layers.0.a", 2, HIDDEN);
    tensor("layers.0.conv", 64, 4);
    tensor("layers.0.a_log", 1, 2);
    tensor("layers.0.dt_bias", 1, 2);
    tensor("layers.0.delta_norm", 1, 16);
    tensor("layers.0.out", HIDDEN, 32);
    moe_tensors(0);
    tensor("layers.1.mixer_norm", 1, HIDDEN);
    tensor("layers.1.q", 64, HIDDEN);
    tensor("layers.1.q_gate", 64, HIDDEN);
    tensor("layers.1.k", 32, HIDDEN);
    tensor("layers.1.v", 32, HIDDEN);
    tensor("layers.1.o", HIDDEN, 64);
    tensor("layers.1.q_norm", 1, 16);
    tensor("layers.1.k_norm", 1, 16);
    moe_tensors(1);
    experts(0);
    experts(1);
    memcpy(body, manifest, length + 1);
    head = length;
    length = 0;
    say("flashmoe version=1\n"
        "model hidden_size=%d vocab_size=%d layers=2 norm_eps=1e-06 max_positions=%d\n"
        "file index=0 path=w.bin bytes=%zu\n"
        "rope index=0 dims=8 scale=1 inv_freq=1,0.1,0.01,0.001\n"
        "layer index=0 mixer=delta key_heads=1 value_heads=2 key_dim=16 value_dim=16 conv_taps=4 ffn=moe experts=%d "
        "experts_per_token=%d renormalise=1 intermediate_size=%d shared_intermediate_size=%d\n"
        "layer index=1 mixer=attention heads=4 kv_heads=2 head_dim=16 rope=0 scale=0.25 gated=1 qk_norm=1 ffn=moe experts=%d "
        "experts_per_token=%d renormalise=1 intermediate_size=%d shared_intermediate_size=%d\n",
        HIDDEN, VOCAB, CONTEXT, floats * 4, EXPERTS, K, WIDE, WIDE, EXPERTS, K, WIDE, WIDE);
    memcpy(manifest + length, body, head + 1);
    length += head;

    char path[128];
    snprintf(path, sizeof path, "%s/w.bin", directory);
    FILE *file = fopen(path, "wb");
    uint64_t seed = 3;
    for (size_t i = 0; i < floats; i++) {
        float x = noise(&seed) * 0.2f;
        fwrite(&x, 4, 1, file);
    }
    fclose(file);
}

static fm_model *open_model(const fm_model_options *options)
{
    fm_model *m = NULL;
    fm_error err = {0};
    CHECK_THAT(fm_model_open(manifest, length, directory, options, &m, &err) == FM_OK, "%s", err.message);
    return m;
}

static int32_t token(int i)
{
    return (int32_t)((i * 7 + i / 3) % VOCAB);
}

/* Logits of all n tokens, `step` at a time. */
static fm_status run(fm_session *s, int n, int step, float *out, fm_error *err)
{
    int32_t ids[128];
    for (int first = 0; first < n; first += step) {
        int rows = n - first < step ? n - first : step;
        for (int i = 0; i < rows; i++) ids[i] = token(first + i);
        fm_status status = fm_session_eval(s, ids, rows, out + (size_t)first * VOCAB, rows, err);
        if (status != FM_OK) return status;
    }
    return FM_OK;
}

static void remove_model(void)
{
    char path[128];
    snprintf(path, sizeof path, "%s/w.bin", directory);
    unlink(path);
    rmdir(directory);
}

#endif
