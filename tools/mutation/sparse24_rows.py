"""Bugs to plant in blocks of dense rows among 2:4 rows, and in 2:4 layers that move between devices."""

from __future__ import annotations

from tools.mutation.mutant import plant

ROWS, LAYERS = "tests/ops/test_sparse24_dense_rows.py", "tests/python/test_sparse24_rows.py"
DEVICES = "tests/python/test_sparse24_cuda.py"

MUTANTS = (
    *plant(
        "csrc/ops/matmul_sparse24/row_blocks.h",
        ("dense rows: tiles of both kinds are counted together", "tiles[is_dense] +=", "tiles[0] +="),
        ("dense rows: the bias of the first block", "advance(bias, j);", "advance(bias, 0);"),
        ("dense rows: the gate of the first block", "advance(params.gate, j);", "advance(params.gate, 0);"),
        (
            "dense rows: the scales of the first block",
            "advance(params.w_scale, j);",
            "advance(params.w_scale, 0);",
        ),
        ("dense rows: zero points of the first block", "advance(params.w_zero_point, j);", ";"),
        ("dense rows: nothing after the last block", "i <= bounds.size()", "i < bounds.size()"),
        tests=f"{ROWS} -k cpu",
    ),
    *plant(
        "csrc/torch/matmul_sparse24.cc",
        (
            "dense rows: always the first dense tile",
            "block.tile * tiles_k * dense_bytes(bits)",
            "0 * block.tile * tiles_k * dense_bytes(bits)",
        ),
        (
            "dense rows: always the first 2:4 tile",
            "block.tile * tiles_k * sparse24_rows::tile_bytes(bits)",
            "0 * block.tile * tiles_k * sparse24_rows::tile_bytes(bits)",
        ),
        tests=f"{ROWS} -k cpu",
    ),
    *plant(
        "python/lamina/ops/pack_sparse24.py",
        (
            "dense rows: sums in the order of packing",
            "sums[is_dense], sums[~is_dense] = of_dense.column_sums, packed.column_sums",
            "sums[:] = torch.cat([of_dense.column_sums, packed.column_sums])",
        ),
        (
            "dense rows: a shard keeps the whole's blocks",
            "tuple(blocks_within(self.dense_rows, n))",
            "self.dense_rows",
        ),
        (
            "dense rows: blocks of a tile",
            "is_at_tiles((begin, end), n, BLOCK_N)",
            "is_at_tiles((begin, end), n, TILE_N)",
        ),
        tests=ROWS,
    ),
    *plant(
        "python/lamina/compression/schemes.py",
        (
            "dense rows: int8 values of the 2:4 rows",
            "q=torch.where(where[:, None], q,",
            "q=torch.where(~where[:, None], q,",
        ),
        ("dense rows: rounded to nearest in spite of GPTQ", "if rounded.dense is None:", "if True:"),
        tests=LAYERS,
    ),
    *plant(
        "python/lamina/nn/sparse24_rows.py",
        ("dense rows: a tied layer has none", "self.dense_rows = other.dense_rows", "pass"),
        tests=LAYERS,
    ),
    *plant(
        "python/lamina/nn/packed_linear.py",
        ("2:4 layer: the layout of the CPU everywhere", "layouts[-1 if", "layouts[0 if"),
        (
            "2:4 layer: a loaded layout is not packed anew",
            "        self._repack()\n\n    def _state_problem",
            "\n    def _state_problem",
        ),
        tests=DEVICES,
    ),
)
