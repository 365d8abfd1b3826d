"""Damaged model files: whatever happened to one, it is read as it was written or refused in one line."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from clip4str import CheckpointError
from clip4str.checkpoint import build, load, save
from clip4str.config import ModelConfig, TextConfig, VisionConfig
from clip4str.model import CLIP4STR
from tests.model.small import small_model

MINUTE = ModelConfig(
    variant="custom",
    vision=VisionConfig((32, 32), (16, 16), 64, 1, 1),
    text=TextConfig("character", 97, 27, 27, 64, 1, 1),
    embed_dim=64,
)
DTYPES = ["F64", "F32", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "F8_E8M0", "F4", "F6_E2M3", "C64", "?"]
Header = dict[str, Any]
many = settings(max_examples=150, deadline=None)


class Written:
    """A sound file: its bytes, and a place for what becomes of them."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "model.safetensors"
        save(self.path, small_model(MINUTE))
        self.content = self.path.read_bytes()
        self.weights = build(load(str(self.path))).state_dict()
        (length,) = struct.unpack("<Q", self.content[:8])
        self.header: Header = json.loads(self.content[8 : 8 + length])
        self.data = self.content[8 + length :]

    def read(self, content: bytes) -> CLIP4STR | None:
        """The model in these bytes; None when they are refused, as they should be."""
        self.path.write_bytes(content)
        try:
            return build(load(str(self.path)))
        except CheckpointError as error:
            said = str(error)
        assert said.isprintable()
        assert len(said) < 600
        return None

    def header_without_digest(self) -> Header:
        """A copy: of a file whose weights nothing but their names and shapes tells."""
        header: Header = json.loads(json.dumps(self.header))
        del header["__metadata__"]["clip4str_weights_sha256"]
        return header

    def with_header(self, header: Header) -> bytes:
        encoded = json.dumps(header).encode()
        return struct.pack("<Q", len(encoded)) + encoded + self.data


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return Written(tmp_path_factory.mktemp("damage"))


def assert_as_written(model: CLIP4STR | None, written: Written) -> None:
    for key, value in ({} if model is None else model.state_dict()).items():
        assert torch.equal(value, written.weights[key]), key


def test_undamaged(written: Written) -> None:
    """Without this, the other tests here could be content with nothing."""
    assert written.read(written.content) is not None
    assert written.read(written.with_header(written.header)) is not None


@many
@given(data=st.data())
def test_overwritten(written: Written, data: st.DataObject) -> None:
    """A few bytes anywhere, of the header more often than not."""
    end = data.draw(st.sampled_from([8, 400, len(written.content) - len(written.data), len(written.content)]))
    place = data.draw(st.integers(0, end - 1))
    patch = data.draw(st.binary(min_size=1, max_size=40))
    content = bytearray(written.content)
    content[place : place + len(patch)] = patch
    assert_as_written(written.read(bytes(content[: len(written.content)])), written)


@many
@given(data=st.data())
def test_cut_out_or_cut_off(written: Written, data: st.DataObject) -> None:
    length = len(written.content)
    start = data.draw(st.one_of(st.integers(0, 400), st.integers(0, length - 1)))
    stop = data.draw(st.one_of(st.just(length), st.integers(start + 1, length)))
    assert written.read(written.content[:start] + written.content[stop:]) is None


@many
@given(content=st.binary(max_size=300), framed=st.booleans())
def test_never_a_model(written: Written, content: bytes, framed: bool) -> None:
    assert written.read(struct.pack("<Q", len(content)) + content if framed else content) is None


@pytest.mark.parametrize("name", ["", "\n", "two\nlines", "\u2028", "\x1b[2J", "long" * 1000])
def test_names_that_no_line_can_show(written: Written, name: str) -> None:
    header = written.header_without_digest()
    header[name] = header.pop("clip_model.ln_final.bias")
    assert written.read(written.with_header(header)) is None


@many
@given(data=st.data())
def test_a_header_that_says_something_else(written: Written, data: st.DataObject) -> None:
    """A well-formed header, and no digest that would give the weights away."""
    header = written.header_without_digest()
    sound = written.header_without_digest()
    key = data.draw(st.sampled_from(sorted(written.weights)))
    number = st.one_of(st.integers(-2, 5), st.integers(0, len(written.data)), st.integers(2**62, 2**65))
    match data.draw(st.sampled_from(["dtype", "shape", "data_offsets", "name", "none", "twice"])):
        case "dtype":
            header[key]["dtype"] = data.draw(st.sampled_from([name for name in DTYPES if name != "BF16"]))
        case "shape":
            header[key]["shape"] = data.draw(st.lists(number, max_size=4))
        case "data_offsets":
            header[key]["data_offsets"] = data.draw(st.lists(number, max_size=3))
        case "name":
            header[data.draw(st.text(max_size=9))] = header.pop(key)
        case "none":
            del header[key]
        case _:
            header[f"{key}.copy"] = header[key]
    assume(header != sound)
    assert written.read(written.with_header(header)) is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_in_every_format_with_as_many_bytes(written: Written, dtype: str) -> None:
    """The data is cut or filled up, so that the format alone is odd."""
    header = written.header_without_digest()
    bits = {"F64": 64, "F32": 32, "I64": 64, "BF16": 16, "C64": 64, "F4": 4, "F6_E2M3": 6}.get(dtype, 8)
    place = 0
    entries = sorted((entry["data_offsets"], key) for key, entry in header.items() if key != "__metadata__")
    for _, key in entries:
        count = int(torch.Size(header[key]["shape"]).numel())
        header[key].update(dtype=dtype, data_offsets=[place, place := place + -(-count * bits // 8)])
    encoded = json.dumps(header).encode()
    model = written.read(struct.pack("<Q", len(encoded)) + encoded + bytes(place))
    assert (model is not None) == (dtype in ("F64", "F32", "BF16", "F8_E4M3", "F8_E8M0"))
