"""No pickle anywhere: not in the package, not over the wire, not in what a run writes."""

from __future__ import annotations

import ast
import pickletools
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord

from fedalign.federation.records import decode_tensors
from tests.tiny import trained_run

PACKAGE = Path(__file__).resolve().parents[2] / "fedalign"

MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "_pickle"}
CALLS = {("torch", "load"), ("torch", "save"), ("numpy", "load"), ("np", "load"), ("pandas", "read_pickle")}
REVIEWED = {
    "trust_remote_code": set[str](),
    "allow_pickle": set[str](),
    "__reduce__": {"federation/records.py"},
}
"""Words that need a reason, and the files that have one: a tensor's array becomes a plain Flower array for Ray."""


def uses(tree: ast.AST) -> Iterator[str]:
    """Yield what a module imports or calls that reads or writes pickles."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            yield str(node.module)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            value = node.func.value
            if isinstance(value, ast.Name) and (value.id, node.func.attr) in CALLS:
                yield f"{value.id}.{node.func.attr}"
        elif isinstance(node, ast.Name) and node.id in ("eval", "exec"):
            yield node.id


def test_the_package_neither_reads_nor_writes_pickles() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 200
    found = {str(path.relative_to(PACKAGE)): list(uses(ast.parse(path.read_text()))) for path in files}
    assert {name: used for name, used in found.items() if used} == {}


@pytest.mark.parametrize("word", REVIEWED)
def test_words_that_need_a_reason_have_one(word: str) -> None:
    holding = {
        str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if re.search(rf"\b{word}\b", path.read_text())
    }
    assert holding == REVIEWED[word]


def test_the_scan_can_fail() -> None:
    for text in ("import pickle", "from joblib import load", "import torch\ntorch.load('x')", "eval('1')"):
        assert list(uses(ast.parse(text)))


def is_pickle(content: bytes) -> bool:
    """Tell whether bytes are a pickle, or begin with one."""
    if not content.startswith(b"\x80"):
        return False
    try:
        return any(opcode.name == "STOP" for opcode, _, _ in pickletools.genops(content))
    except ValueError:
        return False


def test_what_a_run_writes_is_no_pickle(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = trained_run(tmp_path_factory.getbasetemp() / "pickles")
    files = [path for path in directory.rglob("*") if path.is_file()]
    known = {".yaml", ".json", ".jsonl", ".html", ".safetensors", ".png"}
    assert known - {".png"} <= {path.suffix for path in files} <= known
    for path in files:
        content = path.read_bytes()
        assert not is_pickle(content), path
        # torch.save writes a zip with a pickle in it.
        assert not content.startswith(b"PK"), path
        assert b"data.pkl" not in content, path


def test_the_search_for_pickles_finds_them(tmp_path: Path) -> None:
    assert is_pickle(b"\x80\x04N.")
    torch.save({"a": 1}, tmp_path / "state.pt")
    assert (tmp_path / "state.pt").read_bytes().startswith(b"PK")


def test_an_array_of_objects_is_not_unpickled() -> None:
    import io

    class Exploit:
        def __reduce__(self) -> tuple[object, ...]:
            return (exec, ("raise SystemExit('unpickled')",))

    buffer = io.BytesIO()
    np.save(buffer, np.array([Exploit()], dtype=object), allow_pickle=True)
    record = ArrayRecord({"w": Array("object", (1,), "numpy.ndarray", buffer.getvalue())})
    with pytest.raises(ValueError, match="an array of object"):
        decode_tensors(record)
