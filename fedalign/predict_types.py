"""Texts of a run that told types of annotators apart: each type's policy, and what writes for everybody."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedalign.data.names import suggest
from fedalign.errors import UserError
from fedalign.methods.mixture_policy import MixturePolicy
from fedalign.methods.single_policy import SinglePhase
from fedalign.methods.text_policies import TextPolicy, Writing, type_policies
from fedalign.methods.type_adapters import AdapterTypes
from fedalign.opened_run import OpenedRun
from fedalign.predict_rankings import TypedRun, read_annotator, shard_of, type_name
from fedalign.predict_text import TextRequest, check_numbers
from fedalign.rng import Streams

MIXTURE, SHARES, SINGLE = "mixture", "shares", "single"
"""Names of what writes for everybody: a type drawn for each text, from the run's mixture or where it made none by the
types' shares of the annotators; or one policy in the mixture's place."""


@dataclass(frozen=True)
class TypeText:
    """One continuation.

    Parameters
    ----------
    prompt : str
    preference : str
        As it was asked for.
    writer : str
        Whose policy wrote it: a type's, or one for everybody.
    text : str
    posterior : tuple of float, length K, or None
        How likely the annotator is of each type, where it is one's of whom something is known.
    """

    prompt: str
    preference: str
    writer: str
    text: str
    posterior: tuple[float, ...] | None

    @property
    def label(self) -> str:
        """What was asked for, and who wrote where that says more."""
        if self.posterior is not None:
            return f"{self.preference} ({self.writer}, probability {max(self.posterior):.2f})"
        return self.preference if self.preference == self.writer else f"{self.preference} ({self.writer})"

    @property
    def shown(self) -> str:
        """The text without the space around it."""
        return self.text.strip()

    def to_json(self) -> dict[str, Any]:
        """Return the text as plain data."""
        told = {"prompt": self.prompt, "preference": self.preference, "writer": self.writer, "text": self.text}
        return told if self.posterior is None else {**told, "posterior": list(self.posterior)}


def write_types(run: OpenedRun, request: TextRequest) -> list[TypeText]:
    """Continue every prompt by every policy that is asked for; the same draws in each.

    A preference is a type (``type-0``), ``mixture`` or ``single``, or a file of one annotator's judgments, whom the
    policy of its likeliest type serves. Without one, and for annotators of whom nothing is known, the single policy
    writes if the run made one, else a mixture of types.

    Parameters
    ----------
    run : OpenedRun
        Of EM-DPO or one of its baselines.
    request : TextRequest

    Returns
    -------
    list of TypeText
        Prompt by prompt.

    Raises
    ------
    UserError
        If the run's types write nothing, or a preference or a number is not valid.
    """
    _check(request)
    typed = TypedRun.of(run)
    policies = _policies(run, typed)
    writing = _writing(typed, request)
    seed = run.config.seed if request.seed is None else request.seed
    columns: list[list[TypeText]] = []
    for preference in dict.fromkeys(request.preferences or (_for_everybody(policies),)):
        name, posterior = _writer(typed, policies, preference)
        texts = policies[name].write(request.prompts, writing, Streams(seed).torch("predictions/text")).texts
        columns.append(
            [TypeText(p, preference, name, text, posterior) for p, text in zip(request.prompts, texts, strict=True)]
        )
    return [text for row in zip(*columns, strict=True) for text in row]


def _check(request: TextRequest) -> None:
    check_numbers(request)
    if request.stages or request.score or request.dials:
        raise UserError(
            "this run has types, no stages, scores or dials; leave --stage, --score and --dial out, and choose with "
            "--preference, such as --preference type-0"
        )


def _writing(typed: TypedRun, request: TextRequest) -> Writing:
    """Return how it is written: from the policies themselves, as long as what they were trained on, unless told."""
    longest = typed.phase.method.lengths.response
    return Writing(
        samples=1,
        max_new_tokens=longest if request.max_new_tokens is None else request.max_new_tokens,
        temperature=1.0 if request.temperature is None else request.temperature,
        batch=len(request.prompts),
    )


def _policies(run: OpenedRun, typed: TypedRun) -> dict[str, TextPolicy]:
    """Return everything that writes, by name; the last is for everybody."""
    model = typed.phase.model
    if not isinstance(model, AdapterTypes):
        raise UserError(
            f"{run.path}: types of this run are reward networks and write nothing; give a file with menus to rank, or "
            "train types of a language model, as model=gpt2_lora does"
        )
    found: dict[str, TextPolicy] = {type_name(k): own for k, own in enumerate(type_policies(model, typed.state))}
    if len(found) > 1:
        found[MIXTURE if typed.fair else SHARES] = MixturePolicy(model, typed.state, typed.weights)
    single = next((p for p in run.phases if isinstance(p, SinglePhase) and p.name in run.states), None)
    if single is not None:
        found[SINGLE] = single.policy(run.states[single.name])
    return found


def _for_everybody(policies: Mapping[str, TextPolicy]) -> str:
    return list(policies)[-1]


def _writer(
    typed: TypedRun, policies: Mapping[str, TextPolicy], preference: str
) -> tuple[str, tuple[float, ...] | None]:
    """Return who writes under a preference, and the posterior of the annotator where it is one's."""
    if preference in policies:
        return preference, None
    if not Path(preference).is_file():
        raise UserError(
            f"preference {preference!r} is neither a file of judgments nor one of {', '.join(policies)}"
            f"{suggest(preference, policies)}"
        )
    known, _ = read_annotator(Path(preference))
    if not known:
        return _for_everybody(policies), None
    posterior = typed.posterior(shard_of(typed, known, ()))
    return type_name(int(posterior.argmax())), tuple(posterior.tolist())
