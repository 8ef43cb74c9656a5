// quantize_int8 / rows:   q[i,j] = clamp(rint(x[i,j] / scale[i]) + zero_point[i]), scale: quant/int8.h
//
// Algorithm  a block owns a row at a time: it finds the extremes (integers, shuffles, shared memory), then quantises
//            the row
// Data path  gmem -> regs (16 bytes a lane where x's rows are aligned) twice, the second time from cache -> q
// Budget     <= 64 regs; 0 spills
// Reference  tests/reference/quantize.py
#include "base/int_math.h"
#include "device/device.h"
#include "ops/quantize_int8/cuda/launch.h"
#include "quant/int8.h"
#include "quant/int8_row.cuh"

namespace lamina::quantize_int8 {
namespace {

template <class In>
struct Rows {
  struct Args {
    Params p;
  };
  static constexpr const char* kName = "quantize_int8_rows";
  static constexpr int kThreads = 256, kMinBlocks = 4;
  using InRow = Int8Row<In, kThreads>;
  static constexpr int kSmemBytes = InRow::kSmemBytes;

  LAMINA_DEVICE static RowGrid find_grid(const Params& p, int64_t i, Range range) {
    if (!p.static_scale.is_given()) return row_grid(range, p.symmetric);
    const Grid grid = p.static_grid(i);
    // The host cannot check the value of a static scale before the launch, so the kernel does.
    return {grid, !range.has_nan() && grid.scale >= FLT_MIN && grid.scale <= FLT_MAX};
  }

  LAMINA_DEVICE static void run(const Args& args) {
    const int64_t stride = dev::grid_size().x;
    for (int64_t i = dev::block_index().x; i < args.p.m; i += stride) {
      quantize_row(args.p, i);
      if (i + stride < args.p.m) dev::block_sync();  // all threads have read the extremes
    }
  }

  LAMINA_DEVICE static void quantize_row(const Params& p, int64_t i) {
    const In* const x = static_cast<const In*>(p.x) + i * p.x_stride;
    const auto values = [&](int64_t j, int count) { return InRow::load(x + j, count); };
    const Range range = InRow::find_range(p.k, values, dev::dynamic_smem());
    InRow::store(find_grid(p, i, range), p.k, values, p, i);
  }
};

template <class In>
Status launch_as(const Params& params, int max_blocks, void* stream) {
  const int64_t blocks = std::min<int64_t>(params.m, max_blocks);
  return dev::launch<Rows<In>>({{static_cast<int>(blocks), 1, 1}, Rows<In>::kSmemBytes}, stream,
                               {params});
}

}  // namespace

Status launch_rows(const Params& params, int max_blocks, void* stream) {
  if (params.x_dtype == DType::kF32) return launch_as<float>(params, max_blocks, stream);
  if (params.x_dtype == DType::kF16) return launch_as<F16>(params, max_blocks, stream);
  return launch_as<BF16>(params, max_blocks, stream);
}

}  // namespace lamina::quantize_int8
