"""The command line: `clip4str-service [serve | check | key NAME] [--flags]`, a flag for each setting."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
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
FAILURE = 1
BAD_INPUT = 2


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {message}\n")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 2 for a wrong setting, a bad file or a taken port, else 1."""
    given = vars(_parser().parse_args(arguments))
    command, name = given.pop("command"), given.pop("name")
    if (command == "key") != (name is not None):
        return _refuse("`key` takes a name, of whoever gets the key; other commands take none")
    if command == "key":
        return _key(name)
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
        choices=("serve", "check", "key"),
        default="serve",
        help="serve; or check the settings, print them and exit; or make an API key",
    )
    parser.add_argument("name", nargs="?", help="for `key`: who gets it")
    for name, field in Settings.model_fields.items():
        default = (
            "" if field.default_factory or field.default is None else f" (default {_shown(field.default)})"
        )
        parser.add_argument(flag(name), default=argparse.SUPPRESS, help=f"{field.description}{default}")
    return parser


def _check(settings: Settings) -> int:
    for name, value in settings.model_dump().items():
        sys.stdout.write(f"{variable(name)}={_shown(value)}\n")
    for name in unknown_variables(os.environ):
        sys.stderr.write(f"{PROGRAM}: {name} is not a setting\n")
    return _check_files(settings)


def _check_files(settings: Settings) -> int:
    """What the settings name must be good before anything is started."""
    from clip4str_service.auth import KeysError, load_keys
    from clip4str_service.tls import TlsError, check_tls, tls_files

    try:
        if settings.api_keys_file is not None:
            load_keys(settings.api_keys_file)
        files = tls_files(settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file)
        if files is not None:
            check_tls(files)
    except (KeysError, TlsError) as error:
        return _refuse(str(error))
    return 0


def _key(name: str) -> int:
    """The lines for the file of keys go to standard output, the key itself, to be seen once, to standard error."""
    from clip4str_service.auth import KeysError, new_key

    try:
        key, lines = new_key(name)
    except KeysError as error:
        return _refuse(str(error))
    sys.stdout.write(lines)
    sys.stderr.write(f"{key}\n")
    return 0


def _serve(settings: Settings) -> int:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to load again
    # gRPC's core, when it is imported, writes plain lines to standard error; what matters it raises as well.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # Only now, when the settings are right, are the libraries worth loading.
    from clip4str_service.frontends import FrontEndError
    from clip4str_service.logs import configure_logging
    from clip4str_service.metric_files import MetricFilesError
    from clip4str_service.ports import PortError
    from clip4str_service.supervisor import serve
    from clip4str_service.workers import WorkerStartError

    if (code := _check_files(settings)) != 0:
        return code
    configure_logging(settings.log_level)
    try:
        return 0 if asyncio.run(serve(settings)) else FAILURE
    except (PortError, FrontEndError, WorkerStartError, MetricFilesError) as error:
        return _refuse(str(error))


def _shown(value: object) -> str:
    """A setting as it would be written."""
    if value is None:
        return ""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _refuse(reason: str) -> int:
    sys.stderr.write(f"{PROGRAM}: {reason}\n")
    return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
