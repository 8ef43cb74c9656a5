"""lamina.integrations.transformers.accelerate: fused decoder layers give the bits of their ops one by one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

transformers = pytest.importorskip("transformers")

import lamina  # noqa: E402
from lamina.integrations.transformers import PagedKVCache, accelerate  # noqa: E402
from lamina.nn import Int4Linear, Int8Linear, RMSNorm  # noqa: E402
from lamina.nn.merged import merge_rows  # noqa: E402
from lamina.nn.packed_linear import PackedLinear  # noqa: E402

SIZES: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "initializer_range": 0.2,
    "max_position_embeddings": 256,
}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {}),
    "biases": ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}),
    "sliding window": ("MistralForCausalLM", {"sliding_window": 5}),
    "qwen2": ("Qwen2ForCausalLM", {}),
    "norms of heads": ("Qwen3ForCausalLM", {}),
    "windows in some layers": (
        "Qwen3ForCausalLM",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "1 + w and gelu": ("GemmaForCausalLM", {}),
    "norms after the products": ("Gemma2ForCausalLM", {"sliding_window": 5, "query_pre_attn_scalar": 20}),
    "norms of heads and after the products": ("Gemma3ForCausalLM", {"sliding_window": 5}),
}
SCHEMES = ["w8a8", "w8a8_asymmetric", "w4a16", "w4a8_asymmetric", "sparse24-w8a8", "sparse24-w4a8"]
IDS = torch.randint(1, 97, (2, 11), generator=torch.Generator().manual_seed(5))
PADDED = torch.tensor([[1] * 11, [0] * 4 + [1] * 7])


def make(name: str, **more: Any) -> nn.Module:
    kind, options = MODELS[name]
    torch.manual_seed(7)
    model = getattr(transformers, kind)
    made: nn.Module = model(model.config_class(**{**SIZES, **options, **more})).eval()
    for parameter_name, parameter in made.named_parameters():
        if "norm" in parameter_name or parameter_name.endswith("bias"):
            nn.init.normal_(parameter.data, 0.7, 0.3)  # ones and zeros would hide a lost one
    return made


def packed(name: str, scheme: str, dtype: torch.dtype = torch.float32, **more: Any) -> nn.Module:
    """A packed model that calls one op after the other, in the layers that transformers has."""
    model = make(name, **more).to(dtype)
    lamina.compress(model, scheme, group=32 if "w4" in scheme else None)
    model.set_attn_implementation("lamina")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for at, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            model.set_submodule(at, RMSNorm.from_module(module))
        elif type(module).__name__.endswith("MLP") and "Gemma" not in type(module).__name__:
            module.forward = partial(one_by_one, module)
    return model


def one_by_one(mlp: Any, x: Tensor) -> Tensor:
    """The MLP of Llama with lamina.silu_mul, which rounds once where torch rounds twice."""
    gate, up = (layer(x).flatten(0, -2) for layer in (mlp.gate_proj, mlp.up_proj))
    out: Tensor = mlp.down_proj(lamina.silu_mul(gate, up)).view(x.shape)
    return out


def fused(name: str, scheme: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    made = make(name).to(dtype)
    lamina.compress(made, scheme, group=32 if "w4" in scheme else None)
    report = accelerate(made)
    assert report.fused == SIZES["num_hidden_layers"] and not report.left
    return made


def logits(model: nn.Module, **options: Any) -> Tensor:
    with torch.inference_mode():
        out: Tensor = model(IDS, **options).logits
    return out


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", MODELS)
def test_an_accelerated_model_gives_the_same_bits(name: str, scheme: str) -> None:
    model, faster = packed(name, scheme), fused(name, scheme)
    assert torch.equal(logits(faster), logits(model))
    caches: list[Callable[[], Any]] = [lambda: None, lambda: PagedKVCache(model.config, 32, max_batch_size=2)]
    for cache in caches:
        for mask in (None, PADDED):
            mine, plain = (
                logits(m, attention_mask=mask, past_key_values=cache(), use_cache=True)
                for m in (faster, model)
            )
            seen = torch.ones_like(PADDED) if mask is None else mask
            assert torch.equal(mine[seen.bool()], plain[seen.bool()])


@pytest.mark.parametrize("name", MODELS)
def test_the_float_model_with_the_same_weights_gives_the_same(name: str) -> None:
    """A guard against a fault that both ways of a packed model share: W4A16 rounds as torch does, in f32."""
    model, faster = make(name), fused(name, "w4a16")
    layers = dict(packed(name, "w4a16").named_modules())
    for at, linear in model.named_modules():
        if isinstance(linear, nn.Linear) and isinstance(layers[at], PackedLinear):
            linear.weight.data = layers[at].dequantize_weight()
    torch.testing.assert_close(logits(faster), logits(model), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "norms of heads"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_generation_writes_the_same_tokens(name: str, dtype: torch.dtype) -> None:
    found = []
    for one in (packed(name, "w4a8_asymmetric"), fused(name, "w4a8_asymmetric")):
        with torch.inference_mode():
            found.append(
                one.generate(
                    IDS, attention_mask=PADDED, max_new_tokens=12, do_sample=False, pad_token_id=0,
                    past_key_values=PagedKVCache(one.config, 32, max_batch_size=2, dtype=dtype),
                )
            )  # fmt: skip
    assert torch.equal(*found) and found[0].shape[1] > IDS.shape[1] + 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    """The sum with a residual is rounded once in a fused layer, and twice where the ops follow each other."""
    exact = logits(packed("llama", "w4a16", dtype)).float()
    most = 16 * torch.finfo(dtype).eps * exact.abs().max()
    assert (logits(fused("llama", "w4a16", dtype)).float() - exact).abs().max() <= most


def test_other_attentions_work_too() -> None:
    model, faster = packed("llama", "w8a8"), fused("llama", "w8a8")
    for one in (model, faster):
        one.set_attn_implementation("sdpa")
    assert torch.equal(logits(faster), logits(model))
    with torch.inference_mode():
        kept = faster(IDS, output_hidden_states=True).hidden_states
        want = model(IDS, output_hidden_states=True).hidden_states
    assert len(kept) == len(want) == 4
    assert all(torch.equal(a, b) for a, b in zip(kept, want, strict=True))


class Calls(TorchDispatchMode):
    """The names of the ops of lamina that are called, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "lamina":
            self.names.append(func.__name__.removesuffix(".default"))
        return func(*args, **kwargs or {})


