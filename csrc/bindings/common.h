// What the files of the Python module share: converting, calling, raising.
#ifndef FM_BINDINGS_COMMON_H
#define FM_BINDINGS_COMMON_H

#include <atomic>
#include <initializer_list>
#include <string>

#include <pthread.h>
#include <unistd.h>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "flashmoe.h"

namespace nb = nanobind;
using namespace nb::literals;

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

inline const char *status_name(fm_status status)
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
[[noreturn]] inline void raise(const char *status, const char *message, int32_t sequence = -1)
{
    nb::object which = sequence < 0 ? nb::none() : nb::object(nb::int_(sequence));
    nb::object error = nb::module_::import_("flashmoe.errors").attr("from_status")(status, message, which);
    PyErr_SetObject(reinterpret_cast<PyObject *>(Py_TYPE(error.ptr())), error.ptr());
    throw nb::python_error();
}

// No GIL while it lives. A thread that is still at work when the interpreter ends does not come back: Python would end it
// here, inside of C++ functions that nothing may leave this way, and with it the process.
class Unlocked
{
  public:
    Unlocked() : state_(PyEval_SaveThread()) {}
    ~Unlocked()
    {
        coming++;
        if (leaving && !pthread_equal(pthread_self(), last)) {
            coming--;
            for (;;) pause();
        }
        PyEval_RestoreThread(state_);
        coming--;
    }
    Unlocked(const Unlocked &) = delete;
    Unlocked &operator=(const Unlocked &) = delete;

    // The interpreter is about to end, on this thread. Who waits for the GIL already still gets it; for a second, as in a forked
    // process those who waited are not there.
    static void leave()
    {
        last = pthread_self();
        leaving = true;
        for (int i = 0; coming && i < 10000; i++) {
            PyThreadState *state = PyEval_SaveThread();
            usleep(100);
            PyEval_RestoreThread(state);
        }
    }

  private:
    inline static std::atomic<int> coming{0};
    inline static std::atomic<bool> leaving{false};
    inline static pthread_t last;
    PyThreadState *state_;
};

inline void check(fm_status status, const fm_error &err)
{
    if (status != FM_OK) raise(status_name(status), err.message[0] ? err.message : fm_status_text(status));
}

// Call a C function without the GIL, then turn its failure into an exception.
template <typename F> void run(F &&call)
{
    fm_error err{};
    fm_status status;
    {
        Unlocked nogil;
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

inline fm_read_kind read_kind(const std::string &word)
{
    return choice<fm_read_kind>(word, "read", {read_words[0], read_words[1], read_words[2], read_words[3], read_words[4]});
}

constexpr const char *evict_words[] = {"auto", "lru", "lfu", "slru", "static"};
constexpr const char *verify_words[] = {"first", "always", "off"};

// Put the names of a file into the module.
void bind_model(nb::module_ &m);
void bind_tools(nb::module_ &m);

#endif
