// Launches the kernels that plan the work of a call (work.h).
#pragma once

#include "base/status.h"
#include "kv/error_word.h"
#include "ops/paged_attention/cuda/work.h"

namespace lamina::paged_attention {

// tile_rows: the most rows of a tile.
Status launch_plan(const Params& params, const Work& work, int tile_rows, kv::ErrorWord* error,
                   void* stream);

// After the plan: work.depths, the depths of all nodes of trees.
Status launch_depths(const Params& params, const Work& work, void* stream);
// After the plan: work.nodes and work.node_counts, from depths [tokens].
Status launch_nodes(const Params& params, const Work& work, const int32_t* depths, void* stream);

}  // namespace lamina::paged_attention
