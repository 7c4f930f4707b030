/* Watch builds (-DEMU_WATCH): every access of a kernel is checked against what is bound, and against other threads'. */
#ifndef FM_METAL_WATCH_H
#define FM_METAL_WATCH_H

#include "runtime.h"

namespace emu::watch
{
#ifdef EMU_WATCH
void begin(const emu_kernel *k, const void *stacks, size_t bytes); /* a dispatch; stacks are not watched */
void group(uint32_t simdgroups); /* a threadgroup: no memory but the buffers, and no order with other groups */
void allow(const void *at, size_t bytes, Memory kind, bool writable, const char *name);
void thread(uint64_t group, uint32_t index); /* who runs now */
void meet(Scope scope, int memory);          /* all of a simdgroup or threadgroup have met */
void atomic(const void *at, size_t bytes);
void end(); /* what follows is no kernel's access */
void barrier();
#else
static inline void begin(const emu_kernel *, const void *, size_t) {}
static inline void group(uint32_t) {}
static inline void allow(const void *, size_t, Memory, bool, const char *) {}
static inline void thread(uint64_t, uint32_t) {}
static inline void meet(Scope, int) {}
static inline void atomic(const void *, size_t) {}
static inline void end() {}
static inline void barrier() {}
#endif
} // namespace emu::watch

#endif
