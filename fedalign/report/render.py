"""From a finished run directory to its plots and its report."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fedalign.errors import UserError
from fedalign.report.atomic import write_bytes_atomic, write_text_atomic
from fedalign.report.curves import Curves
from fedalign.report.headline import default_headline
from fedalign.report.latent_plots import latent_plots
from fedalign.report.plots import run_plots
from fedalign.report.run_directory import RunDirectory
from fedalign.report.run_page import run_page


def render_run(path: Path, headline: str | None = None) -> Path:
    """Write ``plots/*.png`` and ``report.html`` of the run in ``path`` and return the report's path.

    Parameters
    ----------
    path : Path
        The run directory.
    headline : str or None
        The metric to put first, such as ``unseen/alignment_score``; None chooses by what the run measured.

    Raises
    ------
    UserError
        If ``path`` is no run directory, the run has not ended, or one of its files is broken.
    """
    directory = RunDirectory.open(path)
    summary = directory.read_summary()
    chosen = headline or default_headline(summary.metrics)
    curves = Curves(directory.read_metrics())
    plots = {
        **run_plots(curves, summary.metrics, summary.groups, chosen),
        **latent_plots(curves, summary.metrics, summary.groups, read_latents(directory.model)),
    }
    for name, content in plots.items():
        write_bytes_atomic(directory.plots / f"{name}.png", content)
    name = path.resolve().name
    page = run_page(name, summary, chosen, plots, directory.read_config(), directory.read_environment())
    write_text_atomic(directory.report_file, page)
    return directory.report_file


def read_latents(model: Path) -> dict[str, Tensor]:
    """Return people's posterior means by group, shape (people, d) each; empty for a model that keeps none.

    They are the tensors ``latent/<group>/<person>`` of ``latents.safetensors``; others are left alone.

    Parameters
    ----------
    model : Path
        The directory of a run's final artefact.

    Raises
    ------
    UserError
        If the file is broken.
    """
    path = model / "latents.safetensors"
    if not path.exists():
        return {}
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not a safetensors file ({error}); the file is damaged, run again") from error
    people: dict[str, list[Tensor]] = {}
    for name in sorted(tensors):
        kind, _, rest = name.partition("/")
        group, _, person = rest.partition("/")
        if kind == "latent" and person:
            people.setdefault(group, []).append(tensors[name].float())
    return {group: torch.stack(means) for group, means in people.items()}
