"""Reads weight files that strangers wrote: pickles and zip archives of PyTorch, and safetensors.

Nothing in a file is run. Pickles are read with `weights_only`; what training frameworks leave beside the
weights (a learning-rate schedule, an optimiser) becomes an inert object, anything else that names code is
refused. Tensors come back as views of the mapped file: copy what has to outlive it.
"""

from __future__ import annotations

import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

State = dict[str, Tensor]
# Where the classes live that a training checkpoint names besides tensors. OneCycleLR's state held a bound
# method up to torch 2.3, and with it (through getattr) the whole schedule and optimiser.
_TRAINING_CODE = (
    "torch.", "pytorch_lightning.", "lightning.", "numpy.", "collections.", "builtins.getattr", "builtins.dict",
)  # fmt: skip
_SLACK = 64 << 20  # bytes that a TorchScript archive's compressed code may unpack to

_NAME_LENGTH = 120  # characters of a tensor's name that a message shows
_REFUSED = "refused, for it names code to run, not only weights:"


class CheckpointError(Exception):
    """A model file is missing, unreadable, or not what it should be; the message is one line for the user."""


class _Inert:
    """Stands for an object of a class that is not loaded: takes whatever its pickle does to it, and does nothing."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


def _empty(*_: object) -> dict[object, object]:
    """Stands for a defaultdict: the reader fills plain dictionaries alone."""
    return {}


@contextmanager
def explained(path: Path | str, what: str) -> Iterator[None]:
    """Turns whatever a stranger's file makes its reader raise into one line for the user."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd files; what matters raises
            yield
    except CheckpointError:
        raise
    except Exception as error:  # noqa: BLE001 (readers of broken files raise anything)
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, KeyError):
            reason = f"it lacks {reason}"
        raise CheckpointError(f"{path}: {what} ({reason[:300]})") from None


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """Where to write a file that is to become `path`, all of it or nothing. Raises CheckpointError if it cannot."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield unfinished
        unfinished.replace(path)
    except (
        OSError,
        SafetensorError,
        RuntimeError,
    ) as error:  # RuntimeError: how torch.save says that a disk is full
        raise CheckpointError(f"{path}: cannot be written ({' '.join(str(error).split())[:200]})") from None
    finally:
        unfinished.unlink(missing_ok=True)


def read_safetensors(path: Path) -> tuple[State, dict[str, str]]:
    """All tensors and the metadata. Raises CheckpointError."""
    _refuse_other_kinds(path)
    with explained(path, "not a readable safetensors file"), safe_open(path, framework="pt") as file:
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (a handle, not a mapping)
        return state, file.metadata() or {}


def read_pickle(path: Path) -> Any:
    """What torch.save wrote: tensors in dictionaries, lists and plain values. Raises CheckpointError."""
    _refuse_other_kinds(path)
    with explained(path, "not a readable checkpoint"):
        is_zip = zipfile.is_zipfile(path)
        unknown: list[str] = []
        if is_zip:
            _check_archive(path)
            unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        if code := sorted(name for name in unknown if not name.startswith(_TRAINING_CODE)):
            raise CheckpointError(f"{path}: {_REFUSED} {code[0]}")
        try:
            stand_ins: list[Callable[..., object] | tuple[Callable[..., object], str]] = [
                (_empty if name.endswith(".defaultdict") else _Inert, name) for name in unknown
            ]
            with torch.serialization.safe_globals(stand_ins):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
        except pickle.UnpicklingError as error:  # torch's own words advise to load the file with less care
            if named := re.search(r"GLOBAL ([\w.]+)", str(error)):
                raise CheckpointError(f"{path}: {_REFUSED} {named[1]}") from None
            raise CheckpointError(f"{path}: not a readable checkpoint (no pickle of weights)") from None


def is_torchscript(path: Path) -> bool:
    """Whether a zip archive holds code beside its tensors, as OpenAI's CLIP files do. Raises CheckpointError."""
    with explained(path, "not a readable zip archive"):
        if not zipfile.is_zipfile(path):
            return False
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())


def read_torchscript(path: Path) -> State:
    """The weights of a TorchScript archive; its code is compiled but not called. Raises CheckpointError."""
    with explained(path, "not a readable TorchScript archive"):
        _check_archive(path)
        with zipfile.ZipFile(path) as archive:
            code = [archive.read(name) for name in archive.namelist() if "/code/" in name]
        if any(b"__setstate__" in text for text in code):
            raise CheckpointError(f"{path}: refused, for it runs code while it is loaded")
        return dict(torch.jit.load(str(path), map_location="cpu").state_dict())


def as_state(content: Any, path: Path) -> State:
    """`content` as names and tensors that the file really holds. Raises CheckpointError."""
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())
    ):
        raise CheckpointError(f"{path}: holds no state dict of tensors")
    for key, value in content.items():
        if value.layout is not torch.strided or value.device.type != "cpu" or value.is_quantized:
            raise CheckpointError(f"{path}: {legible(key)} is not a plain tensor")
    size = path.stat().st_size
    claimed = sum(value.numel() * value.element_size() for value in content.values())
    if claimed > size:  # strides of 0 make any size out of nothing
        raise CheckpointError(f"{path}: its tensors claim {claimed} bytes, but the file has {size}")
    return {key: value.detach() for key, value in content.items()}


def legible(key: str) -> str:
    """A tensor's name as a line for the user can show it: a stranger's file may name one anything at all."""
    return key if key.isprintable() and 0 < len(key) <= _NAME_LENGTH else ascii(key[:_NAME_LENGTH])


def _refuse_other_kinds(path: Path) -> None:
    """What is often saved under a checkpoint's name, and says so in its first bytes."""
    with explained(path, "cannot be read"), path.open("rb") as file:
        start = file.read(512).lstrip().lower()
    if not start:
        raise CheckpointError(f"{path}: is empty")
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path}: is a Git LFS pointer, not the file it points to: run `git lfs pull`")
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(
            f"{path}: is a web page, not a checkpoint: download the file that the page links to"
        )


def _check_archive(path: Path) -> None:
    """torch.save never compresses weights; an archive that unpacks to more than it is was made to do harm."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    size, unpacked = path.stat().st_size, sum(entry.file_size for entry in entries)
    if unpacked > size + _SLACK:
        raise CheckpointError(f"{path}: unpacks to {unpacked} bytes out of {size}: not written by torch.save")
    if any(entry.compress_type != zipfile.ZIP_STORED and "/data/" in entry.filename for entry in entries):
        raise CheckpointError(f"{path}: its tensors are compressed: not written by torch.save")
