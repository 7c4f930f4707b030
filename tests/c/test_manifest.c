/* The manifest: what a sound one says, every way of being wrong that has words, and a few hundred thousand mutations. */
#include <locale.h>

#include "check.h"
#include "model/manifest.h"
#include "model/weights.h"

static const char sound[] = "flashmoe version=1\n"
                            "# a comment\n"
                            "\n"
                            "model hidden_size=64 vocab_size=10 layers=2 norm_eps=1e-06 max_positions=100 tied=1\n"
                            "file index=0 path=a.bin bytes=1000000\n"
                            "file index=1 path=b.bin bytes=1000000 sha256=00ff\n"
                            "rope index=0 dims=4 scale=1.5 inv_freq=1,0.01\n"
                            "layer index=0 mixer=delta key_heads=1 value_heads=2 key_dim=8 value_dim=8 conv_taps=4 ffn=moe "
                            "experts=4 experts_per_token=2 renormalise=1 intermediate_size=32\n"
                            "layer index=1 mixer=attention heads=4 kv_heads=2 head_dim=8 rope=0 scale=0.35 gated=1 qk_norm=1 "
                            "ffn=dense intermediate_size=96\n"
                            "tensor name=embed quant=affine:4:32:bf16 rows=10 cols=64\n"
                            "weight file=0 at=1 rows=2 count=5 stride=100\n"
                            "scales file=0 at=1001 rows=10\n"
                            "biases file=0 at=2001 rows=10\n"
                            "tensor name=norm quant=f32 rows=1 cols=64 add=1\n"
                            "weight file=1 at=0 rows=1\n"
                            "experts layer=0 gate=affine:4:32:bf16 up=bf16 down=f16\n"
                            "extent layer=0 part=gate.weight file=0 base=3 stride=5000\n"
                            "extent layer=0 part=gate.scales file=0 base=30001 stride=128\n"
                            "extent layer=0 part=gate.biases file=0 base=40001 stride=128\n"
                            "extent layer=0 part=up.weight file=1 expert=2 base=0\n"
                            "extent layer=0 part=up.weight file=1 expert=0 base=9000\n"
                            "extent layer=0 part=up.weight file=0 expert=1 base=5000\n"
                            "extent layer=0 part=up.weight file=1 expert=3 base=995904\n"
                            "extent layer=0 part=down.weight file=1 base=100000 stride=4096\n"
                            "checksum layer=0 first=0 xxh3=0123456789abcdef,ffffffffffffffff\n"
                            "checksum layer=0 first=2 xxh3=0000000000000001,0000000000000002\n";

static fm_status parse(const char *text, size_t length, fm_manifest *m, fm_error *err)
{
    return fm_manifest_parse(text, length, 0, m, err);
}

static void test_sound(void)
{
    fm_manifest m;
    fm_error err = {0};
    CHECK_THAT(parse(sound, strlen(sound), &m, &err) == FM_OK, "%s", err.message);
    if (err.message[0]) return;
    CHECK(m.spec.hidden_size == 64 && m.spec.layers == 2 && m.spec.tied == 1 && m.files == 2 && m.tensors == 2);
    CHECK(m.spec.norm_eps == 1e-6f && m.spec.rope[0].scale == 1.5 && m.spec.rope[0].inv_freq[1] == 0.01);
    CHECK(m.spec.layer[0].mixer == FM_MIXER_DELTA && m.spec.layer[0].route.k == 2 && m.spec.layer[1].gated == 1);
    const fm_tensor_source *t = fm_manifest_tensor(&m, "embed");
    CHECK(t && t->weight.n == 1 && t->weight.block[0].count == 5 && t->weight.block[0].stride == 100 && t->biases.n == 1);
    CHECK(fm_manifest_tensor(&m, "norm")->add == 1 && !fm_manifest_tensor(&m, "none"));

    const fm_expert_layer *e = &m.experts[0];
    CHECK(e->experts == 4 && e->parts == 5 && e->runs == 4 && m.experts[1].experts == 0);
    CHECK(e->part[0].bytes == 1024 && e->part[0].at == 0 && e->part[1].at == 1024 && e->part[2].at == 1152);
    CHECK(e->part[3].at == 1280 && e->part[3].bytes == 4096 && e->part[3].each && e->part[3].each[1].file == 0 &&
          e->part[3].each[3].at == 995904);
    CHECK(e->part[4].at == 5376 && e->bytes == 9472);
    CHECK(e->xxh3 && e->xxh3[0] == 0x0123456789abcdefu && e->xxh3[3] == 2);
    fm_manifest_free(&m);

    CHECK(fm_manifest_parse(sound, strlen(sound), 1, &m, &err) == FM_OK && m.spec.layer[0].route.k == 1 &&
          m.spec.layer[0].route.native_k == 2);
    fm_manifest_free(&m);
    CHECK(fm_manifest_parse(sound, strlen(sound), 3, &m, &err) == FM_ARGUMENT);

    fm_weights w;
    CHECK(parse(sound, strlen(sound), &m, &err) == FM_OK);
    CHECK(fm_weights_plan(&m, &w, &err) == FM_FORMAT && strstr(err.message, "layers.0.mixer_norm is missing"));
    fm_manifest_free(&m);
}

