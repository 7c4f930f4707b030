// Models and sessions.
#include <algorithm>
#include <cstdio>
#include <functional>
#include <memory>
#include <mutex>
#include <type_traits>
#include <vector>

#include <unistd.h>

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings/common.h"
#include "bindings/interrupt.h"

namespace
{

// The process that opened something. A process forked from it has none of its threads: it may not use what was opened, and
// leaves it as it is.
class Owner
{
  public:
    bool here() const { return getpid() == process_; }

    void check() const
    {
        if (here()) return;
        char words[256];
        snprintf(words, sizeof words,
                 "process %ld opened this model, and this process was forked from it afterwards; open the model here, or start "
                 "processes by \"spawn\" or \"forkserver\"",
                 static_cast<long>(process_));
        raise("FORKED", words);
    }

  private:
    const pid_t process_ = getpid();
};

// Closed when the last of its model object and sessions lets go of it.
struct ModelHandle {
    fm_model *c = nullptr;
    Owner owner;

    ~ModelHandle()
    {
        if (owner.here()) fm_model_close(c);
    }
};

// These wait for a step that is under way, so other threads of Python's go on.
fm_model_info describe(const ModelHandle &model)
{
    fm_model_info info;
    Unlocked nogil;
    fm_model_describe(model.c, &info);
    return info;
}

// What becomes of a call that SIGINT arrived in: an exception, if Python's handler raises one; else, if it was cut short, it
// is made again.
bool to_repeat(fm_status status)
{
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
    return status == FM_CANCELLED;
}

class Model
{
  public:
    Model(const std::string &manifest, const std::string &directory, const std::string &device, uint64_t memory, int32_t threads,
          int32_t experts_per_token, const std::string &kv, const std::string &read, int32_t read_threads, int32_t read_split,
          int32_t read_timeout_ms, int32_t prefill_rows, int32_t expert_slots, const std::string &eviction,
          const std::string &verify, bool overlap, bool guess, const std::string &cache)
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
        o.read_timeout_ms = read_timeout_ms;
        o.prefill_rows = prefill_rows;
        o.expert_slots = expert_slots;
        o.evict = choice<fm_evict_kind>(eviction, "eviction",
                                        {evict_words[0], evict_words[1], evict_words[2], evict_words[3], evict_words[4]});
        o.verify = choice<fm_verify_kind>(verify, "verify", {verify_words[0], verify_words[1], verify_words[2]});
        o.serial = !overlap;
        o.no_guess = !guess;
        volatile int32_t cancel = 0;
        bool again = true;
        o.cancel = &cancel;
        auto handle = std::make_shared<ModelHandle>();
        fm_error err{};
        fm_status status = FM_OK;
        while (again) {
            {
                Unlocked nogil;
                Interruptible guard(&cancel);
                cancel = 0;
                status = fm_model_open(manifest.data(), manifest.size(), directory.c_str(), &o, &handle->c, &err);
                again = guard.fired();
            }
            again = again && to_repeat(status);
        }
        check(status, err);
        handle_ = std::move(handle);
    }

    std::shared_ptr<ModelHandle> handle() const
    {
        if (!handle_) raise("CLOSED", "the model is closed");
        handle_->owner.check();
        return handle_;
    }

    // Raises if the model cannot be used.
    void check_open() const { handle(); }

    void close()
    {
        auto last = std::move(handle_); // while no other thread of Python's looks
        Unlocked nogil;
        last.reset();
    }

    bool closed() const { return !handle_; }

