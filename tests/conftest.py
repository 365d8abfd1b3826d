"""How long fuzz tests go on: `--fuzz-examples N`; `make fuzz` has them send more than ten thousand requests."""

import pytest
from hypothesis import HealthCheck, settings


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fuzz-examples",
        type=int,
        default=100,
        metavar="N",
        help="malformed requests that each fuzz test sends (100)",
    )


def pytest_configure(config: pytest.Config) -> None:
    settings.register_profile(
        "fuzz",
        max_examples=config.getoption("--fuzz-examples"),
        deadline=None,  # of one example: the tests have their own, which a busy machine meets
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
