/* The Metal device as C sees it. */
#ifndef FM_METAL_OPS_H
#define FM_METAL_OPS_H

#include "backend/backend.h"

extern const fm_backend_ops fm_metal_ops;

#endif
