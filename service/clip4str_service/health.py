"""`clip4str-service health`: asks a running service, on its metrics port, whether it accepts crops.

For container engines, which start it every few seconds: it needs neither curl in the image nor a library beyond
Python's own.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException

PATH = "/readyz"
SECONDS = 3.0  # for each step of the conversation; the port answers from an event loop that never waits

_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (what listens everywhere listens here)


class UnhealthyError(Exception):
    """The service does not accept crops, or does not answer; the message is one line that says which, and where."""


def check_ready(host: str, port: int) -> str:
    """Return the address that answered.

    Args:
        host: where the service listens, as its settings say; one that listens everywhere is asked here.
        port: its metrics port.

    Raises:
        UnhealthyError: it is not ready, or nobody answers as the service does.
    """
    host = _ANYWHERE.get(host, host)
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}{PATH}"
    connection = HTTPConnection(host, port, timeout=SECONDS)
    try:
        connection.request("GET", PATH)
        response = connection.getresponse()
        status, body = response.status, response.read()
    except (OSError, HTTPException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnhealthyError(f"{address}: {reason}") from None
    finally:
        connection.close()
    if status != HTTPStatus.OK:
        raise UnhealthyError(f"{address}: {status} {_detail(body)}".rstrip())
    return address


def _detail(body: bytes) -> str:
    """What a problem says; nothing where the body is none."""
    try:
        problem = json.loads(body)
        return f"{problem['code']}: {problem['detail']}"
    except (ValueError, LookupError, TypeError):
        return ""
