"""The worker in this process: errors of a start. What it reads is for the tests with the real model."""

import asyncio
from pathlib import Path

import pytest

from clip4str_service.worker import ThreadWorker, WorkerStartError


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
    worker = ThreadWorker(model, device=changes.get("device"), precision="auto", max_batch=4)

    async def start() -> None:
        try:
            await worker.start()
        finally:
            await worker.stop()

    with pytest.raises(WorkerStartError) as caught:
        asyncio.run(start())
    assert mentions in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(RuntimeError):
        _ = worker.model
