"""Experts that are the latent types of a finished run of EM-DPO, each an adapter of the same model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from fedalign.contribution import State
from fedalign.errors import UserError
from fedalign.methods.base import Setting
from fedalign.methods.em import EMPhase
from fedalign.methods.expert_adapters import Adapters, AdapterWorkspace, LoraSource, language_model
from fedalign.methods.expert_source import KEY
from fedalign.methods.mmra import MIXTURE, MixturePhase
from fedalign.methods.text_lengths import Lengths
from fedalign.methods.type_adapters import AdapterTypes
from fedalign.methods.type_model import PRIOR, count, type_of
from fedalign.model_files import load_model
from fedalign.models.language_model import LanguageModelSpec, ValuedPolicy

_SAME = ("model", "rank", "alpha", "target_modules", "freeze_a")
"""What of the model's settings the adapters of the types depend on."""


@dataclass(frozen=True)
class TypeExperts(LoraSource):
    """The K types of a run, as experts ``type-0`` to ``type-(K-1)``; every node reads its own copy of the run.

    Parameters
    ----------
    run : str or None
        The run's directory; None is an error that asks for one.
    """

    run: str | None

    def open(self, names: Sequence[str], setting: Setting) -> AdapterWorkspace:
        """Return the run's model with the types' adapters."""
        workspace = super().open(names, setting)
        workspace.take(self.adapters(names, {}, setting))
        return workspace

    def adapters(self, names: Sequence[str], state: State, setting: Setting) -> Adapters:
        """Return the types' adapters, frozen factors included."""
        spec = language_model(setting)
        types = self._types(names)
        _check_model(self._place, self._config().get("model"), spec)
        # Nothing is read or written: the workspace knows the factors that types do not train.
        workspace = AdapterTypes(spec, 1.0, Lengths(1, 1))
        network = workspace.network
        assert isinstance(network, ValuedPolicy)
        factors = []
        for name in names:
            workspace.load(type_of(types, _number(name)))
            factors.append({key: tensor.clone() for key, tensor in network.adapter().items()})
        return Adapters(factors, [spec.alpha / spec.rank] * len(names))

    def fallback(self, names: Sequence[str]) -> Tensor:
        """Return the run's mixture for everybody (MMRA), or the types' shares where it made none."""
        states = self._states()
        weights = states[MixturePhase.name][MIXTURE] if MixturePhase.name in states else states[EMPhase.name][PRIOR]
        chosen = weights[[_number(name) for name in names]].float()
        return chosen / chosen.sum()

    @property
    def _place(self) -> str:
        return f"{KEY}.run={self.run}"

    def _types(self, names: Sequence[str]) -> State:
        found = self._states().get(EMPhase.name, {})
        if not any(".lora_B." in name for name in found):
            raise UserError(
                f"{self._place}: its types are no adapters of a language model; give a run of EM-DPO on one"
            )
        types = [f"type-{number}" for number in range(count(found))]
        if sorted(names) != sorted(types):
            raise UserError(
                f"{self._place}: its types are {', '.join(types)}, and the sides of method.dimensions are "
                f"{', '.join(names)}; give the sides the types' names"
            )
        return found

    def _states(self) -> Mapping[str, State]:
        return load_model(self._directory / "model", str(self._config()["method"]["name"]))

    def _config(self) -> Mapping[str, Any]:
        path = self._directory / "config.yaml"
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8"))
            if isinstance(found, Mapping) and isinstance(found.get("method"), Mapping) and "name" in found["method"]:
                return found
            reason = "it names no method"
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            reason = str(error).splitlines()[0]
        raise UserError(f"{self._place}: {path} cannot be read ({reason}); give the directory of a finished run")

    @property
    def _directory(self) -> Path:
        if self.run is None:
            raise UserError(f"{KEY}.run is null; set it to the directory of a run of EM-DPO on a language model")
        return Path(self.run).expanduser()


def _number(name: str) -> int:
    return int(name.removeprefix("type-"))


def _check_model(place: str, theirs: Any, spec: LanguageModelSpec) -> None:
    known = theirs if isinstance(theirs, Mapping) else {}
    for key, own in asdict(spec).items():
        other = known.get(key)
        other = tuple(other) if isinstance(other, list) else other
        if key in _SAME and other != own and not (key == "model" and _same_folder(str(other), str(own))):
            raise UserError(f"{place}: its types have model.{key}={other}, this run has {own}; make them the same")


def _same_folder(one: str, other: str) -> bool:
    first, second = Path(one).expanduser(), Path(other).expanduser()
    return first.is_dir() and second.is_dir() and first.samefile(second)
