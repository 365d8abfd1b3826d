"""Files to models: our safetensors, the published .ckpt and .pt, and CLIP's own weights to start training from.

Nothing here unpickles code: `containers` reads the files. Every failure is a CheckpointError with one line that
says what is wrong with which file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from clip4str import metadata, registry
from clip4str.charset import ALPHANUMERIC_LOWER
from clip4str.config import HALF, VARIANTS, ModelConfig, TextConfig, VisionConfig
from clip4str.containers import (
    CheckpointError as CheckpointError,
)
from clip4str.containers import (
    State,
    as_state,
    explained,
    is_torchscript,
    legible,
    read_pickle,
    read_safetensors,
    read_torchscript,
    written,
)
from clip4str.model import CLIP4STR

WEIGHTS = Path(__file__).parent / "weights"
_CLIP = "clip_model."
_BARE: dict[str, Any] = {"context_length": 16, "text_freeze_nlayer": 6, "charset_test": ALPHANUMERIC_LOWER}
_FALLBACKS: dict[str, Any] = {
    "context_length": 20,
    "text_freeze_nlayer": -1,
    "charset_test": ALPHANUMERIC_LOWER,
}
_CLIP_EXTRAS = ("input_resolution", "context_length", "vocab_size")  # facts, not weights, in CLIP's own files


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model file's content: configuration and weights under the published names.

    The weights may be views of the mapped file, in its dtype; `build` copies them.
    """

    name: str
    revision: str  # "sha256:<hex>" of the file
    config: ModelConfig
    state: State


def resolve(model: str) -> Path:
    """The file a model name or path stands for. Raises CheckpointError.

    In this order: "default"; a published checkpoint's name, or a variant's for its default checkpoint, once
    fetched; a file; a directory holding one model file. Nothing is downloaded.
    """
    if model == "default":
        return WEIGHTS / "default.safetensors"
    if entry := registry.find(model):
        fetched = registry.cache_folder() / entry.location.filename
        if not fetched.is_file():
            here = Path(model)
            hint = (
                f"; for the {'folder' if here.is_dir() else 'file'} here say ./{model}"
                if here.exists()
                else ""
            )
            raise CheckpointError(f"{model} is not here yet: run `clip4str fetch {entry.name}`{hint}")
        return fetched
    path = Path(model)
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".ckpt", ".pt"))
        if len(found) != 1:
            names = ", ".join(p.name for p in found) or "none"
            raise CheckpointError(
                f"{path}: expected one .safetensors, .ckpt or .pt file in this directory, found {names}"
            )
        return found[0]
    if not path.is_file():
        if model in VARIANTS:
            raise CheckpointError(
                f"no checkpoint of {model} is published: give the path of a file, "
                f"or one of: default, {registry.known()}"
            )
        raise CheckpointError(
            f"no model file {str(path)!r}, nor a checkpoint of that name (clip4str fetch --list)"
        )
    return path


def load(model: str) -> Checkpoint:
    """Read a model by name or path. Raises CheckpointError.

    Held to the checksums that are known: a fetched file to that of its host or of the first download, a file of
    ours to its weights' in the metadata. Hashing takes about 0.6 s per GB, next to the reading.
    """
    with explained(repr(model), "cannot be looked up"):
        path, entry = resolve(model), registry.find(model)
    with explained(path, "cannot be read"), ThreadPoolExecutor(max_workers=1) as pool:
        hashing = pool.submit(_sha256, path)  # the reader maps the file: its bytes come from the disk once
        if path.suffix == ".safetensors":
            state, notes = read_safetensors(path)
            if "clip4str_adapter" in notes:
                raise CheckpointError(
                    f"{path}: is an adapter model, which has one branch: clip4str.training.adapters reads it"
                )
            config = metadata.parse(notes, state, path)
        else:
            state, config = _read_published(path)
        digest = hashing.result()
        expected = None if entry is None else registry.expected_sha256(entry, path)
    if entry is not None:
        if expected is not None and digest != expected:
            raise CheckpointError(
                f"{path}: its sha256 is {digest}, not {expected}: remove it and fetch it again"
            )
        config = dataclasses.replace(config, mean=entry.mean, std=entry.std)
    name = entry.name if entry else model if model == "default" else path.stem
    return Checkpoint(name, f"sha256:{digest}", config, state)


