// Results over some columns: where they are kept, how two are merged, and how the last becomes the output.
#pragma once

#include "block/runs.cuh"
#include "ops/paged_attention/cuda/softmax.cuh"

namespace lamina::paged_attention {

template <class Shape>
struct Results {
  using State = typename Shape::State;

  LAMINA_DEVICE static void clear(State& state) {
#pragma unroll
    for (int t = 0; t < Shape::kTilesM; ++t) {
#pragma unroll
      for (int half = 0; half < 2; ++half) state.exponent[t][half] = -kInfinity;
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        state.weights[t][e] = 0.0f;
#pragma unroll
        for (int n = 0; n < Shape::kTilesElement; ++n) state.values[t][n][e] = 0.0f;
      }
    }
  }

  // A slot has words of four floats [word][thread], so that a warp's accesses are contiguous. Each thread reads only the
  // words of the thread with its index.
  LAMINA_DEVICE static dev::U32x4* word_of(float* slot, int tile, int n) {
    return reinterpret_cast<dev::U32x4*>(slot) +
           (tile * (Shape::kTilesElement + 1) + n) * Shape::kThreads + dev::thread_index();
  }
  struct Floats {
    float x[4];
  };
  LAMINA_DEVICE static void store_words(float* slot, int tile, int n, const Floats& floats) {
    dev::store_global(word_of(slot, tile, n), std::bit_cast<dev::U32x4>(floats));
  }
  LAMINA_DEVICE static Floats load_words(float* slot, int tile, int n) {
    return std::bit_cast<Floats>(dev::load_global(word_of(slot, tile, n)));
  }

  LAMINA_DEVICE static void store(const State& state, float* slot) {
#pragma unroll
    for (int t = 0; t < Shape::kTilesM; ++t) {
#pragma unroll
      for (int n = 0; n < Shape::kTilesElement; ++n) {
        const float (&v)[4] = state.values[t][n];
        store_words(slot, t, n, {{v[0], v[1], v[2], v[3]}});
      }
      store_words(
          slot, t, Shape::kTilesElement,
          {{state.exponent[t][0], state.exponent[t][1], state.weights[t][0], state.weights[t][2]}});
    }
  }

  LAMINA_DEVICE static void load(float* slot, State& state) {
    clear(state);
    merge<false>(slot, state);
  }

  // state = the result over the columns of both. kSlotIsFirst: those of the slot come before those of the state. The
  // result of two is the same whichever of them is in the slot.
  template <bool kSlotIsFirst>
  LAMINA_DEVICE static void merge(float* slot, State& state) {
#pragma unroll
    for (int t = 0; t < Shape::kTilesM; ++t)
      merge_words<kSlotIsFirst>([&](int n) { return load_words(slot, t, n); }, t, state);
  }

  // The same for slot_of(part) of all parts that share the tile, in order. If registers allow, the words of several are on
  // their way at a time; else not even the numbers of the parts stay in registers.
  LAMINA_DEVICE static void merge_all(const auto& slot_of, State& state) {
    constexpr int kWords = Shape::kTilesElement + 1;
    int32_t part = Shape::at(&Place::first_part);
    if constexpr (Shape::kTilesM * kWords <= 10) {
      constexpr int kAtOnce = 4;
#pragma unroll 1
      for (; Shape::at(&Place::last_part) - part >= kAtOnce - 1; part += kAtOnce) {
        Floats word[kAtOnce][Shape::kTilesM][kWords];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i)
#pragma unroll
          for (int t = 0; t < Shape::kTilesM; ++t)
#pragma unroll
            for (int n = 0; n < kWords; ++n) word[i][t][n] = load_words(slot_of(part + i), t, n);
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i)
#pragma unroll
          for (int t = 0; t < Shape::kTilesM; ++t)
            merge_words<false>([&](int n) { return word[i][t][n]; }, t, state);
      }
    }
