"""The run configuration: composed by Hydra from conf/, checked, and typed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field

from fedalign.build import build
from fedalign.compression.base import Compression
from fedalign.data.federated import DataSource, Layout
from fedalign.data.names import suggest
from fedalign.data.schema import Encoder
from fedalign.engines.base import Engine
from fedalign.errors import UserError
from fedalign.federation.job import Federation
from fedalign.federation.population import Population
from fedalign.methods.base import Method
from fedalign.models.base import ModelSpec
from fedalign.privacy.base import Privacy
from fedalign.report.loggers import Logger

RESOLVED = Mapping[str, Any]


@dataclass(frozen=True)
class RunConfig:
    """Everything that a run is made of; one field a config group, and the keys at the top.

    Parameters
    ----------
    name : str
        Names the directory under ``outputs/``.
    seed : int
    output : str or None
        The run's directory.
    """

    method: Method
    data: DataSource
    partition: Layout
    encoder: Encoder
    model: ModelSpec
    federation: Federation
    population: Population
    compression: Compression
    privacy: Privacy
    engine: Engine
    logger: Logger
    name: Annotated[str, Field(min_length=1, pattern=r"^[^/\\]+$")]
    seed: Annotated[int, Field(ge=0)]
    output: str | None


def conf_directory() -> Path:
    """Return the directory of the shipped configs: inside the wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def resolve(overrides: Sequence[str]) -> dict[str, Any]:
    """Compose the configuration and resolve its interpolations; values only, nothing is built.

    Parameters
    ----------
    overrides : sequence of str
        In Hydra's grammar: ``seed=1``, ``method=uniform``, ``federation.rounds=5``.

    Raises
    ------
    UserError
        If an override cannot be parsed, or names an unknown key, group or option.
    """
    for override in overrides:
        if override.lstrip("+~").startswith(("hydra.", "hydra/", "hydra=")):
            raise UserError(f"{override}: Hydra only composes here, its own settings do nothing; leave it out")
    try:
        with initialize_config_dir(str(conf_directory()), version_base="1.3"):
            config = compose("config", overrides=list(overrides))
        content = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(_explain(error, overrides)) from error
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def parse(resolved: RESOLVED) -> RunConfig:
    """Build the typed configuration.

    Raises
    ------
    UserError
        If a key is unknown or missing, or a value has the wrong type or range.
    """
    config = build(resolved, RunConfig, "")
    _check_kinds(config)
    return config


def _check_kinds(config: RunConfig) -> None:
    """Refuse parts that do not go together.

    Raises
    ------
    UserError
        Naming the part and the choices that fit.
    """
    method = config.method
    for group, part in (("data", config.data), ("partition", config.partition)):
        if part.kind is not method.kind:
            raise UserError(
                f"method={method.name} learns from {method.kind}, {group} ({type(part).__name__}) is made for "
                f"{part.kind}; choose another {group} (fedalign list {group})"
            )
    if not isinstance(config.model, method.model):
        raise UserError(
            f"method={method.name} trains a {method.model.__name__}, model is a {type(config.model).__name__}; choose "
            "another model (fedalign list models)"
        )


def to_json(resolved: RESOLVED) -> str:
    """Return the configuration in the form that travels to the nodes; equal configurations give equal text."""
    travels = {key: value for key, value in resolved.items() if key not in ("output", "logger", "name")}
    return json.dumps(travels, sort_keys=True)


def expand(overrides: Sequence[str]) -> list[list[str]]:
    """Return the jobs of a sweep: the product of all comma-separated values, ranges and choices.

    Raises
    ------
    UserError
        If an override cannot be parsed.
    """
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        batches = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    except (HydraException, OverrideParseException) as error:
        raise UserError(_explain(error, overrides)) from error
    return [list(job) for job in batches[0]]


def options() -> dict[str, dict[str, str]]:
    """Return every config group's options with their one-line descriptions."""
    found: dict[str, dict[str, str]] = {}
    root = conf_directory()
    for path in sorted(root.rglob("*.yaml")):
        group = path.parent.relative_to(root).as_posix()
        if group != ".":
            comments = (line for line in path.read_text().splitlines() if not line.startswith("# @package"))
            found.setdefault(group, {})[path.stem] = next(comments).removeprefix("#").strip()
    return found


def keys(config: Any, prefix: str = "") -> Iterator[str]:
    """Yield every dotted key of a configuration."""
    if isinstance(config, Mapping):
        for name, value in config.items():
            yield f"{prefix}{name}"
            yield from keys(value, f"{prefix}{name}.")


def _explain(error: Exception, overrides: Sequence[str]) -> str:
    """Turn Hydra's multi-line message into one line that names the nearest valid key or option."""
    text = str(error)
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown and "/" in unknown[1]:
        group = unknown[1].rpartition("/")[0]
        return f"{unknown[1]}: the {group} that is chosen has no such part; choose another (fedalign list {group})"
    if unknown:
        known = _known_keys(overrides)
        if unknown[1] in known and not any(key.startswith(f"{unknown[1]}.") for key in known):
            return f"{unknown[1]} is empty; add to it with a plus, as in +{unknown[1]}={{key: value}}"
        if unknown[1] in known:
            return f"{unknown[1]} holds no such key; set one that it has, as in {unknown[1]}.key=value"
        parent = unknown[1].rpartition(".")[0]
        if parent in known and not any(key.startswith(f"{parent}.") for key in known):
            return f"{parent} is empty; add the key with a plus, as in +{unknown[1]}=value"
        return f"unknown key {unknown[1]}{suggest(unknown[1], known)}"
    option = re.search(r"(?:Could not find|Cannot find primary config|In '[^']+': Could not find) '([^']+)'", text)
    if option and "/" in option[1]:
        group, _, name = option[1].rpartition("/")
        return f"{group}={name}: no such option{suggest(name, options().get(group, {}))}"
    missing = re.search(r"Missing mandatory value: (\S+)", text)
    if missing:
        return f"missing key {missing[1]}; set it"
    return f"cannot read {_culprit(overrides)}: {' '.join(text.split())}"


def _culprit(overrides: Sequence[str]) -> str:
    """Return the override that cannot be parsed even by itself, or all of them."""
    parser = OverridesParser.create()
    for override in overrides:
        try:
            parser.parse_override(override)
        except (HydraException, OverrideParseException):
            return override
    return " ".join(overrides)


def _known_keys(overrides: Sequence[str]) -> list[str]:
    """Return the keys there are under the config groups that the overrides choose."""
    groups = options()
    chosen = [o for o in overrides if o.partition("=")[2] in groups.get(o.partition("=")[0], {})]
    with initialize_config_dir(str(conf_directory()), version_base="1.3"):
        config: DictConfig = compose("config", overrides=chosen)
    return [*keys(OmegaConf.to_container(config)), *(name.replace("/", ".") for name in groups)]
