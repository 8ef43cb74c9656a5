"""Bugs to plant in pruning, distillation and the layers with 2:4 weights."""

from __future__ import annotations

from tools.mutation.mutant import plant

PRUNING, LOSS = "tests/python/test_prune_sparse24.py", "tests/python/test_distill_loss.py"
MUTANTS = (
    *plant(
        "python/lamina/quant/sparse24_masks.py",
        ("2:4: equal scores keep the later place", "four[j] > four[i]", "four[j] >= four[i]"),
        ("2:4: a mask of three is allowed", "kept > 2).any()", "kept > 3).any()"),
        tests=PRUNING,
    ),
    *plant(
        "python/lamina/quant/sparse24_pass.py",
        ("Wanda: the square of the norm", ".double().sqrt()", ".double()"),
        ("SparseGPT: the inverse counts half", "self.factor.diagonal()", "self.factor.diagonal().sqrt()"),
        ("SparseGPT: features without input cost", "self.live /", "torch.ones_like(self.live) /"),
        ("SparseGPT: a given mask is ignored", "if self._given is not None:", "if False:"),
        ("SparseGPT: a grid of weights that are dropped", ", ahead, 0.0)", ", ahead, ahead)"),
        tests=PRUNING,
    ),
    *plant(
        "python/lamina/quant/compensation.py",
        ("SparseGPT: adds the errors", "addr_(row, errors[i], alpha=-1)", "addr_(row, errors[i], alpha=1)"),
        (
            "SparseGPT: later blocks twice",
            "errors, alpha=-1)\n\n\ndef cuts",
            "errors, alpha=-2)\n\n\ndef cuts",
        ),
        tests=PRUNING,
    ),
    *plant(
        "python/lamina/quant/sparse24_order.py",
        ("2:4 order: the worst division", "kept.argmax(1)", "kept.argmin(1)"),
        ("2:4 order: the second is the least", "torch.maximum(rest,", "torch.minimum(rest,"),
        tests=PRUNING,
    ),
    *plant(
        "python/lamina/distillation_loss.py",
        (
            "KL: gradients without temperature",
            "options.weight[rows] * options.temperature)",
            "options.weight[rows])",
        ),
        ("KL: no square of the temperature", "total * options.temperature**2", "total * 1.0"),
        ("KL: reverse for forward", "log_p.sub_(log_q))", "log_q.sub_(log_p))"),
        ("JSD: beta of the other side", "loss, (1 - beta) *", "loss, beta *"),
        ("KL: NaN of words that both exclude", ".masked_fill_(p == 0, 0)", ""),
        ("KL: chunks overwrite each other", "of_head += (narrow.T", "of_head = (narrow.T"),
        ("KL: gradients in f16 vanish", "if dtype is not torch.float16 or", "if True or"),
        ("KL: the scale of a chunk stays", ".to(wide) / scale", ".to(wide)"),
        ("KL: tokens of weight 0 count", "weight.nonzero().flatten()", "torch.arange(len(weight))"),
        tests=LOSS,
    ),
    *plant(
        "python/lamina/distillation.py",
        ("distil: zeros are trained", "partial(torch.mul, mask)", "partial(torch.mul, 1.0)"),
        ("distil: padding counts", "return mask.bool() if is_of_tokens", "return None if is_of_tokens"),
        ("distil: the models stay in eval mode", "module.training = was", "pass"),
        tests="tests/python/test_distill.py",
    ),
    *plant(
        "python/lamina/compression/budget.py",
        ("2:4 budget: the largest errors first", "key=lambda item: item[1]", "key=lambda item: -item[1]"),
        tests="tests/python/test_sparse24_linear.py -k budget",
    ),
    *plant(
        "python/lamina/compression/sparse24_plan.py",
        ("2:4 plan: picks what is slower", "gain >= GAIN", "gain >= 0.5"),
        tests="tests/python/test_sparse24_linear.py -k plan",
    ),
    *plant(
        "python/lamina/nn/sparse24_linear.py",
        ("int4 2:4: completes groups with 8", "keep_two(is_weight.char(), 1)", "is_weight, fill=8"),
        tests="tests/python/test_sparse24_int4_linear.py",
    ),
)
