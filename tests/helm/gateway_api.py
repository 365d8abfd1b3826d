"""The Gateway API's own word on HTTPRoutes and GRPCRoutes, of which Python packages know nothing."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence

from helm.tools import GATEWAY_API, NODE
from tests.helm.charts import Document

ROUTES = {"GRPCRoute", "HTTPRoute"}


def complaints(routes: Sequence[Document]) -> list[str]:
    """What is wrong with them, unknown fields included; a line each."""
    done = subprocess.run(
        [NODE, GATEWAY_API.with_name("check.mjs")],
        input=json.dumps(routes),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert not done.stderr, done.stderr
    return done.stdout.splitlines()
