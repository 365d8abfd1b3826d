"""Logs: one JSON object a line, with the ids of the request; and which ids a request gets."""

import json
import subprocess
import sys
import uuid

import pytest

from clip4str_service.logs import identify

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE}-00f067aa0ba902b7-01"

SCRIPT = """
import logging, warnings
from clip4str_service.logs import RequestIds, configure_logging, current_ids
configure_logging("info")
log = logging.getLogger("a.b")
log.debug("unseen")
log.info("plain %d", 1, extra={"crops": 2})
current_ids.set(RequestIds("r-1", "7" * 32))
try:
    raise ValueError("broken")
except ValueError:
    log.exception("failed")
warnings.warn("odd")
"""


def test_lines_are_json_with_ids() -> None:
    ended = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    plain, failed, odd = [json.loads(line) for line in ended.stdout.splitlines()]
    assert ended.stderr == ""
    assert (plain["level"], plain["logger"], plain["message"], plain["crops"]) == (
        "INFO",
        "a.b",
        "plain 1",
        2,
    )
    assert "timestamp" in plain
    assert "request_id" not in plain
    assert (failed["request_id"], failed["trace_id"]) == ("r-1", "7" * 32)
    assert "ValueError: broken" in failed["exc_info"]
    assert "odd" in odd["message"]


@pytest.mark.parametrize("request_id", ["a", "abc-123", "A_b.c~d:e/f+g=h@i", "x" * 128])
def test_sane_request_id_is_taken_over(request_id: str) -> None:
    assert identify(request_id, None).request_id == request_id


@pytest.mark.parametrize("request_id", [None, "", "x" * 129, "a b", "a\nb", "a\x00", "é", '"', "{}"])
def test_other_request_id_is_replaced(request_id: str | None) -> None:
    made = identify(request_id, None).request_id
    assert uuid.UUID(made).hex == made
    assert made != identify(request_id, None).request_id


def test_trace_id_of_a_traceparent() -> None:
    assert identify(None, TRACEPARENT).trace_id == TRACE


@pytest.mark.parametrize(
    "traceparent",
    [
        None,
        "",
        "nonsense",
        TRACEPARENT[:-4],
        f"ff-{TRACE}-00f067aa0ba902b7-01",
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"{TRACEPARENT}-{'a' * 3000}",
        "x" * 55,
    ],
)
def test_invalid_traceparent_is_no_trace_and_no_news(
    traceparent: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    assert identify(None, traceparent).trace_id == ""
    assert not caplog.records
