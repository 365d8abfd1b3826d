"""The command line: `clip4str-service [serve | check | health | samples | key NAME] [--flags]`."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path
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
    command = given.pop("command")
    if command == "key":
        return _key(given["name"])
    if command == "samples":
        return _samples(given["rest"], given["grpc"], given["key_file"], given["ca_file"], given["folder"])
    try:
        settings = load_settings(given)
    except SettingsError as error:
        return _refuse(str(error))
    match command:
        case "check":
            return _check(settings)
        case "health":
            return _health(settings)
        case _:
            return _serve(settings)


def _parser() -> argparse.ArgumentParser:
    flags = _Parser(add_help=False)
    for name, field in Settings.model_fields.items():
        default = (
            "" if field.default_factory or field.default is None else f" (default {_shown(field.default)})"
        )
        flags.add_argument(flag(name), default=argparse.SUPPRESS, help=f"{field.description}{default}")
    parser = _Parser(
        PROGRAM,
        description="Read word crops over REST and gRPC.",
        epilog="Each flag is a setting, also taken from the environment: --http-port is CLIP4STR_HTTP_PORT.",
        allow_abbrev=False,
        parents=[flags],
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, purpose in (
        ("serve", "serve until told to stop; so does no command"),
        ("check", "check the settings and print them"),
        ("health", "ask the service that has these settings whether it accepts crops; exit code 1 if not"),
    ):
        commands.add_parser(name, help=purpose, description=purpose, allow_abbrev=False, parents=[flags])
    key = commands.add_parser("key", help="make an API key", allow_abbrev=False)
    key.add_argument("name", metavar="NAME", help="who gets it")
    purpose = "have a running service read sample crops, over REST and gRPC; exit code 1 if one is read wrong"
    samples = commands.add_parser("samples", help=purpose, description=purpose, allow_abbrev=False)
    samples.add_argument(
        "--rest", metavar="URL", default="http://127.0.0.1:8080", help="(default %(default)s)"
    )
    samples.add_argument(
        "--grpc",
        metavar="HOST:PORT",
        default="127.0.0.1:50051",
        help="(default %(default)s); TLS if REST has https",
    )
    samples.add_argument("--key-file", metavar="FILE", type=Path, help="an API key, the file's only line")
    samples.add_argument("--ca-file", metavar="FILE", type=Path, help="CA certificates (PEM) to trust")
    samples.add_argument(
        "folder",
        metavar="FOLDER",
        nargs="?",
        type=Path,
        help="images and labels.tsv (default: those installed)",
    )
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


def _health(settings: Settings) -> int:
    from clip4str_service.health import UnhealthyError, check_ready

    if not settings.metrics_port:
        return _refuse(
            f"{variable('metrics_port')} ({flag('metrics_port')}): 0 is no port to ask: name the one taken"
        )
    try:
        address = check_ready(settings.host, settings.metrics_port)
    except UnhealthyError as error:
        return _fail(str(error))
    sys.stdout.write(f"{address}: ready\n")
    return 0


def _samples(rest: str, rpc: str, key_file: Path | None, ca_file: Path | None, folder: Path | None) -> int:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from clip4str_service.samples import (
        INSTALLED,
        Access,
        SamplesError,
        UnreadError,
        check,
        load_key,
        load_samples,
    )

    try:
        key = None if key_file is None else load_key(key_file)
        samples = load_samples(folder or INSTALLED)
        return 0 if check(Access(rest, rpc, key, ca_file), samples, sys.stdout) else FAILURE
    except SamplesError as error:
        return _refuse(str(error))
    except UnreadError as error:
        return _fail(str(error))


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


def _fail(reason: str) -> int:
    sys.stderr.write(f"{PROGRAM}: {reason}\n")
    return FAILURE


def _refuse(reason: str) -> int:
    sys.stderr.write(f"{PROGRAM}: {reason}\n")
    return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