    nb::dict info() const
    {
        const fm_model_info i = describe(*handle());
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
        d["verify"] = verify_words[i.verify];
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

    void record(bool on)
    {
        auto model = handle();
        Unlocked nogil;
        fm_model_record(model->c, on);
    }

    // How many lines there are; `out` must have their width.
    int64_t recorded(Lines out)
    {
        auto model = handle();
        const auto width = static_cast<size_t>(3 + describe(*model).experts_per_token);
        if (out.shape(1) != width) throw nb::value_error("lines have another width");
        Unlocked nogil;
        return fm_model_recorded(model->c, out.data(), static_cast<int64_t>(out.shape(0)));
    }

    void expert_uses(Counts out)
    {
        auto model = handle();
        const fm_model_info i = describe(*model);
        if (out.shape(0) != static_cast<size_t>(i.layers) || out.shape(1) != static_cast<size_t>(i.experts))
            throw nb::value_error("the counts need a row a layer and a column an expert");
        Unlocked nogil;
        fm_model_expert_uses(model->c, out.data(), i.experts);
    }

    void layer_ns(Counts out)
    {
        auto model = handle();
        if (out.shape(0) != static_cast<size_t>(describe(*model).layers) || out.shape(1) != 4)
            throw nb::value_error("the times need a row a layer");
        Unlocked nogil;
        fm_model_layer_ns(model->c, out.data());
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
        vocab_ = static_cast<size_t>(describe(*model_).vocab_size);
    }

    ~Session() { close(); }

    // Waits for an eval in another thread, which it cancels.
    void close()
    {
        if (!owner_.here()) return;
        Unlocked nogil;
        {
            std::lock_guard<std::mutex> life(life_);
            if (c_) fm_session_cancel(c_);
        }
        std::shared_ptr<ModelHandle> model; // goes after its session
        fm_session *last;
        std::lock_guard<std::mutex> turn(turn_);
        {
            std::lock_guard<std::mutex> life(life_);
            model = std::move(model_);
            last = c_;
            c_ = nullptr;
        }
        fm_session_close(last);
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
        for (Session *session : sessions) session->owner_.check();
        while (!once(sessions, tokens, logits)) {
        }
    }

    int32_t position()
    {
        return alive([](fm_session *s) { return fm_session_position(s); });
    }

    void reset()
    {
        owner_.check();
        Unlocked nogil;
        std::lock_guard<std::mutex> turn(turn_);
        if (c_) fm_session_reset(c_);
    }

    void cancel()
    {
        alive([](fm_session *s) { return fm_session_cancel(s), 0; });
    }

    void resume()
    {
        alive([](fm_session *s) { return fm_session_resume(s), 0; });
    }

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
        const fm_session_stats s = alive([](fm_session *c) {
            fm_session_stats now;
            fm_session_describe(c, &now);
            return now;
        });
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
        owner_.check();
        run([&](fm_error *err) {
            std::lock_guard<std::mutex> turn(turn_);
            closed = !c_;
            return closed ? FM_OK : call(err);
        });
        if (closed) raise("CLOSED", "the session is closed");
    }

    // What a quick call says, during which nobody closes the session.
    template <typename F> std::invoke_result_t<F, fm_session *> alive(F &&call)
    {
        owner_.check();
        {
            std::lock_guard<std::mutex> life(life_);
            if (c_) return call(c_);
        }
        raise("CLOSED", "the session is closed");
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
        volatile int32_t cancel = 0;
        bool interrupted = false;
        int32_t closed = -1, at_fault = -1;
        {
            Unlocked nogil;
            auto turns = take_turns(sessions);
            std::vector<fm_append> parts;
            for (size_t i = 0; i < sessions.size(); i++) {
                if (!sessions[i]->c_ && closed < 0) closed = static_cast<int32_t>(i);
                parts.push_back({sessions[i]->c_, tokens[i].data(), static_cast<int32_t>(tokens[i].shape(0)), logits[i].data(),
                                 static_cast<int32_t>(logits[i].shape(0)), i ? nullptr : &cancel});
            }
            if (closed < 0) {
                Interruptible guard(&cancel);
                status = fm_sessions_eval(parts.data(), static_cast<int32_t>(parts.size()), &at_fault, &err);
                interrupted = guard.fired();
            }
        }
        if (interrupted && to_repeat(status)) return false;
        if (closed >= 0) raise("CLOSED", "the session is closed", closed);
        if (status == FM_OK) return true;
        raise(status == FM_IO ? "EXPERT_IO" : status_name(status), err.message[0] ? err.message : fm_status_text(status),
              at_fault);
    }

    const Owner owner_;
    std::shared_ptr<ModelHandle> model_;
    fm_session *c_ = nullptr;
    size_t vocab_ = 0;
    std::mutex turn_; // of those who compute with c_
    std::mutex life_; // c_ is closed only by who has both
};

} // namespace

void bind_model(nb::module_ &m)
{
    nb::class_<Model>(m, "Model")
        .def(nb::init<const std::string &, const std::string &, const std::string &, uint64_t, int32_t, int32_t,
                      const std::string &, const std::string &, int32_t, int32_t, int32_t, int32_t, int32_t, const std::string &,
                      const std::string &, bool, bool, const std::string &>(),
             "manifest"_a, "directory"_a, nb::kw_only(), "device"_a = "cpu", "memory"_a = 0, "threads"_a = 0,
             "experts_per_token"_a = 0, "kv"_a = "f16", "read"_a = "buffered", "read_threads"_a = 0, "read_split"_a = 0,
             "read_timeout_ms"_a = 0, "prefill_rows"_a = 0, "expert_slots"_a = 0, "eviction"_a = "auto", "verify"_a = "first",
             "overlap"_a = true, "guess"_a = true, "cache"_a = "")
        .def("info", &Model::info)
        .def("check_open", &Model::check_open)
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
        .def("resume", &Session::resume)
        .def("save", &Session::save)
        .def("load", &Session::load, "snapshot"_a)
        .def("close", &Session::close)
        .def("stats", &Session::stats)
        .def_prop_ro("position", &Session::position);

    m.def("eval_together", &Session::eval_together, "sessions"_a, "tokens"_a.noconvert(), "logits"_a.noconvert());
}
