"""The default model as ONNX graphs: exported by the command, read with by the program that docs/onnx.md shows."""

import subprocess
import sys
from pathlib import Path

from clip4str_service.samples import Sample
from samples.demo import SAMPLES

DOCUMENT = Path(__file__).parents[2] / "docs" / "onnx.md"


def test_the_documented_program_reads_with_exported_graphs(samples: list[Sample], tmp_path: Path) -> None:
    command = [str(Path(sys.executable).parent / "clip4str"), "export", str(tmp_path / "graphs")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")

    _, _, rest = DOCUMENT.read_text(encoding="utf-8").partition("```python\n")
    program, _, _ = rest.partition("```")
    (tmp_path / "read.py").write_text(program, encoding="utf-8")
    images = [str(SAMPLES / sample.name) for sample in samples]
    ended = subprocess.run(
        [sys.executable, "read.py", *images],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert [line.split()[0] for line in ended.stdout.splitlines()] == [sample.text for sample in samples]
