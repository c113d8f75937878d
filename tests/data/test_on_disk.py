"""Clients on disk: what is read is what was written, the file has no name, and memory does not grow with texts."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedalign.data.corpus import STAGES, CorpusShard, Example
from fedalign.data.on_disk import OnDisk
from fedalign.data.pairs import Pair, PairClient, Person, Role
from fedalign.data.rankings import Annotator, Ranking, RankingClient
from fedalign.errors import UserError

# Halves of surrogate pairs too, which JSON files hold and UTF-8 does not.
TEXTS = st.text(st.characters(exclude_categories=()), max_size=20)
NAMES = st.none() | TEXTS
SPLITS = st.sampled_from(["train", "test"])
ROLES = st.sampled_from(list(Role))


def several(strategy: st.SearchStrategy) -> st.SearchStrategy:
    return st.lists(strategy, max_size=3).map(tuple)


PAIRS = st.builds(Pair, TEXTS, TEXTS, TEXTS, SPLITS, TEXTS, NAMES, st.booleans(), st.booleans())
PAIR_CLIENTS = st.builds(PairClient, TEXTS, ROLES, several(st.builds(Person, TEXTS, TEXTS, several(PAIRS))))
TIERS = several(st.integers(-1, 9))
RANKINGS = st.builds(Ranking, TEXTS, several(TEXTS), TIERS, SPLITS, TEXTS, NAMES)
ANNOTATORS = st.builds(Annotator, TEXTS, NAMES, several(RANKINGS), several(TIERS))
RANKING_CLIENTS = st.builds(RankingClient, TEXTS, ROLES, several(ANNOTATORS))
EXAMPLES = several(st.builds(Example, TEXTS, TEXTS, TEXTS, TEXTS, NAMES, SPLITS))
SHARDS = st.builds(CorpusShard, TEXTS, ROLES, st.dictionaries(st.sampled_from(STAGES), EXAMPLES), EXAMPLES)


@pytest.mark.parametrize(
    ("kind", "clients"), [(PairClient, PAIR_CLIENTS), (RankingClient, RANKING_CLIENTS), (CorpusShard, SHARDS)]
)
def test_what_is_read_is_what_was_written(kind, clients):
    @given(st.dictionaries(TEXTS, clients, max_size=4))
    def check(values):
        kept = OnDisk(kind, values)
        assert dict(kept) == values
        assert list(kept) == list(values) and len(kept) == len(values)
        for name, value in values.items():
            assert repr(kept[name]) == repr(value), "equal, but of other types"

    check()


def test_the_file_has_no_name(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    kept = OnDisk(Person, {"a": Person("a", "g", ())})
    assert list(tmp_path.iterdir()) == []
    assert kept["a"] == Person("a", "g", ())
    with pytest.raises(KeyError):
        kept["b"]


def test_no_room_is_a_users_error(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(UserError, match=r"^TMPDIR=.*absent: texts cannot be kept there"):
        OnDisk(Person, {"a": Person("a", "g", ())})


HELD = """
import ctypes, gc, json, sys
from pathlib import Path
from fedalign.config import parse, resolve
from fedalign.data.progress import silent
from fedalign.rng import Streams
config = parse(resolve(sys.argv[2:]))
data = config.data.federate(config.partition, config.encoder, Streams(0), Path(sys.argv[1]), silent)
gc.collect()
# What the C library keeps for later is nobody's text.
ctypes.CDLL("libc.so.6").malloc_trim(0)
fields = dict(line.split(":") for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
print(json.dumps([len(data.clients), 1024 * int(fields["Anonymous"].split()[0])]))
"""


def held(place: Path, letters: int, overrides: list[str]) -> int:
    """Return the bytes in memory, of no file, of a process with 300 clients and 9,000 pairs of so many letters."""
    place.mkdir()
    path = place / "pairs.jsonl"
    with path.open("w") as file:
        for number in range(9000):
            texts = {name: f"{name} {number} ".ljust(letters, "x") for name in ("prompt", "chosen", "rejected")}
            file.write(json.dumps({**texts, "annotator": f"a{number % 300}"}) + "\n")
    command = [sys.executable, "-c", HELD, str(place / "cache"), *overrides, f"data.path={path}"]
    clients, size = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    assert clients >= 300
    return int(size)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["method=fedvpa", "data=pairs_file", "encoder=hashing", "encoder.size=16", "partition.unseen=0"],
        ["method=dprlhf", "data=pairs_file_corpus", "partition.imitate=preferred"],
        ["method=emdpo", "data=pairs_file_rankings", "encoder=hashing", "encoder.size=16", "partition.unseen=0"],
    ],
    ids=["pairs", "texts", "rankings"],
)
def test_texts_take_no_room_in_memory(tmp_path, overrides):
    short, long = (held(tmp_path / str(letters), letters, overrides) for letters in (50, 2000))
    texts = 9000 * 3 * (2000 - 50)
    assert long - short < 0.2 * texts
