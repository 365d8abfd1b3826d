"""Files to models: our safetensors, the published .ckpt and .pt, and CLIP's own weights to start training from.

Nothing here unpickles code: pickled files are read with `weights_only`. Every failure is a CheckpointError
with one line that says what is wrong with which file.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor

from clip4str.charset import ALPHANUMERIC_LOWER
from clip4str.config import HALF, VARIANTS, ModelConfig, TextConfig, VisionConfig
from clip4str.model import CLIP4STR

State = dict[str, Tensor]
WEIGHTS = Path(__file__).parent / "weights"
_CLIP = "clip_model."
_METADATA_KEY = "clip4str"
_BARE: dict[str, Any] = {"context_length": 16, "text_freeze_nlayer": 6, "charset_test": ALPHANUMERIC_LOWER}
_FALLBACKS: dict[str, Any] = {
    "context_length": 20,
    "text_freeze_nlayer": -1,
    "charset_test": ALPHANUMERIC_LOWER,
}
_CLIP_EXTRAS = ("input_resolution", "context_length", "vocab_size")  # facts, not weights, in CLIP's own files


class CheckpointError(Exception):
    """A model file is missing, unreadable, or not what it should be; the message is one line for the user."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model file's content: configuration and float weights under the published names."""

    name: str
    revision: str  # "sha256:<hex>" of the file
    config: ModelConfig
    state: State


def resolve(model: str) -> Path:
    """The file a model name or path stands for: "default", a file, or a directory holding one model file."""
    path = WEIGHTS / "default.safetensors" if model == "default" else Path(model)
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".ckpt", ".pt"))
        if len(found) != 1:
            names = ", ".join(p.name for p in found) or "none"
            raise CheckpointError(
                f"{path}: expected one .safetensors, .ckpt or .pt file in this directory, found {names}"
            )
        return found[0]
    if not path.is_file():
        known = (
            " (a published variant needs a checkpoint: give the path of its file)"
            if model in VARIANTS
            else ""
        )
        raise CheckpointError(f"no model file {str(path)!r}{known}")
    return path


def load(model: str) -> Checkpoint:
    """Read a model by name or path. Raises CheckpointError."""
    path = resolve(model)
    name = model if model == "default" else path.stem
    with _explained(path, "cannot be read"):
        revision = f"sha256:{_sha256(path)}"
    state, config = (_read_safetensors if path.suffix == ".safetensors" else _read_published)(path)
    return Checkpoint(name, revision, config, state)


def build(checkpoint: Checkpoint) -> CLIP4STR:
    """The checkpoint's model in float32, in evaluation mode. Raises CheckpointError when names or shapes differ."""
    with _explained(checkpoint.name, "its configuration makes no model"):
        model = CLIP4STR(checkpoint.config)
    with _explained(checkpoint.name, "weights do not fit the configuration"):
        model.load_state_dict(checkpoint.state, strict=True)  # copies into float32, whatever the file's dtype
    return model.eval()


def save(path: Path, model: CLIP4STR, dtype: torch.dtype = torch.float16) -> None:
    """Write one safetensors file with the configuration in its metadata."""
    state = {
        key: value.detach().cpu().to(dtype if value.is_floating_point() else value.dtype).contiguous()
        for key, value in model.state_dict().items()
    }
    path.write_bytes(serialize(state, {_METADATA_KEY: json.dumps(model.config.to_dict())}))


def convert(source: Path, destination: Path) -> None:
    """Rewrite any readable checkpoint as one safetensors file. Raises CheckpointError."""
    save(destination, build(load(str(source))), dtype=torch.float32)


