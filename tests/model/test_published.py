"""A checkpoint as the publishing project's training left it reads what the published code reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from clip4str import Recognizer
from clip4str.checkpoint import build, load
from clip4str.config import HALF
from clip4str.decoding import decode
from tests.model.golden import HERE, branch_reading, golden_weights, read_fixture


def schedule() -> dict[str, Any]:
    """OneCycleLR's state as torch 1.12 saved it: with a bound method, and through it the optimiser."""
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    scheduler = OneCycleLR(optimizer, max_lr=1e-3, total_steps=10)
    state = {key: value for key, value in vars(scheduler).items() if key != "optimizer"}
    return {**state, "anneal_func": scheduler._annealing_cos, "get_lr": scheduler.get_lr}


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Lightning 1.6 container of the golden weights, with all that lies in one."""
    path = tmp_path_factory.mktemp("official") / "clip4str_tiny.ckpt"
    content = {
        "epoch": 10,
        "global_step": 30000,
        "pytorch-lightning_version": "1.6.5",
        "state_dict": {key: torch.from_numpy(array) for key, array in golden_weights.weights("tiny")},
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"current": {"ready": 10}}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'val_accuracy'}": {"best_model_score": torch.tensor(95.0)}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(4)}}, "param_groups": [{"lr": 8.4e-5}]}],
        "lr_schedulers": [schedule()],
        "NativeMixedPrecisionPlugin": {"scale": 65536.0, "growth_factor": 2.0},
        "hparams_name": "kwargs",
        "hyper_parameters": {
            "charset_train": "".join(map(chr, range(33, 127))),
            "charset_test": "0123456789abcdefghijklmnopqrstuvwxyz",
            "max_label_length": 25,
            "batch_size": 256,
            "lr": 8.4e-5,
            "img_size": [224, 224],
            "patch_size": [16, 16],
            "embed_dim": 512,
            "context_length": 16,
            "text_freeze_nlayer": 6,
            "name": "vl4str",
        },
    }
    torch.save(content, path)
    return path


def test_it_holds_what_weights_only_refuses(official: Path) -> None:
    """Else this file tests nothing that `torch.load` alone could not do."""
    unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(official)
    assert {"builtins.getattr", "torch.optim.lr_scheduler.OneCycleLR", "torch.optim.adamw.AdamW"} <= set(
        unsafe
    )


def test_recognizer_loads_it(official: Path) -> None:
    info = Recognizer.load(str(official), device="cpu", precision="fp32").info
    assert (info.name, info.variant, info.image_size) == ("clip4str_tiny", "custom", (64, 64))
    assert info.parameters == sum(array.size for _, array in golden_weights.weights("tiny"))


def test_it_reads_the_golden_strings(official: Path) -> None:
    _, meta = read_fixture(HERE / "tiny.npz")
    checkpoint = load(str(official))
    assert checkpoint.config.mean == checkpoint.config.std == HALF
    images = torch.from_numpy(golden_weights.images("tiny", meta["image_seeds"]))  # already normalised
    decoded = decode(build(checkpoint), images)
    assert [branch_reading(row)[0].text for row in decoded.cross_modal.refined] == meta["strings"][
        "single_pred"
    ]
