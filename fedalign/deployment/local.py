"""A federation on loopback: written, brought up, given a run, and taken down."""

from __future__ import annotations

import contextlib
import shutil
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from fedalign.config import RunConfig, to_json
from fedalign.deployment.folder import SITES, write_federation
from fedalign.deployment.parts import deal
from fedalign.deployment.plan import STATE, Address, Plan, Site, check_free, read_run, share_of
from fedalign.deployment.running import RunningFederation, free_ports
from fedalign.errors import RunFailed, UserError
from fedalign.federation.directory import ClientDirectory
from fedalign.federation.site import hosted
from fedalign.guarantee import check_guarantee
from fedalign.report.run_directory import RunDirectory
from fedalign.run import output_of
from fedalign.run_end import Result
from fedalign.site import open_site

HOST = "127.0.0.1"


def run_local(console: Console, overrides: Sequence[str], sites: int, output: Path | None) -> Result:
    """Run a job on a SuperLink and SuperNodes on this machine, with TLS and node authentication.

    Parameters
    ----------
    console : Console
    overrides : sequence of str
        Of the run; ``output`` says where its directory goes, as with ``fedalign run``.
    sites : int
        Where the data are a file whose rows say whose they are, each site has a part of it; else each hosts a share of
        the data's clients.
    output : Path or None
        Where the federation's directory is left, with its logs; None leaves it only when the run fails.

    Raises
    ------
    UserError
        If the configuration or the data are wrong; nothing is started then.
    RunFailed
        If the federation does not come up or the run breaks down.
    """
    place = output.absolute() if output is not None else Path(tempfile.mkdtemp(prefix="fedalign-")) / "federation"
    failed = True
    try:
        with tempfile.TemporaryDirectory(prefix="fedalign-parts-") as scratch:
            plan, run = prepare_local(overrides, sites, place, Path(scratch))
        console.print(f"federation of {sites} sites at {plan.address}: {place}", soft_wrap=True)
        with _terminable(), RunningFederation(place, plan.address) as federation:
            federation.start([site.name for site in plan.sites])
            code = federation.operate("run.sh")
        result = read_result(run, code, place)
        failed = False
        return result
    except UserError:
        failed = place.is_dir()
        raise
    finally:
        if output is None and not failed:
            shutil.rmtree(place.parent, ignore_errors=True)


def prepare_local(overrides: Sequence[str], sites: int, place: Path, scratch: Path) -> tuple[Plan, RunDirectory]:
    """Check everything and write the federation's directory; returns its plan and the directory of the run to be.

    Raises
    ------
    UserError
        If the configuration or the data are wrong, or a directory is taken.
    """
    check_free(place)
    names = [f"site-{number + 1}" for number in range(sites)]
    resolved, config = read_run(overrides)
    path = resolved["data"].get("path")
    parts = None if path is None else deal(Path(path), sites, scratch)
    # All is this user's own, so a run may name any model that is here.
    own = [{"data-path": str(part), "model-path": "/"} for part in parts or []]
    shares: list[dict[str, Any]] = own or [share_of(i, sites) for i in range(sites)]
    prefixed = check_shares(resolved, config, shares)
    port, *runtime_ports = free_ports(sites + 1)
    configs: list[dict[str, Any]] = [
        {
            **share,
            **({"data-path": f"data/{Path(share['data-path']).name}"} if parts else {}),
            **({"client-prefix": f"{name}-"} if prefixed else {}),
            **STATE,
        }
        for name, share in zip(names, shares, strict=True)
    ]
    run = RunDirectory.create(output_of(config).absolute())
    there = [override for override in overrides if not override.startswith("output=")]
    data = [] if path is None else [f"data.path={_quoted(Path(path).absolute())}"]
    plan = Plan(
        (*(o for o in there if not o.startswith("data.path=")), *data, f"output={_quoted(run.path)}"),
        resolved, config, Address(HOST, port),
        tuple(Site(*each) for each in zip(names, configs, runtime_ports, strict=True)),
    )  # fmt: skip
    write_federation(plan, place)
    for name, part in zip(names, parts or [], strict=False):
        (place / SITES / name / "data").mkdir()
        shutil.move(part, place / SITES / name / "data" / part.name)
    return plan, run


def check_shares(resolved: Mapping[str, Any], config: RunConfig, shares: Sequence[Mapping[str, Any]]) -> bool:
    """Open every site as its node will, check the federation, and tell whether names need the site's prefix.

    Raises
    ------
    UserError
        If a site's data do not fit the run; naming the site.
    """
    clients = []
    for number, share in enumerate(shares):
        try:
            site = open_site(to_json(resolved), share)
            mine = hosted(site.data.clients, share)
            site.check(client.name for client in mine)
        except UserError as error:
            raise UserError(f"site-{number + 1}: {error}") from error
        phases = site.phases
        clients += [(number, client) for client in mine]
    prefixed = max(Counter(client.name for _, client in clients).values(), default=1) > 1
    named = [replace(client, name=f"{number}-{client.name}") if prefixed else client for number, client in clients]
    directory = ClientDirectory.of(named)
    directory.check(phases, config.federation.sampler)
    directory.check_least(phases, config.federation.min_clients)
    check_guarantee(config, phases, directory)
    return prefixed


def read_result(run: RunDirectory, code: int, place: Path) -> Result:
    """Return the outcome of a run that has ended.

    Raises
    ------
    UserError, RunFailed
        If it failed, with its own reason where it left one.
    """
    if not run.summary_file.exists():
        if not any(run.path.iterdir()):
            run.path.rmdir()
        raise RunFailed(f"the run ended before it began; the logs are in {place / 'logs'}")
    summary = run.read_summary()
    if summary.reason is None and code == 0:
        return Result(run.path, summary)
    kind, _, reason = (summary.reason or "").partition(": ")
    if kind == UserError.__name__:
        raise UserError(reason)
    told = reason if kind == RunFailed.__name__ else summary.reason or "Flower lost it after its end"
    raise RunFailed(f"{told}; the run is in {run.path}, the logs are in {place / 'logs'}")


def _quoted(path: Path) -> str:
    escaped = str(path).replace("'", "\\'")
    return f"'{escaped}'"


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let a request to end this process take the federation down first, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before: Callable[[int, FrameType | None], Any] | int | None = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
