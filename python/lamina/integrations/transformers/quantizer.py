"""The quantisation method "lamina" of transformers: from_pretrained and save_pretrained of packed models."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from lamina import _library
from lamina.checkpoint.description import blank, describe
from lamina.checkpoint.folder import FORMAT_VERSION, METHOD, guard, open_file
from lamina.checkpoint.load import load_layer
from lamina.compression import compress
from lamina.compression.candidates import find_candidates
from lamina.compression.choice import checked_choice
from lamina.compression.schemes import SCHEMES, Scheme
from lamina.nn.packed_linear import PackedLinear

Entries = Mapping[str, Mapping[str, Any]]

# The arguments of lamina.compress that a config carries.
OPTIONS = ("scheme", "group", "head", "skip", "scale_dtype", "zero_point_dtype")


@register_quantization_config(METHOD)
class LaminaConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """How from_pretrained(..., quantization_config=...) compresses a float model: see lamina.compress.

    scheme  a scheme of lamina.compress, or a mapping of patterns on names of layers to schemes
    group   w4 schemes: input features that share a scale; None is 128
    head    a scheme for the output layer, also where its weight is tied to the embedding
    skip    shell patterns on the names of layers to leave float
    scale_dtype, zero_point_dtype   as in lamina.compress; a torch dtype or its name ("float16"). None is the
            default of lamina.compress

    The other arguments are those of config.json for a model that is saved packed (docs/checkpoint.md). Raises
    ValueError that names the argument and the allowed values.
    """

    def __init__(
        self,
        scheme: str | Mapping[str, str] | None = None,
        *,
        group: int | None = None,
        head: str | None = None,
        skip: Sequence[str] = (),
        scale_dtype: torch.dtype | str | None = None,
        zero_point_dtype: torch.dtype | str | None = None,
        modules: Entries | None = None,
        ties: Mapping[str, str] | None = None,
        transient_buffers: Sequence[str] = (),
        format_version: int = FORMAT_VERSION,
        lamina_version: str | None = None,
        quant_method: str = METHOD,
    ) -> None:
        if (scheme is None) == (modules is None):
            raise ValueError(f"LaminaConfig: scheme must be one of {', '.join(SCHEMES)}, got {scheme!r}")
        self.scale_dtype = _checked_dtype("scale_dtype", scale_dtype)
        self.zero_point_dtype = _checked_dtype("zero_point_dtype", zero_point_dtype)
        if scheme is not None:
            checked_choice(scheme, group, self.scale_dtype, head, self.zero_point_dtype)
        if format_version != FORMAT_VERSION:
            raise ValueError(
                f"LaminaConfig: format_version is {format_version!r}, written by lamina {lamina_version}; "
                f"this version of lamina reads {FORMAT_VERSION}"
            )
        if isinstance(skip, str) or not all(isinstance(pattern, str) for pattern in skip):
            raise TypeError(f"LaminaConfig: skip must be a sequence of patterns, got {skip!r}")
        self.quant_method = quant_method
        self.scheme, self.group, self.head, self.skip = scheme, group, head, list(skip)
        self.describe(modules or {}, ties or {}, transient_buffers)

    def describe(self, modules: Entries, ties: Mapping[str, str], transient_buffers: Sequence[str]) -> None:
        """Takes the description of a packed model, in place of how to make one."""
        self.modules = {name: dict(entry) for name, entry in modules.items()}
        self.ties, self.transient_buffers = dict(ties), list(transient_buffers)
        self.format_version, self.lamina_version = FORMAT_VERSION, _library.build_info()["version"]

    def to_dict(self) -> dict[str, Any]:
        """The entry of config.json: of a packed model how it is packed, else how it is to be made."""
        packed = ("quant_method", "format_version", "lamina_version", "modules", "ties", "transient_buffers")
        names = packed if self.modules else ("quant_method", *OPTIONS)
        return {name: _written(getattr(self, name)) for name in names}


@register_quantizer(METHOD)
class LaminaHfQuantizer(HfQuantizer):  # type: ignore[misc]
    """Packs a float model when it is loaded, or makes the packed layers that a saved model is loaded into."""

    quantization_config: LaminaConfig

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: Sequence[str] | None = None, **_: Any
    ) -> None:
        self._entries: dict[str, Mapping[str, Any]] = {}  # packed layers by their names in the model
        self._schemes: dict[str, Scheme] = {}  # layers to pack, likewise
        if not self.pre_quantized:
            self._schemes = self._planned(model)
            return
        config = self.quantization_config
        stored = _stored(checkpoint_files)
        for name, entry in config.modules.items():
            place = _place(model, name)
            if place is None:
                continue
            layer = _checked_blank(model, place, entry)
            own = {full.removeprefix(f"{name}.") for full in stored if full.rpartition(".")[0] == name}
            if stored and (lost := layer.state_dict().keys() - own):
                raise ValueError(f"lamina: the files of the model lack the tensor '{name}.{min(lost)}'")
            for optional in own - layer.state_dict().keys() - {"weight"}:
                layer.register_buffer(optional, torch.empty(0, device="meta"))
            model.set_submodule(place, layer)
            self._entries[place] = entry
        ignored = [guard(name) for name in (*config.modules, *self._entries)] + config.transient_buffers
        ignore_unexpected(model, ignored)

    def _planned(self, model: PreTrainedModel) -> dict[str, Scheme]:
        """The schemes of the layers that lamina.compress would pack."""
        report = compress(model, **self._options, dry_run=True)
        names = {row.name for row in report.compressed}
        choice = checked_choice(**{name: value for name, value in self._options.items() if name != "skip"})
        schemes = choice.assign(model, find_candidates(model)).schemes
        return {name: scheme for name, scheme in schemes.items() if name in names}

    @property
    def _options(self) -> dict[str, Any]:
        return {name: getattr(self.quantization_config, name) for name in OPTIONS}

    def pack(self, model: PreTrainedModel, name: str, weight: Tensor) -> None:
        """Puts the packed layer in the place of the float layer `name`, whose weight has just been read."""
        old = model.get_submodule(name)
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        linear.weight = nn.Parameter(weight, requires_grad=False)
        try:
            layer = self._schemes[name].convert(linear).train(old.training)
        except (ValueError, RuntimeError) as error:
            raise type(error)(f"lamina: layer {name!r}: {error}") from error
        bias = old._parameters.get("bias")  # read already, or still on the meta device
        layer.bias = None if bias is None else bias.detach()
        for other, module in list(model.named_modules(remove_duplicate=False)):
            if module is old:
                model.set_submodule(other, layer)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> PreTrainedModel:
        if not self.pre_quantized:
            options = self._options
            if isinstance(model.get_output_embeddings(), PackedLinear):
                options["head"] = None
            # A tied head is left, which has no tensor in the files. The plan has given all warnings.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                compress(model, **options, progress=False)
            self._describe(model)
            return model
        for place, entry in self._entries.items():
            loaded = model.get_submodule(place)
            layer = blank(entry)  # loading checks the tensors, and repacks them for another device
            load_layer(layer, place, dict(loaded.state_dict()))
            model.set_submodule(place, layer.train(loaded.training))
        return model

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **_: Any) -> bool:
        """True for the weights to pack, and for the tensors of packed layers, which load_layer() checks."""
        layer, _dot, part = param_name.rpartition(".")
        return layer in self._entries if self.pre_quantized else layer in self._schemes and part == "weight"

    def get_quantize_ops(self) -> ConversionOps:
        """The operation that packs a weight as soon as it is read."""
        return _Pack(self)

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The state dict, and an empty tensor under the name of each float weight that is packed."""
        self._describe(model)
        empty = {guard(name): torch.empty(0) for name in self.quantization_config.modules}
        return {**model.state_dict(), **empty}, {}

    def _describe(self, model: PreTrainedModel) -> None:
        layers = {
            name: describe(layer) for name, layer in model.named_modules() if isinstance(layer, PackedLinear)
        }
        if not layers:
            raise ValueError("lamina: the model has no packed layer; every layer was left float")
        self.quantization_config.describe(layers, model.all_tied_weights_keys, ())

    def is_serializable(self) -> bool:
        """Whether save_pretrained works."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Packed weights are not trained."""
        return False


