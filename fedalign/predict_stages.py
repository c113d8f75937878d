"""Texts of a language model that was aligned stage by stage: what each stage makes of a prompt, and its reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fedalign.data.names import suggest
from fedalign.errors import UserError
from fedalign.methods.corpus import CorpusPhase
from fedalign.methods.dprlhf import DPRLHF
from fedalign.methods.policy_writer import PolicyWriter, Written
from fedalign.methods.rl import RLPhase
from fedalign.methods.sft import SftPhase
from fedalign.opened_run import OpenedRun
from fedalign.predict_rewards import scores_of
from fedalign.predict_text import TextRequest, check_numbers
from fedalign.rng import Streams

PRETRAINED = "pretrained"
"""The stage before all others: the model as it was found."""


@dataclass(frozen=True)
class StageText:
    """One continuation.

    Parameters
    ----------
    prompt : str
    stage : str
        Whose policy wrote it.
    text : str
    reward : float or None
        By the run's reward, where that was asked for.
    """

    prompt: str
    stage: str
    text: str
    reward: float | None

    @property
    def label(self) -> str:
        """What the text is shown under."""
        return self.stage

    @property
    def shown(self) -> str:
        """The text, and its reward where there is one."""
        return self.text.strip() + ("" if self.reward is None else f"\n(reward {self.reward:.3f})")

    def to_json(self) -> dict[str, Any]:
        """Return the text as plain data."""
        told = {"prompt": self.prompt, "stage": self.stage, "text": self.text}
        return told if self.reward is None else {**told, "reward": self.reward}


def write_stages(run: OpenedRun, request: TextRequest) -> list[StageText]:
    """Continue every prompt by every stage's policy; the same draws in each, so that differences are theirs.

    Parameters
    ----------
    run : OpenedRun
        Of private alignment by reinforcement learning.
    request : TextRequest

    Returns
    -------
    list of StageText
        Prompt by prompt.

    Raises
    ------
    UserError
        If the run has no such stage, or no reward where one is asked for, or a number is not valid.
    """
    method = run.config.method
    assert isinstance(method, DPRLHF)
    check_numbers(request)
    if request.preferences or request.dials:
        raise UserError(
            "the policy of this run takes no preference; leave --preference and --dial out, and choose among its "
            "stages with --stage"
        )
    scores = scores_of(run) if request.score else None
    usual = method.rl.temperature if method.rl is not None else method.evaluation.temperature
    temperature = usual if request.temperature is None else request.temperature
    seed = run.config.seed if request.seed is None else request.seed
    columns: dict[str, tuple[list[str], list[float | None]]] = {}
    for stage in _stages(run, request.stages):
        generator = Streams(seed).torch("predictions/text")
        written = _write(run, stage, request, temperature, generator)
        rewards = [None] * len(request.prompts) if scores is None else scores(request.prompts, written).tolist()
        columns[stage] = written.texts, rewards
    return [
        StageText(prompt, stage, texts[place], rewards[place])
        for place, prompt in enumerate(request.prompts)
        for stage, (texts, rewards) in columns.items()
    ]


def _write(run: OpenedRun, stage: str, request: TextRequest, temperature: float, generator: torch.Generator) -> Written:
    """Return what a stage's policy makes of the prompts."""
    phase = _policies(run).get(stage)
    # Without its adapter any stage's network is the model as it was found.
    workspace = _corpus_phases(run)[0] if phase is None else phase
    if phase is not None:
        phase.load(run.states[phase.name])
    lengths = workspace.lengths
    writer = PolicyWriter(workspace.network.policy, workspace.codec, lengths.prompt, lengths.response)
    with torch.inference_mode():
        return writer.write(
            request.prompts, None, temperature, generator, phase is None, max_new_tokens=request.max_new_tokens
        )


def _stages(run: OpenedRun, asked: Sequence[str]) -> Sequence[str]:
    """Return the stages that are asked for; by default the last one that trained a policy."""
    policies = list(_policies(run))
    if not asked and not policies:
        raise UserError(
            f"{run.path}: this run trained no policy, method.sft and method.rl are null; ask for the model as it was "
            f"found with --stage {PRETRAINED}, or score responses of a file"
        )
    known = [PRETRAINED, *policies]
    for stage in asked:
        if stage not in known:
            raise UserError(f"--stage={stage}: this run has no policy of that stage{suggest(stage, known)}")
    return list(dict.fromkeys(asked)) or policies[-1:]


def _policies(run: OpenedRun) -> Mapping[str, CorpusPhase]:
    """Return the phases that trained a policy and have a final state, by name and in their order."""
    return {
        phase.name: phase
        for phase in _corpus_phases(run)
        if isinstance(phase, (SftPhase, RLPhase)) and phase.name in run.states
    }


def _corpus_phases(run: OpenedRun) -> list[CorpusPhase]:
    return [phase for phase in run.phases if isinstance(phase, CorpusPhase)]
