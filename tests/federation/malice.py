"""What a malicious node or server may send in the place of an honest message."""

from __future__ import annotations

import copy
import io
import json
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import strategies as st

BIG = 10**400

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2),
    st.sampled_from([BIG, -1, 2**63, 1e308, 1e300, -1e300, 1e31, 5e-324, float("nan"), float("inf"), -float("inf")]),
    st.sampled_from(
        ["", "a", "b", "bad", "../../etc", "\x1b[2J", "x" * 5000, "metric|a|b|n", "delta/w", "weight", "\ud800"]
    ),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
TEXTS = st.one_of(
    st.sampled_from(["", "{", "null", "[]", "{}", "[" * 50_000, '{"a":' * 50_000, "NaN", "9" * 5000, '"\\ud800"']),
    JSON.map(lambda value: json.dumps(value)),
    st.text(max_size=10),
)


def forged(shape: Any, dtype: str = "<f8", body: bytes = b"") -> bytes:
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
    padded = header + " " * (63 - (10 + len(header)) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded.encode("latin1", "replace") + body


def _saved(values: Any, pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=pickle)
    return buffer.getvalue()


def _zipped() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.ones(2))
    return buffer.getvalue()


class Exploit:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('unpickled')",))


BYTES: list[bytes] = [
    b"",
    b"\x93NUMPY",
    b"PK\x03\x04",
    _zipped(),
    _saved(np.array([Exploit()], dtype=object), pickle=True),
    forged((10**12,)),
    forged((10**30, 10**30)),
    forged((-2,), body=b"\0" * 16),
    forged("x"),
    forged((2,), "<f16", b"\0" * 32),
    forged((2,), ">f8", b"\0" * 16),
    forged((2,), "|O", b"\0" * 16),
    forged((2,), "<c16", b"\0" * 32),
    forged((2,), "<M8[s]", b"\0" * 16),
    forged((2,), "<U4", b"\0" * 32),
    forged((2,), "[" * 5000),
    forged((2,), "|b1", b"\1\1"),
    forged((2,), "<i8", b"\xff" * 16),
    forged((2,), "<f2", b"\0\x7c" * 2),
    b"\x93NUMPY\x03\x00\x05\x00\x00\x00{}",
    *(
        _saved(np.array(values, dtype=dtype))
        for dtype in ("f8", "f4")
        for values in (
            [np.nan, 0.0],
            [np.inf, 0.0],
            [1e30, 1e30],
            [-3e38, 3e38],
            [1.0, 2.0, 3.0],
            [[1.0, 2.0]],
            1.0,
            [],
        )
    ),
    _saved(np.array([1e308, -1e308])),
]

ARRAYS = st.builds(
    lambda data, stype: Array("float64", (2,), stype, data),
    st.sampled_from(BYTES) | st.binary(max_size=80),
    st.sampled_from(["numpy.ndarray", "numpy.ndarray", "numpy.ndarray", "torch", "pickle"]),
)
NAMES = st.sampled_from(
    [
        *(f"packed.{part}:delta/w" for part in ("values", "scale", "indices")),
        "packed.values:delta/v",
        "delta/w",
        "delta/v",
        "bfloat16:delta/w",
        "delta/",
        "w",
        "bank/1",
        "sum",
        "\x1b[2J",
        "x" * 3000,
    ]
)

SHAPES = [
    json.dumps({"delta/w": shape})
    for shape in ([2], [2, 0], [-2], [2**40, 2**40], [10**400], [1] * 99, "ab", None, [True], [2.0], {"a": 1})
]
"""What a compressed tensor may be said to be like."""

_VALUES = st.one_of(
    st.lists(st.sampled_from([0.0, 1.0, -1.0, 1e300, 1e31, 5e-324, float("nan"), float("inf")]), max_size=5),
    st.lists(st.sampled_from([0, 1, -1, 2**62, BIG]), max_size=5),
)


@st.composite
def _records(draw: st.DrawFn) -> Any:
    kind = draw(st.sampled_from(["array", "metric", "config"]))
    if kind == "array":
        return ArrayRecord(draw(st.dictionaries(NAMES, ARRAYS, max_size=3)))
    if kind == "metric":
        return MetricRecord({"values": draw(_VALUES)})
    return ConfigRecord({draw(st.sampled_from(["json", "scalars", "clients"])): draw(TEXTS | st.binary(max_size=5))})


def copy_of(content: RecordDict) -> RecordDict:
    """Return a content whose records can be changed; the arrays are the same."""
    copied = RecordDict()
    for name, record in content.items():
        copied[name] = type(record)(dict(record)) if not isinstance(record, ArrayRecord) else _arrays(record)
    return copied


def _arrays(record: ArrayRecord) -> ArrayRecord:
    copied = ArrayRecord()
    for name, array in record.items():
        copied[name] = array
    return copied


def _mutate_json(draw: st.DrawFn, record: ConfigRecord, key: str) -> None:
    """Change one field of an object, or one item of a list, or all of the text."""
    if draw(st.booleans()):
        record[key] = draw(TEXTS)
        return
    try:
        fields = json.loads(str(record[key]))
    except (ValueError, RecursionError):
        return
    if isinstance(fields, dict) and fields:
        name = draw(st.sampled_from(sorted(fields)))
        if draw(st.booleans()):
            fields[name] = draw(JSON)
        elif isinstance(fields[name], list):
            fields[name].append(draw(JSON))
        else:
            del fields[name]
    elif isinstance(fields, list):
        fields.append(draw(JSON))
    record[key] = json.dumps(fields)


@st.composite
def mutated_contents(draw: st.DrawFn, honest: RecordDict) -> RecordDict:
    """A content with one to three things in it changed."""
    content = copy_of(honest)
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from([*content, "extra"]))
        what = draw(st.sampled_from(["within", "within", "within", "within", "replace", "remove"]))
        record = content.get(name)
        if record is None or what == "replace":
            content[name] = draw(_records())
        elif what == "remove":
            del content[name]
        elif isinstance(record, ArrayRecord):
            key = draw(st.sampled_from([*record, "delta/w"]) | NAMES)
            record[key] = draw(ARRAYS)
        elif isinstance(record, MetricRecord):
            values = cast(list[Any], draw(_VALUES))
            old = record.get("values")
            if isinstance(old, list) and old and draw(st.booleans()):
                place = draw(st.integers(0, len(old) - 1))
                values = [float(v) if abs(v) < BIG else 0.0 for v in old]  # type: ignore[arg-type,type-var]
                values[place] = draw(st.sampled_from([1e300, -1e300, 1e31, 1e12, -5.0, 0.0, 1e-300, float("nan")]))
            record["values"] = values
        elif name == "names" and draw(st.booleans()):
            record["shapes"] = draw(st.sampled_from(SHAPES) | TEXTS)
        elif record:
            key = draw(st.sampled_from(sorted(record)))
            _mutate_json(draw, record, key)
    return content


def message_with(message: Message, content: RecordDict, **metadata: Any) -> Message:
    """Return a message with another content, and perhaps other metadata, from the same node."""
    changed = copy.copy(message.metadata)
    changed.__dict__.update({f"_{name}": value for name, value in metadata.items()})
    return Message(metadata=changed, content=content)  # type: ignore[call-overload,no-any-return]
