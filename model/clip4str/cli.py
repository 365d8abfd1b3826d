"""The `clip4str` command: read, evaluate, train, fetch, convert, export and synthesise from a terminal.

Only the command that runs imports what it needs, so that `--help` answers at once.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from clip4str.arguments import (
    DTYPES,
    add_device,
    add_model,
    add_precision,
    add_reading,
    natural,
    positive,
)
from clip4str.bulk import command as bulk

if TYPE_CHECKING:
    from clip4str.reading import BranchReading, Reading
    from clip4str.recognizer import Recognizer

READ_BATCH = 64  # images held in memory at a time by `read`


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return 0, 2 after one line on standard error when the input is bad, 130 when interrupted."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except BrokenPipeError:  # who read our output has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except ModuleNotFoundError as error:
        extra = {"batch": "bulk", "export": "onnx", "train": "train", "synth": "train"}.get(arguments.command)
        if extra is None:
            raise
        message = f"{error}: this command needs the extra: pip install 'clip4str[{extra}]'"
    except _bad_input_errors(arguments.command) as error:  # imported only when something was raised
        message = str(error)
    else:
        return 0
    print(f"clip4str {arguments.command}: {message}", file=sys.stderr)
    return 2


def _bad_input_errors(command: str) -> tuple[type[Exception], ...]:
    from clip4str import CharsetError, CheckpointError
    from clip4str.bulk.errors import BulkError
    from clip4str.datasets import DatasetError
    from clip4str.hardware import HardwareError
    from clip4str.synth.fonts import FontError
    from clip4str.transfer import FetchError

    errors: tuple[type[Exception], ...] = (BulkError, CharsetError, CheckpointError, DatasetError)
    errors = (*errors, FetchError, FontError, HardwareError, OSError)
    if command != "train":
        return errors
    from clip4str.training.recipe import RecipeError  # needs the extra
    from clip4str.training.trainer import TrainingError

    return (*errors, RecipeError, TrainingError)


class _Parser(argparse.ArgumentParser):
    """Answers bad arguments with one line, not with the usage as well. Its commands' parsers are the same."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="clip4str", description="Scene text recognition with CLIP4STR.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    read = commands.add_parser("read", help="read the word in each image")
    read.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    add_model(read)
    add_device(read)
    add_precision(read)
    add_reading(read)
    read.add_argument("--json", action="store_true", help="print one JSON object per image")
    read.set_defaults(run=_read)

    bulk.add(commands.add_parser("batch", help="read crops by the thousand, on a Ray cluster, into Parquet"))

    evaluate = commands.add_parser("eval", help="measure accuracy on labelled words")
    add_model(evaluate)
    add_device(evaluate)
    add_precision(evaluate)
    evaluate.add_argument(
        "--data", nargs="+", type=Path, required=True, metavar="DIR", help="folders with labels.tsv, or LMDBs"
    )
    evaluate.add_argument("--json", type=Path, metavar="OUT", help="write the report to this file too")
    evaluate.set_defaults(run=_eval)

    synth = commands.add_parser("synth", help="write synthetic word images one can look at")
    synth.add_argument("out", type=Path, metavar="OUT")
    synth.add_argument("--count", type=positive, required=True)
    synth.add_argument("--seed", type=natural, default=0)
    synth.add_argument("--fonts", type=Path, metavar="DIR", help="use the fonts in this folder")
    synth.set_defaults(run=_synth)

    train = commands.add_parser("train", help="train a model")
    train.add_argument("config", type=Path, metavar="CONFIG")
    train.set_defaults(run=_train)

    fetch = commands.add_parser("fetch", help="download a checkpoint")
    wanted = fetch.add_mutually_exclusive_group(required=True)
    wanted.add_argument(
        "name",
        nargs="?",
        metavar="NAME|URL",
        help="a published checkpoint's name, a variant's, or an address",
    )
    wanted.add_argument("--list", action="store_true", help="print the checkpoints there are")
    fetch.add_argument("--dir", type=Path, metavar="DIR", help="put it here instead of in the cache")
    fetch.add_argument("--sha256", metavar="HEX", help="of an address: what the file must hash to")
    fetch.add_argument(
        "--output", type=Path, metavar="FILE", help="of an address: the file to make, or replace"
    )
    fetch.set_defaults(run=_fetch)

    convert = commands.add_parser("convert", help="turn a published checkpoint into safetensors")
    convert.add_argument("source", metavar="CKPT", help="a file, or a fetched checkpoint's name")
    convert.add_argument("target", type=Path, metavar="OUT.safetensors")
    convert.add_argument(
        "--dtype",
        choices=DTYPES,
        default="fp32",
        help="of the weights (default: %(default)s)",
    )
    convert.add_argument("--force", action="store_true", help="overwrite the file if it exists")
    convert.set_defaults(run=_convert)

    export = commands.add_parser("export", help="write a model as graphs for other runtimes")
    export.add_argument("target", type=Path, metavar="OUT", help="a folder that does not exist yet")
    add_model(export)
    export.add_argument("--format", choices=("onnx",), default="onnx", help="(default: %(default)s)")
    export.set_defaults(run=_export)

    bench = commands.add_parser("bench", help="measure speed on this machine")
    bench.add_argument(
        "--models",
        nargs="+",
        default=["default"],
        metavar="M",
        help="names, files or folders, or sizes: base16 ...",
    )
    bench.add_argument("--batch-sizes", nargs="+", type=positive, default=[1, 8, 32, 64], metavar="N")
    add_device(bench)
    bench.add_argument(
        "--precisions",
        nargs="+",
        default=["auto"],
        metavar="P",
        help="auto, fp32, bf16, fp16 (default: auto)",
    )
    bench.add_argument(
        "--threads", type=positive, help="of the CPU (default: as many as this process may use)"
    )
    bench.add_argument(
        "--baseline", type=Path, metavar="FILE.py", help="measure this implementation too: bench/published.py"
    )
    bench.add_argument("--json", type=Path, metavar="OUT", help="write all figures to this file")
    bench.set_defaults(run=_bench)
    return parser


