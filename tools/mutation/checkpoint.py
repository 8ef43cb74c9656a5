"""Bugs to plant in python/lamina/checkpoint, the readers of other quantisers' files."""

from __future__ import annotations

from tools.mutation.mutant import plant

FOLDERS = "tests/python/test_load_checkpoint.py tests/python/test_load_checkpoint_errors.py"
GGUF = "tests/python/test_load_gguf.py"

MUTANTS = (
    *plant(
        "python/lamina/checkpoint/formats/words.py",
        ("words: AWQ's order inverted", "(0, 4, 1, 5, 2, 6, 3, 7)", "(0, 2, 4, 6, 1, 3, 5, 7)"),
        (
            "words: the codes past the last column stay",
            "codes.flatten(1)[:, :columns]",
            "codes.flatten(1)[:, -columns:]",
        ),
        tests=FOLDERS,
    ),
    *plant(
        "python/lamina/checkpoint/formats/compressed_tensors.py",
        ("compressed-tensors: zero points of 8 bits unsigned", "zero.int() - 128", "zero.int()"),
        ("compressed-tensors: g_idx dropped", "bool((g_idx < 0).all())", "bool((g_idx >= 0).all())"),
        (
            "compressed-tensors: an asymmetric input is symmetric",
            'Activations("int8", symmetric)',
            'Activations("int8")',
        ),
        (
            "compressed-tensors: marlin-24 always in groups",
            'group = None if scheme["group"] == -1 else',
            "group = 128 if True else",
        ),
        ("compressed-tensors: no warning of old scales", 'r"unknown|0', 'r"unknown0'),
        ("compressed-tensors: a warning of 0.8", "[0-7]", "[0-8]"),
        tests=FOLDERS,
    ),
    *plant(
        "python/lamina/checkpoint/formats/gptq.py",
        ("gptq: zero points of 8 bits less one", "zero = zero + 1", "zero = zero + 0"),
        ("awq: zero points dropped", 'if "qzeros" in own else None', 'if "qzeros" not in own else None'),
        tests=FOLDERS,
    ),
    *plant(
        "python/lamina/checkpoint/formats/gguf.py",
        (
            "gguf: the halves of a block swapped",
            "torch.bitwise_and(nibbles, 15, out=codes[:, :, 0])",
            "torch.bitwise_and(nibbles, 15, out=codes[:, :, 1])",
        ),
        ("gguf: rows of k in the file's order", '"k_proj": int(', '"no_proj": int('),
        ("gguf: flat blocks keep their codes", "[is_flat] = 1", "[is_flat] = 2"),
        (
            "gguf: q and k have the same heads",
            'file.fields.get(f"{arch}.attention.head_count_kv", heads)',
            "heads",
        ),
        tests=GGUF,
    ),
    *plant(
        "python/lamina/checkpoint/formats/gguf_file.py",
        ("gguf: alignment ignored", "start = -(-cursor.at // step) * step", "start = cursor.at"),
        ("gguf: a tensor may end past the file", "start + offset + count > len(memory)", "False"),
        tests=GGUF,
    ),
    *plant(
        "python/lamina/checkpoint/foreign.py",
        ("checkpoint: shared layers replaced once", "[name, *everywhere]", "[name]"),
        (
            "checkpoint: tied tensors part",
            "stored = next((slot for slot in places if slot.name in source.names), None)",
            "stored = places[0] if places[0].name in source.names else None; places = places[:1]",
        ),
        ("checkpoint: extra tensors pass", "if not is_scale and not any(", "if False and not any("),
        (
            "checkpoint: missing floats pass",
            "if not is_tied and slot.is_persistent:",
            "if not is_tied and not slot.is_persistent:",
        ),
        tests=FOLDERS,
    ),
)
