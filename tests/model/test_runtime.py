"""Devices and precisions: what is picked, and clear words for what is not there."""

import pytest
import torch

from clip4str.runtime import resolve_device, resolve_precision


def test_cpu_defaults_to_fp32() -> None:
    device = resolve_device("cpu")
    assert resolve_precision("auto", device) is torch.float32
    assert resolve_precision("bf16", device) is torch.bfloat16


def test_gpu_defaults_to_bf16() -> None:
    assert resolve_precision("auto", torch.device("cuda:0")) is torch.bfloat16


@pytest.mark.parametrize("device", ["tpu", "meta", "cpu:x"])
def test_unknown_device(device: str) -> None:
    with pytest.raises(ValueError, match=f"device '{device}' is not"):
        resolve_device(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_missing_gpu() -> None:
    with pytest.raises(ValueError, match="no GPU is available"):
        resolve_device("cuda:0")


def test_unknown_precision() -> None:
    with pytest.raises(ValueError, match="precision 'int4' is unknown"):
        resolve_precision("int4", torch.device("cpu"))
