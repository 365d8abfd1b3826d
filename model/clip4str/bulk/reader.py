"""A worker's part: one shard after another, from its table's rows to its file of results. Knows nothing of Ray."""

from __future__ import annotations

import io
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq

from clip4str.bulk import rows
from clip4str.bulk.crops import Crop, Cutter
from clip4str.bulk.errors import BulkError, CropError
from clip4str.bulk.job import Work
from clip4str.bulk.plan import Shard
from clip4str.bulk.storage import locate
from clip4str.hardware import fit_threads
from clip4str.reading import Reading, ReadOptions
from clip4str.recognizer import Recognizer
from clip4str.untrusted import ImageLimits

_BATCH = 64  # crops
_MAX_BYTES = 64 << 20  # of an encoded image
_PAUSES = (1.0, 10.0)  # seconds, before a shard is tried again whose storage failed


@dataclass(frozen=True, slots=True)
class Outcome:
    """A shard that has its results: so many `crops`, those not read in `errors` by code."""

    shard: int
    crops: int
    errors: dict[str, int]


class Reader:
    """A model, and how shards of a job are read with it."""

    def __init__(self, work: Work, device: str, processors: int) -> None:
        """Load the model, on "cpu" or "cuda".

        Raises BulkError when it is not the job's, else what `Recognizer.load` raises.
        """
        fit_threads(processors)
        job = work.job
        self._recognizer = Recognizer.load(job.model, device=device, precision=job.precision)
        info = self._recognizer.info
        if info.revision != job.revision:
            raise BulkError(
                f"the model {job.model!r} is {info.revision} where it is to be used, not {job.revision}"
            )
        self._options = ReadOptions(job.top_k, job.charset)
        self._output = locate(job.output)
        self._cutter = Cutter(
            locate(work.tables),
            work.base,
            work.columns,
            locate(job.input),
            ImageLimits(_MAX_BYTES, job.max_pixels),
            info.image_size,
        )
        model = {"model": info.name, "revision": info.revision, "dtype": info.dtype, "device": info.device}
        self._schema = rows.SCHEMA.with_metadata({"clip4str": json.dumps(model)})

    def read(self, shard: Shard) -> Outcome:
        """Read a shard and write its results: all of them appear at once.

        Raises OSError when the storage fails again and again, BulkError when the table has other crops than planned.
        """
        for pause in _PAUSES:
            try:
                return self._read(shard)
            except OSError:
                time.sleep(pause)
        return self._read(shard)

    def _read(self, shard: Shard) -> Outcome:
        errors: Counter[str] = Counter()
        count = 0
        content = io.BytesIO()
        with pq.ParquetWriter(content, self._schema, compression="zstd") as writer:
            batches = []
            for crops in _batches(self._cutter.crops(shard)):
                outcomes = self._outcomes(crops)
                errors.update(outcome.code for outcome in outcomes if isinstance(outcome, CropError))
                batches.append(rows.batch(zip(crops, outcomes, strict=True)))
                count += len(crops)
            writer.write_table(pa.Table.from_batches(batches, rows.SCHEMA).cast(self._schema))
        if count != shard.crops:
            raise BulkError(
                f"{shard.file}: has {count} crops where {shard.crops} were planned: it has changed"
            )
        self._output.put(self._output.inside(shard.result), content.getvalue())
        return Outcome(shard.number, count, dict(errors))

    def _outcomes(self, crops: list[Crop]) -> list[Reading | CropError]:
        pixels = [crop.outcome for crop in crops if not isinstance(crop.outcome, CropError)]
        readings = iter(self._recognizer.read_prepared(pixels, [self._options] * len(pixels)))
        return [crop.outcome if isinstance(crop.outcome, CropError) else next(readings) for crop in crops]


def _batches(crops: Iterator[Crop]) -> Iterator[list[Crop]]:
    while some := list(islice(crops, _BATCH)):
        yield some
