"""What a process has freed is the system's again."""

import subprocess
import sys

import pytest

BLOCKS = """
import sys
from pathlib import Path
if sys.argv[1] == "returned":
    from clip4str.memory import return_freed_memory
    return_freed_memory()

def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

before = resident()
blocks, neighbours = [], []
for _ in range(1000):
    blocks.append(b"x" * 100_000)
    neighbours.append(b"x" * 1000)
del blocks
print(resident() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the C library is another")
@pytest.mark.parametrize(("how", "most"), [("kept", 1 << 40), ("returned", 10_000_000)])
def test_large_blocks_between_small_ones_that_live_on(how: str, most: int) -> None:
    command = [sys.executable, "-c", BLOCKS, how]
    left = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert left < most
    if how == "kept":
        assert left > 50_000_000  # else the other case shows nothing