def decoded(model: Any, **options: Any) -> tuple[Tensor, list[str], Any]:
    """The logits of the token after a prompt, the ops that gave them, and the whole output."""
    cache = PagedKVCache(model.config, 32, max_batch_size=2)
    with torch.inference_mode():
        model(IDS, past_key_values=cache)
        with Calls() as calls:
            out = model(IDS[:, :1], past_key_values=cache, **options)
    return out.logits, calls.names, out


@pytest.mark.parametrize("scheme", SCHEMES)
def test_all_layers_are_one_call(scheme: str) -> None:
    models: list[Any] = [packed("biases", scheme), fused("biases", scheme)]
    for one in models:
        for layer in one.model.layers[:2]:
            layer.post_attention_layernorm.variance_epsilon = 0.5  # not that of the other norm
    (want, apart, _), (got, together, _) = map(decoded, models)
    assert torch.equal(got, want) and "decoder_layers" not in apart
    assert together[0] == "decoder_layers" and together.count("decoder_layers") == 1
    assert not {"paged_attention", "append_paged_kv"} & set(together)


@pytest.mark.parametrize("name", ["norms of heads", "1 + w and gelu", "norms after the products"])
def test_other_layers_are_many_calls(name: str) -> None:
    _, calls, _ = decoded(fused(name, "w8a8"))
    assert "decoder_layers" not in calls and calls.count("paged_attention") == 3


