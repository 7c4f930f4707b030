/* The router's choice: which experts serve which row, and with what share. Pure. */
#ifndef FM_ROUTER_H
#define FM_ROUTER_H

#include "model/spec.h"

/*
 * scores[rows][experts] -> pick[rows * k], sorted by expert, then row; slots are left -1. Of equal
 * scores the lower expert wins. `count` has room for experts + 1 numbers; `pick` for 2 * rows * k.
 * FM_NUMERIC on a score that is NaN or infinite.
 */
fm_status fm_route(const fm_route_spec *spec, const float *scores, int32_t rows, fm_pick *pick, int32_t *count, fm_error *err);

#endif
