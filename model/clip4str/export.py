"""A model as two ONNX graphs, to be read with by other runtimes.

`visual.onnx` reads images with the visual branch, `cross_modal.onnx` reads them again with the captions. They are
two because captions become tokens in between, which is work on text that no graph does. Both branches decode in a
loop of the graph that ends when every row has ended, so short words are read in few steps. Every row is decoded
as if it were alone, like everywhere else here. docs/onnx.md shows how to use the files.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from pathlib import Path
from typing import cast

import onnxscript  # noqa: F401 (the exporter imports it late: say at once that it is missing)
import torch
from torch import Tensor, nn
from torch._higher_order_ops.while_loop import while_loop

from clip4str.attention import KeyValue
from clip4str.charset import BOS, CHARACTERS, EOS, PAD
from clip4str.checkpoint import Checkpoint, CheckpointError, build, load
from clip4str.decoding import predict_again
from clip4str.model import CLIP4STR, Decoder

OPSET = 20  # understood by onnxruntime since 1.17
METADATA_KEY = "clip4str"
VISUAL, CROSS_MODAL = "visual.onnx", "cross_modal.onnx"


def export(source: str, folder: Path) -> None:
    """Write a model, by name or path, as two graphs in float32 into a new folder; both or nothing.

    Raises CheckpointError.
    """
    if folder.exists():
        raise CheckpointError(f"{folder}: exists; name a folder that does not")
    if not folder.parent.is_dir():
        raise CheckpointError(f"{folder}: there is no folder {str(folder.parent)!r}")
    checkpoint = load(source)
    model = build(checkpoint).requires_grad_(False)
    config, notes, rows = model.config, _notes(checkpoint), 2  # of the examples; the graphs take any number
    tokens = config.vision.grid[0] * config.vision.grid[1] + 1
    visual_inputs = {"pixels": (torch.zeros((rows, 3, *config.vision.image_size), dtype=torch.uint8), 0)}
    cross_modal_inputs = {
        "image_features": (torch.zeros((rows, tokens, config.embed_dim)), 0),
        "visual_reading": (torch.zeros((rows, config.steps), dtype=torch.int64), 0),
        "caption_tokens": (torch.zeros((2, rows, config.text.context_length), dtype=torch.int64), 1),
    }
    visual_outputs = ["image_features", "visual_reading", "visual_logits"]
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
            target = Path(unfinished) / folder.name
            target.mkdir()
            _write(target / VISUAL, VisualBranch(model), visual_inputs, visual_outputs, notes)
            _write(target / CROSS_MODAL, CrossModalBranch(model), cross_modal_inputs, ["logits"], notes)
            target.rename(folder)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written ({error.strerror or error})") from None


def _notes(checkpoint: Checkpoint) -> str:
    """What who reads with the graphs has to know besides, as JSON: each graph's metadata."""
    config = checkpoint.config
    notes = {
        "name": checkpoint.name,
        "revision": checkpoint.revision,
        "variant": config.variant,
        "image_size": config.vision.image_size,
        "characters": CHARACTERS,
        "caption_charset": config.caption_charset,
        "caption_tokenizer": config.text.tokenizer,
    }
    return json.dumps(notes)


def _write(
    path: Path, branch: nn.Module, inputs: dict[str, tuple[Tensor, int]], outputs: list[str], notes: str
) -> None:
    """One graph, from examples of its inputs and which of their dimensions is the batch."""
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's, of its own parts
        traced = torch.export.export(
            branch.eval(),
            tuple(example for example, _ in inputs.values()),
            dynamic_shapes=tuple({dimension: batch} for _, dimension in inputs.values()),
            strict=True,
        )
        exported = torch.onnx.export(
            traced,
            input_names=list(inputs),
            output_names=outputs,
            dynamic_shapes=tuple({dimension: "batch"} for _, dimension in inputs.values()),  # names it
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    graph = cast("torch.onnx.ONNXProgram", exported)  # None for another exporter than this
    graph.model.metadata_props[METADATA_KEY] = notes
    graph.save(path)


class VisualBranch(nn.Module):
    """uint8 [N, 3, H, W] -> image features, the visual branch's reading, and its refined logits."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: CLIP4STR) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(model.config.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(model.config.std).view(3, 1, 1))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features float32 [N, S, D], ids int64 [N, 26] with EOS from the end on, logits float32 [N, 26, 95]."""
        decoder, steps = self.model.visual_decoder, self.model.config.steps
        features = self.model.encode_image((pixels.float() / 255 - self.mean) / self.std)
        memory = decoder.project_memory(features)
        reading = _read(decoder, memory, torch.full((pixels.shape[0],), steps))
        return features, reading, _refine(decoder, memory, reading)


class CrossModalBranch(nn.Module):
    """What `VisualBranch` gave, and captions of its two readings, -> the refined logits that are the answer."""

    def __init__(self, model: CLIP4STR) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: Tensor, visual_reading: Tensor, caption_tokens: Tensor) -> Tensor:
        """Caption tokens int64 [2, N, L], of the reading and of the refined one. Returns float32 [N, 26, 95]."""
        decoder, steps = self.model.cross_decoder, self.model.config.steps
        image = decoder.project_memory(features)
        text = self.model.encode_captions(caption_tokens.flatten(0, 1)).unflatten(0, (2, -1))  # [2, N, L, D]
        limit = ((visual_reading != EOS).sum(1) + 1).clamp(max=steps)
        reading = _read(decoder, image.append(decoder.project_memory(text[0])), limit)
        context = torch.where(
            torch.arange(steps) < limit[:, None] - 1, reading, EOS
        )  # the last is nobody's context
        return _refine(decoder, image.append(decoder.project_memory(text[1])), context)


def _read(decoder: Decoder, memory: KeyValue, limit: Tensor) -> Tensor:
    """Greedy decoding of row n for limit[n] steps at most. Returns class ids int64 [N, 26], EOS from the end on.

    The context always has 26 columns, the later ones hidden: what a graph's loop carries keeps its shape. What
    stands at position limit[n] and after is of no meaning.
    """
    columns = torch.arange(decoder.pos_queries.shape[1] + 1)

    def unfinished(step: Tensor, ids: Tensor) -> Tensor:
        return ((step < limit) & ~(ids == EOS).any(1)).any()

    def read_one(step: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        content = decoder.project_content(ids[:, :-1])
        seen = (columns[:-1] <= step).view(1, 1, 1, -1)
        logits = decoder(content, memory, step.view(1), seen)  # [N, 1, 95]
        return step + 1, torch.where(columns == step + 1, logits.argmax(-1), ids)

    ids = torch.where(columns == 0, BOS, PAD).expand(memory.key.shape[0], -1).clone()  # [N, 27]
    ids = while_loop(unfinished, read_one, (torch.zeros((), dtype=torch.int64), ids))[1][:, 1:]
    ended = (ids == EOS).cumsum(1) > 0
    return torch.where(ended, EOS, ids)


def _refine(decoder: Decoder, memory: KeyValue, reading: Tensor) -> Tensor:
    """Predict every position again from all other characters of `reading`, ids as `_read` gives them."""
    ids = torch.cat([torch.full_like(reading[:, :1], BOS), reading[:, :-1]], dim=1)
    return predict_again(decoder, memory, ids, ids != EOS, reading.shape[1])
