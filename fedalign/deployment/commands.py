"""What ``fedalign deploy`` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fedalign.deployment.folder import write_federation
from fedalign.deployment.local import run_local
from fedalign.deployment.plan import Address, plan_sites
from fedalign.errors import UserError
from fedalign.run_end import Result


def write(
    console: Console, overrides: Sequence[str], sites: Sequence[str], server_address: str, output: Path | None
) -> None:
    """Write the directory of a federation and say what comes next.

    Raises
    ------
    UserError
        If something is wrong with what was asked for; nothing is written then.
    """
    if output is None:
        raise UserError("--output is missing; give the directory that is to be written, as in --output federation")
    plan = plan_sites(overrides, sites, Address.of(server_address))
    write_federation(plan, output)
    console.print(f"{len(plan.sites)} sites, server {plan.address}; next: {output / 'README.md'}", soft_wrap=True)


def run(console: Console, overrides: Sequence[str], sites: int, output: Path | None) -> Result:
    """Run a job on a federation on this machine.

    Raises
    ------
    UserError
        If the configuration or the data are wrong.
    RunFailed
        If the federation or the run breaks down.
    """
    if sites < 1:
        raise UserError(f"--local={sites}: a federation has one site or more")
    return run_local(console, overrides, sites, output)
