"""Files of a Hugging Face hub repository, from the local cache where they are there, with one-line errors where not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from fedalign.errors import UserError

_TIMEOUT_S = 5.0


def dataset_file(repo: str, file: str, revision: str | None = None) -> Path:
    """Return the local path of one file of a data set.

    Parameters
    ----------
    repo : str
    file : str
        Its path inside the repository.
    revision : str, optional
        Branch, tag or commit; the main branch if absent.

    Raises
    ------
    UserError
        If it is neither cached nor reachable.
    """
    folder = _cached(repo, "dataset", lambda cached: (cached / file).is_file(), revision)
    return (folder or _download(repo, "dataset", "data.path", [file], revision)) / file


def model_folder(name: str, key: str) -> Path:
    """Return a local folder with a model's configuration, tokenizer and weights.

    Parameters
    ----------
    name : str
        A local folder, or a hub name such as ``org/model``. What looks like a path (starts with ``.``, ``/`` or
        ``~``) is never looked up on the hub.
    key : str
        The configuration key that holds the name, for error messages.

    Raises
    ------
    UserError
        If the folder is missing, or the hub model is neither cached nor reachable.
    """
    return _folder(name, key, ("config.json",), _holds_a_model)


ADAPTER_FILES = CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""What a saved adapter is made of; weights in other formats are never read, since reading them runs code."""


def adapter_folder(name: str, key: str) -> Path:
    """Return a local folder with a peft adapter.

    Parameters
    ----------
    name, key : str
        See :func:`model_folder`.

    Raises
    ------
    UserError
        If the folder is missing or lacks one of ``ADAPTER_FILES``, or the hub cannot give them.
    """

    def complete(folder: Path) -> bool:
        return all((folder / file).is_file() for file in ADAPTER_FILES)

    folder = _folder(name, key, ADAPTER_FILES, complete)
    if not complete(folder):
        raise UserError(f"{key}={name}: it holds no {' and '.join(ADAPTER_FILES)}; save the adapter anew with peft")
    return folder


def _folder(name: str, key: str, needed: Sequence[str], complete: Callable[[Path], bool]) -> Path:
    folder = Path(name).expanduser()
    if folder.is_dir():
        for file in needed:
            if not (folder / file).is_file():
                raise UserError(f"{key}={name}: the folder holds no {file}; give a folder saved by save_pretrained")
        return folder
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"{key}={name}: no such folder; give a folder saved by save_pretrained, or a hub name")
    return _cached(name, "model", complete) or _download(name, "model", key, _MODEL_FILES)


_MODEL_FILES = ["*.json", "*.txt", "*.model", "*.jinja"]


def _holds_a_model(folder: Path) -> bool:
    weights = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    return (folder / "config.json").is_file() and bool(weights)


def _cached(
    repo: str, kind: Literal["model", "dataset"], complete: Callable[[Path], bool], revision: str | None = None
) -> Path | None:
    import huggingface_hub

    try:
        folder = Path(huggingface_hub.snapshot_download(repo, repo_type=kind, revision=revision, local_files_only=True))
    except (OSError, ValueError):
        return None
    return folder if complete(folder) else None


def _download(
    repo: str, kind: Literal["model", "dataset"], key: str, patterns: list[str], revision: str | None = None
) -> Path:
    import huggingface_hub

    try:
        # Asking first fails at once without a network; a download alone retries for half a minute.
        hub = huggingface_hub.HfApi()
        ask = hub.model_info if kind == "model" else hub.dataset_info
        names = [file.rfilename for file in ask(repo, revision=revision, timeout=_TIMEOUT_S).siblings or []]
        if kind == "model":
            safe = any(name.endswith(".safetensors") for name in names)
            patterns = [*patterns, "*.safetensors" if safe else "*.bin"]
        ignored = ["onnx/*", "openvino/*", "original/*"]
        return Path(
            huggingface_hub.snapshot_download(
                repo, repo_type=kind, revision=revision, allow_patterns=patterns, ignore_patterns=ignored
            )
        )
    except Exception as error:  # the hub client's network errors share no base class across its versions
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{key}: the {kind} {repo!r} is not cached and the hub cannot give it ({reason}); "
            "go online once, or set a local path"
        ) from None
