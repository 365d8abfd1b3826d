"""JSON lines on standard output, each with its process and the ids of the request it belongs to.

Secrets, headers and crops are never logged: nothing of ours formats them, and of other libraries only warnings are
logged, whatever the level, because their debug lines tell what they parse.

All processes of the service write to the same descriptor. A line is written at once, and it is never longer than what
a pipe takes whole: a longer one loses the middle of its longest field.
"""

from __future__ import annotations

import logging
import logging.config
import os
import re
import sys
import threading
from contextvars import ContextVar
from types import TracebackType
from typing import NamedTuple
from uuid import uuid4

import orjson
from opentelemetry import trace
from pythonjsonlogger.core import LogData
from pythonjsonlogger.orjson import OrjsonFormatter

from clip4str_service.line_writer import MAX_LINE, LineWriter
from clip4str_service.tracing import remote_parent

SUPERVISOR = "supervisor"
"""The main process, as its log lines name it."""

log = logging.getLogger(__name__)

_OURS = ("clip4str", "clip4str_service", "__main__")
_CLOSE_SECONDS = 1.0  # for lines that are not written yet when the process ends
_CUT = " [...] "
_REQUEST_ID = re.compile(r"[A-Za-z0-9._~:/+=@-]{1,128}")


class RequestIds(NamedTuple):
    """What a request is known by: its own id, and the trace it is part of, 32 hex digits or empty."""

    request_id: str
    trace_id: str


current_ids: ContextVar[RequestIds] = ContextVar("current_ids")
"""The ids of the request that the running task answers."""


def identify(request_id: str | None, traceparent: str | None) -> RequestIds:
    """The ids of a request, from what the caller sent of them.

    A request id of 1 to 128 letters, digits and ._~:/+=@- is taken over; without a sane one the request gets
    a new id. The trace id is that of a valid W3C traceparent.
    """
    if request_id is None or not _REQUEST_ID.fullmatch(request_id):
        request_id = uuid4().hex
    parent = remote_parent(traceparent)
    return RequestIds(request_id, "" if parent is None else trace.format_trace_id(parent.trace_id))


def configure_logging(level: str, process: str = SUPERVISOR) -> None:
    """Sends every logger of the process, Python's warnings and errors nobody handles to standard output.

    Args:
        level: lowest level logged of the service and the model library: debug, info, warning or error.
        process: names the process in each line: supervisor, frontend-0, worker-cuda:0.
    """
    _keep_standard_descriptors()
    logging.captureWarnings(True)
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "filters": {"ids": {"()": _WithIds}},
            "formatters": {
                "json": {
                    "()": _LineFormatter,
                    "fmt": ["levelname", "name", "message"],
                    "style": "__sequence__",
                    "rename_fields": {"levelname": "level", "name": "logger"},
                    "static_fields": {"process": process},
                    "timestamp": True,
                }
            },
            "handlers": {"stdout": {"()": _StandardOutput, "formatter": "json", "filters": ["ids"]}},
            "root": {"level": "WARNING", "handlers": ["stdout"]},
            "loggers": {
                **{name: {"level": level.upper()} for name in _OURS},
                # What is wrong with a form or a request, which its sender is told.
                "python_multipart": {"level": "ERROR"},
                "uvicorn.error": {"level": "ERROR"},
            },
        }
    )
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread
    sys.unraisablehook = _log_unraisable


class _WithIds(logging.Filter):
    """Adds the ids of the current request to each record."""

    def filter(self, record: logging.LogRecord) -> bool:
        ids = current_ids.get(None)
        if ids is not None:
            record.request_id = ids.request_id
            if ids.trace_id:
                record.trace_id = ids.trace_id
        return True


class _StandardOutput(logging.Handler):
    """Hands each record, as a line, to the thread that writes it. Nothing that is logged can fail its caller."""

    def __init__(self) -> None:
        super().__init__()
        self._writer = LineWriter(os.dup(1), self._notice)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception as error:  # noqa: BLE001 (its arguments' methods may raise anything)
            where = f"{record.pathname}:{record.lineno}"
            line = self._told("a line could not be written", {"where": where, "why": type(error).__name__})
        self._writer.add(line.encode())

    def close(self) -> None:
        self._writer.close(_CLOSE_SECONDS)
        super().close()

    def _notice(self, lost: int) -> bytes:
        return self._told("log lines were lost", {"lines": lost}).encode()

    def _told(self, message: str, extra: dict[str, object]) -> str:
        record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, message, None, None)
        record.__dict__.update(extra)
        return self.format(record)


class _LineFormatter(OrjsonFormatter):
    """One line, its newline included, of at most MAX_LINE bytes."""

    def jsonify_log_record(self, log_data: LogData) -> str:
        fields = dict(log_data)
        while (excess := len(line := self._line(fields)) - MAX_LINE) > 0:
            longest = max(fields, key=lambda name: len(str(fields[name])))
            text = str(fields[longest])
            if len(text) <= len(_CUT):
                raise ValueError("it has too many fields")
            size = len(self._line({"": text}))  # a character may take several bytes
            kept = max(0, len(text) * (size - excess) // size - len(_CUT))
            fields[longest] = text[: kept // 2] + _CUT + text[len(text) - (kept - kept // 2) :]
        return line.decode()

    def _line(self, fields: LogData) -> bytes:
        try:
            return orjson.dumps(fields, self.json_default, orjson.OPT_APPEND_NEWLINE)
        except TypeError:  # text that is no UTF-8, such as a file's name may be
            texts = {
                name: str(value).encode(errors="backslashreplace").decode() for name, value in fields.items()
            }
            return orjson.dumps(texts, option=orjson.OPT_APPEND_NEWLINE)


def _keep_standard_descriptors() -> None:
    """Fills those of the descriptors 0 to 2 that are closed, lest a socket get the number and then log lines."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


def _log_uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
    else:
        log.critical("the process ends by an error", exc_info=(kind, error, traceback))


def _log_uncaught_in_thread(hook: threading.ExceptHookArgs) -> None:
    if hook.exc_value is not None and not isinstance(hook.exc_value, SystemExit):
        log.error("a thread ended by an error", exc_info=hook.exc_value)


def _log_unraisable(hook: sys.UnraisableHookArgs) -> None:
    log.error("an error was ignored", exc_info=hook.exc_value)
