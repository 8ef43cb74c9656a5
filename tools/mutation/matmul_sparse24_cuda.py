"""Bugs to plant in the CUDA kernels of 2:4 weights, their layout and their device layer."""

from __future__ import annotations

from tools.mutation.mutant import plant

CUDA = "csrc/ops/matmul_sparse24/cuda"
FLOAT = "tests/ops/test_matmul_sparse24_cuda.py"
INT8 = "tests/ops/test_matmul_sparse24_int8.py -k emulator and reference"
INT4_INT8 = "tests/ops/test_matmul_sparse24.py -k emulator and int4_int8"

MUTANTS = (
    *plant(
        "csrc/layout/sparse24_tile.h",
        (
            "sparse24 tile: the metadata of 16-bit products in the lanes of the other selector",
            "group / 8 * 2)",
            "(1 - group / 8) * 2)",
        ),
        (
            "sparse24 tile: the second half of 16 bits for the first row",
            "fragment::metadata_16_place(row, group % 8 * kGroupK)",
            "fragment::metadata_16_place((row + 8) % 16, group % 8 * kGroupK)",
        ),
        tests=FLOAT,
    ),
    *plant(
        f"{CUDA}/weights.cuh",
        ("sparse24 cuda: padding past n is no metadata", "kTileN < n ? 0 : kPadding", "kTileN < n ? 0 : 0"),
        (
            "sparse24 cuda: metadata of the next lane",
            "tile + sparse24_tile::value_bytes(bits) + dev::lane() * 4",
            "tile + sparse24_tile::value_bytes(bits) + (dev::lane() ^ 1) * 4",
        ),
        (
            "sparse24 cuda: every product takes the values of the first",
            "(product * dev::kWarpLanes + dev::lane())",
            "(dev::lane())",
            FLOAT,
        ),
        tests=INT8,
    ),
    *plant(
        f"{CUDA}/float_weights.cuh",
        (
            "sparse24 cuda: wrong selector",
            "mma_sparse_m16n8k32_f16<kProduct>",
            "mma_sparse_m16n8k32_f16<1 - kProduct>",
        ),
        (
            "sparse24 cuda: weights past k are multiplied",
            "if (dev::lane() % 4 * 4 + i / 2 * 16 >= valid) a[i] = 0;",
            ";",
            f"{FLOAT} -k infinite_scale",
        ),
        tests=FLOAT,
    ),
    *plant(
        f"{CUDA}/float_sm80.cuh",
        (
            "sparse24 sm80: the second product multiplies the first's tokens",
            "(tile.t * kProducts + kProduct) * kChunks",
            "(tile.t * kProducts) * kChunks",
        ),
        (
            "sparse24 sm80: a group that ends within a product",
            "if (group.end <= slice + 2 * kProduct + 1) enter();",
            "",
        ),
        ("sparse24 sm80: k that ends within a tile", "&& left >= sparse24_tile::kTileK", ""),
        (
            "sparse24 sm80: metadata of the first tile of a step",
            "load_metadata(kBits, tile.of(i))",
            "load_metadata(kBits, Pipe::tile_at(at, stage, i, 0))",
        ),
        tests=FLOAT,
    ),
    *plant(
        f"{CUDA}/float_sm90a.cuh",
        (
            "sparse24 sm90a: wrong selector",
            "wgmma_sparse_m64k32_bf16<Kernel::kTokens, kProduct>",
            "wgmma_sparse_m64k32_bf16<Kernel::kTokens, 1 - kProduct>",
        ),
        (
            "sparse24 sm90a: values overwritten two products too early",
            "dev::wgmma_wait<kSets - 1>();",
            "dev::wgmma_wait<kSets>();",
        ),
        (
            "sparse24 sm90a: a stage is released while its products are in flight",
            "kReleaseTile = kTileSets - 1;",
            "kReleaseTile = 0;",
        ),
        (
            "sparse24 sm90a: metadata of the next tile",
            "load_metadata(kBits, tile)",
            "load_metadata(kBits, Pipe::tile_at(stage, warp, (t + 1) % Pipe::kStageTiles))",
        ),
        ("sparse24 sm90a: padding past k is no metadata", "(is_within_k ? padding : kPadding)", "padding"),
        (
            "sparse24 sm90a: a group that ends within a product",
            "if (group.end <= slice + 2 * p + 1) enter();",
            "",
        ),
        tests=FLOAT,
    ),
    *plant(
        f"{CUDA}/int8_sm90a.cuh",
        (
            "sparse24 int8 sm90a: metadata overwritten under its product",
            "dev::wgmma_wait<Pipe::kStageTiles - 1>();",
            "dev::wgmma_wait<Pipe::kStageTiles>();",
        ),
        (
            "sparse24 int8 sm90a: metadata of the stage before",
            "Pipe::tile_at(stage, warp, t)",
            "Pipe::tile_at(s > 0 ? Pipe::stage_at(before) : stage, warp, t)",
        ),
        tests=INT8,
    ),
    *plant(
        f"{CUDA}/int8_sm80.cuh",
        (
            "sparse24 int8 sm80: tiles past k are multiplied",
            "if (t > 0 && step * kConfig.step_tiles + t >= args.units.tiles_k) break;",
            "",
        ),
        tests=INT8,
    ),
    *plant(
        f"{CUDA}/int4_int8_weights.cuh",
        (
            "sparse24 int4_int8: halves of the metadata of a lane swapped",
            "0x5140 : 0x3726",
            "0x1504 : 0x7362",
        ),
        ("sparse24 int4_int8: wrong row pair", "0x5140 : 0x3726", "0x7362 : 0x1504"),
        ("sparse24 int4_int8: codes of the two slices in turns", "0x3120", "0x3210"),
        ("sparse24 int4_int8: a group takes the next slice too", "first + 1 < end ?", "first < end ?"),
        tests=INT4_INT8,
    ),
    *plant(
        "csrc/gemm/cuda/group_end.cuh",
        ("group end, 2:4: 16 times the sums", "return sum >> 4;", "return sum;"),
        ("group end, 2:4: kept activations with the zero point", "slices * kSliceK / 2);", "0);"),
        (
            "group end, 2:4: slices of the group before",
            "is_new = true; slices = 0; } // Leaves",
            "is_new = true; } // Leaves",
        ),
        tests=INT4_INT8,
    ),
    *plant(
        "csrc/gemm/cuda/pack_activations.cuh",
        (
            "pack_activations, 2:4: slices do not take turns",
            "(2 * w + slice % 2) * 4",
            "(w + slice % 2 * 4) * 4",
        ),
        tests=INT4_INT8,
    ),
    *plant(
        "csrc/gemm/cuda/sm80_pipe.cuh",
        (
            "sm80 pipe: more threads than chunks of rows",
            "if (kThreads / kRowChunks > kRowsPerPass && row() >= kRowsPerPass) return;",
            "",
        ),
        ("sm80 pipe: columns of odd tiles past k", "&& in_column < left", ""),
        tests=f"{FLOAT} tests/ops/test_matmul_sparse24_int8.py -k emulator",
    ),
)
