/* The devices of this build, best first. */
#include "backend/backend.h"
#include "backend/cpu/cpu.h"
#ifdef FM_HAVE_METAL
#include "backend/metal/metal_ops.h"
#endif

const fm_backend_ops *const *fm_backends(void)
{
    static const fm_backend_ops *const all[] = {
#ifdef FM_HAVE_METAL
        &fm_metal_ops,
#endif
        &fm_cpu_ops, NULL};
    return all;
}
