/* A stack of its own for every thread of a kernel, and the change from one to another. */
#ifndef FM_METAL_FIBERS_H
#define FM_METAL_FIBERS_H

#include <stddef.h>

#if defined(__x86_64__) && !defined(EMU_UCONTEXT)
#define EMU_SWITCH /* our own, which leaves the signal mask alone: two system calls fewer */
#endif

#if !defined(EMU_SWITCH)
#include <ucontext.h>
#endif

namespace emu
{
struct Fiber {
#if defined(EMU_SWITCH)
    void *sp;
#else
    ucontext_t context;
#endif
};

/* Make `f` run `entry` on that stack when it is changed to. `entry` must never return. */
void prepare(Fiber &f, void *stack, size_t bytes, void (*entry)());

/* Go on in `to`. Returns when somebody changes back to `from`. */
void change(Fiber &from, Fiber &to);
} // namespace emu

#endif
