"""Run the experiment on PCM, one process and one thread, and write its results.

python -m simulations.pcm.run [--model DIR] [--seeds 0,1,2] [--arms soups,federated,...] [--output DIR] [--results DIR]
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from pathlib import Path

from fedalign.run import start
from simulations.emdpo.base import made, make
from simulations.pcm.arms import ARMS, BASE, EXPERTS, MAIN, SEEDS, Arm, overrides
from simulations.pcm.base import public_texts
from simulations.pcm.results import write_results

OUTPUT = Path("outputs/simulations/pcm")


def execute(arm: Arm, seed: int, output: Path, base: Path) -> None:
    """Run an arm under a seed in this process; a finished run is kept, a broken one is replaced."""
    directory = output / arm.name / f"seed-{seed}"
    if finished(directory):
        return
    shutil.rmtree(directory, ignore_errors=True)
    experts = (output / "soups" / f"seed-{seed}" / "model" / "experts").resolve()
    folders = {BASE: str(base), EXPERTS: str(experts)}
    start([*overrides(arm, folders), f"seed={seed}", f"output='{directory}'"])
    print(directory, flush=True)


def finished(directory: Path) -> bool:
    """Return whether a run has ended as it should."""
    summary = directory / "summary.json"
    return summary.is_file() and json.loads(summary.read_text())["status"] == "completed"


def main() -> None:
    """Read the arguments, run what is missing, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="../shared/models/tiny-gpt2", help="what the base model is made of")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)), help="numbers with commas between them")
    parser.add_argument("--arms", default=",".join(MAIN), help="names of arms with commas between them, or all")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--results", type=Path, help="where the numbers go (default: the output)")
    given = parser.parse_args()
    logging.getLogger("fedalign").setLevel(logging.ERROR)
    base = (given.output / "base").resolve()
    if not made(base):
        make(given.model, base, public_texts())
    wanted = [arm for arm in ARMS if given.arms == "all" or arm.name in given.arms.split(",")]
    for seed in map(int, given.seeds.split(",")):
        for arm in wanted:
            execute(arm, seed, given.output, base)
    print(write_results(given.output, given.results or given.output))


if __name__ == "__main__":
    main()
