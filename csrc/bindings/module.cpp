// The Python module: converts, calls, raises. No logic, no caching, no defaults beyond the C ones.
#include <algorithm>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "bindings/interrupt.h"
#include "flashmoe.h"

extern "C" {
#include "base/hash.h"
#include "base/threads.h"
#include "kernels/kernels.h"
}

namespace nb = nanobind;
using namespace nb::literals;

namespace
{

using Tokens = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Logits = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Row = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Lines = nb::ndarray<int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Counts = nb::ndarray<int64_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

using Snapshot = nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>>;

// The bytes of a Python object, as long as this lives.
struct View {
    Py_buffer c;
    explicit View(nb::handle object)
    {
        if (PyObject_GetBuffer(object.ptr(), &c, PyBUF_SIMPLE) != 0) throw nb::python_error();
    }
    ~View() { PyBuffer_Release(&c); }
    View(const View &) = delete;
};

const char *status_name(fm_status status)
{
    switch (status) {
#define X(name, code, text) \
    case FM_##name: return #name;
        FM_STATUS_MAP(X)
#undef X
    }
    return "UNKNOWN";
}

// Which exception a status becomes is Python's decision. `sequence`: which of several it was, or -1.
[[noreturn]] void raise(const char *status, const char *message, int32_t sequence = -1)
{
    nb::object which = sequence < 0 ? nb::none() : nb::object(nb::int_(sequence));
    nb::object error = nb::module_::import_("flashmoe.errors").attr("from_status")(status, message, which);
    PyErr_SetObject(reinterpret_cast<PyObject *>(Py_TYPE(error.ptr())), error.ptr());
    throw nb::python_error();
}

void check(fm_status status, const fm_error &err)
{
    if (status != FM_OK) raise(status_name(status), err.message[0] ? err.message : fm_status_text(status));
}

// Call a C function without the GIL, then turn its failure into an exception.
template <typename F> void run(F &&call)
{
    fm_error err{};
    fm_status status;
    {
        nb::gil_scoped_release nogil;
        status = call(&err);
    }
    check(status, err);
}

template <typename T> T choice(const std::string &word, const char *what, std::initializer_list<const char *> words)
{
    int i = 0;
    std::string all;
    for (const char *w : words) {
        if (word == w) return static_cast<T>(i);
        all += (i++ ? ", " : "") + std::string(w);
    }
    throw nb::value_error((std::string(what) + " \"" + word + "\" is none of " + all).c_str());
}

constexpr const char *kv_words[] = {"f32", "f16", "bf16"};
constexpr const char *read_words[] = {"buffered", "direct", "populate", "mmap", "uring"};

fm_read_kind read_kind(const std::string &word)
{
    return choice<fm_read_kind>(word, "read", {read_words[0], read_words[1], read_words[2], read_words[3], read_words[4]});
}

constexpr const char *evict_words[] = {"auto", "lru", "lfu", "slru", "static"};

// Closed when the last of its model object and sessions lets go of it.
struct ModelHandle {
    fm_model *c = nullptr;
    ~ModelHandle() { fm_model_close(c); }
};

class Model
{
  public:
    Model(const std::string &manifest, const std::string &directory, const std::string &device, uint64_t memory, int32_t threads,
          int32_t experts_per_token, const std::string &kv, const std::string &read, int32_t read_threads, int32_t read_split,
          int32_t prefill_rows, int32_t expert_slots, const std::string &eviction, bool overlap, bool guess,
          const std::string &cache)
    {
        fm_model_options o = {};
        o.device = device.c_str();
        o.cache = cache.empty() ? nullptr : cache.c_str();
        o.memory = memory;
        o.threads = threads;
        o.experts_per_token = experts_per_token;
        o.kv = choice<fm_kv_kind>(kv, "kv", {kv_words[0], kv_words[1], kv_words[2]});
        o.read = read_kind(read);
        o.read_threads = read_threads;
        o.read_split = read_split;
        o.prefill_rows = prefill_rows;
        o.expert_slots = expert_slots;
        o.evict = choice<fm_evict_kind>(eviction, "eviction",
                                        {evict_words[0], evict_words[1], evict_words[2], evict_words[3], evict_words[4]});
        o.serial = !overlap;
        o.no_guess = !guess;
        auto handle = std::make_shared<ModelHandle>();
        run([&](fm_error *err) {
            return fm_model_open(manifest.data(), manifest.size(), directory.c_str(), &o, &handle->c, err);
        });
        handle_ = std::move(handle);
    }

    std::shared_ptr<ModelHandle> handle() const
    {
        if (!handle_) raise("CLOSED", "the model is closed");
        return handle_;
    }

