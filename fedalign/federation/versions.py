"""Whether server and nodes run the same fedalign; they tell each other before anything else."""

from __future__ import annotations

import json
import logging
import platform

import torch
from flwr.app import ConfigRecord, RecordDict

from fedalign import __version__
from fedalign.errors import UserError

VERSIONS = "versions"

_log = logging.getLogger(__name__)


def own_versions() -> dict[str, str]:
    """Return fedalign's version, and for information the first two numbers of Python's and PyTorch's."""
    python, torch_ = (
        ".".join(text.split("+")[0].split(".")[:2]) for text in (platform.python_version(), torch.__version__)
    )
    return {"fedalign": __version__, "python": python, "torch": torch_}


def versions_record() -> ConfigRecord:
    """Return the record that travels."""
    return ConfigRecord({"json": json.dumps(own_versions())})


def check_versions(content: RecordDict, own: str, other: str) -> None:
    """Refuse a message from another fedalign; say so where only Python or PyTorch differ.

    Parameters
    ----------
    content : RecordDict
        Of the message; one without versions comes from a fedalign that did not tell them yet.
    own, other : str
        Who this process is and whom the message is from, as messages name them.

    Raises
    ------
    UserError
        Naming both versions.
    """
    told = json.loads(str(content.config_records[VERSIONS]["json"])) if VERSIONS in content.config_records else {}
    mine = own_versions()
    if told.get("fedalign") != mine["fedalign"]:
        raise UserError(
            f"{other} runs fedalign {told.get('fedalign', '(a version that does not say)')}, {own} runs fedalign "
            f"{mine['fedalign']}; install the same version on both"
        )
    for name in ("python", "torch"):
        if told.get(name) != mine[name]:
            _log.warning(
                "%s runs %s %s, %s runs %s; results may differ in the last digits", other, name, told.get(name), own,
                mine[name],
            )  # fmt: skip
