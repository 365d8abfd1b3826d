"""`clip4str fetch URL --sha256 HEX --output FILE`: a file that is known by its checksum, and no other."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from clip4str.cli import main
from clip4str.fetch import fetch_file
from tests.model.downloads import CONTENT, SHA256, archive
from tests.model.file_server import Site


def run(site: Site, output: Path, sha256: str = SHA256, query: str = "") -> int:
    return main(["fetch", f"{site.url}/a.safetensors{query}", "--sha256", sha256, "--output", str(output)])


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_fetched_into_a_new_folder(site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "models" / "words.safetensors"
    assert run(site, output, SHA256.upper()) == 0
    assert output.read_bytes() == CONTENT
    assert files(output.parent) == {".lock", "words.safetensors"}
    assert capsys.readouterr().out == f"{output}\nsha256 {SHA256} (fetched)\n"


def test_no_archive_is_as_good(site: Site, tmp_path: Path) -> None:
    """safetensors are no zip archives; the checksum says it all."""
    site.content = b"weights"
    assert fetch_file(f"{site.url}/a", hashlib.sha256(site.content).hexdigest(), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == site.content


def test_what_is_there_is_not_fetched_again(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(site, tmp_path / "a") == run(site, tmp_path / "a") == 0
    assert len(site.requests) == 1
    assert capsys.readouterr().out.endswith("(was there)\n")


def test_another_version_is_replaced_by_the_right_one_alone(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "a"
    output.write_bytes(b"yesterday's")
    site.content = archive(seed=1)
    assert run(site, output) == 2
    assert "it was not kept" in capsys.readouterr().err
    assert output.read_bytes() == b"yesterday's"
    assert files(tmp_path) == {".lock", "a"}
    site.content = CONTENT
    assert run(site, output) == 0
    assert output.read_bytes() == CONTENT


def test_continued_where_it_broke_off(site: Site, tmp_path: Path) -> None:
    site.cuts = [100_000] + [0] * 4
    assert run(site, tmp_path / "a") == 2
    assert (tmp_path / "a.part").stat().st_size == 100_000
    site.requests.clear()
    assert run(site, tmp_path / "a") == 0
    assert [headers["Range"] for headers in site.requests] == ["bytes=100000-"]
    assert files(tmp_path) == {".lock", "a"}


def test_signature_of_an_address_is_not_told(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for status, tries in ((403, 1), (500, 5)):
        site.statuses = [status] * tries
        assert run(site, tmp_path / "a", query="?signature=secret") == 2
        err = capsys.readouterr().err
        assert f"{site.url}/a.safetensors" in err
        assert f"answers {status}" in err
        assert "secret" not in err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["https://host/a"], "an address needs --sha256 and --output"),
        (["https://host/a", "--sha256", SHA256], "an address needs --sha256 and --output"),
        (["https://host/a", "--sha256", SHA256, "--output", "a", "--dir", "."], "takes no --dir"),
        (["https://host/a", "--sha256", "12", "--output", "a"], "--sha256 is '12': expected 64"),
        (["s3://host/a", "--sha256", SHA256, "--output", "a"], "'s3://host/a' is no address of a file"),
        (["https://host", "--sha256", SHA256, "--output", "a"], "'https://host' is no address of a file"),
        (["https://host/a", "--sha256", SHA256, "--output", "."], ". is a folder: name the file"),
        (["base16", "--sha256", SHA256], "go with an address"),
        (["base16", "--output", "a"], "go with an address"),
    ],
)
def test_bad_input_exits_2_with_one_line(
    arguments: list[str],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fetch", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("clip4str fetch: ")
    assert reason in line