def build(checkpoint: Checkpoint) -> CLIP4STR:
    """The checkpoint's model in float32, in evaluation mode, with memory of its own.

    Raises CheckpointError when names, shapes or dtypes differ, or a weight is not finite.
    """
    with explained(checkpoint.name, "its configuration makes no model"), torch.device("meta"):
        model = CLIP4STR(checkpoint.config)  # no memory yet, no random numbers
    expected = model.state_dict()
    _check_weights(checkpoint, expected)
    with explained(checkpoint.name, "its weights are in no format that can be read"):
        own = {
            key: torch.empty_like(like, device="cpu").copy_(checkpoint.state[key])
            for key, like in expected.items()
        }
    _check_finite(checkpoint.name, own)
    model.load_state_dict(own, strict=True, assign=True)
    clip = model.clip_model  # the text encoder's causal mask is the one buffer that no file holds
    clip.attn_mask = torch.full(clip.attn_mask.shape, -math.inf).triu_(1)
    return model.eval()


def save(
    path: Path, model: CLIP4STR, dtype: torch.dtype = torch.float16, *, source_sha256: str | None = None
) -> None:
    """Write one safetensors file with configuration, charset and digests in its metadata; all of it or nothing.

    Raises CheckpointError when the file cannot be written, or a weight is too large for float16.
    """
    state = {
        key: value.detach().cpu().to(dtype if value.is_floating_point() else value.dtype).contiguous()
        for key, value in model.state_dict().items()
    }
    _check_finite(f"{path}: as {str(dtype).removeprefix('torch.')}", state)
    with written(path) as unfinished:
        save_file(state, unfinished, metadata.compose(model.config, state, source_sha256))


def convert(
    source: str, destination: Path, dtype: torch.dtype = torch.float32, *, overwrite: bool = False
) -> None:
    """Rewrite a model, by name or path, as one safetensors file. Raises CheckpointError."""
    if destination.suffix != ".safetensors":
        raise CheckpointError(f"{destination}: the file to write must end in .safetensors")
    if not destination.parent.is_dir():
        raise CheckpointError(f"{destination}: there is no folder {str(destination.parent)!r}")
    if not os.access(destination.parent, os.W_OK):
        raise CheckpointError(f"{destination}: its folder is not writable")
    if destination.is_dir() or (destination.exists() and not overwrite):
        raise CheckpointError(f"{destination}: exists; --force overwrites a file")
    loaded = load(source)
    save(destination, build(loaded), dtype, source_sha256=loaded.revision.removeprefix("sha256:"))


def infer_config(
    state: Mapping[str, Tensor], hyper_parameters: Mapping[str, Any] | None = None
) -> ModelConfig:
    """The configuration of published weights: all sizes from the shapes, the rest from the hyper-parameters.

    Without hyper-parameters (a bare state dict) the published YAML's values hold; a value missing among them
    is what the published code falls back to. The published evaluation normalises with mean and deviation 0.5,
    though training did with CLIP's; its figures belong to 0.5. Raises KeyError naming a weight that is missing,
    ValueError for a weight or value that cannot be.
    """
    hyper = _BARE if hyper_parameters is None else {**_FALLBACKS, **hyper_parameters}
    sizes = metadata.measure(state)
    _, _, patch, _ = metadata.shape_of(state, _CLIP + "visual.conv1.weight", 4)
    side = patch * round((sizes.image_tokens - 1) ** 0.5)
    vision = VisionConfig(
        image_size=(side, side),
        patch_size=(patch, patch),
        width=sizes.vision_width,
        layers=sizes.vision_layers,
        heads=sizes.vision_width // 64,
    )
    text = TextConfig(
        tokenizer="bpe",
        vocabulary=sizes.vocabulary,
        positions=sizes.positions,
        context_length=_whole(hyper, "context_length", 2, sizes.positions),
        width=sizes.text_width,
        layers=sizes.text_layers,
        heads=sizes.text_width // 64,
    )
    if not isinstance(hyper["charset_test"], str):
        raise ValueError(f"hyper-parameter charset_test is {hyper['charset_test']!r}, not text")
    dimensions = (vision, text.width, text.layers, sizes.embed_dim)
    named = (
        c for c in VARIANTS.values() if (c.vision, c.text.width, c.text.layers, c.embed_dim) == dimensions
    )
    config = ModelConfig(
        variant=next((c.variant for c in named), "custom"),
        vision=vision,
        text=text,
        embed_dim=sizes.embed_dim,
        max_length=sizes.steps - 1,
        caption_charset=hyper["charset_test"],
        mean=HALF,
        std=HALF,
        freeze_text_layers=_whole(hyper, "text_freeze_nlayer", -1, 99),
    )
    metadata.check_ranges(config)
    return config


