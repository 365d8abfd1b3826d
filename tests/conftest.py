"""Options of tests.

`--fuzz-examples N`: how long fuzz tests go on; `make fuzz` has them send more than ten thousand requests.
`--image NAME`: run this image of the service by `--engine`, as `make image-test` does. Without it, tests/image is
left out.
"""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

IMAGE_TESTS = Path(__file__).parent / "image"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fuzz-examples",
        type=int,
        default=100,
        metavar="N",
        help="malformed requests that each fuzz test sends (100)",
    )
    parser.addoption("--image", metavar="NAME", help="image of the service that tests/image runs")
    parser.addoption("--engine", default="docker", metavar="COMMAND", help="what runs images (docker)")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Without an image there is nothing to test of one."""
    return True if collection_path == IMAGE_TESTS and config.getoption("--image") is None else None


def pytest_configure(config: pytest.Config) -> None:
    settings.register_profile(
        "fuzz",
        max_examples=config.getoption("--fuzz-examples"),
        deadline=None,  # of one example: the tests have their own, which a busy machine meets
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
