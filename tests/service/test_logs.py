"""Logs: one JSON object a line, whole, with its process and its request's ids; whatever becomes of the output."""

import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from clip4str_service.line_writer import MAX_LINE
from clip4str_service.logs import identify
from tests.service import planted

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE}-00f067aa0ba902b7-01"

START = """
import logging, os, sys, threading, time, warnings
from clip4str_service.logs import RequestIds, configure_logging, current_ids
configure_logging("info", "frontend-0")
log = logging.getLogger("clip4str_service.a")
"""


def run(script: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """A process that configures logging and runs the script; its output, and its errors, are text."""
    options = {"stdout": subprocess.PIPE, **options}
    return subprocess.run(
        [sys.executable, "-c", START + script], stderr=subprocess.PIPE, text=True, check=False, **options
    )


def lines_of(script: str) -> list[dict[str, Any]]:
    ended = run(script)
    assert ended.stderr == ""
    return [json.loads(line) for line in ended.stdout.splitlines()]


def test_lines_are_json_with_process_and_ids() -> None:
    plain, failed, odd = lines_of("""
log.debug("unseen")
log.info("plain %d", 1, extra={"crops": 2})
current_ids.set(RequestIds("r-1", "7" * 32))
try:
    raise ValueError("broken")
except ValueError:
    log.exception("failed")
warnings.warn("odd")
""")
    assert (plain["level"], plain["logger"], plain["message"], plain["crops"], plain["process"]) == (
        "INFO",
        "clip4str_service.a",
        "plain 1",
        2,
        "frontend-0",
    )
    assert "timestamp" in plain
    assert "request_id" not in plain
    assert (failed["request_id"], failed["trace_id"]) == ("r-1", "7" * 32)
    assert "ValueError: broken" in failed["exc_info"]
    assert "odd" in odd["message"]


def test_of_other_libraries_warnings_alone_are_logged() -> None:
    (line,) = lines_of("""
other = logging.getLogger("grpc")
other.info("unseen")
other.warning("seen")
for told in ("uvicorn.error", "python_multipart"):  # what they warn of, whoever sent it is told
    logging.getLogger(told).warning("unseen")
""")
    assert (line["logger"], line["message"]) == ("grpc", "seen")


def test_errors_that_nobody_handles_are_logged() -> None:
    ended = run("""
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
class Odd:
    def __del__(self):
        raise ValueError("in a finalizer")
Odd()
raise KeyError("the end")
""")
    assert (ended.returncode, ended.stderr) == (1, "")
    thread, finalizer, end = [json.loads(line) for line in ended.stdout.splitlines()]
    assert "ZeroDivisionError" in thread["exc_info"]
    assert "in a finalizer" in finalizer["exc_info"]
    assert (end["level"], "KeyError: 'the end'" in end["exc_info"]) == ("CRITICAL", True)


def test_what_cannot_be_formatted_is_told() -> None:
    wrong, surrogate, unknown = lines_of("""
log.info("%d", "no number")
log.info("the file %s", "caf\\udce9")
log.info("odd", extra={"what": object()})
""")
    assert (wrong["message"], wrong["why"]) == ("a line could not be written", "TypeError")
    assert surrogate["message"] == "the file caf\\udce9"
    assert "object" in unknown["what"]


@pytest.mark.parametrize("character", ["x", "\\n", "\\u00e9", "\\x00"])
def test_long_line_loses_its_middle(character: str) -> None:
    ended = run(f"""
log.error("the start " + "{character}" * 20000 + " the end", extra={{"path": "p" * 1000}})
""")
    assert len(ended.stdout.encode()) <= MAX_LINE
    line = json.loads(ended.stdout)
    assert line["message"].startswith("the start ")
    assert line["message"].endswith(" the end")
    assert line["path"] == "p" * 1000


def test_line_of_too_many_fields_is_told() -> None:
    (line,) = lines_of('log.info("many", extra={f"field{number}": number for number in range(1000)})')
    assert line["why"] == "ValueError"


def test_lines_of_several_processes_never_mix() -> None:
    script = """
process = sys.argv[1]
for number in range(300):
    log.info("x" * (number * 37 % 6000), extra={"from": process, "number": number})
"""
    reading, writing = os.pipe()
    command = [sys.executable, "-c", START + script]
    writers = [subprocess.Popen([*command, str(index)], stdout=writing) for index in range(3)]
    os.close(writing)
    with os.fdopen(reading) as output:
        lines = [json.loads(line) for line in output]
    assert [writer.wait(30) for writer in writers] == [0] * 3
    for index in range(3):
        numbers = [line["number"] for line in lines if line["from"] == str(index)]
        assert numbers == list(range(300))


MANY = 'for number in range(1000): log.info("line %d", number)\n'


def test_full_disk_harms_nothing() -> None:
    with Path("/dev/full").open("wb") as full:
        ended = run(MANY + "sys.exit(7)", stdout=full)
    assert (ended.returncode, ended.stderr) == (7, "")


def test_closed_pipe_harms_nothing() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ended = run(MANY + "sys.exit(7)", stdout=writing)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (7, "")


def test_output_that_nobody_reads_holds_up_nothing() -> None:
    reading, writing = os.pipe()
    started = time.monotonic()
    ended = run(
        """
started = time.monotonic()
for number in range(20000): log.info("line %d", number)
sys.stderr.write(str(time.monotonic() - started))
sys.exit(7)
""",
        stdout=writing,
    )
    lasted = time.monotonic() - started
    os.close(reading)
    os.close(writing)
    assert ended.returncode == 7
    assert float(ended.stderr) < 5
    assert lasted < 10


def test_closed_output_is_nobody_elses() -> None:
    """A socket must not get the descriptor that lines are written to."""
    ended = run(
        """
os.close(1)
import socket
configure_logging("info", "frontend-0")
socket = socket.socket()
sys.stderr.write(str(socket.fileno()))
log.info("a line")
""",
        stdout=subprocess.DEVNULL,
    )
    assert (ended.returncode, int(ended.stderr) > 2) == (0, True)


DECODE = """
from clip4str_service.images import ImageLimits, loaded, opened
from python_multipart.multipart import MultipartParser
from tests.service import planted
for content in (planted.png(), planted.tiff()):
    loaded(opened(content, ImageLimits(1 << 20, 1 << 20)))
    parser = MultipartParser(b"b", {})
    parser.write(b"--b\\r\\nAuthorization: " + planted.KEY.encode() + b"\\r\\n\\r\\n" + content + b"\\r\\n--b--")
log.debug("decoded")
"""


def test_decoders_write_nothing_of_what_they_decode() -> None:
    script = 'configure_logging("debug", "frontend-0")\n' + DECODE
    root = str(Path(__file__).parents[2])
    ended = run(script, cwd=root)
    assert json.loads(ended.stdout.splitlines()[-1])["message"] == "decoded"
    assert planted.planted_in(ended.stdout + ended.stderr) == []
    # They would, were they allowed to.
    loud = run("logging.getLogger().setLevel(logging.DEBUG)\n" + DECODE, cwd=root)
    assert planted.planted_in(loud.stdout + loud.stderr)


def test_planted_pieces_are_found_in_any_form() -> None:
    content = planted.png()
    for text in (planted.KEY, planted.base64_of(content)[100:160], content.hex()[40:99], repr(content)):
        assert planted.planted_in(f"... {text} ...")


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