def infer_config(
    state: Mapping[str, Tensor], hyper_parameters: Mapping[str, Any] | None = None
) -> ModelConfig:
    """The configuration of published weights: all sizes from the shapes, the rest from the hyper-parameters.

    Without hyper-parameters (a bare state dict) the published YAML's values hold; a value missing among them
    is what the published code falls back to. The published evaluation normalises with mean and deviation 0.5,
    though training did with CLIP's; its figures belong to 0.5. Raises KeyError naming a weight that is missing.
    """
    hyper = _BARE if hyper_parameters is None else {**_FALLBACKS, **hyper_parameters}
    vision_width, _, patch, _ = state[_CLIP + "visual.conv1.weight"].shape
    grid = round((len(state[_CLIP + "visual.positional_embedding"]) - 1) ** 0.5)
    text_width = len(state[_CLIP + "ln_final.weight"])
    vocabulary = len(state[_CLIP + "token_embedding.weight"])
    positions = len(state[_CLIP + "positional_embedding"])
    embed_dim = state[_CLIP + "text_projection"].shape[1]
    steps = state["visual_decoder.pos_queries"].shape[1]
    vision = VisionConfig(
        image_size=(grid * patch, grid * patch),
        patch_size=(patch, patch),
        width=vision_width,
        layers=_count(state, r"clip_model\.visual\.transformer\.resblocks\.(\d+)\."),
        heads=vision_width // 64,
    )
    text = TextConfig(
        tokenizer="bpe",
        vocabulary=vocabulary,
        positions=positions,
        context_length=int(hyper["context_length"]),
        width=text_width,
        layers=_count(state, r"clip_model\.transformer\.resblocks\.(\d+)\."),
        heads=text_width // 64,
    )
    sizes = (vision, text.width, text.layers, embed_dim)
    named = (c for c in VARIANTS.values() if (c.vision, c.text.width, c.text.layers, c.embed_dim) == sizes)
    variant = next((c.variant for c in named), "custom")
    return ModelConfig(
        variant=variant,
        vision=vision,
        text=text,
        embed_dim=embed_dim,
        max_length=steps - 1,
        caption_charset=str(hyper["charset_test"]),
        mean=HALF,
        std=HALF,
        freeze_text_layers=int(hyper["text_freeze_nlayer"]),
    )


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
    with _explained(path, f"CLIP weights do not fit {model.config.variant}"):
        target.load_state_dict(rounded, strict=True)


@contextmanager
def _explained(path: Path | str, what: str) -> Iterator[None]:
    """Turns whatever a stranger's file makes its reader raise into one line for the user."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd files; what matters raises
            yield
    except CheckpointError:
        raise
    except Exception as error:  # noqa: BLE001 (readers of broken files raise anything)
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{path}: {what} ({reason[:300]})") from None


def _is_rounded(key: str) -> bool:
    parts = ("conv1", "attn.in_proj", "attn.out_proj", "mlp.", "text_projection", "visual.proj")
    return any(part in key for part in parts)


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return len({match[1] for key in state if (match := re.match(pattern, key))})


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_safetensors(path: Path) -> tuple[State, ModelConfig]:
    with _explained(path, "not a readable safetensors file"):
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        state = load_file(path)
    if _METADATA_KEY not in metadata:
        raise CheckpointError(
            f"{path}: no {_METADATA_KEY!r} configuration in its metadata; was it written by clip4str?"
        )
    with _explained(path, "its configuration is not understood"):
        return state, ModelConfig.from_dict(json.loads(metadata[_METADATA_KEY]))


def _read_published(path: Path) -> tuple[State, ModelConfig]:
    """A Lightning .ckpt, with hyper-parameters, or a bare state dict."""
    content = _unpickle(path)
    if not isinstance(content, Mapping) or "state_dict" not in content:
        state, hyper_parameters = _as_state(content, path), None
    else:
        state, hyper_parameters = _as_state(content["state_dict"], path), content.get("hyper_parameters", {})
    with _explained(path, "not a CLIP4STR checkpoint"):
        return state, infer_config(state, hyper_parameters)


def _unpickle(path: Path) -> Any:
    with _explained(path, "not a readable checkpoint"):
        return torch.load(path, map_location="cpu", weights_only=True)


def _is_torchscript(path: Path) -> bool:
    """Whether a zip archive holds code beside its tensors, as OpenAI's CLIP files do."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def _as_state(content: Any, path: Path) -> State:
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path}: holds no state dict of tensors")
    return dict(content)


def _read_clip(path: Path) -> State:
    if not path.is_file():
        raise CheckpointError(f"no CLIP file {str(path)!r}")
    with _explained(path, "not a readable CLIP file"):
        if path.suffix == ".safetensors":
            return load_file(path)
        if _is_torchscript(path):
            return dict(torch.jit.load(str(path), map_location="cpu").state_dict())
    content = _unpickle(path)
    if isinstance(content, Mapping) and "state_dict" in content:
        content = content["state_dict"]
    return {key.removeprefix("module."): value for key, value in _as_state(content, path).items()}