def _loaded(arguments: argparse.Namespace) -> "Recognizer":
    """The model on what is best here; who looks on is told what that is."""
    from clip4str.hardware import fit_threads
    from clip4str.recognizer import Recognizer

    threads = fit_threads()
    recognizer = Recognizer.load(arguments.model, device=arguments.device, precision=arguments.precision)
    if sys.stderr.isatty():
        info = recognizer.info
        place = f"{info.device} ({threads} threads)" if info.device == "cpu" else info.device
        print(f"{info.name} ({info.variant}) on {place} in {info.dtype}", file=sys.stderr)
    return recognizer


def _read(arguments: argparse.Namespace) -> None:
    from clip4str.datasets import decode_image

    recognizer = _loaded(arguments)
    if not arguments.json:
        print(f"{'text':<28}{'confidence':<12}{'visual':<28}{'cross-modal':<28}image")
    for paths in _batches(arguments.images, READ_BATCH):
        images = [decode_image(path.read_bytes(), str(path)) for path in paths]
        readings = recognizer.read(images, top_k=arguments.top_k, charset=arguments.charset)
        for path, reading in zip(paths, readings, strict=True):
            if arguments.json:
                print(json.dumps({"file": str(path), **_reading_json(reading)}))
            else:
                visual, cross_modal = reading.visual.text, reading.cross_modal.text
                print(f"{reading.text:<28}{reading.confidence:<12.3f}{visual:<28}{cross_modal:<28}{path}")
                _print_alternatives(reading.cross_modal)


def _batches(paths: Sequence[Path], size: int) -> Iterator[list[Path]]:
    rest = iter(paths)
    while batch := list(islice(rest, size)):
        yield batch


def _reading_json(reading: "Reading") -> dict[str, Any]:
    return {
        "text": reading.text,
        "confidence": reading.confidence,
        "agreement": reading.agreement,
        "truncated": reading.truncated,
        "branches": {"visual": asdict(reading.visual), "cross_modal": asdict(reading.cross_modal)},
    }


def _print_alternatives(branch: "BranchReading") -> None:
    for character in branch.characters:
        if character.alternatives:
            others = "  ".join(f"{other.text} {other.confidence:.3f}" for other in character.alternatives)
            print(f"    {character.text} {character.confidence:.3f}  not {others}")


