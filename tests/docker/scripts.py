"""The folder's programs as modules. Their folder is no package: a library on PyPI has its name."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

DOCKER = Path(__file__).resolve().parents[2] / "docker"


def script(name: str) -> ModuleType:
    """The program of this name."""
    spec = spec_from_file_location(f"image_{name}", DOCKER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
