"""From the runs on PCM to recorded numbers and tables; with ``--readme`` the tables go there too.

python -m simulations.pcm.results [--runs DIR] [--results DIR] [--readme FILE]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path

from fedalign.report.statistics import mean_interval, paired_difference
from simulations.emdpo.markdown import table
from simulations.pcm.arms import ARMS
from simulations.pcm.score import SeedResult, from_json, oracle, read_run
from simulations.pcm.wins import win_rate
from simulations.privacy.tables import cell
from simulations.records import between_marks, finished_runs, to_json

Results = Mapping[str, Mapping[int, SeedResult]]

TABLES = ("<!-- tables -->", "<!-- /tables -->")
ORACLE = "oracle"
LABELS = {arm.name: arm.label for arm in ARMS} | {ORACLE: "oracle weights (knows the world's words)"}
_ORDER = (
    *("prompting", "prompted", "single", "uniform", "soups", "constant", "federated", "central", "central_small"),
    *("online", "online_own", ORACLE),
)
_COLUMNS = (
    ("all/reward", "reward"),
    ("all/reward_tone", "tone"),
    ("all/reward_style", "style"),
    ("all/reward_length", "length"),
    ("all/satisfied", "sides as wanted"),
    ("held_out/reward", "reward, held-out combinations"),
    ("held_out/satisfied", "sides as wanted, held-out"),
    ("all/win_rate", "wins over uniform"),
)
_PAPER = (
    ("MPD (PCM)", "66.28 %"),
    ("Personalized Soup", "61.28 % or 60.21 % (reviews disagree)"),
    ("preference prompting", "56.09 %"),
)
"""Average pairwise win rates of the submission's Table 2, as its reviews quote them; GPT-4 judged 100 prompts."""


def read_all(runs: Path, before: Results) -> dict[str, dict[int, SeedResult]]:
    """Return the numbers of all finished runs and those recorded before, with the oracle's on the same experts."""
    found = finished_runs(runs, [arm.name for arm in ARMS], read_run)
    known = before.get(ORACLE, {})
    own = {seed: oracle(runs / "uniform" / f"seed-{seed}") for seed in found.get("uniform", {}) if seed not in known}
    if own:
        found[ORACLE] = own
    return {name: {**before.get(name, {}), **found.get(name, {})} for name in _ORDER if {**before, **found}.get(name)}


def tables(found: Results) -> str:
    """Return the tables in Markdown."""
    parts = [
        "**Texts of unseen prompts, mean over all eight combinations**",
        _means(found),
        "**PCM, token by token, federated, less what it is compared with; paired by seed**",
        _differences(found),
        "**How often the federated control model's text is worth more, ties counting half; interval over prompts**",
        _wins(found),
        "**The paper's average pairwise win rates, beside which ours cannot be put: other models, judges and prompts**",
        table(("", "win rate"), [(label, (value,)) for label, value in _PAPER]),
    ]
    return "\n\n".join(parts) + "\n"


def _means(found: Results) -> str:
    rows = []
    for name in _ORDER:
        seeds = found.get(name, {})
        if seeds:
            scores = [[r.scores[key] for r in seeds.values() if key in r.scores] for key, _ in _COLUMNS]
            perplexity = [math.exp(r.scores["all/base_nll"]) for r in seeds.values()]
            means = [mean_interval(values) if values else None for values in (*scores, perplexity)]
            rows.append((f"{LABELS[name]}, {len(seeds)} seeds", [cell(mean, ".3f") for mean in means]))
    return table(("", *(label for _, label in _COLUMNS), "perplexity"), rows)


def _differences(found: Results) -> str:
    rows = []
    own = found.get("federated", {})
    for name in (other for other in _ORDER if other != "federated"):
        pairs = [
            paired_difference(_values(own, key), _values(found.get(name, {}), key))
            for key in ("all/reward", "all/satisfied", "held_out/reward")
        ]
        if any(pairs):
            rows.append((LABELS[name], [cell(pair, "+.3f") for pair in pairs]))
    return table(("less", "reward", "sides as wanted", "reward, held-out combinations"), rows)


def _wins(found: Results) -> str:
    worth = {name: {seed: r.worth for seed, r in seeds.items() if r.worth} for name, seeds in found.items()}
    rates = {name: win_rate(worth, "federated", name) for name in _ORDER if name != "federated"}
    rows = [(LABELS[name], [cell(rate, ".3f"), str(rate.n)]) for name, rate in rates.items() if rate is not None]
    return table(("against", "wins", "prompts"), rows)


def _values(seeds: Mapping[int, SeedResult], key: str) -> dict[int, float]:
    return {seed: result.scores[key] for seed, result in seeds.items() if key in result.scores}


def write_results(runs: Path, results: Path) -> str:
    """Write the numbers and the tables; return the tables."""
    file = results / "results.json"
    before = from_json(file.read_text()) if file.is_file() else {}
    found = read_all(runs, before)
    results.mkdir(parents=True, exist_ok=True)
    file.write_text(to_json(found))
    text = tables(found)
    (results / "table.md").write_text(text)
    return text


def main() -> None:
    """Read the arguments and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("outputs/simulations/pcm"))
    parser.add_argument("--results", type=Path, help="where the numbers go (default: the runs)")
    parser.add_argument("--readme", type=Path, help="a README whose tables are to be replaced")
    given = parser.parse_args()
    text = write_results(given.runs, given.results or given.runs)
    if given.readme is not None:
        given.readme.write_text(between_marks(given.readme.read_text(), TABLES, text))
    print(text)


if __name__ == "__main__":
    main()
