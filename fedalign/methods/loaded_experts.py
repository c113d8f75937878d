"""Experts that there are already: adapters of the run's model, or models of their own, from the hub or from disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from fedalign.contribution import State
from fedalign.data.names import suggest
from fedalign.errors import UserError
from fedalign.hub import CONFIG, WEIGHTS, adapter_folder, model_folder
from fedalign.methods.base import Setting
from fedalign.methods.expert_adapters import Adapters, AdapterWorkspace, LoraSource, language_model
from fedalign.methods.expert_source import KEY, ExpertSource
from fedalign.models.experts import Experts, Pairs
from fedalign.models.separate_experts import SeparateExperts
from fedalign.models.text import TextCodec

_BEYOND = (
    *("use_rslora", "use_dora", "use_qalora", "bias", "lora_bias", "modules_to_save", "rank_pattern", "alpha_pattern"),
    *("target_parameters", "trainable_token_indices", "layer_replication"),
)
"""Settings of peft's that make an adapter more than low-rank factors of one scale."""
_PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
"""How factors may have begun; others also change the base."""


@dataclass(frozen=True)
class AdapterExperts(LoraSource):
    """Adapters that peft saved, of the run's model; every node reads its own copies, and nothing of them travels.

    Parameters
    ----------
    paths : mapping from side to str
        Local folders or hub names.
    """

    paths: Mapping[str, str]

    def open(self, names: Sequence[str], setting: Setting) -> AdapterWorkspace:
        """Return the run's model with the adapters."""
        workspace, found = super().open(names, setting), self.adapters(names, {}, setting)
        for name, factors, scale in zip(names, found.factors, found.scales, strict=True):
            _check_fit(workspace, factors, scale, _place("paths", self.paths, name))
        workspace.take(found)
        return workspace

    def adapters(self, names: Sequence[str], state: State, setting: Setting) -> Adapters:
        """Return what the files hold."""
        check_sides(self.paths, names, f"{KEY}.paths")
        each = [read_adapter(self.paths[name], f"{KEY}.paths.{name}") for name in names]
        return Adapters([factors for factors, _ in each], [scale for _, scale in each])


@dataclass(frozen=True)
class ModelExperts(ExpertSource):
    """Causal models of their own that read and write the same tokens; every node reads its own copies.

    Of the run's model, precision and device alone are heeded.

    Parameters
    ----------
    models : mapping from side to str
        Local folders or hub names.
    """

    models: Mapping[str, str]

    def open(self, names: Sequence[str], setting: Setting) -> Experts:
        """Return the models."""
        check_sides(self.models, names, f"{KEY}.models")
        folders = [model_folder(self.models[name], f"{KEY}.models.{name}") for name in names]
        spec = language_model(setting)
        return SeparateExperts(folders, names, spec.dtype, spec.device)

    def codec(self, setting: Setting) -> TextCodec:
        """Return the tokenizer of one of them; they share one vocabulary."""
        return TextCodec(next(iter(self.models.values())), f"{KEY}.models")


def check_sides(given: Mapping[str, str], names: Sequence[str], key: str) -> None:
    """Refuse experts that are not those of the sides.

    Parameters
    ----------
    given : mapping from side to str
        Where experts are.
    names : sequence of str
        All sides.
    key : str
        Where the mapping stands in the configuration.

    Raises
    ------
    UserError
        Naming an expert without a side, or a side without an expert.
    """
    for name, value in given.items():
        if name not in names:
            raise UserError(f"{key}.{name}={value}: there is no side {name!r}{suggest(name, names)}")
    missing = [name for name in names if name not in given]
    if missing:
        raise UserError(
            f"{key}: there is no expert for {', '.join(missing)}; name one for each side, such as "
            f"+{key}.{missing[0]}=DIR"
        )


def read_adapter(name: str, key: str) -> tuple[State, float]:
    """Return the factors of an adapter that peft saved, and their scale.

    Parameters
    ----------
    name : str
        Local folder or hub name.
    key : str
        The configuration key that holds it.

    Raises
    ------
    UserError
        If it cannot be had or read, or is more than low-rank factors.
    """
    folder = adapter_folder(name, key)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        factors = load_file(folder / WEIGHTS)
        scale = float(config["lora_alpha"]) / int(config["r"])
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError, SafetensorError) as error:
        raise UserError(f"{key}={name}: cannot be read as an adapter ({error}); save it anew with peft") from None
    _check_plain(config, f"{key}={name}")
    return factors, scale


def _check_plain(config: Mapping[str, Any], place: str) -> None:
    if config.get("peft_type") != "LORA":
        raise UserError(f"{place}: an adapter of peft's type {config.get('peft_type')}; only LORA can be merged here")
    for setting in _BEYOND:
        if config.get(setting) not in (None, False, "none", {}, []):
            raise UserError(
                f"{place}: {CONFIG} has {setting}={json.dumps(config[setting])}, and experts are plain factors of one "
                "rank; train it without that"
            )
    if config.get("init_lora_weights", True) not in _PLAIN_STARTS:
        raise UserError(
            f"{place}: {CONFIG} has init_lora_weights={config['init_lora_weights']}, which changes the base; convert "
            "it to a plain adapter (save_pretrained with path_initial_model_for_weight_conversion)"
        )


def _check_fit(workspace: AdapterWorkspace, factors: State, scale: float, place: str) -> None:
    """Refuse an adapter of another model: run it alone for a token."""
    nothing = torch.zeros(1, 1, dtype=torch.int64, device=workspace.device)
    try:
        workspace.load([factors], [scale])
        workspace.advance(Pairs(nothing[0], nothing[0]), nothing, nothing + 1, None, keep_cache=False)
    except (ValueError, RuntimeError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{place}: not an adapter of model.model={workspace.spec.model} ({reason}); set model.model to its base"
        ) from None


def _place(field: str, given: Mapping[str, str], name: str) -> str:
    return f"{KEY}.{field}.{name}={given[name]}"