    void close()
    {
        nb::gil_scoped_release nogil;
        handle_.reset();
    }

    bool closed() const { return !handle_; }

    nb::dict info() const
    {
        fm_model_info i;
        fm_model_describe(handle()->c, &i);
        nb::dict d;
        d["device"] = i.device;
        d["kernels"] = i.kernels;
        d["num_hidden_layers"] = i.layers;
        d["hidden_size"] = i.hidden_size;
        d["vocab_size"] = i.vocab_size;
        d["num_experts"] = i.experts;
        d["experts_per_token"] = i.experts_per_token;
        d["native_experts_per_token"] = i.native_experts_per_token;
        d["context_length"] = i.max_positions;
        d["threads"] = i.threads;
        d["read_threads"] = i.read_threads;
        d["prefill_rows"] = i.prefill_rows;
        d["expert_slots"] = i.expert_slots;
        d["eviction"] = evict_words[i.evict];
        d["overlap"] = !i.serial;
        d["guess"] = !i.no_guess;
        d["min_expert_slots"] = i.min_expert_slots;
        d["kv_dtype"] = kv_words[i.kv];
        d["read"] = read_words[i.read];
        d["read_split"] = i.read_split;
        d["read_direct"] = i.read_direct != 0;
        d["memory"] = i.memory;
        d["resident_bytes"] = i.resident_bytes;
        d["scratch_bytes"] = i.scratch_bytes;
        d["expert_bytes"] = i.expert_bytes;
        d["expert_file_bytes"] = i.expert_file_bytes;
        d["state_bytes"] = i.state_bytes;
        d["kv_bytes_per_token"] = i.kv_bytes_per_token;
        d["held_bytes"] = i.held_bytes;
        return d;
    }

    uint64_t fingerprint()
    {
        uint64_t out = 0;
        auto model = handle();
        run([&](fm_error *err) { return fm_model_fingerprint(model->c, &out, err); });
        return out;
    }

    void record(bool on) { fm_model_record(handle()->c, on); }

    // How many lines there are; `out` must have their width.
    int64_t recorded(Lines out)
    {
        fm_model_info i;
        fm_model_describe(handle()->c, &i);
        if (out.shape(1) != static_cast<size_t>(3 + i.experts_per_token)) throw nb::value_error("lines have another width");
        return fm_model_recorded(handle()->c, out.data(), static_cast<int64_t>(out.shape(0)));
    }

    void expert_uses(Counts out)
    {
        fm_model_info i;
        fm_model_describe(handle()->c, &i);
        if (out.shape(0) != static_cast<size_t>(i.layers) || out.shape(1) != static_cast<size_t>(i.experts))
            throw nb::value_error("the counts need a row a layer and a column an expert");
        fm_model_expert_uses(handle()->c, out.data(), i.experts);
    }

    void layer_ns(Counts out)
    {
        fm_model_info i;
        fm_model_describe(handle()->c, &i);
        if (out.shape(0) != static_cast<size_t>(i.layers) || out.shape(1) != 4)
            throw nb::value_error("the times need a row a layer");
        fm_model_layer_ns(handle()->c, out.data());
    }

  private:
    std::shared_ptr<ModelHandle> handle_;
};

class Session
{
  public:
    explicit Session(const Model &model) : model_(model.handle())
    {
        run([&](fm_error *err) { return fm_session_open(model_->c, &c_, err); });
        fm_model_info info;
        fm_model_describe(model_->c, &info);
        vocab_ = static_cast<size_t>(info.vocab_size);
    }

    ~Session() { close(); }

    // Waits for an eval in another thread, which it cancels.
    void close()
    {
        if (!model_) return;
        nb::gil_scoped_release nogil;
        if (c_) fm_session_cancel(c_);
        std::lock_guard<std::mutex> turn(turn_);
        fm_session_close(c_);
        c_ = nullptr;
        model_.reset();
    }

    void eval(Tokens tokens, Logits logits) { eval_together({this}, {tokens}, {logits}); }

    static void eval_together(const std::vector<Session *> &sessions, const std::vector<Tokens> &tokens,
                              const std::vector<Logits> &logits)
    {
        if (sessions.empty() || tokens.size() != sessions.size() || logits.size() != sessions.size())
            throw nb::value_error("every session needs tokens and logits");
        for (size_t i = 0; i < sessions.size(); i++) {
            if (!sessions[i]) throw nb::value_error("None is not a session");
            if (logits[i].shape(0) && logits[i].shape(1) != sessions[i]->vocab_)
                throw nb::value_error("logits must have vocab_size columns");
            if (tokens[i].shape(0) > INT32_MAX || logits[i].shape(0) > tokens[i].shape(0))
                throw nb::value_error("logits must have no more rows than there are tokens");
        }
        while (!once(sessions, tokens, logits)) {
        }
    }

