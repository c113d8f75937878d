"""Hub repositories: the cache first, then one question to the hub, then one line that says what to do."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from fedalign.errors import UserError
from fedalign.hub import adapter_folder, dataset_file, model_folder


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the hub client's cache gives for every repository; the network is refused."""
    folder = tmp_path / "snapshot"
    folder.mkdir()

    def snapshot_download(repo: str, *, local_files_only: bool = False, **keys: Any) -> str:
        assert local_files_only, "must not download what it has not asked about"
        return str(folder)

    def refuse(*args: Any, **keys: Any) -> None:
        raise ConnectionError("the network is down\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refuse)
    return folder


def test_a_cached_model_needs_no_network(cached: Path) -> None:
    (cached / "config.json").write_text("{}")
    (cached / "model.safetensors").write_bytes(b"")
    assert model_folder("org/model", "encoder.model") == cached


@pytest.mark.parametrize("files", [[], ["config.json"], ["model.safetensors"]])
def test_a_half_cached_model_is_not_used(cached: Path, files: list[str]) -> None:
    for name in files:
        (cached / name).write_text("{}")
    with pytest.raises(UserError) as error:
        model_folder("org/model", "encoder.model")
    assert str(error.value) == (
        "encoder.model: the model 'org/model' is not cached and the hub cannot give it (the network is down); "
        "go online once, or set a local path"
    )


def test_a_cached_data_set_needs_no_network(cached: Path) -> None:
    (cached / "data").mkdir()
    (cached / "data" / "d.csv").write_text("x")
    assert dataset_file("org/data", "data/d.csv") == cached / "data" / "d.csv"
    with pytest.raises(UserError, match=r"data\.path: the dataset 'org/data' is not cached"):
        dataset_file("org/data", "data/e.csv")


@pytest.mark.parametrize(
    ("weights", "pattern"), [("model.safetensors", "*.safetensors"), ("pytorch_model.bin", "*.bin")]
)
def test_only_one_kind_of_weights_is_downloaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, weights: str, pattern: str
) -> None:
    asked: dict[str, Any] = {}

    def snapshot_download(repo: str, *, local_files_only: bool = False, **keys: Any) -> str:
        if local_files_only:
            raise FileNotFoundError
        asked.update(keys, repo=repo)
        return str(tmp_path)

    def model_info(self: object, repo: str, revision: None, timeout: float) -> SimpleNamespace:
        files = ("config.json", "pytorch_model.bin", weights)
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in files])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    assert model_folder("org/model", "encoder.model") == tmp_path
    assert asked["repo"] == "org/model"
    assert pattern in asked["allow_patterns"]
    assert len({"*.safetensors", "*.bin"} & set(asked["allow_patterns"])) == 1


def test_a_local_folder_wins_over_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: Path) -> None:
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "org" / "model"
    own.mkdir(parents=True)
    (own / "config.json").write_text("{}")
    assert model_folder("org/model", "encoder.model") == Path("org/model")


def test_a_revision_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[object] = []

    def snapshot_download(repo: str, *, revision: str, local_files_only: bool = False, **keys: Any) -> str:
        asked.append(("cache" if local_files_only else keys["allow_patterns"], revision))
        if local_files_only:
            raise FileNotFoundError
        return str(tmp_path)

    def dataset_info(self: object, repo: str, revision: str, timeout: float) -> SimpleNamespace:
        asked.append(("hub", revision))
        return SimpleNamespace(siblings=[])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    assert dataset_file("org/data", "a/d.csv", "refs/pr/1") == tmp_path / "a" / "d.csv"
    assert asked == [("cache", "refs/pr/1"), ("hub", "refs/pr/1"), (["a/d.csv"], "refs/pr/1")]


def test_an_adapter_is_two_files_and_never_a_pickle(cached: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "adapter_config.json").write_text("{}")
    (own / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"paths\.a=.*own: the folder holds no adapter_model\.safetensors"):
        adapter_folder(str(own), "paths.a")
    (own / "adapter_model.safetensors").write_bytes(b"")
    assert adapter_folder(str(own), "paths.a") == own
    (cached / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"paths\.a: the model 'org/adapter' is not cached"):
        adapter_folder("org/adapter", "paths.a")
    (cached / "adapter_model.safetensors").write_bytes(b"")
    assert adapter_folder("org/adapter", "paths.a") == cached
    with pytest.raises(UserError, match=r"paths\.a=\./no: no such folder"):
        adapter_folder("./no", "paths.a")


def test_an_adapter_that_the_hub_has_as_a_pickle_alone_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def snapshot_download(repo: str, *, local_files_only: bool = False, **keys: Any) -> str:
        if local_files_only:
            raise FileNotFoundError
        return str(tmp_path)

    def model_info(self: object, repo: str, revision: None, timeout: float) -> SimpleNamespace:
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename="adapter_model.bin")])

    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    with pytest.raises(UserError, match=r"paths\.a=org/adapter: it holds no .*adapter_model\.safetensors"):
        adapter_folder("org/adapter", "paths.a")
