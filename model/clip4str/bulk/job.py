"""A job: what is to be read, how, and into which folder; and what is pinned there, so that it can be taken up again.

`_job/manifest.json` in the folder of results says what was asked for, `_job/plan.parquet` how it is divided, and
`_job/images.parquet` which images a folder held. A job that goes on follows them, whatever its input has become.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clip4str.bulk import inputs, plan
from clip4str.bulk.errors import BulkError
from clip4str.bulk.inputs import Columns
from clip4str.bulk.plan import Shard
from clip4str.bulk.storage import Place, locate

_FORMAT = 1
_MANIFEST, _PLAN, _IMAGES = "manifest.json", "plan.parquet", "images.parquet"


@dataclass(frozen=True, slots=True)
class Job:
    """What is asked for. Every field but `output` and `model`, which `revision` stands for, is pinned.

    input, output: URLs, or absolute paths. revision: "sha256:<hex>" of the model's file. precision, top_k, charset:
    as the recognizer takes them. max_pixels: of an image. shard_crops: about so many make a file of results.
    """

    input: str
    output: str
    model: str
    revision: str
    columns: Columns = field(default_factory=Columns)
    precision: str = "auto"
    top_k: int = 0
    charset: str | None = None
    max_pixels: int = 64_000_000
    shard_crops: int = 1000

    def pinned(self) -> dict[str, Any]:
        """What a job must have been begun with to be taken up, by the names of the command's options."""
        return {
            "input": self.input,
            "model": self.revision,
            **{f"{name}-column": value for name, value in asdict(self.columns).items()},
            **{
                each.name.replace("_", "-"): getattr(self, each.name)
                for each in fields(self)
                if each.name not in ("input", "output", "model", "revision", "columns")
            },
        }


@dataclass(frozen=True, slots=True)
class Work:
    """A job's shards, and where its tables are: in `tables`, images that they name below `base`, or beside them."""

    job: Job
    tables: str
    base: str | None
    columns: Columns
    shards: list[Shard]
    done: frozenset[int]

    @property
    def crops(self) -> int:
        """Of all shards."""
        return sum(shard.crops for shard in self.shards)

    @property
    def todo(self) -> list[Shard]:
        """The shards that have no results yet, in order."""
        return [shard for shard in self.shards if shard.number not in self.done]


def work(job: Job) -> Work:
    """A new job's work, which is then pinned, or what a job that was begun has left. Raises BulkError, OSError."""
    output = locate(job.output)
    manifest = output.content(output.notes(_MANIFEST))
    begun = _begin(job, output) if manifest is None else _taken_up(job, output, manifest)
    names = {path.rpartition("/")[2] for path in output.files()}
    done = frozenset(shard.number for shard in begun.shards if shard.result in names)
    return Work(begun.job, begun.tables, begun.base, begun.columns, begun.shards, done)


def _begin(job: Job, output: Place) -> Work:
    if there := list(output.files()):
        raise BulkError(f"{job.output}: holds files of no job, such as {there[0]}: name a new folder")
    source = locate(job.input)
    found = inputs.find(source)
    if not found.are_tables and job.columns != Columns():
        raise BulkError(f"{job.input}: holds images, which have no columns; leave out --*-column")
    output.prepare()
    if found.are_tables:
        tables, base, files = job.input, None, found.files
    else:
        path = output.notes(_IMAGES)
        content = inputs.table_of_images(found, job.shard_crops)
        output.put(path, content)
        tables, base, files = job.output, found.base, {path: len(content)}
        source = output
    opened = [(path, _opened(source, path)) for path in files]
    columns = [inputs.chosen(job.columns, table.schema_arrow, source.url(path)) for path, table in opened]
    if len(set(columns)) > 1:
        raise BulkError(
            f"{job.input}: some of its tables have a column 'id', others not: name one by --id-column"
        )
    shards = list(plan.shards(opened, job.columns.boxes, job.shard_crops))
    output.put(output.notes(_PLAN), plan.packed(shards))
    notes = {
        "format": _FORMAT,
        "job": job.pinned(),
        "tables": tables,
        "base": base,
        "columns": asdict(columns[0]),
        "files": files,
    }
    output.put(
        output.notes(_MANIFEST), json.dumps(notes, indent=2).encode()
    )  # the last: with it the job is begun
    return Work(job, tables, base, columns[0], shards, frozenset())


def finish(done: Work) -> None:
    """Tidy up behind a job all of whose shards have their results. Raises OSError."""
    locate(done.job.output).clean()


def _opened(source: Place, path: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(source.filesystem.open_input_file(path))
    except pa.ArrowInvalid as error:
        raise BulkError(f"{source.url(path)}: not a readable Parquet file ({error})") from error


def _taken_up(job: Job, output: Place, manifest: bytes) -> Work:
    try:
        notes = json.loads(manifest)
        if notes["format"] != _FORMAT:
            raise BulkError(f"{job.output}: was begun by another version of this program: name a new folder")
        begun, files = notes["job"], dict(notes["files"])
        shards = plan.unpacked(output.content(output.notes(_PLAN)) or b"")
        left = Work(job, notes["tables"], notes["base"], Columns(**notes["columns"]), shards, frozenset())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BulkError(f"{job.output}: its _job folder is damaged ({error}): name a new folder") from error
    for name, value in job.pinned().items():
        if begun.get(name) != value:
            raise BulkError(
                f"{job.output}: was begun with {name} {begun.get(name)}, not {value}: "
                "use the same, or name a new folder"
            )
    tables = locate(left.tables)
    for info in tables.filesystem.get_file_info(list(files)):
        if info.size != files[info.path]:
            raise BulkError(
                f"{tables.url(info.path)}: has changed since the job was begun: name a new folder"
            )
    output.prepare()
    return left
