"""Every container loads to the same model, under every name; models are written whole or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors import safe_open

from clip4str import CheckpointError, checkpoint
from clip4str.checkpoint import build, convert, load, load_clip_weights, save
from clip4str.config import CLIP_MEAN, CLIP_STD, HALF, VARIANTS
from clip4str.metadata import weights_sha256
from clip4str.model import CLIP4STR
from clip4str.registry import PUBLISHED, record_path
from tests.model.small import SMALL, small_model


@pytest.fixture(scope="module")
def model() -> CLIP4STR:
    return small_model()


def assert_same(one: CLIP4STR, other: CLIP4STR, tolerance: float = 0.0) -> None:
    expected = one.state_dict()
    for key, value in other.state_dict().items():
        torch.testing.assert_close(value, expected[key], atol=tolerance, rtol=0)


def test_lightning_checkpoint(model: CLIP4STR, tmp_path: Path) -> None:
    """The published .ckpt: a Lightning dictionary with hyper-parameters."""
    path = tmp_path / "published.ckpt"
    hyper = {"charset_test": "0123456789", "context_length": 20, "embed_dim": 512, "patch_size": [16, 16]}
    torch.save({"state_dict": model.state_dict(), "hyper_parameters": hyper, "epoch": 3, "loops": {}}, path)
    loaded = load(str(path))
    assert loaded.name == "published"
    assert loaded.config.caption_charset == "0123456789"
    assert loaded.config.text.context_length == 20
    assert loaded.config.vision == SMALL.vision
    assert loaded.config.embed_dim == 64
    assert_same(model, build(loaded))


def test_bare_state_dict(model: CLIP4STR, tmp_path: Path) -> None:
    """The published .pt: weights alone; the rest is the published default."""
    path = tmp_path / "weights.pt"
    torch.save(model.state_dict(), path)
    loaded = load(str(tmp_path))
    assert loaded.config == SMALL
    assert_same(model, build(loaded))


def test_missing_hyper_parameters_fall_back_as_published(model: CLIP4STR, tmp_path: Path) -> None:
    """A Lightning file that lacks a value is read with the published code's default, not the YAML's."""
    torch.save({"state_dict": model.state_dict(), "hyper_parameters": {}}, tmp_path / "old.ckpt")
    config = load(str(tmp_path / "old.ckpt")).config
    assert (config.text.context_length, config.freeze_text_layers) == (20, -1)


def test_own_format_keeps_config_and_digest(model: CLIP4STR, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save(path, model)
    loaded = load(str(path))
    assert loaded.config == SMALL
    assert loaded.revision == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    assert_same(model, build(loaded), tolerance=1e-3)


def test_a_state_dict_under_its_own_key_is_bare(model: CLIP4STR, tmp_path: Path) -> None:
    """Without any hyper-parameters, the published configuration holds."""
    torch.save({"state_dict": model.state_dict()}, tmp_path / "weights.pt")
    assert load(str(tmp_path / "weights.pt")).config == SMALL


def test_convert(model: CLIP4STR, tmp_path: Path) -> None:
    source, target = tmp_path / "weights.pt", tmp_path / "out.safetensors"
    torch.save(model.state_dict(), source)
    convert(str(source), target)
    assert_same(model, build(load(str(target))))
    with safe_open(target, framework="pt") as file:
        notes = file.metadata()
    assert notes["clip4str_source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert notes["clip4str_weights_sha256"] == weights_sha256(load(str(source)).state)
    assert {path.name for path in tmp_path.iterdir()} == {"weights.pt", "out.safetensors"}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 1e-3), (torch.bfloat16, 1e-2)])
def test_convert_to_half_precision(
    dtype: torch.dtype, tolerance: float, model: CLIP4STR, tmp_path: Path
) -> None:
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    convert(str(tmp_path / "weights.pt"), tmp_path / "out.safetensors", dtype)
    loaded = load(str(tmp_path / "out.safetensors"))
    assert {value.dtype for value in loaded.state.values()} == {dtype}
    built = build(loaded)
    assert {value.dtype for value in built.state_dict().values()} == {torch.float32}
    assert_same(model, built, tolerance)


def test_convert_overwrites_only_when_told(model: CLIP4STR, tmp_path: Path) -> None:
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    target = tmp_path / "out.safetensors"
    target.write_bytes(b"precious")
    with pytest.raises(CheckpointError, match="exists; --force"):
        convert(str(tmp_path / "weights.pt"), target)
    assert target.read_bytes() == b"precious"
    convert(str(tmp_path / "weights.pt"), target, overwrite=True)
    convert(str(target), target, torch.float16, overwrite=True)  # a file may replace itself
    assert_same(model, build(load(str(target))), tolerance=1e-3)


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("out.pt", "must end in .safetensors"),
        ("missing/out.safetensors", "there is no folder"),
        ("folder.safetensors", "exists"),
        ("/proc/out.safetensors", "not writable|cannot be written"),
    ],
)
def test_convert_to_what_is_no_place_for_it(
    target: str, reason: str, model: CLIP4STR, tmp_path: Path
) -> None:
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(CheckpointError, match=reason):
        convert(str(tmp_path / "weights.pt"), tmp_path / target, overwrite=True)


def test_a_conversion_that_fails_leaves_nothing(model: CLIP4STR, tmp_path: Path) -> None:
    state = model.state_dict()
    state["visual_decoder.head.bias"] = torch.full_like(state["visual_decoder.head.bias"], 1e5)
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"as float16: visual_decoder\.head\.bias holds numbers"):
        convert(str(tmp_path / "weights.pt"), tmp_path / "out.safetensors", torch.float16)
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pt"]


class TestBuild:
    """Made without memory first, a model is no different from one made with random weights and then filled."""

    def write(self, model: CLIP4STR, path: Path) -> None:
        if path.suffix == ".safetensors":
            save(path, model, torch.float32)
        else:
            torch.save(model.state_dict(), path)

    @pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
    def test_every_tensor_is_that_of_a_filled_model(
        self, suffix: str, model: CLIP4STR, tmp_path: Path
    ) -> None:
        self.write(model, tmp_path / f"model{suffix}")
        built = build(load(str(tmp_path / f"model{suffix}")))
        expected = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        actual = {**dict(built.named_parameters()), **dict(built.named_buffers())}
        assert actual.keys() == expected.keys()  # the causal mask, in no state dict, among them
        for key, value in actual.items():
            torch.testing.assert_close(value, expected[key], rtol=0, atol=0)
            assert value.requires_grad == expected[key].requires_grad
            assert value.is_contiguous()
        assert built.state_dict().keys() == model.state_dict().keys()
        assert not built.training

    def test_variant_with_batch_statistics(self, tmp_path: Path) -> None:
        tiny = small_model(VARIANTS["tiny"])
        save(tmp_path / "tiny.safetensors", tiny, torch.float32)
        built = build(load(str(tmp_path / "tiny.safetensors")))
        assert {value.dtype for value in built.state_dict().values()} == {torch.float32, torch.int64}
        assert_same(tiny, built)

    @pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
    def test_file_and_model_do_not_depend_on_each_other(
        self, suffix: str, model: CLIP4STR, tmp_path: Path
    ) -> None:
        path = tmp_path / f"model{suffix}"
        self.write(model, path)
        before = path.read_bytes()
        built = build(load(str(path)))
        with torch.no_grad():
            built.visual_decoder.head.bias.add_(1)
        assert path.read_bytes() == before
        path.write_bytes(b"")  # the process would die of reading a mapped file that shrank
        assert torch.equal(built.visual_decoder.head.bias, model.visual_decoder.head.bias + 1)

    def test_weights_that_share_memory_in_the_file_do_not_in_the_model(
        self, model: CLIP4STR, tmp_path: Path
    ) -> None:
        state = model.state_dict()
        state["cross_decoder.head.weight"] = state["visual_decoder.head.weight"]
        torch.save(state, tmp_path / "tied.pt")
        built = build(load(str(tmp_path / "tied.pt")))
        with torch.no_grad():
            built.cross_decoder.head.weight.zero_()
        assert torch.equal(built.visual_decoder.head.weight, model.visual_decoder.head.weight)

    def test_it_can_be_trained(self, model: CLIP4STR, tmp_path: Path) -> None:
        self.write(model, tmp_path / "model.pt")
        built = build(load(str(tmp_path / "model.pt"))).train()
        optimizer = torch.optim.AdamW(built.parameters(), lr=1e-3)
        built.encode_image(torch.rand(1, 3, 64, 64)).square().mean().backward()
        optimizer.step()
        assert not torch.equal(built.clip_model.visual.proj, model.clip_model.visual.proj)


class TestNames:
    """A published name stands for the file that was fetched, and for no other."""

    @pytest.fixture
    def cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("CLIP4STR_CACHE_DIR", str(tmp_path))
        return tmp_path

    def fetched(self, cache: Path, name: str, model: CLIP4STR) -> Path:
        path = cache / PUBLISHED[name].location.filename
        torch.save(model.state_dict(), path)
        return path

    @pytest.mark.parametrize(
        ("name", "wanted"),
        [("base16", "base16-rbu"), ("base16-real", "base16-real"), ("huge14", "huge14-rbu-dfn")],
    )
    @pytest.mark.usefixtures("cache")
    def test_not_fetched(self, name: str, wanted: str) -> None:
        with pytest.raises(CheckpointError, match=f"{name} is not here yet: run `clip4str fetch {wanted}`$"):
            load(name)

    @pytest.mark.usefixtures("cache")
    def test_not_fetched_but_something_of_that_name_is_here(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: CLIP4STR
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("base16").mkdir()
        torch.save(model.state_dict(), "base16/weights.pt")
        Path("large14").write_bytes(b"")
        with pytest.raises(CheckpointError, match=r"fetch base16-rbu`; for the folder here say \./base16$"):
            load("base16")
        assert load("./base16").name == "weights"  # the hint holds
        with pytest.raises(CheckpointError, match=r"fetch large14-rbu`; for the file here say \./large14$"):
            load("large14")

    @pytest.mark.parametrize("name", ["large14", "large14-rbu"])
    def test_fetched(self, name: str, cache: Path, model: CLIP4STR) -> None:
        self.fetched(cache, "large14-rbu", model)
        loaded = load(name)
        assert loaded.name == "large14-rbu"
        assert loaded.config.mean == loaded.config.std == HALF
        assert_same(model, build(loaded))

    def test_normalisation_is_the_registrys(
        self, cache: Path, model: CLIP4STR, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.fetched(cache, "large14-rbu", model)
        other = dataclasses.replace(PUBLISHED["large14-rbu"], mean=CLIP_MEAN, std=CLIP_STD)
        monkeypatch.setitem(PUBLISHED, "large14-rbu", other)
        config = load("large14").config
        assert (config.mean, config.std) == (CLIP_MEAN, CLIP_STD)

    def test_not_the_published_file(self, cache: Path, model: CLIP4STR) -> None:
        self.fetched(cache, "base16-rbu", model)
        with pytest.raises(CheckpointError, match=r"not 15f9c480.*: remove it and fetch it again"):
            load("base16")

    def test_not_the_recorded_file(self, cache: Path, model: CLIP4STR) -> None:
        path = self.fetched(cache, "base16-real", model)
        record_path(path).write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")
        assert load("base16-real").name == "base16-real"
        record_path(path).write_text(f"{'0' * 64}  {path.name}\n")
        with pytest.raises(CheckpointError, match=f"not {'0' * 64}: remove it"):
            load("base16-real")

    def test_a_size_that_nobody_published(self) -> None:
        with pytest.raises(CheckpointError, match=r"no checkpoint of base32 is published: .*base16-synth"):
            load("base32")

    def test_unknown(self) -> None:
        with pytest.raises(CheckpointError, match="no model file 'bigger', nor a checkpoint of that name"):
            load("bigger")


def test_published_names_are_complete() -> None:
    """A variant's state dict has exactly the published checkpoints' keys."""
    with torch.device("meta"):
        keys = set(CLIP4STR(VARIANTS["base16"]).state_dict())
    assert "clip_model.visual.transformer.resblocks.11.mlp.c_proj.weight" in keys
    assert "cross_decoder.layers.0.cross_attn.in_proj_weight" in keys
    assert not [
        key for key in keys if not key.startswith(("clip_model.", "visual_decoder.", "cross_decoder."))
    ]


def test_directory_must_hold_one_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="found none"):
        checkpoint.resolve(str(tmp_path))


@pytest.fixture(scope="module")
def clip() -> open_clip.CLIP:
    torch.manual_seed(1)
    return open_clip.CLIP(
        embed_dim=64,
        vision_cfg={"layers": 2, "width": 64, "head_width": 64, "patch_size": 16, "image_size": 64},
        text_cfg={"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
        quick_gelu=True,
    )


def test_clip_state_dict_starts_the_encoders(clip: open_clip.CLIP, tmp_path: Path) -> None:
    path = tmp_path / "open_clip_pytorch_model.bin"
    torch.save(clip.state_dict(), path)
    started = CLIP4STR(SMALL)
    load_clip_weights(started, path)
    weight = started.clip_model.visual.conv1.weight
    assert torch.equal(weight, clip.visual.conv1.weight.half().float())
    assert torch.equal(started.clip_model.token_embedding.weight, clip.token_embedding.weight)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_clip_torchscript_archive_starts_the_encoders(clip: open_clip.CLIP, tmp_path: Path) -> None:
    """OpenAI's files are TorchScript archives; three integers stand among their weights."""
    path = tmp_path / "ViT-S-16.pt"
    root = torch.nn.Module()
    for key, value in {**clip.state_dict(), "input_resolution": torch.tensor(64)}.items():
        *parents, leaf = key.split(".")
        holder = root
        for parent in parents:
            if not hasattr(holder, parent):
                holder.add_module(parent, torch.nn.Module())
            holder = getattr(holder, parent)
        holder.register_buffer(leaf, value)
    torch.jit.save(torch.jit.script(root), path)
    started = CLIP4STR(SMALL)
    load_clip_weights(started, path)
    assert torch.equal(started.clip_model.positional_embedding, clip.positional_embedding)


def test_clip_of_another_size(clip: open_clip.CLIP, tmp_path: Path) -> None:
    torch.save(clip.state_dict(), tmp_path / "clip.bin")
    base = CLIP4STR(dataclasses.replace(SMALL, embed_dim=32))
    with pytest.raises(CheckpointError, match="do not fit custom"):
        load_clip_weights(base, tmp_path / "clip.bin")
