"""`clip4str batch`: its arguments, and what it tells of a job. What it needs is imported when it runs."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, NoReturn

from clip4str.arguments import add_model, add_precision, add_reading, positive

if TYPE_CHECKING:
    from tqdm import tqdm

    from clip4str.bulk.job import Job, Work

_GO_ON = "the same command goes on with the rest"


def add(command: argparse.ArgumentParser) -> None:
    """Its arguments."""
    command.add_argument(
        "input",
        metavar="INPUT",
        help="a folder, a file or a 'pattern*' of images or of Parquet: a path or a URL",
    )
    command.add_argument(
        "--output", required=True, metavar="DIR", help="the folder of results, likewise; a job in it goes on"
    )
    add_model(command)
    add_precision(command)
    add_reading(command)
    command.add_argument(
        "--image-column",
        default="image",
        metavar="C",
        help="of encoded images or of files' names (default: image)",
    )
    command.add_argument("--id-column", metavar="C", help="of ids (default: id, or else rows' numbers)")
    command.add_argument("--boxes-column", metavar="C", help="of lists of words' boxes: each is a crop")
    command.add_argument(
        "--max-pixels",
        type=positive,
        default=64_000_000,
        metavar="N",
        help="of an image (default: %(default)s)",
    )
    command.add_argument(
        "--shard-crops",
        type=positive,
        default=1000,
        metavar="N",
        help="of a file of results (default: %(default)s)",
    )
    command.add_argument(
        "--address",
        metavar="RAY",
        help="of a Ray cluster: auto, HOST:PORT (default: one of this machine alone)",
    )
    command.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        help="models at work (default: one a GPU, or else a processor)",
    )
    command.add_argument(
        "--processors", type=positive, default=1, metavar="N", help="of each worker (default: %(default)s)"
    )
    command.add_argument("--device", choices=("cpu", "cuda"), help="(default: cuda if the cluster has any)")
    command.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Do the job, or what is left of it.

    Raises BulkError, CheckpointError, CharsetError or OSError for bad input, and SystemExit with one line and code 1
    when shards could not be read.
    """
    # The cluster first: it is what an extra may be missing for.
    from clip4str.bulk.cluster import WorkerError, connected, outcomes
    from clip4str.bulk.job import finish, work

    left = work(_job(arguments))
    begun = time.monotonic()
    errors: Counter[str] = Counter()
    crops = shards = 0
    if left.todo:
        with (
            connected(
                arguments.address, arguments.device, arguments.workers, arguments.processors
            ) as workers,
            _bar(left) as bar,
        ):
            try:
                for outcome in outcomes(left, workers):
                    shards += 1
                    crops += outcome.crops
                    errors.update(outcome.errors)
                    bar.update(outcome.crops)
            except WorkerError as error:
                raise SystemExit(f"clip4str batch: {error}; {_GO_ON}") from None
            except KeyboardInterrupt:
                bar.close()
                print(f"clip4str batch: stopped; {_GO_ON}", file=sys.stderr)
                raise
    if failed := len(left.todo) - shards:
        raise SystemExit(f"clip4str batch: {failed} shards killed their workers again and again; {_GO_ON}")
    finish(left)
    summary = {
        "output": left.job.output,
        "model": left.job.revision,
        "crops": left.crops,
        "shards": len(left.shards),
        "shards_now": shards,
        "crops_now": crops,
        "errors_now": dict(errors),
        "seconds": round(time.monotonic() - begun, 3),
    }
    print(json.dumps(summary) if arguments.json else _line(summary))


def _job(arguments: argparse.Namespace) -> Job:
    """What is asked for, with the revision of the model; names mean the same to workers on other machines."""
    from clip4str import ReadOptions, checkpoint, registry
    from clip4str.bulk.inputs import Columns
    from clip4str.bulk.job import Job
    from clip4str.bulk.storage import absolute

    ReadOptions(arguments.top_k, arguments.charset)
    model = arguments.model
    return Job(
        input=absolute(arguments.input),
        output=absolute(arguments.output),
        model=model if model == "default" or registry.find(model) else absolute(model),
        revision=checkpoint.load(model).revision,
        columns=Columns(arguments.image_column, arguments.id_column, arguments.boxes_column),
        precision=arguments.precision,
        top_k=arguments.top_k,
        charset=arguments.charset,
        max_pixels=arguments.max_pixels,
        shard_crops=arguments.shard_crops,
    )


def _bar(left: Work) -> tqdm[NoReturn]:
    from tqdm import tqdm

    done = sum(shard.crops for shard in left.shards if shard.number in left.done)
    return tqdm(total=left.crops, initial=done, unit=" crops", disable=None)  # none: unless someone looks on


def _line(summary: dict[str, Any]) -> str:
    text = f"{summary['crops']:,} crops in {summary['shards']:,} shards are in {summary['output']}"
    if not summary["shards_now"]:
        return f"{text}: there was nothing left to do"
    wrong = (
        ", ".join(f"{count:,} {code}" for code, count in sorted(summary["errors_now"].items())) or "no errors"
    )
    rate = summary["crops_now"] / summary["seconds"]
    return f"{text}: {summary['crops_now']:,} now ({wrong}) in {summary['seconds']:.1f} s, {rate:.1f} crops/s"