/* Replace the first `from` by `to`; both short. */
static char *edited(const char *from, const char *to)
{
    const char *at = strstr(sound, from);
    char *text = must(sizeof sound + 256);
    if (!at) {
        fprintf(stderr, "the sound manifest has no \"%s\"\n", from);
        failures++;
        return text;
    }
    memcpy(text, sound, (size_t)(at - sound));
    strcat(text, to);
    strcat(text, at + strlen(from));
    return text;
}

static void test_words(void)
{
    static const struct {
        const char *from, *to, *words;
    } wrong[] = {
        {"version=1", "version=2", "version 2"},
        {"flashmoe version", "smashmoe version", "not a flashmoe manifest"},
        {"hidden_size=64", "hidden_size=0", "hidden_size=0 is not in"},
        {"hidden_size=64", "hidden_size=sixty", "not a whole number"},
        {"hidden_size=64", "hidden_size=99999999999999999999", "hidden_size"},
        {"hidden_size=64 ", "", "has no hidden_size"},
        {"norm_eps=1e-06", "norm_eps=nan", "not a finite number"},
        {"norm_eps=1e-06", "norm_eps=1e999", "not a finite number"},
        {"tied=1", "tied=1 colour=blue", "no field colour"},
        {"tied=1", "tied=1 tied=0", "given twice"},
        {"index=1 path", "index=7 path", "index=7 is not in 1 .. 1"},
        {"inv_freq=1,0.01", "inv_freq=1", "number 2 of 2"},
        {"inv_freq=1,0.01", "inv_freq=1,0.01,3", "more than 2"},
        {"layers=2", "layers=3", "2 of 3 layers"},
        {"mixer=delta", "mixer=magic", "neither attention nor delta"},
        {"key_heads=1 value_heads=2", "key_heads=2 value_heads=3", "3 value_heads cannot share 2"},
        {"heads=4 kv_heads=2", "heads=5 kv_heads=2", "5 heads cannot share 2"},
        {"rope=0", "rope=3", "rope is 3"},
        {"dims=4 scale=1.5 inv_freq=1,0.01", "dims=12 scale=1 inv_freq=1,1,1,1,1,1", "turns 12 numbers of a head of 8"},
        {"experts=4 experts_per_token=2", "experts=4 experts_per_token=5", "experts_per_token 5 of 4"},
        {"quant=affine:4:32:bf16 rows=10 cols=64", "quant=affine:7:32:bf16 rows=10 cols=64", "no number format"},
        {"quant=affine:4:32:bf16 rows=10 cols=64", "quant=affine:4:128:bf16 rows=10 cols=64", "groups of 128"},
        {"rows=2 count=5", "rows=2 count=4", "weight lines give 8"},
        {"rows=2 count=5", "rows=2 count=6", "more than tensor embed has"},
        {"at=1001 rows=10", "at=999999 rows=10", "lie outside a.bin"},
        {"at=1 rows=2 count=5 stride=100", "at=1 rows=2 count=5 stride=9223372036854775807", "more than a file"},
        {"at=0 rows=1", "at=0 rows=1\nscales file=1 at=0 rows=1", "has no scales"},
        {"weight file=0", "weight file=9", "file=9 is not in"},
        {"part=gate.weight", "part=gate.wait", "unknown part"},
        {"part=gate.biases file=0 base=40001", "part=gate.scales file=0 base=40001", "given twice"},
        {"extent layer=0 part=gate.scales file=0 base=30001 stride=128\n", "", "lacks the part gate.scales"},
        {"expert=3 base=995904", "expert=3 base=995905", "lie outside b.bin"},
        {"expert=3 base=995904", "expert=2 base=0", "expert 2 is given twice"},
        {"extent layer=0 part=up.weight file=1 expert=3 base=995904\n", "", "part up.weight of expert 3"},
        {"part=down.weight file=1 base=100000 stride=4096", "part=down.biases file=1 base=0 stride=4096", "no part down.biases"},
        {"stride=4096", "stride=9223372036854775807", "more than a file"},
        {"first=2", "first=3", "first=3 is not in 2 .. 2"},
        {",ffffffffffffffff", ",ffffffffffffffff,00", "16 hex digits"},
        {"checksum layer=0 first=2 xxh3=0000000000000001,0000000000000002\n", "", "2 checksums for 4 experts"},
        {"rope index=0", "ropes index=0", "unknown word"},
        {"tensor name=norm", "layer name=norm", "does not belong here"},
        {"# a comment", "\001", "control character"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        char *text = edited(wrong[i].from, wrong[i].to);
        fm_manifest m;
        fm_error err = {0};
        fm_status status = parse(text, strlen(text), &m, &err);
        CHECK_THAT(status == FM_FORMAT || status == FM_UNSUPPORTED, "%s -> %s", wrong[i].from, wrong[i].to);
        if (status == FM_OK) fm_manifest_free(&m);
        else CHECK_THAT(strstr(err.message, wrong[i].words), "%s -> %s: %s", wrong[i].from, wrong[i].to, err.message);
        free(text);
    }
}

static void test_cut_short(void)
{
    for (size_t n = 0; n < sizeof sound - 1; n++) {
        fm_manifest m;
        char *exact = must(n); /* no byte past the end is there to be read */
        memcpy(exact, sound, n);
        if (parse(exact, n, &m, NULL) == FM_OK) {
            size_t whole = (size_t)(strstr(sound, "checksum") - sound); /* they may be left out, all of them */
            CHECK_THAT(n >= sizeof sound - 2 || n == whole || n == whole - 1, "%zu bytes", n);
            fm_manifest_free(&m);
        } else {
            checks++;
        }
        free(exact);
    }
}

/* Random damage never crashes; what still parses is within its own bounds. */
static void test_mutations(int32_t rounds)
{
    static const char *const pieces[] = {
        "9223372036854775807", "-1",      "0",       "=", " ", "\n", ",", "4294967296", "1e400", "record",
        "affine:8:128:f32",    "layer=0", "expert=1"};
    uint64_t seed = 42;
    char *text = must(sizeof sound + 4096);

    for (int32_t round = 0; round < rounds; round++) {
        size_t n = sizeof sound - 1;
        memcpy(text, sound, n);
        for (uint64_t edits = 1 + noise_bits(&seed) % 4; edits; edits--) {
            size_t at = noise_bits(&seed) % n;
            uint64_t kind = noise_bits(&seed) % 4;
            if (kind == 0) text[at] = (char)noise_bits(&seed);
            else if (kind == 1) {
                size_t cut = noise_bits(&seed) % 40;
                if (at + cut < n) {
                    memmove(text + at, text + at + cut, n - at - cut);
                    n -= cut;
                }
            } else {
                const char *piece = pieces[noise_bits(&seed) % (sizeof pieces / sizeof *pieces)];
                size_t length = strlen(piece);
                memmove(text + at + length, text + at, n - at);
                memcpy(text + at, piece, length);
                n += length;
            }
        }
        fm_manifest m;
        fm_error err = {0};
        if (parse(text, n, &m, &err) == FM_OK) {
            fm_weights w;
            if (fm_weights_plan(&m, &w, &err) == FM_OK) fm_weights_free(&w, NULL);
            fm_manifest_free(&m);
        } else {
            CHECK(err.message[0]);
        }
        checks++;
    }
    free(text);
}

int main(int argc, char **argv)
{
    setlocale(LC_ALL, ""); /* numbers do not follow the locale */
    test_sound();
    test_words();
    test_cut_short();
    test_mutations(argc > 1 ? atoi(argv[1]) : 20000);
    return done();
}
