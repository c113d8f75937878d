"""Texts that follow a preference: a run's policy continues prompts under groups', people's and mixed latents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedalign.contribution import State
from fedalign.data.names import suggest
from fedalign.errors import UserError
from fedalign.methods.conditional_policy import PolicyPhase, group_means
from fedalign.opened_run import OpenedRun
from fedalign.predict_pairs import judgments_of, read_person
from fedalign.rng import Streams

EVERYBODY = "everybody"
"""Label of what a policy writes that takes no preference."""


@dataclass(frozen=True)
class TextRequest:
    """What is to be written.

    Parameters
    ----------
    prompts : tuple of str
    preferences : tuple of str
        Names of groups, or files of one person's judgments; none, and no dial, means every group.
    dials : tuple of str
        ``A:B:t``: on the line from preference A (t = 0) to B (t = 1), or beyond.
    temperature : float or None
        0 takes the likeliest token; None what the policy was trained with.
    max_new_tokens : int or None
        None what the policy was trained with.
    seed : int or None
        None the run's.
    stages : tuple of str
        Of a run in stages, whose policies write; none means the last.
    score : bool
        Whether the run's reward scores each text.
    weights : bool
        Whether to say which expert drove each token; of experts that a control model merges.
    on_piece : callable, optional
        Is given each piece of the only text that is asked for as it is written; as ``weights``.
    """

    prompts: tuple[str, ...]
    preferences: tuple[str, ...]
    dials: tuple[str, ...]
    temperature: float | None
    max_new_tokens: int | None
    seed: int | None
    stages: tuple[str, ...]
    score: bool
    weights: bool = False
    on_piece: Callable[[str], None] | None = None


@dataclass(frozen=True)
class WrittenText:
    """One continuation.

    Parameters
    ----------
    prompt : str
    preference : str
        As it was asked for.
    text : str
    """

    prompt: str
    preference: str
    text: str

    @property
    def label(self) -> str:
        """What the text is shown under."""
        return self.preference

    @property
    def shown(self) -> str:
        """The text without the space around it."""
        return self.text.strip()

    def to_json(self) -> dict[str, Any]:
        """Return the text as plain data."""
        return {"prompt": self.prompt, "preference": self.preference, "text": self.text}


def write_texts(run: OpenedRun, request: TextRequest) -> list[WrittenText]:
    """Continue every prompt under every preference; the same draws under each, so that differences are theirs.

    Parameters
    ----------
    run : OpenedRun
        Whose method trained a policy.
    request : TextRequest

    Returns
    -------
    list of WrittenText
        Prompt by prompt.

    Raises
    ------
    UserError
        If the run has no policy, or a preference or a number is not valid.
    """
    phase, state = _policy(run)
    _check(request, phase)
    phase.load(state)
    settings = phase.settings
    temperature = settings.temperature if request.temperature is None else request.temperature
    seed = run.config.seed if request.seed is None else request.seed
    columns: dict[str, list[str]] = {}
    for label, latent in _latents(run, phase, state, request):
        told = None if latent is None else phase.told(state, latent).expand(len(request.prompts), -1)
        generator = Streams(seed).torch("predictions/text")
        written = phase.writer.write(
            request.prompts, told, temperature, generator, max_new_tokens=request.max_new_tokens
        )
        columns[label] = written.texts
    return [
        WrittenText(prompt, label, texts[place])
        for place, prompt in enumerate(request.prompts)
        for label, texts in columns.items()
    ]


def read_prompts(path: Path) -> list[str]:
    """Return the prompts of a text file, one a line; empty lines are left out.

    Raises
    ------
    UserError
        If it cannot be read, or holds none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompts={path}: cannot be read as UTF-8 text ({error}); give a file of prompts") from None
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise UserError(f"--prompts={path}: holds no prompt; write one a line")
    return prompts


def check_numbers(request: TextRequest) -> None:
    """Refuse numbers that make no sense.

    Raises
    ------
    UserError
        Naming the option.
    """
    if request.temperature is not None and not request.temperature >= 0:
        raise UserError(f"--temperature={request.temperature:g}: must be 0 (greedy) or more")
    if request.max_new_tokens is not None and request.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens={request.max_new_tokens}: must be 1 or more")


def read_dial(text: str) -> tuple[str, str, float]:
    """Return both ends of a dial and the place between them.

    Raises
    ------
    UserError
        If it is none.
    """
    parts = text.rsplit(":", 2)
    try:
        start, end, place = parts
        return start, end, float(place)
    except ValueError:
        raise UserError(
            f"--dial={text}: must be A:B:t, two preferences and a number, such as praise:criticism:0.25"
        ) from None


def _policy(run: OpenedRun) -> tuple[PolicyPhase, State]:
    phase = next((phase for phase in run.phases if isinstance(phase, PolicyPhase)), None)
    if phase is None:
        raise UserError(
            f"{run.path}: this run of method '{run.config.method.name}' has no policy that writes; train one with "
            "method.policy, as experiment=fedvpa_policy does, or with method=dprlhf"
        )
    return phase, run.states[phase.name]


def _check(request: TextRequest, phase: PolicyPhase) -> None:
    """Refuse numbers that make no sense, stages and rewards, and preferences of a policy that takes none."""
    check_numbers(request)
    if request.stages or request.score:
        raise UserError("--stage and --score are for runs of method=dprlhf; this policy has neither, leave them out")
    if not phase.settings.condition and (request.preferences or request.dials):
        raise UserError(
            "this policy takes no preference: it was trained with method.policy.condition=false; leave --preference "
            "and --dial out"
        )


def _latents(
    run: OpenedRun, phase: PolicyPhase, state: State, request: TextRequest
) -> Iterator[tuple[str, Tensor | None]]:
    """Yield a label and a latent, shape (1, d), for everything that was asked for."""
    if not phase.settings.condition:
        yield EVERYBODY, None
        return
    preferences = request.preferences or (() if request.dials else tuple(group_means(state)))
    for name in preferences:
        yield name, _latent(run, phase, state, name)[None]
    for dial in request.dials:
        start, end, place = read_dial(dial)
        a, b = _latent(run, phase, state, start), _latent(run, phase, state, end)
        yield dial, torch.lerp(a, b, place)[None]


def _latent(run: OpenedRun, phase: PolicyPhase, state: State, name: str) -> Tensor:
    """Return the mean latent of the group of that name, or the latent of the person of that file, shape (d,)."""
    groups = group_means(state)
    if name in groups:
        return groups[name]
    if not Path(name).is_file():
        raise UserError(
            f"preference {name!r} is neither a group of the run nor a file of judgments{suggest(name, groups)}"
        )
    known, _ = read_person(Path(name))
    return phase.own_latent(judgments_of(run.config, known, []))
