"""Make bench/rivals/.venv: the frameworks to compare with, and all that the environment which runs this has.

The frameworks want other versions of what they share with us; torch is large, and need not be there twice.
"""

from __future__ import annotations

import subprocess
import sysconfig
import venv
from pathlib import Path

RIVALS = Path(__file__).resolve().parent
VENV = RIVALS / ".venv"


def main() -> None:
    """Make it, or make it anew."""
    venv.EnvBuilder(with_pip=True, clear=True).create(VENV)
    python = VENV / "bin" / "python"
    place = subprocess.run(  # noqa: S603 (our own interpreter)
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", RIVALS / "requirements.txt"], check=True)  # noqa: S603
    # Behind its own packages, and with what installed ours in place (a .pth file as well).
    ours = sysconfig.get_path("purelib")
    (Path(place) / "ours.pth").write_text(f"import site; site.addsitedir({ours!r})\n")


if __name__ == "__main__":
    main()
