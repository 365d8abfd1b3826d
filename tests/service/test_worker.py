"""The worker in this process: errors of a start. What it reads is for the tests with the real model."""

import asyncio
from pathlib import Path

import pytest

from clip4str import Recognizer
from clip4str_service.worker import ThreadWorker, WorkerStartError


def start(worker: ThreadWorker) -> None:
    async def start_and_stop() -> None:
        try:
            await worker.start()
        finally:
            await worker.stop()

    asyncio.run(start_and_stop())


@pytest.mark.parametrize(
    ("changes", "mentions"),
    [
        ({"model": "missing.safetensors"}, "missing.safetensors"),
        ({"model": "corrupt.safetensors"}, "corrupt.safetensors"),
        ({"device": "tpu"}, "tpu"),
    ],
)
def test_start_that_fails_says_why_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], mentions: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("corrupt.safetensors").write_bytes(b"not weights")
    model = changes.get("model", "default")
    worker = ThreadWorker(model, device=changes.get("device"), precision="auto", threads=None, max_batch=4)
    with pytest.raises(WorkerStartError) as caught:
        start(worker)
    assert mentions in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(RuntimeError):
        _ = worker.model


@pytest.mark.parametrize(
    "error",
    [RuntimeError("CUDA error: invalid device ordinal\nlines of advice"), PermissionError(13, "denied")],
)
def test_fault_of_the_device_or_the_disk_is_one_line(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def load(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Recognizer, "load", load)
    with pytest.raises(WorkerStartError) as caught:
        start(ThreadWorker("default", device="cuda:9", precision="auto", threads=None, max_batch=4))
    assert str(error).partition("\n")[0] in str(caught.value)
    assert "\n" not in str(caught.value)
