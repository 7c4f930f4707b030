/* What translated kernels, their prelude and the emulator share. No C++ library: kernels see only what Metal has. */
#ifndef FM_METAL_RUNTIME_H
#define FM_METAL_RUNTIME_H

#include "emulator.h"

#define EMU_LANES 32
#define EMU_THREADS 1024      /* most of a threadgroup */
#define EMU_GROUP_BYTES 32768 /* threadgroup memory */
#define EMU_SLOT 16           /* bytes that a lane can hand over at once */
#define EMU_UNWATCHED __attribute__((no_sanitize("thread")))

namespace emu
{
struct Thread { /* what a kernel is called with */
    void *const *buffer, *const *threadgroup;
    uint32_t in_grid[3], in_group[3], group[3], threads[3], groups[3], grid[3];
    uint32_t index, lane, simdgroup, simdgroups, width;
};

struct Constant {
    int32_t index;
    int *value;
};

/* A place in the shader text. As a default argument it is the place of the call. */
struct Site {
    const char *file;
    int line, column;
    static constexpr Site here(const char *file = __builtin_FILE(), int line = __builtin_LINE(), int column = __builtin_COLUMN())
    {
        return {file, line, column};
    }
};

enum Scope { IN_SIMDGROUP, IN_THREADGROUP };
enum Memory { NONE = 0, DEVICE = 1, THREADGROUP = 2 };

/* Wait for the other lanes or threads; `memory` says which writes they then see of each other. */
void barrier(Scope scope, int memory, const char *what, Site site);

/* Wait for the other lanes with a value of up to EMU_SLOT bytes. Returns the values of all, one behind the other. */
const void *meet(const void *value, size_t bytes, const char *what, Site site);

uint32_t lane();
uint32_t lanes(); /* of this simdgroup: fewer than 32 in the last one of an odd threadgroup */
void *group_memory(uint32_t ordinal, size_t bytes, const char *name);
void atomic(const void *at, size_t bytes);
[[noreturn]] void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

template <class T> struct value_of {
    using type = T;
};
template <class T> struct value_of<T &> {
    using type = T;
};
template <class T> struct is_reference {
    static constexpr bool value = false;
};
template <class T> struct is_reference<T &> {
    static constexpr bool value = true;
};

template <class T> EMU_UNWATCHED T argument(void *at)
{
    if constexpr (is_reference<T>::value) return *static_cast<typename value_of<T>::type *>(at);
    else return static_cast<T>(at);
}

template <class A> EMU_UNWATCHED A &array(uint32_t ordinal, const char *name)
{
    return *static_cast<A *>(group_memory(ordinal, sizeof(A), name));
}
} // namespace emu

struct emu_kernel {
    const char *name, *file;
    int32_t line;
    void (*call)(const emu::Thread &);
    const emu_param *params;
    int32_t param_count;
    const int32_t *constants;
    int32_t constant_count;
};

extern const emu_kernel emu_kernels[];            /* generated; ends with a row without name */
extern const emu::Constant emu_constant_values[]; /* generated; ends with index -1 */

#endif