class _Pack(ConversionOps):  # type: ignore[misc]
    """Packs the weight of a layer; no float tensor is left for the model."""

    def __init__(self, quantizer: LaminaHfQuantizer) -> None:
        self._quantizer = quantizer

    def convert(
        self,
        input_dict: dict[str, Any],
        *_: Any,
        model: PreTrainedModel,
        missing_keys: set[str] | None = None,
        **__: Any,
    ) -> dict[str, Tensor]:
        for full, given in input_dict.items():
            weight = given[0] if isinstance(given, list) else given
            self._quantizer.pack(model, full.rpartition(".")[0], weight)
            if missing_keys is not None:
                missing_keys.discard(full)
        return {}


def _written(value: Any) -> Any:
    """The value as config.json holds it: a dtype by its name ("float16"), anything else unchanged."""
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value


def _checked_dtype(argument: str, value: object) -> torch.dtype | None:
    """The torch dtype for a dtype or its name, or None. lamina.compress checks whether it is allowed."""
    dtype: Any = getattr(torch, value, None) if isinstance(value, str) else value
    if value is not None and not isinstance(dtype, torch.dtype):
        raise ValueError(f"LaminaConfig: {argument} must be a dtype of torch or its name, got {value!r}")
    found: torch.dtype | None = dtype
    return found


def ignore_unexpected(model: PreTrainedModel, names: Iterable[str], suffix: str = "$") -> None:
    """Tells transformers that the files may hold tensors of these names, which the model lacks."""
    known = set(model._keys_to_ignore_on_load_unexpected or ())
    model._keys_to_ignore_on_load_unexpected = known | {f"^{re.escape(name)}{suffix}" for name in names}


def _place(model: PreTrainedModel, name: str) -> str | None:
    """The name in the model of a layer of the files: with or without the prefix of the model inside.

    None for a layer outside of the model inside, such as the head, where that model alone is loaded.
    """
    prefix = f"{model.base_model_prefix}."
    is_base = model.base_model is model
    if is_base and name.startswith(prefix):
        return name.removeprefix(prefix)
    names = {full for full, _ in model.named_modules(remove_duplicate=False)}
    if name in names:
        return name
    if not is_base and prefix + name in names:
        return prefix + name
    return None if is_base and name.rpartition(".")[0] == "" else name


def _stored(files: Sequence[str] | None) -> set[str]:
    """The names of the tensors in the files of a model."""
    return {name for file in files or () for name in open_file(Path(file), "from_pretrained").keys()}  # noqa: SIM118


def _checked_blank(model: nn.Module, name: str, entry: Mapping[str, Any]) -> PackedLinear:
    """The packed layer without values, for a layer of the model."""
    try:
        old = model.get_submodule(name)
        layer = blank(entry)
    except (AttributeError, ValueError) as error:
        raise ValueError(f"lamina: packed layer {name!r} of config.json: {error}") from error
    if not isinstance(old, nn.Linear) or (old.out_features, old.in_features) != (
        layer.out_features,
        layer.in_features,
    ):
        raise ValueError(
            f"lamina: packed layer {name!r} of config.json has {layer.out_features} x {layer.in_features} "
            f"features (out x in); the model has {old} there"
        )
    return layer