def load_clip_weights(model: CLIP4STR, path: Path) -> None:
    """Start `model`'s encoders from CLIP weights: OpenAI's TorchScript archive or an open_clip state dict.

    Convolution, linear and projection weights are rounded to float16 once, as the published training does.
    Raises CheckpointError.
    """
    state = _read_clip(path)
    target = model.clip_model
    rounded = {
        key: value.half().float() if _is_rounded(key) else value.float()
        for key, value in state.items()
        if key not in _CLIP_EXTRAS
    }
    with explained(path, f"CLIP weights do not fit {model.config.variant}"):
        target.load_state_dict(rounded, strict=True)


def _is_rounded(key: str) -> bool:
    parts = ("conv1", "attn.in_proj", "attn.out_proj", "mlp.", "text_projection", "visual.proj")
    return any(part in key for part in parts)


def _whole(hyper: Mapping[str, Any], key: str, low: int, high: int) -> int:
    value = hyper[key]
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"hyper-parameter {key} is {value!r}, not a whole number from {low} to {high}")
    return value


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_weights(checkpoint: Checkpoint, expected: State) -> None:
    """The same names and shapes as the model's, and floating-point numbers where it has them."""
    state = checkpoint.state
    shared = state.keys() & expected.keys()
    problems = {
        "missing": expected.keys() - state.keys(),
        "unexpected": state.keys() - expected.keys(),
        "of another shape": {key for key in shared if state[key].shape != expected[key].shape},
        "of another kind of number": {
            key for key in shared if state[key].is_floating_point() != expected[key].is_floating_point()
        },
    }
    if found := [f"{problem}: {_some(keys)}" for problem, keys in problems.items() if keys]:
        raise CheckpointError(f"{checkpoint.name}: weights do not fit the configuration ({'; '.join(found)})")


def _some(keys: Iterable[str]) -> str:
    first, *others = map(legible, sorted(keys))
    return ", ".join([first, *others[:2]]) + (f" and {len(others) - 2} more" if len(others) > 2 else "")


def _check_finite(name: str, state: State) -> None:
    for key, value in state.items():
        # a sum is many times faster than a look at each, but may itself overflow
        if value.is_floating_point() and not value.sum().isfinite() and not value.isfinite().all():
            raise CheckpointError(f"{name}: {legible(key)} holds numbers that are not finite")


def _read_published(path: Path) -> tuple[State, ModelConfig]:
    """A Lightning .ckpt, with hyper-parameters, or a bare state dict."""
    if is_torchscript(path):
        raise CheckpointError(f"{path}: is a TorchScript archive, as CLIP's are, not a CLIP4STR checkpoint")
    content = read_pickle(path)
    hyper_parameters = None
    if isinstance(content, Mapping) and "state_dict" in content:
        hyper_parameters = content.get("hyper_parameters")
        content = content["state_dict"]
        if not isinstance(hyper_parameters, Mapping | None):
            raise CheckpointError(f"{path}: its hyper_parameters are no dictionary")
    state = as_state(content, path)
    if any(key.startswith("adapter.") for key in state):
        raise CheckpointError(f"{path}: is a CLIP adapter with one decoder, which is not supported")
    if "visual.proj" in state:
        raise CheckpointError(f"{path}: holds CLIP's own weights, not a CLIP4STR checkpoint")
    with explained(path, "not a CLIP4STR checkpoint"):
        return state, infer_config(state, hyper_parameters)


def _read_clip(path: Path) -> State:
    if not path.is_file():
        raise CheckpointError(f"no CLIP file {str(path)!r}")
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    if is_torchscript(path):
        return read_torchscript(path)
    content = read_pickle(path)
    if isinstance(content, Mapping) and "state_dict" in content:
        content = content["state_dict"]
    return {key.removeprefix("module."): value for key, value in as_state(content, path).items()}
