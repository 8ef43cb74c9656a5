"""Planted bugs: paged_attention on wgmma."""

from __future__ import annotations

from tools.mutation.mutant import plant

CUDA = "csrc/ops/paged_attention/cuda"
CASES = "tests/ops/test_paged_attention.py tests/ops/test_paged_attention_cuda.py -k sm90a"
BOXES = "tests/ops/test_paged_attention_boxes.py"
CHOICE = "tests/ops/test_paged_attention_cuda.py -k wgmma"
OF_BYTES = "tests/ops/test_paged_attention_wgmma_bytes.py"

MUTANTS = (
    *plant(
        f"{CUDA}/sm90a.cuh",
        (
            "attention sm90a: more registers than the block owns",
            "kProducerRegisters = 168 - 2 * kHanded",
            "kProducerRegisters = 176 - 2 * kHanded",
        ),
        (
            "attention sm90a: parity of full stages",
            "full[cursor.stage], cursor.parity",
            "full[cursor.stage], cursor.parity ^ 1",
        ),
        ("attention sm90a: values from a stage of keys", "stages.values.advance();", ""),
        (
            "attention sm90a: keys are released in flight",
            "dev::wgmma_wait<kYounger>();",
            "dev::wgmma_wait<kYounger + 1>();",
        ),
        (
            "attention sm90a: values are released in flight",
            "dev::wgmma_wait<0>();",
            "dev::wgmma_wait<1>();",
        ),
        (
            "attention sm90a: lost rescale",
            "if (growth.is_needed) Weigh::grow_values(growth, state);",
            "",
        ),
        ("attention sm90a: weights are not rescaled", "Weigh::grow_weights(growth, state);", ""),
        (
            "attention sm90a: turns swapped",
            "dev::barrier_sync(kFirst + mine(), kTwoThreads)",
            "dev::barrier_sync(kFirst + 1 - mine(), kTwoThreads)",
        ),
        ("attention sm90a: nobody begins", "Turn::start();", ""),
        (
            "attention sm90a: flags of the block before",
            "Shape::sync();  // all threads have read the flags of the block before",
            "",
        ),
        (
            "attention sm90a: no proxy fence after special values",
            "Special::clear(stage); dev::fence_proxy_async();",
            "Special::clear(stage);",
        ),
        ("attention sm90a: special values stay", "Special::clear(stage);", ""),
        (
            "attention sm90a: no proxy fence after queries",
            "if constexpr (!Shape::kKeepsQueries) dev::fence_proxy_async();",
            "",
        ),
        (
            "attention sm90a: no mask at the end",
            "Shape::at(&Place::all_high) - walk.first_column() < kColumns",
            "Shape::at(&Place::all_high) < 0",
        ),
        (
            "attention sm90a: rows end a block early",
            "info(RowMember::kHigh)",
            "info(RowMember::kHigh) - kColumns",
        ),
        ("attention sm90a: a turn too many", "if (block.index() > 0) {", "if (block.index() >= 0) {"),
        (
            "attention sm90a: sums of two lanes",
            "sum = sum + dev::shuffle_xor(sum, 2);",
            "",
        ),
        tests=CASES,
    ),
    *plant(
        f"{CUDA}/sm90a.cuh",
        ("attention sm90a: no fence after barriers are made", "dev::fence_mbarrier_init();", ""),
        tests=BOXES,
    ),
    *plant(
        f"{CUDA}/sm90a_producer.cuh",
        (
            "attention sm90a: no proxy fence after copies",
            "dev::cp_async_wait<kAhead>(); dev::fence_proxy_async();",
            "dev::cp_async_wait<kAhead>();",
        ),
        (
            "attention sm90a: no proxy fence after the last copies",
            "dev::cp_async_wait<0>(); dev::fence_proxy_async();",
            "dev::cp_async_wait<0>();",
        ),
        (
            "attention sm90a: a stage is full too early",
            "dev::cp_async_wait<kAhead>();",
            "dev::cp_async_wait<kAhead + 1>();",
        ),
        (
            "attention sm90a: the last stages are full too early",
            "dev::cp_async_wait<0>(); dev::fence",
            "dev::fence",
        ),
        ("attention sm90a: parity of empty stages", "next_.parity ^ 1", "next_.parity"),
        ("attention sm90a: boxes while copies are under way", "if (is_boxed) finish_copies();", "", BOXES),
        (
            "attention sm90a: bytes of a tile for a part of its boxes",
            "Shape::kBoxes * slots * Shape::kRunBytes",
            "Shape::kTileBytes",
            BOXES,
        ),
        (
            "attention sm90a: no bytes are expected",
            "dev::mbarrier_expect_tx(full, Shape::kBoxes * slots * Shape::kRunBytes);",
            "",
            BOXES,
        ),
        (
            "attention sm90a: slot and head of a box swapped",
            "at.slot, Shape::at(&Place::head)",
            "Shape::at(&Place::head), at.slot",
            BOXES,
        ),
        ("attention sm90a: boxes at the first row", "+ row * Shape::kRunBytes;", ";", BOXES),
        ("attention sm90a: a box for each warp", "(row & (slots - 1)) == 0", "true", BOXES),
        ("attention sm90a: never boxes", "args.box_slots > 0 &&", "args.box_slots < 0 &&", BOXES),
        tests=CASES,
    ),
    *plant(
        f"{CUDA}/loads.cuh",
        ("attention sm90a: boxes with unused slots", "- first >= slots", "- first > 0"),
        ("attention sm90a: boxes that begin before the window", "first >= Shape::at(&Place::any_low) &&", ""),
        tests=BOXES,
    ),
    *plant(
        f"{CUDA}/sm90a_boxes.h",
        (
            "attention sm90a: boxes of keys for values",
            "make_box_map(v, args.box_slots, args.values)",
            "make_box_map(k, args.box_slots, args.values)",
        ),
        ("attention sm90a: boxes reach into the next page", "slots < least ||", "false ||"),
        (
            "attention sm90a: boxes of rows that are not aligned",
            "|| !allows_boxes(k) || !allows_boxes(v)",
            "",
        ),
        tests=BOXES,
    ),
    *plant(
        f"{CUDA}/sm90a_products.cuh",
        (
            "attention sm90a: the first half of keys twice",
            "advance_descriptor(keys, s / kBoxSlices * Shape::kBoxBytes + at)",
            "advance_descriptor(keys, at)",
        ),
        (
            "attention sm90a: the first half of queries twice",
            "s / kBoxSlices * Shape::kQueryBoxBytes + at",
            "at",
        ),
        (
            "attention sm90a: queries of the first warpgroup",
            "warpgroup * Shape::kWarpgroupRows * Shape::kRunBytes",
            "0",
        ),
        (
            "attention sm90a: wrong leading bytes of values",
            "descriptor(stage * Shape::kTileBytes, Shape::kBoxBytes)",
            "descriptor(stage * Shape::kTileBytes, Shape::kAtomBytes)",
        ),
        (
            "attention sm90a: half a step of values",
            "s * 2 * Shape::kAtomBytes",
            "s * Shape::kAtomBytes",
        ),
        (
            "attention sm90a: halves of weights swapped",
            "weights[0][n / 2][n % 2 * 2 + half]",
            "weights[0][n / 2][half * 2 + n % 2]",
        ),
        tests=CASES,
    ),
    *plant(
        f"{CUDA}/sm90a_bytes.cuh",
        (
            "attention sm90a: bytes are copied over before they are widened",
            "steps == kBlocks,",
            "steps == kBlocks + 1,",
        ),
        (
            "attention sm90a: bytes are widened before they have landed",
            "dev::cp_async_wait<Shape::kAhead - 1>();",
            "dev::cp_async_wait<Shape::kAhead>();",
        ),
        (
            "attention sm90a: the last bytes are widened before they have landed",
            "dev::cp_async_commit();  // also of nothing",
            "if (has_next) dev::cp_async_commit();  // also of nothing",
        ),
        ("attention sm90a: the last bytes of a piece are not widened", "|| under_way > 0", ""),
        (
            "attention sm90a: no proxy fence after bytes are widened",
            "dev::fence_proxy_async(); arrive_in_cluster<1>",
            "arrive_in_cluster<1>",
        ),
        (
            "attention sm90a: a stage of bytes is full before it is written",
            "widen_rows<To>(tile * Raw::kTileBytes, next_.stage * Shape::kTileBytes); dev::fence_proxy_async();"
            " arrive_in_cluster<1>(&Shape::barriers().full[next_.stage]);",
            "dev::fence_proxy_async(); arrive_in_cluster<1>(&Shape::barriers().full[next_.stage]);"
            " widen_rows<To>(tile * Raw::kTileBytes, next_.stage * Shape::kTileBytes);",
        ),
        (
            "attention sm90a: a stage of bytes is written before it is empty",
            "dev::mbarrier_wait(&Shape::barriers().empty[next_.stage], next_.parity ^ 1);",
            "",
        ),
        (
            "attention sm90a: the other half of a chunk of bytes is widened",
            "bytes.x[half * 2], low",
            "bytes.x[2 - half * 2], low",
        ),
        ("attention sm90a: pairs of a word swapped", "low[0], low[1], high[0]", "low[1], low[0], high[0]"),
        (
            "attention sm90a: both halves of a chunk of bytes at one place",
            "Shape::chunk_at(row, 2 * chunk + 1)",
            "Shape::chunk_at(row, 2 * chunk)",
        ),
        ("attention sm90a: half a step of wide chunks", "(to[half], r, 2 * c)", "(to[half], r, c)"),
        (
            "attention sm90a: values have the type of queries",
            "fill_stage<typename Shape::W>",
            "fill_stage<typename Shape::T>",
        ),
        tests=OF_BYTES,
    ),
    *plant(
        f"{CUDA}/sm90a.cuh",
        (
            "attention sm90a: scale of the neighbour's values",
            "Shape::scales(scales, true) + Weigh::column_of(n, e)",
            "Shape::scales(scales, true) + Weigh::column_of(n, 1 - e % 2)",
        ),
        (
            "attention sm90a: scales of keys for values",
            "Shape::scales(scales, true)",
            "Shape::scales(scales, false)",
        ),
        (
            "attention sm90a: scales of unseen columns count",
            "score == -kInfinity ? 0.0f : weight * scale",
            "weight * scale",
        ),
        (
            "attention sm90a: weights are summed with scales",
            "sum = sum + weight; if constexpr (kHasScales) {",
            "if constexpr (!kHasScales) sum = sum + weight; if constexpr (kHasScales) {"
            " sum = sum + weight * dev::load_shared(Shape::scales(scales, true) + Weigh::column_of(n, e));",
        ),
        tests=OF_BYTES,
    ),
    *plant(
        f"{CUDA}/softmax.cuh",
        (
            "attention sm90a: scale of the neighbour's keys",
            "Shape::scales(scales, false) + column",
            "Shape::scales(scales, false) + (column ^ 1)",
        ),
        (
            "attention sm90a: scales of values for keys",
            "Shape::scales(scales, false)",
            "Shape::scales(scales, true)",
        ),
        tests=OF_BYTES,
    ),
    *plant(
        f"{CUDA}/loads.cuh",
        (
            "attention sm90a: scales of the next block",
            "Shape::scales_of(stage, walk_.index() - 1)",
            "Shape::scales_of(stage, walk_.index())",
        ),
        (
            "attention sm90a: scales of the first page for a page that is none",
            "there_ >> dev::lane() & 1 ? 4 : 0;",
            "true ? 4 : 0;",
        ),
        tests=OF_BYTES,
    ),
    *plant(
        f"{CUDA}/sm90a_shape.cuh",
        (
            "attention sm90a: too few places for scales",
            "kPositionBlocks = (kStages + kRawTiles) / 2 + 2;",
            "kPositionBlocks = kStages / 2;",
        ),
        tests=OF_BYTES,
    ),
    *plant(
        f"{CUDA}/run.cc",
        (
            "attention sm90a: chosen where the batch must not matter",
            "!(sizes.batch_invariant && kernel.arch == 90)",
            "true",
        ),
        (
            "attention sm90a: chosen on newer GPUs",
            "kernel.arch == 90 ? device.compute_capability == 90",
            "kernel.arch == 90 ? device.compute_capability >= 90",
        ),
        ("attention sm90a: chosen for few rows", "needed < kLeastRowsOfSm90a", "needed < 0"),
        ("attention sm90a: never chosen", "kernel.arch > other.arch", "kernel.arch < other.arch"),
        tests=CHOICE,
    ),
)
