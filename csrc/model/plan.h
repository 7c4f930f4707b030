/* What fits: how many rows a step may have and how many expert slots there are, within the budget. */
#ifndef FM_PLAN_H
#define FM_PLAN_H

#include "model/model.h"

/* Sizes that follow from the spec. */
size_t fm_plan_state_bytes(const fm_model_spec *spec); /* one copy */
size_t fm_plan_kv_row_bytes(const fm_model_spec *spec, fm_kv_kind kind);
size_t fm_plan_slot_bytes(const fm_manifest *manifest); /* the largest expert, whole pages; 0: none */

/* Sets options.prefill_rows, max_slots, min_slots, scratch_bytes of a model whose manifest, weights
 * plan and options are there. FM_BUDGET spells out the sum. */
fm_status fm_plan_memory(fm_model *model, fm_error *err);

#endif
