"""The tables of the experiment of private alignment, in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from fedalign.report.statistics import Estimate, mean_interval, paired_difference
from simulations.dprlhf.arms import LEVELS, MAIN, SECONDARY, Arm
from simulations.dprlhf.claims import CLAIMS, aligned, gain, pretrained, tuned, verdict
from simulations.dprlhf.paper import PAPER
from simulations.dprlhf.record import Results, SeedResult

_TITLES = {**{level: f"epsilon {level.removeprefix('eps')}" for level in LEVELS}, "none": "no privacy"}
_DASH = "–"


def tables(found: Results) -> str:
    """Return all tables, a section each."""
    sections = {
        "Mean reward of the test prompts (VADER, from −1 to 1)": _rewards(found),
        "The paper's mean reward (Table 1; other models and another scale of reward)": _paper(),
        "What had to hold": _claims(found),
        "The texts, and what was spent": _texts(found),
        "Other arms": _others(found),
    }
    return "\n".join(f"**{title}**\n\n{body}" for title, body in sections.items())


def values_of(seeds: Mapping[int, SeedResult], value: Callable[[SeedResult], float | None]) -> dict[int, float]:
    """Return a number of every seed that has it."""
    read = {seed: value(result) for seed, result in seeds.items()}
    return {seed: number for seed, number in read.items() if number is not None}


def cell(estimate: Estimate | None, form: str, spread: bool = True) -> str:
    """Return mean ± half width, or a dash."""
    if estimate is None:
        return _DASH
    mean = format(estimate.mean, form)
    if estimate.half_width is None or not spread:
        return mean
    return f"{mean} ± {format(estimate.half_width, form.lstrip('+'))}"


def _mean(seeds: Mapping[int, SeedResult], value: Callable[[SeedResult], float | None]) -> Estimate | None:
    values = values_of(seeds, value)
    return mean_interval(list(values.values())) if values else None


def _rewards(found: Results) -> str:
    """Return a row a budget: reward by stage, the gain, and how much of the gain without privacy is left."""
    rows = []
    for arm in MAIN:
        seeds = found.get(arm.name, {})
        shown = [cell(_mean(seeds, value), ".3f") for value in (pretrained, tuned, aligned)]
        step = cell(_mean(seeds, lambda result: result.aligned.reward - result.tuned.reward), "+.3f")
        rows.append((_label(arm, seeds, found), [*shown, cell(_mean(seeds, gain), "+.3f"), step, _share(arm, found)]))
    header = ["privacy", "pretrained", "fine-tuned", "aligned", "gain", "over fine-tuned", "share of gain"]
    return _table(header, rows)


def _share(arm: Arm, found: Results) -> str:
    """Return the mean gain over the mean gain without privacy, of the seeds that both have."""
    own, full = (values_of(found.get(name, {}), gain) for name in (arm.name, "none"))
    shared = set(own) & set(full)
    whole = sum(full[seed] for seed in shared)
    return f"{sum(own[seed] for seed in shared) / whole:.0%}" if whole > 0 else _DASH


def _paper() -> str:
    rows = []
    for row in PAPER:
        shown = [f"{mean:.2f} ± {half:.2f} ({row.share(level):.0%})" for level, (mean, half) in row.aligned.items()]
        rows.append((row.model, [f"{row.pretrained:.2f}", *shown]))
    return _table(["model", "pretrained", *(f"{_TITLES[level]} (share of gain)" for level in LEVELS)], rows)


def _claims(found: Results) -> str:
    rows = []
    for claim in CLAIMS:
        difference = claim.difference(found)
        ones = _mean(found.get(claim.arm, {}), claim.value)
        others = _mean(found.get(claim.baseline_arm, {}), claim.baseline)
        means = [cell(ones, ".3f", spread=False), cell(others, ".3f", spread=False)]
        rows.append((claim.text, [*means, cell(difference, "+.3f"), verdict(difference)]))
    return _table(["claim", "mean", "against", "difference, paired by seed", "holds"], rows)


def _texts(found: Results) -> str:
    """Return a row a budget for what is not reward; the pretrained model and the fine-tuned one first."""
    free = found.get("none", {})
    rows = [
        ("pretrained", [*_quality(free, "pretrained"), *[_DASH] * 5]),
        ("fine-tuned, no privacy", [*_quality(free, "tuned"), *[_DASH] * 5]),
    ]
    for arm in MAIN:
        seeds = found.get(arm.name, {})
        rows.append((_label(arm, seeds, found), [*_quality(seeds, "aligned"), *_spent(seeds)]))
    header = ["model", "judge's win rate", "KL", "perplexity", "distinct-2", "ROUGE-L"]
    return _table([*header, "epsilon", "of SFT / RL", "noise of SFT / RL", "interval in a run", "minutes"], rows)


def _quality(seeds: Mapping[int, SeedResult], stage: str) -> list[str]:
    """Return how the texts of a stage are, less their reward."""
    forms = {"win_rate": ".3f", "kl": ".2f", "perplexity": ".1f", "distinct_2": ".3f", "rouge_l": ".3f"}
    return [
        cell(_mean(seeds, lambda result, field=field: float(getattr(getattr(result, stage), field))), form)  # type: ignore[misc]
        for field, form in forms.items()
    ]


def _spent(seeds: Mapping[int, SeedResult]) -> list[str]:
    def phases(kind: str, form: str) -> str:
        own = [_mean(seeds, lambda result, phase=phase: getattr(result, kind).get(phase)) for phase in ("sft", "rl")]  # type: ignore[misc]
        shown = [cell(value, form, spread=False) for value in own]
        return _DASH if set(shown) == {_DASH} else " / ".join(shown)

    return [
        cell(_mean(seeds, lambda result: result.epsilon), ".2f", spread=False),
        phases("epsilons", ".2f"),
        phases("noise_multipliers", ".2f"),
        cell(_mean(seeds, lambda result: result.aligned.half_width), ".3f", spread=False),
        cell(_mean(seeds, lambda result: result.seconds / 60), ".0f", spread=False),
    ]


def _others(found: Results) -> str:
    """Return a row a secondary arm, with its difference from the arm of the first table that it varies."""
    rows = []
    for arm in SECONDARY:
        seeds = found.get(arm.name, {})
        own, others = (values_of(found.get(name, {}), aligned) for name in (arm.name, str(arm.baseline)))
        shown = [cell(_mean(seeds, value), ".3f") for value in (pretrained, tuned, aligned)]
        win = cell(_mean(seeds, lambda result: result.aligned.win_rate), ".3f")
        noise = cell(_mean(seeds, lambda result: result.noise_multipliers.get("rl")), ".2f", spread=False)
        difference = cell(paired_difference(own, others), "+.3f")
        against = _TITLES[str(arm.baseline)]
        rows.append((_label(arm, seeds, found), [*shown, win, noise, f"{difference} ({against})"]))
    header = ["arm", "pretrained", "fine-tuned", "aligned", "judge's win rate", "noise of RL"]
    return _table([*header, "aligned, against the first table's arm"], rows)


def _label(arm: Arm, seeds: Mapping[int, SeedResult], found: Results) -> str:
    """Return an arm's label, with its number of seeds where others have more."""
    most = max((len(own) for own in found.values()), default=0)
    label = _TITLES.get(arm.name, arm.label)
    return label if len(seeds) in (0, most) else f"{label} (seeds: {len(seeds)})"


def _table(header: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    lines = [f"| {' | '.join(header)} |", "|---|" + "---:|" * (len(header) - 1)]
    lines += [f"| {label} | {' | '.join(cells)} |" for label, cells in rows]
    return "\n".join(lines) + "\n"