    int32_t position() { return fm_session_position(open()); }

    void reset()
    {
        nb::gil_scoped_release nogil;
        std::lock_guard<std::mutex> turn(turn_);
        if (c_) fm_session_reset(c_);
    }

    void cancel() { fm_session_cancel(open()); }

    Snapshot save()
    {
        std::unique_ptr<uint8_t[]> bytes;
        size_t size = 0;
        run_open([&](fm_error *err) {
            size = fm_session_snapshot_bytes(c_);
            bytes.reset(new uint8_t[size]); // all of it is written
            return fm_session_save(c_, bytes.get(), size, err);
        });
        uint8_t *raw = bytes.release();
        return {raw, {size}, nb::capsule(raw, [](void *p) noexcept { delete[] static_cast<uint8_t *>(p); })};
    }

    void load(nb::object snapshot)
    {
        View view(snapshot);
        run_open([&](fm_error *err) { return fm_session_load(c_, view.c.buf, static_cast<uint64_t>(view.c.len), err); });
    }

    nb::dict stats()
    {
        fm_session_stats s;
        fm_session_describe(open(), &s);
        nb::dict d;
        d["tokens"] = s.tokens;
        d["experts_used"] = s.experts_used;
        d["experts_hit"] = s.experts_hit;
        d["bytes_read"] = s.bytes_read;
        d["read_wait_ns"] = s.read_wait_ns;
        d["experts_guessed"] = s.experts_guessed;
        d["guesses_used"] = s.guesses_used;
        d["guess_bytes_wasted"] = s.guess_bytes_wasted;
        d["eval_ns"] = s.eval_ns;
        return d;
    }

  private:
    // As run(), with this session's turn, if it is open then.
    template <typename F> void run_open(F &&call)
    {
        bool closed = false;
        run([&](fm_error *err) {
            std::lock_guard<std::mutex> turn(turn_);
            closed = !c_;
            return closed ? FM_OK : call(err);
        });
        if (closed) raise("CLOSED", "the session is closed");
    }

    fm_session *open()
    {
        if (!c_) raise("CLOSED", "the session is closed");
        return c_;
    }

    // The turns of several sessions, taken in the order of their addresses, so that no two callers wait for each other.
    static std::vector<std::unique_lock<std::mutex>> take_turns(std::vector<Session *> sessions)
    {
        std::vector<std::unique_lock<std::mutex>> turns;
        std::sort(sessions.begin(), sessions.end(), std::less<>());
        sessions.erase(std::unique(sessions.begin(), sessions.end()), sessions.end());
        for (Session *session : sessions) turns.emplace_back(session->turn_);
        return turns;
    }

    // False when a signal stopped it but Python's handler wants to go on.
    static bool once(const std::vector<Session *> &sessions, const std::vector<Tokens> &tokens, const std::vector<Logits> &logits)
    {
        fm_error err{};
        fm_status status = FM_ARGUMENT;
        bool interrupted = false;
        int32_t closed = -1, at_fault = -1;
        {
            nb::gil_scoped_release nogil;
            auto turns = take_turns(sessions);
            std::vector<fm_append> parts;
            for (size_t i = 0; i < sessions.size(); i++) {
                if (!sessions[i]->c_ && closed < 0) closed = static_cast<int32_t>(i);
                parts.push_back({sessions[i]->c_, tokens[i].data(), static_cast<int32_t>(tokens[i].shape(0)), logits[i].data(),
                                 static_cast<int32_t>(logits[i].shape(0))});
            }
            if (closed < 0) {
                Interruptible guard(parts[0].session);
                status = fm_sessions_eval(parts.data(), static_cast<int32_t>(parts.size()), &at_fault, &err);
                interrupted = guard.fired();
            }
        }
        if (interrupted) {
            if (PyErr_CheckSignals() != 0) throw nb::python_error();
            if (status == FM_CANCELLED) return false;
        }
        if (closed >= 0) raise("CLOSED", "the session is closed", closed);
        if (status == FM_OK) return true;
        raise(status == FM_IO ? "EXPERT_IO" : status_name(status), err.message[0] ? err.message : fm_status_text(status),
              at_fault);
    }

    std::shared_ptr<ModelHandle> model_;
    fm_session *c_ = nullptr;
    size_t vocab_ = 0;
    std::mutex turn_;
};

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
    nb::gil_scoped_release nogil;
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
    nb::gil_scoped_release nogil;
    for (size_t r = 0; r < x.shape(0); r++)
        fm_affine_encode_row(quant, x.data() + r * x.shape(1), static_cast<int32_t>(x.shape(1)),
                             weight.data() + r * layout.row_bytes, scales.data() + r * layout.scale_row_bytes,
                             biases.data() + r * layout.scale_row_bytes);
}

