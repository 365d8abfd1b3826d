"""checkov finds nothing in what the chart renders, but for what is meant to be as it is.

Without its makers' server checkov knows no severities, so each finding counts.
"""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path

import yaml

from helm.tools import CHECKOV
from tests.helm.charts import VALUES, named, rendered

EXCEPTIONS: Mapping[tuple[str, str], str] = {
    ("CKV_K8S_15", "Deployment"): "tags are versions, which do not change: no need to ask the registry again",
    ("CKV_K8S_15", "Pod"): "likewise",
    ("CKV_K8S_43", "Deployment"): "the digest is known to whoever pushes the image: image.digest",
    ("CKV_K8S_43", "Pod"): "likewise",
    (
        "CKV_K8S_35",
        "Deployment",
    ): "settings are variables, so secret ones are too; keys and certificates are files",
    ("CKV_K8S_8", "Pod"): "helm's test runs once and ends: there is nothing to keep alive",
    ("CKV_K8S_9", "Pod"): "nor anybody who waits for it to be ready",
    ("CKV2_K8S_6", "Pod"): "helm's test listens nowhere, and lives for seconds",
}
"""(check, kind of object) -> why it does not apply."""


def test_checkov_finds_nothing_but_the_exceptions(tmp_path: Path) -> None:
    for values in VALUES:
        manifests = tmp_path / f"{named(values)}.yaml"
        manifests.write_text(yaml.safe_dump_all(rendered(values)), encoding="utf-8")
    flags = ["--framework=kubernetes", "--skip-download", "--output=json", "--quiet", "--compact"]
    done = subprocess.run(
        [CHECKOV, "--directory", tmp_path, *flags], capture_output=True, text=True, check=False, timeout=240
    )
    report = json.loads(done.stdout)
    assert report["summary"]["parsing_errors"] == 0
    assert report["summary"]["passed"] > len(VALUES)
    failed = report["results"]["failed_checks"]
    found = {(each["check_id"], each["resource"].partition(".")[0]): each["check_name"] for each in failed}
    assert {name: kind for name, kind in found.items() if name not in EXCEPTIONS} == {}
    assert found.keys() == EXCEPTIONS.keys()
