"""How a model runs on this hardware: device and dtype."""

from __future__ import annotations

import torch

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(device: str | None) -> torch.device:
    """The named device, or the first GPU, or the CPU. Raises ValueError when it is not there."""
    if device is None:
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device {device!r} is not a device name: use 'cpu', 'cuda' or 'cuda:N'") from None
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r} was asked for, but no GPU is available: use 'cpu'")
    if resolved.type not in ("cpu", "cuda"):
        raise ValueError(f"device {device!r} is not supported: use 'cpu', 'cuda' or 'cuda:N'")
    return resolved


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of weights and activations; "auto" is bf16 on a GPU and fp32 on the CPU. Raises ValueError."""
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is unknown: use auto, {', '.join(PRECISIONS)}")
    return PRECISIONS[precision]
