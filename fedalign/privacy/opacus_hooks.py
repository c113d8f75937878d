"""What Opacus' hooks need of a network before, and leave on it after."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from fedalign.errors import UserError
from fedalign.privacy.local import KEY


def hookable(network: nn.Module) -> dict[nn.Module, bool]:
    """Put layers that own trained parameters into training mode, where alone Opacus looks; return their modes.

    A frozen base in evaluation mode keeps it: its layers own nothing that is trained.

    Raises
    ------
    UserError
        If part of the network is compiled (says so by an attribute ``compiled``): its layers are not called.
    """
    if any(getattr(module, "compiled", False) for module in network.modules()):
        raise UserError(
            f"{KEY}.grad_sample: hooks see nothing of a compiled model (compile=true); set compile=false where the "
            f"model is configured, or {KEY}.grad_sample=loop"
        )
    owners = {m: m.training for m in network.modules() if any(p.requires_grad for p in m.parameters(recurse=False))}
    for module in owners:
        module.training = True
    return owners


def unhook(network: nn.Module, modes: dict[nn.Module, bool]) -> None:
    """Put modes back, and drop what a pass that was broken off left on the layers."""
    for module, mode in modes.items():
        module.training = mode
        for name in ("activations", "max_batch_len"):
            if hasattr(module, name):
                delattr(module, name)
    network.zero_grad(set_to_none=True)


def first_words(error: Exception) -> str:
    """Return what Opacus says, in one line."""
    return " ".join(str(error).split())[:200]


@contextmanager
def without_log_handlers() -> Iterator[None]:
    """Keep an import from setting up logging for the whole process, as Opacus' does."""
    root = logging.getLogger()
    before = list(root.handlers)
    yield
    for handler in [h for h in root.handlers if h not in before]:
        root.removeHandler(handler)
