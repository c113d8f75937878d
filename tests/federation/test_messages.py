"""Orders and reports arrive as they were given."""

from __future__ import annotations

from dataclasses import replace

from flwr.app import RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedalign.federation.messages import INSTRUCTION, REPORT, Instruction, NodeReport
from fedalign.federation.untrusted import one_line

TEXT = st.text(max_size=8)
COUNT = st.integers(0, 10**9)


@given(st.builds(Instruction, TEXT, COUNT, COUNT, st.lists(TEXT, max_size=4).map(tuple)))
def test_an_instruction(instruction: Instruction) -> None:
    assert Instruction.of(RecordDict({INSTRUCTION: instruction.to_record()})) == instruction


@given(
    clients=st.lists(TEXT, max_size=3).map(tuple),
    seconds=st.floats(0, 1e6),
    sent=COUNT,
    failures=st.lists(st.tuples(TEXT, TEXT), max_size=3).map(tuple),
)
def test_a_report(clients: tuple[str, ...], seconds: float, sent: int, failures: tuple[tuple[str, str], ...]) -> None:
    report = NodeReport(clients, seconds, sent, failures)
    told = tuple((client, one_line(reason)) for client, reason in failures)
    assert NodeReport.of(RecordDict({REPORT: report.to_record()})) == replace(report, failures=told)
