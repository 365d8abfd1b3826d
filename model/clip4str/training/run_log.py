"""What a run tells: a line of JSON for each stretch of steps, the same to TensorBoard, and a progress bar."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from clip4str.containers import written

log = logging.getLogger(__name__)

Values = Mapping[str, float | Mapping[str, Mapping[str, float]]]


class RunLog:
    """The log of the run in `folder`, from crop `samples` of `total` on. What it told of later crops is dropped.

    Close it, or use it as a context manager.
    """

    def __init__(self, folder: Path, samples: int, total: int) -> None:
        self._file = folder / "log.jsonl"
        self._keep_until(samples)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=samples + 1 if samples else None)
        self._bar = tqdm(total=total, initial=samples, unit="crop", disable=None, smoothing=0.05)
        self._redirect = logging_redirect_tqdm()
        self._redirect.__enter__()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Write what is left."""
        self._redirect.__exit__(None, None, None)
        self._bar.close()
        self._board.close()

    def progress(self, crops: int) -> None:
        """So many more crops were shown."""
        self._bar.update(crops)

    def record(self, samples: int, values: Values) -> None:
        """Tell values as they are after `samples` crops; nested ones are accuracies by set and branch."""
        line = json.dumps({"samples": samples, **values})
        log.info(line)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        for name, value in values.items():
            if isinstance(value, Mapping):
                for words, branches in value.items():
                    for branch, percent in branches.items():
                        self._board.add_scalar(f"{name}/{words}/{branch}", percent, samples)
            else:
                self._board.add_scalar(name, value, samples)
        self._board.flush()

    def _keep_until(self, samples: int) -> None:
        """A killed run told more than it saved: it will tell that again. Its last line may be cut short."""
        if not self._file.exists():
            return
        kept = []
        for line in self._file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
            if _samples_of(line) > samples:
                break
            kept.append(line)
        with written(self._file) as unfinished:
            unfinished.write_text("".join(kept), encoding="utf-8")


def _samples_of(line: str) -> float:
    """Infinite for a line that is not whole."""
    try:
        return float(json.loads(line)["samples"]) if line.endswith("\n") else math.inf
    except (ValueError, TypeError, KeyError):
        return math.inf
