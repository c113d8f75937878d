"""A network's pass as one function that PyTorch compiles when it is first called, for shapes of any size."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fedalign.errors import UserError
from fedalign.pretrained import first_line


class CompiledPass:
    """A network's forward pass through ``torch.compile``; parameters stay the network's own.

    Compiling takes from seconds to a minute, once a process for networks of the same settings (and once more for
    batches of one row); it is done for sizes that vary, since texts do. Results agree with the network's own to the
    last digits, and dropout draws other numbers from the same generator.

    Not a module, so that a network that holds one has no parameter twice.

    Parameters
    ----------
    network : nn.Module
    key : str
        The configuration key of the block that asks for it, for error messages.
    """

    def __init__(self, network: nn.Module, key: str) -> None:
        self._key = key
        self._pass: Any = torch.compile(network, dynamic=True)

    def __call__(self, **inputs: Any) -> Any:
        """Return what the network returns.

        Raises
        ------
        UserError
            If it cannot be compiled here, e.g. because there is no C++ compiler.
        """
        from torch._dynamo.exc import TorchDynamoException

        try:
            return self._pass(**inputs)
        except TorchDynamoException as error:
            raise UserError(
                f"{self._key}.compile=true: PyTorch cannot compile this model here ({first_line(error)}); set "
                f"{self._key}.compile=false, or install a C++ compiler"
            ) from error