#pragma unroll 1
    for (; part <= Shape::at(&Place::last_part); ++part) merge<false>(slot_of(part), state);
  }

  // Divides by the sums of weights and writes the rows.
  LAMINA_DEVICE static void write(const KernelArgs& args, const State& state) {
#pragma unroll
    for (int t = 0; t < Shape::kTilesM; ++t)
#pragma unroll
      for (int half = 0; half < 2; ++half) write_row(args, state, t, half);
  }

 private:
  // word_of(n): the words of a slot for tile t of the rows, those of values and then the exponents and sums of weights.
  template <bool kSlotIsFirst>
  LAMINA_DEVICE static void merge_words(const auto& word_of, int t, State& state) {
    const Floats other = word_of(Shape::kTilesElement);
    float own_factor[2], slot_factor[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float& exponent = state.exponent[t][half];
      const float next = dev::f32_max(exponent, other.x[half]);
      const float reference = Softmax<Shape>::finite(next);
      own_factor[half] = dev::exp2_approx(exponent - reference);
      slot_factor[half] = dev::exp2_approx(other.x[half] - reference);
      exponent = next;
    }
    const auto merged = [&](float own, float in_slot, int half) {
      return kSlotIsFirst ? std::fma(own, own_factor[half], in_slot * slot_factor[half])
                          : std::fma(in_slot, slot_factor[half], own * own_factor[half]);
    };
#pragma unroll
    for (int e = 0; e < 4; ++e)
      state.weights[t][e] = merged(state.weights[t][e], other.x[2 + e / 2], e / 2);
#pragma unroll
    for (int n = 0; n < Shape::kTilesElement; ++n) {
      const Floats values = word_of(n);
#pragma unroll
      for (int e = 0; e < 4; ++e)
        state.values[t][n][e] = merged(state.values[t][n][e], values.x[e], e / 2);
    }
  }

  LAMINA_DEVICE static void write_row(const KernelArgs& args, const State& state, int t, int half) {
    const Params& p = args.p;
    const int row = Shape::row_of(t, half);
    if (row >= Shape::at(&Place::rows)) return;
    const int of_request = Shape::at(&Tile::row) + row;
    const int64_t token = Shape::at(&Tile::token) + of_request / args.group;
    const int64_t head = int64_t{Shape::at(&Place::head)} * args.group + of_request % args.group;
    const float exponent = state.exponent[t][half], sum = state.weights[t][half * 2];
    if (p.lse != nullptr && Shape::warp_n() == 0 && dev::lane() % 4 == 0) {
      constexpr float kLn2 = 0.693147181f;
      dev::store_global(p.lse + head * p.tokens + token, (exponent + dev::log2_approx(sum)) * kLn2);
    }
    const float factor = factor_of(args, row, head, exponent, sum);
    const int64_t offset = (token * p.heads + head) * p.v_head_dim;
    if (p.out_dtype == DType::kF32) {
      store_row(p, state, t, half, factor, static_cast<float*>(p.out) + offset);
    } else if (p.out_dtype == DType::kF16) {
      store_row(p, state, t, half, factor, static_cast<F16*>(p.out) + offset);
    } else {
      store_row(p, state, t, half, factor, static_cast<BF16*>(p.out) + offset);
    }
  }

  // By which the row's sums are multiplied.
  LAMINA_DEVICE static float factor_of(const KernelArgs& args, int row, int64_t head,
                                       float exponent, float sum) {
    const Params& p = args.p;
    // Only keys with score -inf give 0 / 0 without a sink.
    if (exponent == -kInfinity && sum == 0.0f && !TileRows<Shape>::sees_any(args, row)) return 0.0f;
    float keep = 1.0f, total = sum;
    if (p.sinks != nullptr) {
      const float sink = dev::load_global(p.sinks + head) * kLog2E;
      const float reference = dev::f32_max(exponent, sink);
      keep = dev::exp2_approx(exponent - reference);
      total = std::fma(sum, keep, dev::exp2_approx(sink - reference));
    }
    const bool has_one_scale =
        Shape::kIsQuantized && p.v_scale.is_given() && !p.v_scale.is_per_token();
    constexpr float unit = kUnit<Shape::kElements, typename Shape::W>;
    return keep / total * (has_one_scale ? unit * dev::load_global(p.v_scale.data) : unit);
  }

  template <class Out>
  LAMINA_DEVICE static void store_row(const Params& p, const State& state, int t, int half,
                                      float factor, Out* row) {
    // The addition makes every zero +0: a block of columns of which a row sees nothing would change the sign.
    const auto result = [&](int n, int e) {
      return from_f32<Out>(state.values[t][n][half * 2 + e] * factor + 0.0f);
    };
    if constexpr (Shape::kRingHasBytes) {  // eight neighbours in four tiles
#pragma unroll
      for (int n = 0; n < Shape::kTilesElement; n += 4) {
        const int first = Shape::element_of(n, 0);
        Run<Out, 8> run;
#pragma unroll
        for (int i = 0; i < 8; ++i) run.value[i] = result(n + i % 4, i / 4);
        if (first < p.v_head_dim) store_run(row + first, run, 8);
      }
    } else {
#pragma unroll
      for (int n = 0; n < Shape::kTilesElement; ++n) {
        const int first = Shape::element_of(n, 0);
        if (first < p.v_head_dim)
          store_run(row + first, Run<Out, 2>{{result(n, 0), result(n, 1)}}, 2);
      }
    }
  }
};

}  // namespace lamina::paged_attention
