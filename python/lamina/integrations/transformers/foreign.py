"""from_pretrained of checkpoints of other quantisers with lamina's layers: take_over("gptq", "awq", ...)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.quantizers import HfQuantizer, auto
from transformers.utils.quantization_config import QuantizationConfigMixin

from lamina.checkpoint import load_checkpoint
from lamina.checkpoint.folder import METHOD
from lamina.checkpoint.sources import open_source
from lamina.integrations.transformers.quantizer import LaminaConfig, LaminaHfQuantizer, ignore_unexpected

METHODS = ("gptq", "awq", "compressed-tensors")
_originals: dict[str, tuple[Any, Any]] = {}  # the quantiser and the config of transformers
_options: dict[str, dict[str, Any]] = {}


def take_over(
    *methods: str,
    activations: str | None = None,
    convert: str | None = None,
    qzeros_borrow: bool | None = None,
) -> None:
    """From now on from_pretrained loads checkpoints of these methods into lamina's packed layers.

    methods   of METHODS: "gptq", "awq", "compressed-tensors"; their own packages are not needed
    activations, convert, qzeros_borrow   as in lamina.load_checkpoint, which loads the checkpoint
    Raises    ValueError for another method, or none

    It holds for the whole process and replaces the loaders of transformers; give_back() restores them. The
    loaded model is saved as a model of the method "lamina".
    """
    _require_known("take_over", methods)
    for method in methods:
        _originals.setdefault(
            method, (auto.AUTO_QUANTIZER_MAPPING[method], auto.AUTO_QUANTIZATION_CONFIG_MAPPING[method])
        )
        _options[method] = {"activations": activations, "convert": convert, "qzeros_borrow": qzeros_borrow}
        auto.AUTO_QUANTIZER_MAPPING[method] = ForeignHfQuantizer
        auto.AUTO_QUANTIZATION_CONFIG_MAPPING[method] = ForeignConfig


def give_back(*methods: str) -> None:
    """Restores the loaders of transformers; for a method that was not taken over nothing happens."""
    _require_known("give_back", methods)
    for method in methods:
        if method in _originals:
            quantizer, config = _originals.pop(method)
            auto.AUTO_QUANTIZER_MAPPING[method] = quantizer
            auto.AUTO_QUANTIZATION_CONFIG_MAPPING[method] = config


def _require_known(function: str, methods: Sequence[str]) -> None:
    for method in methods or (None,):
        if method not in METHODS:
            raise ValueError(
                f"lamina: {function}: method = {method!r}; allowed: {', '.join(map(repr, METHODS))}"
            )


class ForeignConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """The quantization_config of a checkpoint, as it is; load_checkpoint reads it from the folder."""

    def __init__(self, quant_method: str, **entries: Any) -> None:
        self.quant_method, self._entries = quant_method, entries

    def to_dict(self) -> dict[str, Any]:
        """The entry of config.json."""
        return {"quant_method": self.quant_method, **self._entries}

    @classmethod
    def from_dict(
        cls, config_dict: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """The config of an entry of config.json; keyword arguments are not its own."""
        config = cls(**config_dict)
        return (config, kwargs) if return_unused_kwargs else config


class _Waiting(nn.Module):
    """Stands in the place of a layer whose tensors transformers shall not look at."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.held = (layer,)  # in a tuple: it is no submodule


class ForeignHfQuantizer(HfQuantizer):  # type: ignore[misc]
    """transformers loads the float tensors, and lamina.load_checkpoint the whole checkpoint after that."""

    quantization_config: ForeignConfig

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: Sequence[str] | None = None, **_: Any
    ) -> None:
        if not checkpoint_files:
            raise ValueError(
                "lamina: take_over: from_pretrained must be given a folder or the name of a model"
            )
        self._folder = Path(checkpoint_files[0]).parent
        source = open_source(self._folder, model, None)
        names = [name for name, own in source.layers.items() if source.format.is_packed(name, own)]
        modules = dict(model.named_modules())
        for name in names:
            if name not in modules:
                raise ValueError(
                    f"lamina: {self._folder} holds the quantised layer {name!r}, which the model lacks"
                )
            model.set_submodule(name, _Waiting(modules[name]))
        ignore_unexpected(model, names, "[.]")

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> PreTrainedModel:
        for name, module in list(model.named_modules()):
            if isinstance(module, _Waiting):
                model.set_submodule(name, module.held[0].train(model.training))
        options = _options[self.quantization_config.quant_method]
        device = next((p.device for p in model.parameters() if not p.is_meta), None)
        load_checkpoint(model, self._folder, **options, device=device)
        config = LaminaConfig(modules={})
        model.hf_quantizer = LaminaHfQuantizer(config, pre_quantized=True)
        model.config.quantization_config, model.quantization_method = config, METHOD
        return model

    def is_serializable(self) -> bool:
        """Whether save_pretrained works; the quantiser of the loaded model is LaminaHfQuantizer."""
        return False

    @property
    def is_trainable(self) -> bool:
        """Packed weights are not trained."""
        return False
