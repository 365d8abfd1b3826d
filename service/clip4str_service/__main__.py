"""The command line: `clip4str-service [serve | check] [--flags]`, a flag for each setting."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import threading
from time import monotonic
from typing import NoReturn

from clip4str_service.settings import (
    Settings,
    SettingsError,
    flag,
    load_settings,
    unknown_variables,
    variable,
)

PROGRAM = "clip4str-service"
FAILURE = 1
BAD_INPUT = 2
_THREADS_SECONDS = 2  # for threads that are still busy when the service has stopped


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {message}\n")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 2 for bad settings, a bad model or a taken port, else 1."""
    given = vars(_parser().parse_args(arguments))
    command = given.pop("command")
    try:
        settings = load_settings(given)
    except SettingsError as error:
        return _refuse(str(error))
    return _check(settings) if command == "check" else _serve(settings)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        PROGRAM,
        description="Read word crops over REST and gRPC.",
        epilog="Each flag is a setting, also taken from the environment: --http-port is CLIP4STR_HTTP_PORT.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "command",
        nargs="?",
        choices=("serve", "check"),
        default="serve",
        help="serve, or print the settings and exit",
    )
    for name, field in Settings.model_fields.items():
        default = "" if field.default_factory else f" (default {field.default})"
        parser.add_argument(flag(name), default=argparse.SUPPRESS, help=f"{field.description}{default}")
    return parser


def _check(settings: Settings) -> int:
    for name, value in settings.model_dump().items():
        sys.stdout.write(f"{variable(name)}={value}\n")
    for name in unknown_variables(os.environ):
        sys.stderr.write(f"{PROGRAM}: {name} is not a setting\n")
    return 0


def _serve(settings: Settings) -> int:
    # gRPC's core, when it is imported, writes plain lines to standard error; what matters it raises as well.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # Only now, when the settings are right, is the model library worth its seconds of loading.
    from clip4str_service.logs import configure_logging
    from clip4str_service.server import FrontEndError, PortError, serve
    from clip4str_service.worker import WorkerStartError

    configure_logging(settings.log_level)
    try:
        code = 0 if asyncio.run(serve(settings)) else FAILURE
    except (PortError, WorkerStartError) as error:
        code = _refuse(str(error))
    except FrontEndError as error:
        code = _refuse(str(error), FAILURE)
    end_threads(code)
    return code


def end_threads(code: int) -> None:
    """Waits shortly for the threads that would hold up the interpreter's end; ends the process if one stays.

    The interpreter joins each of them, without a limit, so that one stuck in an image or on the device would
    keep the process from ever ending. None holds anything that an end could damage.
    """
    last = monotonic() + _THREADS_SECONDS
    threads = [
        each for each in threading.enumerate() if not each.daemon and each is not threading.main_thread()
    ]
    for thread in threads:
        thread.join(max(0.0, last - monotonic()))
    busy = [thread.name for thread in threads if thread.is_alive()]
    if busy:
        logging.getLogger(__name__).error("ended with threads still busy", extra={"threads": busy})
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _refuse(reason: str, code: int = BAD_INPUT) -> int:
    sys.stderr.write(f"{PROGRAM}: {reason}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
