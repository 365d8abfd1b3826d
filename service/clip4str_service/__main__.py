"""The command line: `clip4str-service [serve | check] [--flags]`, a flag for each setting."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
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
BAD_INPUT = 2


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {message}\n")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 2 for bad settings, a bad model or a taken port."""
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
    from clip4str_service.server import PortError, serve
    from clip4str_service.worker import WorkerStartError

    configure_logging(settings.log_level)
    try:
        return 0 if asyncio.run(serve(settings)) else 1
    except (PortError, WorkerStartError) as error:
        return _refuse(str(error))


def _refuse(reason: str) -> int:
    sys.stderr.write(f"{PROGRAM}: {reason}\n")
    return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