// The same with codes, scales and biases searched for the least error, which is returned. No importance: every column alike.
double affine_search(Floats x, Row importance, int32_t bits, int32_t group, const std::string &scale, Bytes weight, Bytes scales,
                     Bytes biases)
{
    const fm_quant quant = affine_quant(bits, group, scale);
    const fm_matrix_layout layout = affine_layout(quant, x, weight, scales, biases);
    if (importance.shape(0) && importance.shape(0) != x.shape(1)) throw nb::value_error("importance needs a number a column");
    const float *h = importance.shape(0) ? importance.data() : nullptr;
    double error = 0;
    nb::gil_scoped_release nogil;
    for (size_t r = 0; r < x.shape(0); r++)
        error += fm_affine_search_row(quant, x.data() + r * x.shape(1), h, static_cast<int32_t>(x.shape(1)),
                                      weight.data() + r * layout.row_bytes, scales.data() + r * layout.scale_row_bytes,
                                      biases.data() + r * layout.scale_row_bytes);
    return error;
}

uint64_t xxh3_64(nb::object buffer)
{
    View view(buffer);
    nb::gil_scoped_release nogil;
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

NB_MODULE(_core, m)
{
    m.doc() = "The engine. Use flashmoe.Model, Generator and Sampler instead.";

    nb::class_<Model>(m, "Model")
        .def(nb::init<const std::string &, const std::string &, const std::string &, uint64_t, int32_t, int32_t,
                      const std::string &, const std::string &, int32_t, int32_t, int32_t, int32_t, const std::string &, bool,
                      bool, const std::string &>(),
             "manifest"_a, "directory"_a, nb::kw_only(), "device"_a = "cpu", "memory"_a = 0, "threads"_a = 0,
             "experts_per_token"_a = 0, "kv"_a = "f16", "read"_a = "buffered", "read_threads"_a = 0, "read_split"_a = 0,
             "prefill_rows"_a = 0, "expert_slots"_a = 0, "eviction"_a = "auto", "overlap"_a = true, "guess"_a = true,
             "cache"_a = "")
        .def("info", &Model::info)
        .def("fingerprint", &Model::fingerprint)
        .def("record", &Model::record, "on"_a)
        .def("recorded", &Model::recorded, "out"_a.noconvert())
        .def("expert_uses", &Model::expert_uses, "out"_a.noconvert())
        .def("layer_ns", &Model::layer_ns, "out"_a.noconvert())
        .def("close", &Model::close)
        .def_prop_ro("closed", &Model::closed);

    nb::class_<Session>(m, "Session", nb::is_weak_referenceable())
        .def(nb::init<const Model &>(), "model"_a)
        .def("eval", &Session::eval, "tokens"_a.noconvert(), "logits"_a.noconvert())
        .def("reset", &Session::reset)
        .def("cancel", &Session::cancel)
        .def("save", &Session::save)
        .def("load", &Session::load, "snapshot"_a)
        .def("close", &Session::close)
        .def("stats", &Session::stats)
        .def_prop_ro("position", &Session::position);

    m.def("eval_together", &Session::eval_together, "sessions"_a, "tokens"_a.noconvert(), "logits"_a.noconvert());
    m.def("sample", &sample, "logits"_a.noconvert(), nb::kw_only(), "temperature"_a, "top_p"_a, "min_p"_a, "top_k"_a, "rng"_a);
    m.def("logprob", &logprob, "logits"_a.noconvert(), "id"_a);
    m.def("affine_encode", &affine_encode, "x"_a.noconvert(), "bits"_a, "group"_a, "scale"_a, "weight"_a.noconvert(),
          "scales"_a.noconvert(), "biases"_a.noconvert());
    m.def("affine_search", &affine_search, "x"_a.noconvert(), "importance"_a.noconvert(), "bits"_a, "group"_a, "scale"_a,
          "weight"_a.noconvert(), "scales"_a.noconvert(), "biases"_a.noconvert());
    m.def("xxh3_64", &xxh3_64, "buffer"_a);
    m.def("probe_reads", &probe_reads, "manifest"_a, "directory"_a, nb::kw_only(), "read"_a, "read_threads"_a, "read_split"_a,
          "seconds"_a, "cold"_a, "seed"_a);
    m.def("kernels", &kernels);
    m.def("devices", &devices);
    m.def("selftest", &selftest, "device"_a, nb::kw_only(), "cache"_a, "quick"_a);
    m.def("cores", &fm_cores);
}
