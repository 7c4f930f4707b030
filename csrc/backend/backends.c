/* The devices of this build, best first. */
#include "backend/backend.h"
#include "backend/cpu/cpu.h"

const fm_backend_ops *const *fm_backends(void)
{
    static const fm_backend_ops *const all[] = {&fm_cpu_ops, NULL};
    return all;
}
