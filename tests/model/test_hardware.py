"""Devices, precisions and processors: what is picked, and clear words for what is not there."""

from pathlib import Path

import pytest
import torch

from clip4str.hardware import available_processors, fit_threads, resolve_device, resolve_precision


@pytest.mark.parametrize(("avx512", "amx"), [(True, False), (False, True), (False, False)])
def test_cpu_computes_in_bf16_where_it_multiplies_in_it(
    monkeypatch: pytest.MonkeyPatch, avx512: bool, amx: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    expected = torch.bfloat16 if avx512 or amx else torch.float32
    assert resolve_precision("auto", torch.device("cpu")) is expected
    assert resolve_precision("fp16", torch.device("cpu")) is torch.float16


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_computes_in_bf16_since_ampere() -> None:
    modern = torch.cuda.get_device_capability()[0] >= 8
    expected = torch.bfloat16 if modern else torch.float32
    assert resolve_precision("auto", resolve_device("cuda")) is expected


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


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "100000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "60000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
        ({"cpu.max": "50000 0\n"}, None),
        ({"cpu.max": "many 100000\n"}, None),
        ({"cpu.max": "50000 often\n"}, None),
        ({"cpu.max": "\ufffd"}, None),
        ({"cpu/cpu.cfs_quota_us": "60000\n", "cpu/cpu.cfs_period_us": "0\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
    ],
)
def test_processors_of_a_container(tmp_path: Path, files: dict[str, str], expected: int | None) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    unlimited = available_processors(tmp_path / "none")
    assert available_processors(tmp_path) == (expected or unlimited)


def test_quota_above_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("99900000 100000\n")
    assert available_processors(tmp_path) == available_processors(tmp_path / "none")


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        assert fit_threads(1) == torch.get_num_threads() == 1
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        assert fit_threads() == 1  # what was asked for stays
    finally:
        torch.set_num_threads(before)
