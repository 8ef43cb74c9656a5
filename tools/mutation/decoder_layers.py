"""Bugs to plant in decoder_layers, and in what calls it for models of transformers."""

from __future__ import annotations

from tools.mutation.mutant import plant

MUTANTS = (
    *plant(
        "csrc/torch/decoder_layers.cc",
        (
            "decoder layers: the norm of attention twice",
            "normalized(middle, mlp_norm,",
            "normalized(middle, attention_norm,",
        ),
        (
            "decoder layers: eps of the other norm",
            "mlp_norm, mlp_eps, gate_up)",
            "mlp_norm, attention_eps, gate_up)",
        ),
        ("decoder layers: norms of the first layer", "norms[2 * i], norms[2 * i + 1]", "norms[0], norms[1]"),
        (
            "decoder layers: the input is lost",
            "o({flat, {}, {}}, dtype, x)",
            "o({flat, {}, {}}, dtype, std::nullopt)",
        ),
        (
            "decoder layers: the input is added twice",
            "down(gated(both, down), dtype, middle)",
            "down(gated(both, down), dtype, x)",
        ),
        (
            "decoder layers: zero points of activations lost",
            "symmetric ? std::nullopt : OptionalTensor",
            "true ? std::nullopt : OptionalTensor",
        ),
        ("decoder layers: always symmetric", "return kind_ != kW8A8Asymmetric;", "return true;"),
        ("decoder layers: biases lost", "if (given & 2) bias_ =", "if (given & 2) (void)"),
        ("decoder layers: the perm lost", "if (given & 4) perm_ =", "if (given & 4) (void)"),
        (
            "decoder layers: zero points of weights lost",
            "if (given & 1) zero_point_ =",
            "if (given & 1) (void)",
        ),
        (
            "decoder layers: values begin where keys do",
            "part(kv_heads, v_dim, values)",
            "part(kv_heads, v_dim, keys)",
        ),
        (
            "decoder layers: values are as wide as keys",
            "heads * v_dim}, {heads * v_dim",
            "heads * dim}, {heads * dim",
        ),
        (
            "decoder layers: the cache of the first layer",
            "k_caches[i], v_caches[i]",
            "k_caches[0], v_caches[0]",
        ),
        ("decoder layers: scales of keys for values", "scale_of(v_scales, i)", "scale_of(k_scales, i)"),
        (
            "decoder layers: queries are not rotated",
            "std::nullopt,\n              false, q);",
            "std::nullopt,\n              false, std::nullopt);",
        ),
        ("decoder layers: window dropped", "call.window_left, call.window_right", "-1, call.window_right"),
        ("decoder layers: softcap dropped", "call.softcap, std::nullopt", "0.0, std::nullopt"),
        ("decoder layers: depths of the tree lost", "call.tree_depth, k_scale", "std::nullopt, k_scale"),
        tests="tests/ops/test_decoder_layers.py",
    ),
    *plant(
        "python/lamina/integrations/transformers/decoder.py",
        (
            "one call: layers with hooks",
            "if not any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers):",
            "if True:",
        ),
        (
            "one call: norms of heads dropped",
            "if attention.q_norm is not None or not mlp.is_silu:",
            "if not mlp.is_silu:",
        ),
        (
            "one call: silu for any activation",
            "if attention.q_norm is not None or not mlp.is_silu:",
            "if attention.q_norm is not None:",
        ),
        ("one call: padding is attended to", "or mask.selection is not None:", "or False:"),
        ("one call: the cache of layer 0", "of[i] for i in at", "of[0] for i in at"),
        (
            "one call: eps of the first norm",
            "first.variance_epsilon, second.variance_epsilon",
            "first.variance_epsilon, first.variance_epsilon",
        ),
        tests="tests/python/test_accelerate.py",
    ),
    *plant(
        "python/lamina/nn/packed_linear.py",
        ("one call: the weight of before", 'self.__dict__.pop("operands", None)', "pass"),
        tests="tests/python/test_accelerate.py",
    ),
    *plant(
        "python/lamina/integrations/transformers/fused.py",
        (
            "one call: windows of the first layer",
            'for name in ("heads", "scaling", "window", "softcap")',
            'for name in ("heads",)',
        ),
        tests="tests/python/test_accelerate.py",
    ),
)
