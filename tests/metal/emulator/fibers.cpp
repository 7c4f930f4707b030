#include "fibers.h"

#include <stdint.h>

namespace emu
{
#if defined(EMU_SWITCH)

/* The registers that a call must keep go on the old stack and come from the new one. */
extern "C" void emu_change(void **from, void *to);
asm(R"(
    .text
    .type emu_change, @function
emu_change:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size emu_change, . - emu_change
)");

void prepare(Fiber &f, void *stack, size_t bytes, void (*entry)())
{
    uintptr_t top = ((uintptr_t)stack + bytes) & ~(uintptr_t)15;
    void **sp = (void **)top;
    *--sp = nullptr; /* where a caller's address would lie: entry begins with the stack as after a call */
    *--sp = (void *)entry;
    for (int i = 0; i < 6; i++) *--sp = nullptr;
    f.sp = sp;
}

void change(Fiber &from, Fiber &to)
{
    emu_change(&from.sp, to.sp);
}

#else

void prepare(Fiber &f, void *stack, size_t bytes, void (*entry)())
{
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = stack;
    f.context.uc_stack.ss_size = bytes;
    f.context.uc_link = nullptr;
    makecontext(&f.context, entry, 0);
}

void change(Fiber &from, Fiber &to)
{
    swapcontext(&from.context, &to.context);
}

#endif
} // namespace emu
