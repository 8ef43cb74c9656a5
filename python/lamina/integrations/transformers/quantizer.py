"""The quantisation method "lamina" of transformers: from_pretrained and save_pretrained of packed models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from lamina import _library
from lamina.checkpoint.description import blank, describe
from lamina.checkpoint.folder import FORMAT_VERSION, METHOD, guard, open_file
from lamina.checkpoint.load import load_layer
from lamina.compression import compress
from lamina.compression.schemes import SCHEMES
from lamina.nn.packed_linear import PackedLinear

Entries = Mapping[str, Mapping[str, Any]]


@register_quantization_config(METHOD)
class LaminaConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """How from_pretrained(..., quantization_config=...) compresses a float model: see lamina.compress.

    scheme  a scheme of lamina.compress
    group   w4 schemes: input features that share a scale; None is 128
    skip    shell patterns on the names of layers to leave float

    The other arguments are those of config.json for a model that is saved packed (docs/checkpoint.md).
    """

    def __init__(
        self,
        scheme: str | None = None,
        *,
        group: int | None = None,
        skip: Sequence[str] = (),
        modules: Entries | None = None,
        ties: Mapping[str, str] | None = None,
        transient_buffers: Sequence[str] = (),
        format_version: int = FORMAT_VERSION,
        lamina_version: str | None = None,
        quant_method: str = METHOD,
    ) -> None:
        if (scheme is None) == (modules is None) or (scheme is not None and scheme not in SCHEMES):
            raise ValueError(f"LaminaConfig: scheme must be one of {', '.join(SCHEMES)}, got {scheme!r}")
        if format_version != FORMAT_VERSION:
            raise ValueError(
                f"LaminaConfig: format_version is {format_version!r}, written by lamina {lamina_version}; "
                f"this version of lamina reads {FORMAT_VERSION}"
            )
        if isinstance(skip, str) or not all(isinstance(pattern, str) for pattern in skip):
            raise TypeError(f"LaminaConfig: skip must be a sequence of patterns, got {skip!r}")
        self.quant_method = quant_method
        self.scheme, self.group, self.skip = scheme, group, list(skip)
        self.describe(modules or {}, ties or {}, transient_buffers)

    def describe(self, modules: Entries, ties: Mapping[str, str], transient_buffers: Sequence[str]) -> None:
        """Takes the description of a packed model, in place of how to make one."""
        self.modules = {name: dict(entry) for name, entry in modules.items()}
        self.ties, self.transient_buffers = dict(ties), list(transient_buffers)
        self.format_version, self.lamina_version = FORMAT_VERSION, _library.build_info()["version"]

    def to_dict(self) -> dict[str, Any]:
        """The entry of config.json: of a packed model how it is packed, else how it is to be made."""
        packed = ("quant_method", "format_version", "lamina_version", "modules", "ties", "transient_buffers")
        names = packed if self.modules else ("quant_method", "scheme", "group", "skip")
        return {name: getattr(self, name) for name in names}


@register_quantizer(METHOD)
class LaminaHfQuantizer(HfQuantizer):  # type: ignore[misc]
    """Packs a float model when it is loaded, or makes the packed layers that a saved model is loaded into."""

    quantization_config: LaminaConfig

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: Sequence[str] | None = None, **_: Any
    ) -> None:
        if not self.pre_quantized:
            return
        modules = self.quantization_config.modules
        stored = _stored(checkpoint_files)
        for name, entry in modules.items():
            layer = _checked_blank(model, name, entry)
            own = {full.removeprefix(f"{name}.") for full in stored if full.rpartition(".")[0] == name}
            if stored and (lost := layer.state_dict().keys() - own):
                raise ValueError(f"lamina: the files of the model lack the tensor '{name}.{min(lost)}'")
            for optional in own - layer.state_dict().keys() - {"weight"}:
                layer.register_buffer(optional, torch.empty(0, device="meta"))
            model.set_submodule(name, layer)
        ignored = [guard(name) for name in modules] + self.quantization_config.transient_buffers
        known = set(model._keys_to_ignore_on_load_unexpected or ())
        model._keys_to_ignore_on_load_unexpected = known | {
            f"^{name.replace('.', '[.]')}$" for name in ignored
        }

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> PreTrainedModel:
        config = self.quantization_config
        if not self.pre_quantized:
            assert config.scheme is not None
            compress(model, config.scheme, group=config.group, skip=config.skip, progress=False)
            self._describe(model)
            return model
        for name, entry in config.modules.items():
            loaded = model.get_submodule(name)
            layer = blank(entry)  # loading checks the tensors, and repacks them for another device
            load_layer(layer, name, dict(loaded.state_dict()))
            model.set_submodule(name, layer.train(loaded.training))
        return model

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **_: Any) -> bool:
        """True for the tensors of packed layers: transformers then leaves their shapes to load_layer()."""
        return self.pre_quantized and param_name.rpartition(".")[0] in self.quantization_config.modules

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
