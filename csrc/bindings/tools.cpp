// What needs no model: sampling, quantising, hashing, measuring, testing.
#include <tuple>
#include <vector>

#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "bindings/common.h"

extern "C" {
#include "base/hash.h"
#include "base/threads.h"
#include "kernels/kernels.h"
}

namespace
{

std::tuple<int32_t, uint64_t> sample(Row logits, float temperature, float top_p, float min_p, int32_t top_k, uint64_t rng)
{
    const fm_sampling how = {temperature, top_p, min_p, top_k};
    int32_t id = 0;
    run([&](fm_error *err) { return fm_sample(logits.data(), static_cast<int32_t>(logits.shape(0)), &how, &rng, &id, err); });
    return {id, rng};
}

float logprob(Row logits, int32_t id)
{
    if (id < 0 || static_cast<size_t>(id) >= logits.shape(0)) throw nb::index_error("token id outside the logits");
    Unlocked nogil;
    return fm_logprob(logits.data(), static_cast<int32_t>(logits.shape(0)), id);
}

// The layout of rows in an affine format, for which the caller made arrays.
fm_matrix_layout affine_layout(const fm_quant &quant, const Floats &x, const Bytes &weight, const Bytes &scales,
                               const Bytes &biases)
{
    fm_matrix_layout layout;
    fm_error err{};
    auto rows = static_cast<int32_t>(x.shape(0)), cols = static_cast<int32_t>(x.shape(1));
    check(fm_matrix_measure(quant, rows, cols, &layout, &err), err);
    if (weight.shape(0) != x.shape(0) || scales.shape(0) != x.shape(0) || biases.shape(0) != x.shape(0) ||
        weight.shape(1) != layout.row_bytes || scales.shape(1) != layout.scale_row_bytes ||
        biases.shape(1) != layout.scale_row_bytes)
        throw nb::value_error("weight, scales or biases do not have the size this format needs");
    return layout;
}

fm_quant affine_quant(int32_t bits, int32_t group, const std::string &scale)
{
    return {FM_AFFINE, choice<fm_number>(scale, "scale", {"f32", "f16", "bf16"}), bits, group};
}

// Rows of floats to MLX-affine codes, scales and biases, into arrays the caller made.
void affine_encode(Floats x, int32_t bits, int32_t group, const std::string &scale, Bytes weight, Bytes scales, Bytes biases)
{
    const fm_quant quant = affine_quant(bits, group, scale);
    const fm_matrix_layout layout = affine_layout(quant, x, weight, scales, biases);
    Unlocked nogil;
    for (size_t r = 0; r < x.shape(0); r++)
        fm_affine_encode_row(quant, x.data() + r * x.shape(1), static_cast<int32_t>(x.shape(1)),
                             weight.data() + r * layout.row_bytes, scales.data() + r * layout.scale_row_bytes,
                             biases.data() + r * layout.scale_row_bytes);
}

// The same with codes, scales and biases searched for the least error, which is returned.
double affine_search(Floats x, int32_t bits, int32_t group, const std::string &scale, Bytes weight, Bytes scales, Bytes biases)
{
    const fm_quant quant = affine_quant(bits, group, scale);
    const fm_matrix_layout layout = affine_layout(quant, x, weight, scales, biases);
    double error = 0;
    Unlocked nogil;
    for (size_t r = 0; r < x.shape(0); r++)
        error += fm_affine_search_row(quant, x.data() + r * x.shape(1), static_cast<int32_t>(x.shape(1)),
                                      weight.data() + r * layout.row_bytes, scales.data() + r * layout.scale_row_bytes,
                                      biases.data() + r * layout.scale_row_bytes);
    return error;
}

uint64_t xxh3_64(nb::object buffer)
{
    View view(buffer);
    Unlocked nogil;
    return fm_xxh3(view.c.buf, static_cast<size_t>(view.c.len));
}

// Experts a second, in bytes, and whether they came around the page cache.
nb::dict probe_reads(const std::string &manifest, const std::string &directory, const std::string &read, int32_t read_threads,
                     int32_t read_split, double seconds, bool cold, uint64_t seed)
{
    const auto ns = static_cast<uint64_t>(seconds * 1e9);
    const fm_probe_options o = {read_kind(read), read_threads, read_split, ns, 0, cold, seed};
    fm_probe_result r = {};
    run([&](fm_error *err) { return fm_probe_reads(manifest.data(), manifest.size(), directory.c_str(), &o, &r, err); });
    nb::dict d;
    d["bytes"] = r.bytes;
    d["ns"] = r.ns;
    d["experts"] = r.experts;
    d["batches"] = r.batches;
    d["direct"] = r.direct != 0;
    return d;
}

std::vector<std::string> kernels()
{
    std::vector<std::string> names;
    for (const fm_kernels *const *k = fm_kernels_available(); *k; k++) names.emplace_back((*k)->name);
    return names;
}

std::vector<std::string> devices()
{
    const char *names[8];
    int32_t n = fm_devices(names, 8);
    return {names, names + (n < 8 ? n : 8)};
}

void remember(void *rows, const fm_selftest_row *row)
{
    static_cast<std::vector<fm_selftest_row> *>(rows)->push_back(*row);
}

// Every row, whether it holds or not; what cannot be tested raises.
nb::list selftest(const std::string &device, const std::string &cache, bool quick)
{
    const fm_selftest_options o = {device.c_str(), cache.empty() ? nullptr : cache.c_str(), 1, quick, 0};
    std::vector<fm_selftest_row> rows;
    run([&](fm_error *err) {
        fm_status status = fm_selftest(&o, remember, &rows, err);
        return status == FM_DEVICE && !rows.empty() ? FM_OK : status;
    });
    nb::list out;
    for (const fm_selftest_row &row : rows) {
        nb::dict d;
        d["verb"] = row.verb;
        d["case"] = static_cast<const char *>(row.what);
        d["error"] = row.error;
        d["bound"] = row.bound;
        d["ok"] = row.ok != 0;
        d["message"] = static_cast<const char *>(row.message);
        out.append(d);
    }
    return out;
}

} // namespace

void bind_tools(nb::module_ &m)
{
    m.def("sample", &sample, "logits"_a.noconvert(), nb::kw_only(), "temperature"_a, "top_p"_a, "min_p"_a, "top_k"_a, "rng"_a);
    m.def("logprob", &logprob, "logits"_a.noconvert(), "id"_a);
    m.def("affine_encode", &affine_encode, "x"_a.noconvert(), "bits"_a, "group"_a, "scale"_a, "weight"_a.noconvert(),
          "scales"_a.noconvert(), "biases"_a.noconvert());
    m.def("affine_search", &affine_search, "x"_a.noconvert(), "bits"_a, "group"_a, "scale"_a, "weight"_a.noconvert(),
          "scales"_a.noconvert(), "biases"_a.noconvert());
    m.def("xxh3_64", &xxh3_64, "buffer"_a);
    m.def("probe_reads", &probe_reads, "manifest"_a, "directory"_a, nb::kw_only(), "read"_a, "read_threads"_a, "read_split"_a,
          "seconds"_a, "cold"_a, "seed"_a);
    m.def("kernels", &kernels);
    m.def("devices", &devices);
    m.def("selftest", &selftest, "device"_a, nb::kw_only(), "cache"_a, "quick"_a);
    m.def("cores", &fm_cores);
}