def test_layers_with_windows_of_their_own_are_one_call_each() -> None:
    options = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
    model = make("qwen2", **options)
    lamina.compress(model, "w8a8")
    accelerate(model)
    assert decoded(model)[1].count("decoder_layers") == 3


def test_hidden_states_of_all_layers_are_kept() -> None:
    (*_, want), (*_, got) = (
        decoded(of("llama", "w8a8"), output_hidden_states=True) for of in (packed, fused)
    )
    assert len(got.hidden_states) == 4
    assert all(torch.equal(a, b) for a, b in zip(got.hidden_states, want.hidden_states, strict=True))


def test_a_hook_is_called() -> None:
    model: Any = fused("llama", "w8a8")
    seen: list[int] = []
    model.model.layers[1].register_forward_hook(lambda *_: seen.append(1))
    assert decoded(model)[1].count("decoder_layers") == 3 and len(seen) == 2


def test_a_norm_with_a_hook_is_left() -> None:
    models: list[Any] = []
    for is_hooked in (False, True):
        made: Any = make("llama")
        lamina.compress(made, "w8a8")
        if is_hooked:
            made.model.norm.register_forward_hook(lambda *_: None)
        accelerate(made)
        models.append(made)
    assert [isinstance(one.model.norm, RMSNorm) for one in models] == [True, False]


def test_a_layer_that_changes_is_called_as_it_is() -> None:
    model: Any = fused("llama", "w4a16")
    before, _, _ = decoded(model)
    layer = model.model.layers[1].mlp.down_proj
    kept = layer.operands
    assert layer.operands is kept
    layer.activations = "int8"
    changed, _, _ = decoded(model)
    assert not torch.equal(changed, before)
    layer.activations = "float"
    assert torch.equal(decoded(model)[0], before)
    layer.weight_scale = layer.weight_scale * 2
    assert not torch.equal(decoded(model)[0], before)
    kept = layer.operands
    layer.to(torch.bfloat16).to(torch.float32)
    assert layer.operands is not kept


def test_some_of_the_layers_are_a_list_of_layers() -> None:
    layers = fused("llama", "w8a8").get_submodule("model.layers")
    assert isinstance(layers, nn.ModuleList)
    part = layers[:2]
    assert isinstance(part, nn.ModuleList) and len(part) == 2 and part[1] is layers[1]
    assert len(list(layers)) == 3 and len(layers[:3]) == 1


def test_there_are_fewer_products() -> None:
    model, faster = packed("llama", "w8a8"), fused("llama", "w8a8")
    counts = [sum(isinstance(m, PackedLinear) for m in one.modules()) for one in (model, faster)]
    assert counts == [3 * 7 + 1, 3 * 4 + 1]
    assert sum(b.numel() for b in faster.buffers()) < 1.02 * sum(b.numel() for b in model.buffers())


def test_layers_that_cannot_be_fused_are_left_with_a_reason() -> None:
    model = make("llama")
    lamina.compress(model, {"*.0.*.v_proj": "w8a8", "*.1.*.down_proj": "w4a8", "*.2.*": "w4a8"}, group=32)
    report = accelerate(model)
    assert report.fused == 1
    assert report.left == {
        "model.layers.0": "q_proj, k_proj, v_proj: Linear is not one of Int8Linear, "
        "Int4Linear, Sparse24Int8Linear, Sparse24Int4Linear",
        "model.layers.1": "q_proj, k_proj, v_proj: Linear is not one of Int8Linear, "
        "Int4Linear, Sparse24Int8Linear, Sparse24Int4Linear",
    }
    assert "fused 1 of 3 decoder layers" in str(report) and "left 2: q_proj" in str(report)
    assert accelerate(model).fused == 0  # a second call finds nothing to do
    assert logits(model).isfinite().all()


def test_norms_that_would_be_rounded_are_left() -> None:
    model = make("1 + w and gelu").bfloat16()
    lamina.compress(model, "w8a8")
    report = accelerate(model)
    assert report.fused == 0
    assert "GemmaRMSNorm computes neither" in report.left["model.layers.0"]


