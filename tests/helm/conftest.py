"""The chart's tests need tools that pip does not bring; `make helm-test` fetches them."""

import pytest

from helm.tools import CHECKOV, GATEWAY_API, HELM, PROMETHEUS, PROMTOOL


def pytest_sessionstart() -> None:
    missing = [path.name for path in (HELM, PROMETHEUS, PROMTOOL, CHECKOV, GATEWAY_API) if not path.exists()]
    if missing:
        pytest.exit(f"no {', '.join(missing)} here: run make helm-test, or python helm/tools.py", 2)
