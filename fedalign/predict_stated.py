"""Texts under stated preferences: experts that are merged token by token serve all who ask in shared batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedalign.contribution import State
from fedalign.errors import UserError
from fedalign.methods.merging import StatedPhase
from fedalign.methods.pcm import PCM
from fedalign.methods.policy_writer import until_the_end
from fedalign.methods.rollouts import uniform
from fedalign.methods.stated_preference import combined
from fedalign.methods.stated_writer import MergedWriter
from fedalign.models.merged_generation import OnToken, generate_merged
from fedalign.models.text import TextStream
from fedalign.opened_run import OpenedRun
from fedalign.predict_text import EVERYBODY, TextRequest, check_numbers, read_dial
from fedalign.rng import Streams
from fedalign.site import setting
from fedalign.stated_texts import Rewards, Shares, StatedText

BATCH = 32
"""Texts that are written at once."""


def write_stated(run: OpenedRun, request: TextRequest) -> list[StatedText]:
    """Continue every prompt under every preference, all in shared batches; the same draws under each.

    A preference is a statement, such as ``praise, ornate`` or ``praise=0.7, short=0.3``, or nothing (``all``): then
    weights are those for people who state nothing. A dial leads from one statement to another.

    Parameters
    ----------
    run : OpenedRun
        Of PCM, or of what it is compared with.
    request : TextRequest

    Returns
    -------
    list of StatedText
        Prompt by prompt.

    Raises
    ------
    UserError
        If a preference or a number is not valid, or the run cannot tell what is asked for.
    """
    _check(request)
    phase, state = _phase(run, request)
    wanted = _wanted(phase, request)
    asked = [(prompt, label) for prompt in request.prompts for label in wanted]
    if request.on_piece is not None and len(asked) != 1:
        raise UserError(
            f"--stream shows one text while it is written, and {len(asked)} are asked for (prompts times preferences); "
            "give one prompt and one preference, or leave --stream out"
        )
    if request.score and phase.rewards is not None:
        phase.rewards.prepare()
    seed = run.config.seed if request.seed is None else request.seed
    vectors = torch.stack(list(wanted.values())).repeat(len(request.prompts), 1)
    draws = _draws(phase, request, seed, len(wanted))
    written: list[tuple[str, Shares | None]] = []
    for rows in torch.split(torch.arange(len(asked)), BATCH):
        prompts = [asked[row][0] for row in rows.tolist()]
        own = None if draws is None else draws[rows]
        written += _write(phase, state, prompts, vectors[rows], own, request)
    rewards: Sequence[Rewards | None] = [None] * len(asked)
    if request.score:
        phase.load_experts(state)
        rewards = _rewards(phase, asked, [text for text, _ in written], vectors)
    return [
        StatedText(prompt, label, text, shares, reward)
        for (prompt, label), (text, shares), reward in zip(asked, written, rewards, strict=True)
    ]


def _check(request: TextRequest) -> None:
    check_numbers(request)
    if request.stages:
        raise UserError("--stage is for runs of method=dprlhf; this run has no stages, leave it out")


def _phase(run: OpenedRun, request: TextRequest) -> tuple[StatedPhase, State]:
    """Return the phase that writes, at the length that is asked for, and its final state."""
    method = run.config.method
    assert isinstance(method, PCM)
    phases = run.phases
    if request.max_new_tokens is not None:
        longer = replace(method, lengths=replace(method.lengths, response=request.max_new_tokens))
        try:
            phases = longer.phases(setting(run.config))
        except UserError as error:
            raise UserError(f"--max-new-tokens={request.max_new_tokens}: {error}") from None
    there = [phase for phase in phases if isinstance(phase, StatedPhase) and phase.name in run.states]
    if not there:
        raise UserError(f"{run.path}: this run has no phase that writes; its experts alone were trained")
    phase = there[-1]
    if request.score and phase.rewards is None:
        raise UserError(
            "--score: nothing in this run says what texts are worth, method.dimensions have no measures; leave it out"
        )
    return phase, run.states[phase.name]


def _wanted(phase: StatedPhase, request: TextRequest) -> dict[str, Tensor]:
    """Return a vector for everything that is asked for, by its label."""
    found = {text: phase.preferences.vector(text, "--preference") for text in request.preferences}
    for dial in request.dials:
        start, end, place = read_dial(dial)
        if not 0 <= place <= 1:
            raise UserError(f"--dial={dial}: weights are not negative; give a place from 0 to 1")
        ends = [phase.preferences.vector(text, "--dial") for text in (start, end)]
        if not all(bool(vector.any()) for vector in ends):
            raise UserError(f"--dial={dial}: both ends must state something")
        found[dial] = torch.lerp(ends[0], ends[1], place)
    return found or {EVERYBODY: torch.zeros(len(phase.preferences.names))}


def _draws(phase: StatedPhase, request: TextRequest, seed: int, preferences: int) -> Tensor | None:
    """Return uniform numbers, a row a text: those of one prompt are the same under all preferences."""
    if _temperature(phase, request) == 0:
        return None
    seeds = Streams(seed).numpy("predictions/text").integers(2**62, size=len(request.prompts)).tolist()
    return uniform(seeds, phase.method.lengths.response).repeat_interleave(preferences, 0)


def _temperature(phase: StatedPhase, request: TextRequest) -> float:
    return phase.method.evaluation.temperature if request.temperature is None else request.temperature


def _write(
    phase: StatedPhase,
    state: State,
    prompts: Sequence[str],
    vectors: Tensor,
    draws: Tensor | None,
    request: TextRequest,
) -> list[tuple[str, Shares | None]]:
    """Return the texts of one batch, and who wrote them where weights say it."""
    writer = phase.writer(state)
    temperature = _temperature(phase, request) or 1.0
    if isinstance(writer, MergedWriter):
        stream = None if request.on_piece is None else TextStream(writer.codec, request.on_piece)
        return _merged(phase, writer, prompts, vectors, draws, temperature, stream)
    if request.on_piece is not None or request.weights:
        raise UserError(
            "--stream and --weights show a control model at work, and in this run there is none; leave them out"
        )
    with torch.inference_mode():
        return [(text, None) for text in writer.write(prompts, vectors, draws, temperature).texts]


def _merged(
    phase: StatedPhase,
    writer: MergedWriter,
    prompts: Sequence[str],
    vectors: Tensor,
    draws: Tensor | None,
    temperature: float,
    stream: TextStream | None,
) -> list[tuple[str, Shares | None]]:
    """Return texts of merged experts; the batch ends when all texts have ended."""
    device = phase.experts.device
    ids, mask = (t.to(device) for t in writer.codec.prompts(prompts, writer.lengths.prompt))
    moved = None if draws is None else draws.to(device)
    told, longest = writer.told(vectors), writer.lengths.response
    on_token: OnToken | None = None if stream is None else stream.take
    found = generate_merged(writer.merger, told, ids, mask, longest, moved, temperature, on_token)
    if stream is not None:
        stream.close()
    texts, pieces = writer.codec.decode(found.tokens), writer.codec.pieces(found.tokens)
    lengths = until_the_end(found.tokens, phase.experts.end_tokens).sum(1).tolist()
    weights = found.log_weights.exp().tolist()
    names = phase.preferences.names
    return [
        (text, Shares(names, tuple(own[:length]), tuple(tuple(each) for each in heavy[:length])))
        for text, own, heavy, length in zip(texts, pieces, weights, lengths, strict=True)
    ]


def _rewards(
    phase: StatedPhase, asked: Sequence[tuple[str, str]], texts: Sequence[str], vectors: Tensor
) -> list[Rewards | None]:
    """Return what each text is worth to the preference that it was written under."""
    assert phase.rewards is not None
    prompts = [prompt for prompt, _ in asked]
    sides = phase.rewards.sides(
        phase.rewards.measured(prompts, texts), phase.references.measured(phase.rewards, prompts)
    )
    # Those who state nothing have no combined reward; ones stand in for it, so that nothing is divided by 0.
    silent = vectors.sum(1, keepdim=True) == 0
    whole = combined(sides, torch.where(silent, 1.0, vectors)).tolist()
    found: list[Rewards | None] = []
    for own, wanted, all_sides, total in zip(
        sides.tolist(), vectors.tolist(), silent[:, 0].tolist(), whole, strict=True
    ):
        named = zip(phase.preferences.names, own, wanted, strict=True)
        worth = {name: value for name, value, weight in named if all_sides or weight > 0}
        found.append(Rewards(worth, None if all_sides else total))
    return found