def test_other_models_are_left() -> None:
    config = transformers.GptOssConfig(
        **{**SIZES, "num_local_experts": 2, "num_experts_per_tok": 1, "num_hidden_layers": 1}
    )
    model = transformers.GptOssForCausalLM(config).eval()
    report = accelerate(model)
    assert report.fused == 0
    assert "GptOssDecoderLayer is not one of LlamaDecoderLayer" in report.left["model.layers.0"]
    with pytest.raises(TypeError, match="model must be a PreTrainedModel, got Linear"):
        accelerate(nn.Linear(2, 2))  # type: ignore[arg-type]


def test_an_accelerated_model_is_not_saved(tmp_path: Path) -> None:
    model = fused("llama", "w8a8")
    with pytest.raises(ValueError, match="save it before accelerate"):
        model.state_dict()
    with pytest.raises(ValueError, match="extra state"):
        lamina.save_compressed(model, tmp_path)


def linears(
    scheme: str, bias: bool = False, k: int = 72, ns: tuple[int, ...] = (40, 17, 3)
) -> list[PackedLinear]:
    torch.manual_seed(1)
    model = nn.Sequential(*(nn.Linear(k, n, bias) for n in ns))
    lamina.compress(model, scheme, group=32 if "w4" in scheme else None, skip_growing=False)
    return list(model)  # type: ignore[arg-type]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_merged_rows_have_the_bits_of_their_layers(scheme: str, bias: bool) -> None:
    layers = linears(scheme, bias)
    merged = merge_rows(layers)
    assert torch.equal(merged.dequantize_weight(), torch.cat([layer.dequantize_weight() for layer in layers]))
    x = torch.randn(5, 72, generator=torch.Generator().manual_seed(3))
    assert torch.equal(merged(x), torch.cat([layer(x) for layer in layers], 1))
    assert (merged.out_features, merged.weight_dtype) == (60, torch.float32)


def test_float_zero_points_and_one_group_are_merged() -> None:
    w = [torch.randn(n, 64, generator=torch.Generator().manual_seed(n)) for n in (16, 24)]
    layers = []
    for weight in w:
        quantized = lamina.quant.quantize_weight_int4(weight, -1, symmetric=False)
        assert quantized.zero_point is not None
        layers.append(
            Int4Linear.from_quantized(quantized._replace(zero_point=quantized.zero_point.float() + 0.25))
        )
    assert torch.equal(
        merge_rows(layers).dequantize_weight(), torch.cat([layer.dequantize_weight() for layer in layers])
    )


def test_layers_that_differ_are_not_merged() -> None:
    float_layer: Any = nn.Linear(72, 16)
    int8, int4 = linears("w8a8")[0], linears("w4a16")[0]
    static = Int8Linear.from_quantized(
        torch.ones(16, 72, dtype=torch.int8), torch.ones(16), input_scale=torch.ones(1)
    )
    order = Int4Linear.from_quantized(
        lamina.quant.quantize_weight_int4(torch.randn(16, 64), 32)._replace(
            g_idx=torch.arange(64, dtype=torch.int32) % 2
        )
    )
    for layers, message in (
        ([int8, float_layer], "Linear is not one of Int8Linear"),
        ([int8, int4], "Int4Linear, k = 72.* and Int8Linear, k = 72.* differ"),
        ([int8, linears("w8a8", k=64)[0]], "k = 64.* differ"),
        ([int8, linears("w8a8", bias=True)[0]], "bias torch.float32.* differ"),
        ([int8, linears("w8a8_asymmetric")[0]], "symmetric = False.* differ"),
        ([int4, linears("w4a8")[0]], "activations = int8.* differ"),
        ([static, static], "static scale"),
        ([order, order], "act-order"),
    ):
        with pytest.raises(ValueError, match=message):
            merge_rows(layers)
