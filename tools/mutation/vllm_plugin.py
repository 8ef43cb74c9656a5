"""Bugs to plant in python/lamina/integrations/vllm; the tests pretend vLLM."""

from __future__ import annotations

from tools.mutation.mutant import plant

PLUGIN = "tests/python/test_vllm_plugin.py"
ATTENTION = "tests/python/test_vllm_attention.py"
FOLDER = "python/lamina/integrations/vllm"

MUTANTS = (
    *plant(
        f"{FOLDER}/__init__.py",
        ("vllm: first is last", "kernels.insert(0, kernel)", "kernels.append(kernel)"),
        ("vllm: each call adds the kernels again", "_added.add((kernel, platform))", "pass"),
        ("vllm: another plugin's backend is taken", "if member.is_overridden() and", "if False and"),
        ("vllm: options are not checked", "if value not in allowed:", "if not value:"),
        tests=PLUGIN,
    ),
    *plant(
        f"{FOLDER}/linear.py",
        (
            "vllm: int4 zero points not turned",
            "unpack_columns(_laid_out(zero_points, output_dim=1), BITS, n)",
            "unpack_columns(zero_points.data, BITS, n)",
        ),
        ("vllm: int4 perm dropped", "perm=perm,", "perm=None,"),
        (
            "vllm: int4 group of the config after act-order",
            "self.group = packed.group",
            "self.group = size",
        ),
        ("vllm: any group is accepted", "c.group_size % GROUP_STEP)", "c.group_size % 8)"),
        ("vllm: f32 is accepted on CUDA", "if on_cpu else ()", "if True else ()"),
        (
            "vllm: fused scales in turn",
            "flat.repeat_interleave(torch.tensor(list(widths), device=flat.device))",
            "flat.repeat(-(-n // len(flat)))[:n]",
        ),
        (
            "vllm: static zero point dropped",
            "replace_parameter(layer, input_zero_point, zero_point)",
            "replace_parameter(layer, input_zero_point, zero_point * 0)",
        ),
        ("vllm: merged range of the first part", "(scale * (127 - zero)).max()", "(scale * (127 - zero))[0]"),
        tests=PLUGIN,
    ),
    *plant(
        f"{FOLDER}/cache.py",
        ("vllm: keys and values have one scale", "slots[..., -SCALE_BYTES:]", "slots[..., head_size:value]"),
        ("vllm: float8 scales dropped", "k_scale.reshape(1),", "torch.ones(1),"),
        ("vllm: padding is stored", "tokens = len(slot_mapping)", "tokens = len(key)"),
        tests=ATTENTION,
    ),
    *plant(
        f"{FOLDER}/attention.py",
        ("vllm: the window has one key more", "else sliding_window - 1", "else sliding_window"),
        ("vllm: encoders are causal", "causal = batch.causal and self.has_cache", "causal = True"),
        ("vllm: an encoder's window has one side", "-1 if causal else self.window", "-1"),
        ("vllm: softcap dropped", "self.softcap = logits_soft_cap or 0.0", "self.softcap = 0.0"),
        ("vllm: no room for scales", "2 * SCALE_BYTES", "SCALE_BYTES"),
        ("vllm: results of padding", "output[:tokens] = out", "output[:] = out[:1]"),
        tests=ATTENTION,
    ),
)
