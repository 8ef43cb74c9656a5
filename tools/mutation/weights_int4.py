"""Bugs to plant in lamina.quant, in the grids of int4 weights."""

from __future__ import annotations

from tools.mutation.mutant import plant

MUTANTS = (
    *plant(
        "python/lamina/quant/grid.py",
        (
            "float zeros: the range holds 0",
            "low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)",
            "low, high = x.amin(1, keepdim=True).clamp(max=0), x.amax(1, keepdim=True).clamp(min=0)",
        ),
        ("float zeros: of a scale before it is rounded", "value / scale.float())", "value / step)"),
        (
            "float zeros: rounded after the codes are made",
            "scale.float()).to(options.zero_dtype).float())",
            "scale.float()))",
        ),
        ("float zeros: beyond f16", "least = largest * LEAST_SCALE", "least = largest * 0.0"),
        ("float zeros: codes of integer ones", "_round((x / steps + (zero - whole))", "_round((x / steps)"),
        ("float zeros: padding counts", "w.shape[1] // options.group * options.group", "0"),
        ("float zeros: no least-squares fit", "code, value)\n    return", "0.0, low)\n    return"),
        ("grids: the last one is the best", "is_better = error < self._error", "is_better = error >= 0"),
        ("scales: a subnormal one is rounded down", "(rounded.float() < scale)", "(rounded.float() > scale)"),
        tests="tests/python/test_float_zero_points.py",
    ),
    *plant(
        "python/lamina/compression/choice.py",
        ("schemes: dtype of zero points dropped", "zero_point_dtype=zeros)", "zero_point_dtype=None)"),
        tests="tests/python/test_compress_schemes.py -k zero_points",
    ),
)
