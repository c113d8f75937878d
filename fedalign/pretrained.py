"""Tokenizers and networks of a model folder, loaded quietly from local files, with one-line errors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from fedalign.errors import UserError

Dtype = Literal["float32", "bfloat16", "float16"]
"""Precision of a network's weights."""


def load_tokenizer(folder: Path, key: str) -> Any:
    """Return a folder's tokenizer, with a padding token.

    Parameters
    ----------
    folder : Path
        See :func:`fedalign.hub.model_folder`.
    key : str
        The configuration key that named the model, for error messages.

    Raises
    ------
    UserError
        If it cannot be loaded.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise UserError(f"{key}={folder}: its tokenizer cannot be loaded ({first_line(error)})") from None
    if tokenizer.pad_token is None:
        # Causal models are trained without padding; padded positions are masked out, so any token will do.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_network(folder: Path, kind: Any, dtype: Dtype, device: str, key: str) -> Any:
    """Return a folder's network in evaluation mode.

    Parameters
    ----------
    folder : Path
    kind : class
        Of transformers' auto classes, e.g. ``AutoModel``.
    dtype : "float32", "bfloat16" or "float16"
    device : str
    key : str
        The configuration key that named the model, for error messages.

    Raises
    ------
    UserError
        If it cannot be loaded.
    """
    try:
        with _quietly():
            network = kind.from_pretrained(folder, local_files_only=True, dtype=getattr(torch, dtype)).to(device)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise UserError(f"{key}={folder}: cannot be loaded on {device} ({first_line(error)})") from None
    return network.eval()


def first_line(error: BaseException) -> str:
    """Return what a library's error says, cut to one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep transformers from drawing its own bar over ours, and put its setting back."""
    from transformers.utils import logging

    drawn = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if drawn:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
