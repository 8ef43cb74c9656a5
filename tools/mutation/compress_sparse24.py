"""Bugs to plant in csrc/ops/compress_sparse24, its layouts and the importers of 2:4 weights."""

from __future__ import annotations

from tools.mutation.mutant import plant

COMPRESS = "tests/ops/test_compress_sparse24.py"
IMPORT = "tests/python/test_sparse24_imports.py"

MUTANTS = (
    *plant(
        "csrc/base/first.h",
        ("first: the last index that is reported", "index < before", "index != before"),
        tests=COMPRESS + " tests/ops/test_pack_int4.py",
    ),
    *plant(
        "csrc/ops/compress_sparse24/compress.cc",
        ("sparse24: -0.0 of 16 bits is kept", "p.fill == 0 ? 0x7fff : 0xffff", "0xffff"),
        ("sparse24: -0.0 of f32 is kept", "p.fill == 0 ? 0x7fffffffu : 0xffffffffu", "0xffffffffu"),
        ("sparse24: -128 is 0", "uint8_t{0xff}", "uint8_t{0x7f}"),
        ("sparse24: a group is completed with what w holds", "kept >> i1 & 1 ? from[i1] : fill", "from[i1]"),
        ("sparse24: codes of odd groups lost", "code << (g % 2 * 4)", "code << 0"),
        ("sparse24: an odd number of groups ends with 0", "codes[groups / 2] |= kEmptyCode << 4;", ";"),
        (
            "sparse24: row stride of w ignored",
            "w.data) + row * w.stride; Bits*",
            "w.data) + row * p.k; Bits*",
        ),
        ("sparse24: row stride of the mask ignored", "w.mask + row * w.mask_stride", "w.mask + row * p.k"),
        ("sparse24: row stride of values ignored", "row * sparse.values_stride", "row * groups * kKept"),
        (
            "sparse24: metadata is not checked",
            "if (!sparse24::is_code(code)) return",
            "if (code > 15) return",
        ),
        (
            "sparse24: dropped entries are 0",
            "std::fill_n(to, p.k, static_cast<Bits>(p.fill));",
            "std::fill_n(to, p.k, Bits{});",
        ),
        tests=COMPRESS,
    ),
    *plant(
        "csrc/layout/sparse24_foreign.h",
        (
            "cusparselt: tiles along k first",
            "(column / 4 * (n / 128) + row / 128) * 8",
            "(row / 128 * (n / 128) + column / 4) * 8",
        ),
        (
            "cusparselt: blocks along k first",
            "column % 4 / 2 * 4 + row % 128 / 32",
            "row % 128 / 32 * 2 + column % 4 / 2",
        ),
        tests=IMPORT,
    ),
    *plant(
        "csrc/ops/compress_sparse24/foreign.cc",
        (
            "import: words of 32 bits in blocks of 32 rows",
            "return sparse24::cutlass_place<16>;",
            "return sparse24::cutlass_place<32>;",
        ),
        (
            "import: marlin as cutlass",
            "return sparse24::marlin_place;",
            "return sparse24::cutlass_place<32>;",
        ),
        (
            "import: foreign codes are not checked",
            "return check_metadata(op, metadata, sparse24::metadata_bytes(k), n, k, parallel);",
            "return Status::ok();",
        ),
        (
            "import: the second pair of f32 in the first half",
            "sparse24::code_of(i0, 2 + i1)",
            "sparse24::code_of(i0, 3 - i1)",
        ),
        (
            "import: a bitmask may keep one",
            "count(kept) != kKept",
            "count(kept) > kKept",
        ),
        (
            "import: codes of the first tile along k",
            "(tile_k * tiles_n + tile_n)",
            "(tile_n * tiles_k + tile_k)",
        ),
        tests=IMPORT,
    ),
    *plant(
        "python/lamina/checkpoint/formats/sparse24.py",
        ("marlin-24: scales of short weights are permuted", "if size >= k // 2 else", "if size >= k else"),
        ("marlin-24: scales stay permuted", ".transpose(2, 3)", ""),
        ("bitmask: a transposed one is taken", "(n, -(-k // 8))", "bitmask.shape"),
        (
            "cutlass: transposed metadata is taken",
            "words = (n, k // _K_OF_WORD[order])",
            "words = meta.shape",
        ),
        ("2:4 import: any dtype is taken", "if tensor.dtype not in dtypes:", "if False:"),
        tests=IMPORT,
    ),
)