def _eval(arguments: argparse.Namespace) -> None:
    from clip4str.datasets import DatasetError, open_set
    from clip4str.evaluation import evaluate

    _writable(arguments.json)
    sets = [open_set(path) for path in arguments.data]
    names = [dataset.name for dataset in sets]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DatasetError(f"two sets are named {twice[0]}: the report needs a name for each")
    recognizer = _loaded(arguments)
    print(f"{'set':<20}{'n':>7}{'accuracy_36':>13}{'visual':>9}{'accuracy_94':>13}{'1-NED_36':>10}", end="")
    print(f"{'confidence':>12}{'crops/s':>9}")
    reports = {}
    for dataset in sets:
        report = evaluate(recognizer, dataset)
        reports[dataset.name] = asdict(report)
        print(f"{dataset.name:<20}{report.n:>7}{report.accuracy_36.final:>13.2f}", end="")
        print(f"{report.accuracy_36.visual:>9.2f}{report.accuracy_94.final:>13.2f}", end="")
        print(f"{report.one_minus_ned_36.final:>10.2f}{report.mean_confidence:>12.3f}", end="")
        print(f"{report.crops_per_second:>9.1f}", flush=True)
    if arguments.json:
        model = {"name": recognizer.info.name, "revision": recognizer.info.revision}
        arguments.json.write_text(json.dumps({"model": model, "sets": reports}, indent=2) + "\n")


def _writable(path: Path | None) -> None:
    """Whether a report can be written there at the end is better known at the beginning. Raises OSError."""
    if path is not None:
        path.open("a").close()


def _synth(arguments: argparse.Namespace) -> None:
    from clip4str.synth.sheet import write_dataset

    write_dataset(arguments.out, arguments.count, arguments.seed, arguments.fonts)
    print(f"wrote {arguments.count} images and labels.tsv to {arguments.out}")


def _train(arguments: argparse.Namespace) -> None:
    from clip4str.hardware import fit_threads
    from clip4str.training.trainer import train

    if "WORLD_SIZE" not in os.environ:  # torchrun divides the processors itself
        fit_threads()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train(arguments.config)


def _fetch(arguments: argparse.Namespace) -> None:
    from clip4str import registry
    from clip4str.fetch import fetch, fetch_file
    from clip4str.transfer import FetchError

    if arguments.list:
        print(registry.tables())
        return
    name, entry = arguments.name, registry.find(arguments.name)
    by_address = "://" in name
    if by_address and (arguments.dir or not (arguments.sha256 and arguments.output)):
        raise FetchError("an address needs --sha256 and --output, and takes no --dir")
    if not by_address and (arguments.sha256 or arguments.output):
        raise FetchError("--sha256 and --output go with an address; a published checkpoint has its own")
    try:
        if by_address:
            came = fetch_file(name, arguments.sha256, arguments.output)
            print(
                f"{arguments.output}\nsha256 {arguments.sha256.lower()} ({'fetched' if came else 'was there'})"
            )
            return
        if entry is None:
            raise FetchError(f"no published checkpoint is named {name!r}; there are {registry.known()}")
        fetched = fetch(entry, arguments.dir)
    except KeyboardInterrupt:
        raise FetchError("stopped; the same command continues where it broke off") from None
    source = "as stated by its host" if fetched.stated else "none is published: recorded for later comparison"
    print(f"{fetched.path}\nsha256 {fetched.sha256} ({source})")
    print(f"use it with --model {fetched.path if arguments.dir else entry.name}")


def _convert(arguments: argparse.Namespace) -> None:
    from clip4str.checkpoint import convert
    from clip4str.hardware import PRECISIONS

    convert(arguments.source, arguments.target, PRECISIONS[arguments.dtype], overwrite=arguments.force)
    print(f"wrote {arguments.target}")


def _export(arguments: argparse.Namespace) -> None:
    from clip4str.export import export

    export(arguments.model, arguments.target)
    print(f"wrote {arguments.target}")


def _bench(arguments: argparse.Namespace) -> None:
    from clip4str.benchmark.report import Plan, line, run, summary
    from clip4str.hardware import fit_threads

    _writable(arguments.json)
    fit_threads(arguments.threads)
    plan = Plan(
        arguments.models, arguments.batch_sizes, arguments.device, arguments.precisions, arguments.baseline
    )
    for number, result in enumerate(run(plan)):
        if not number:
            print(line())
        if not isinstance(result, dict):
            print(line(result), flush=True)
            continue
        print(summary(result))
        if arguments.json:
            arguments.json.write_text(json.dumps(result, indent=2) + "\n")
