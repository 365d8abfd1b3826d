"""API keys: the file, who is let in, and who is not."""

import hashlib
import hmac
import logging
import tomllib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from clip4str_service import auth
from clip4str_service.auth import KeyRing, KeysError, load_keys, new_key, presented_key
from clip4str_service.errors import UnauthenticatedError
from clip4str_service.limits import Allowance

KEY, SNIPPET = new_key("invoices")
DIGEST = hashlib.sha256(b"another").hexdigest()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    path.write_text(SNIPPET)
    return path


def table(name: str, *lines: str) -> str:
    return "\n".join([f"[keys.{name}]", *lines, ""])


def digest_of(key: str) -> str:
    return f'sha256 = "{hashlib.sha256(key.encode()).hexdigest()}"'


def headers(**pairs: str | list[str]) -> Callable[[str], Sequence[str]]:
    values = {
        name.replace("_", "-"): [each] if isinstance(each, str) else each for name, each in pairs.items()
    }
    return lambda name: values.get(name, [])


def day(offset: int) -> str:
    return (datetime.now(UTC).date() + timedelta(days=offset)).isoformat()


def test_new_key_lets_in(file: Path) -> None:
    assert KEY.startswith("c4s_")
    assert len(KEY) == len("c4s_") + 43  # 256 bits in base64
    assert KEY not in SNIPPET
    found = load_keys(file).authenticate(KEY)
    assert (found.name, found.allowance, found.expires) == ("invoices", Allowance(), None)
    assert new_key("invoices")[0] != KEY


@pytest.mark.parametrize("name", ["", "-a", "a.b", "a b", "ä", "a" * 65, 'a"]\nb'])
def test_key_needs_a_plain_name(name: str) -> None:
    with pytest.raises(KeysError, match="letters, digits") as caught:
        new_key(name)
    assert "\n" not in str(caught.value)


def test_figures(file: Path) -> None:
    file.write_text(
        table("a", digest_of("a"), "crops_per_second = 50", "burst_crops = 20", "max_crops_in_flight = 64")
        + table("b", digest_of("b"), "crops_per_second = 200.5")
        + table("c", digest_of("c"), "crops_per_second = 0.5")
        + table("d", digest_of("d"), f"expires = {day(2)}")
    )
    keys = load_keys(file)
    assert keys.allowances == {
        "a": Allowance(50, 20, 64),
        "b": Allowance(200.5, 201),
        "c": Allowance(0.5, auth.DEFAULT_BURST),
        "d": Allowance(),
    }
    assert [keys.authenticate(name).name for name in "dcba"] == list("dcba")


@pytest.mark.parametrize(
    ("presented", "reason"),
    [
        (None, "an API key is needed: send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`"),
        ("", "malformed"),
        ("two words", "malformed"),
        ("k" * 257, "malformed"),
        ("schlüssel", "malformed"),
        ("\udcff", "malformed"),
        ("wrong", "the API key is unknown"),
        (KEY[:-1], "the API key is unknown"),
        (KEY + "x", "the API key is unknown"),
        (KEY.upper(), "the API key is unknown"),
        (hashlib.sha256(KEY.encode()).hexdigest(), "the API key is unknown"),  # what the file has is no key
    ],
    ids=range(11),  # the key is another one each time
)
def test_intruder_stays_out(file: Path, presented: str | None, reason: str) -> None:
    with pytest.raises(UnauthenticatedError) as caught:
        load_keys(file).authenticate(presented)
    assert reason in caught.value.detail
    assert presented not in caught.value.detail if presented else True


@pytest.mark.parametrize(("offset", "valid"), [(-1, False), (0, False), (2, True)])
def test_expired_key_stays_out(file: Path, offset: int, valid: bool) -> None:
    file.write_text(SNIPPET + f"expires = {day(offset)}\n")
    keys = load_keys(file)
    if valid:
        assert keys.authenticate(KEY).name == "invoices"
    else:
        with pytest.raises(UnauthenticatedError, match=f"the API key expired on {day(offset)}"):
            keys.authenticate(KEY)


def test_all_keys_are_compared_whichever_it_is(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("".join(table(f"k{number}", digest_of(f"k{number}")) for number in range(10)))
    keys = load_keys(file)
    compared: list[bytes] = []
    compare = hmac.compare_digest

    def spy(ours: bytes, theirs: bytes) -> bool:
        compared.append(ours)
        return compare(ours, theirs)

    monkeypatch.setattr(hmac, "compare_digest", spy)
    for presented in ("k0", "k9"):
        compared.clear()
        assert keys.authenticate(presented).name == presented
        assert len(compared) == 10


def test_nothing_presented_is_logged(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    keys = load_keys(file)
    keys.authenticate(KEY)
    with pytest.raises(UnauthenticatedError):
        keys.authenticate("wrong")
    assert not caplog.records


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "the file has no keys; `clip4str-service key NAME` makes one"),
        ("[keys]", "the file has no keys"),
        ("[keys.a", "the file is not TOML"),
        (table("a", digest_of("a")) * 2, "the file is not TOML"),
        ("a = " + "[" * 50_000, "the file is not TOML"),
        (b"\xff\xfe", "the file is not UTF-8 text"),
        (" " * (1 << 20) + " ", "the file has more than 1048576 bytes"),
        (table("a"), "keys.a.sha256: Field required"),
        (table("a", 'sha256 = "hunter2"'), "keys.a.sha256: String should match"),
        (table("a", f'sha256 = "{DIGEST}\\n"'), "keys.a.sha256: String should match"),
        (table("a", "sha256 = 5"), "keys.a.sha256: Input should be a valid string"),
        (
            table("a", digest_of("a"), 'crops_per_second = "5"'),
            "keys.a.crops_per_second: Input should be a valid number",
        ),
        (
            table("a", digest_of("a"), "crops_per_second = 0"),
            "keys.a.crops_per_second: Input should be greater than 0",
        ),
        (table("a", digest_of("a"), "crops_per_second = nan"), "keys.a.crops_per_second: Input should be"),
        (
            table("a", digest_of("a"), "crops_per_second = inf"),
            "keys.a.crops_per_second: Input should be less",
        ),
        (table("a", digest_of("a"), "burst_crops = 5"), "keys.a.burst_crops: it needs crops_per_second"),
        (
            table("a", digest_of("a"), "max_crops_in_flight = 0"),
            "keys.a.max_crops_in_flight: Input should be",
        ),
        (
            table("a", digest_of("a"), "max_crops_in_flight = true"),
            "keys.a.max_crops_in_flight: Input should be",
        ),
        (
            table("a", digest_of("a"), "expires = 2027-01-01T00:00:00Z"),
            "keys.a.expires: Input should be a valid date",
        ),
        (
            table("a", digest_of("a"), 'expires = "2027-01-01"'),
            "keys.a.expires: Input should be a valid date",
        ),
        (table("a", digest_of("a"), 'rate = "5"'), "keys.a.rate: Extra inputs are not permitted"),
        ("[key.a]", "key: Extra inputs are not permitted"),
        ("keys = 5", "keys: Input should be a valid dictionary"),
        (table('"a\\nb"', digest_of("a")), r"keys.'a\nb': a name has 1 to 64 letters"),
        (table('"a\\nb"'), r"keys.'a\nb'.sha256: Field required"),
        (table("a", digest_of("x")) + table("b", digest_of("x")), "keys.b.sha256: it is that of keys.a too"),
    ],
)
def test_bad_file_is_told_in_one_line(file: Path, content: str | bytes, reason: str) -> None:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(KeysError) as caught:
        load_keys(file)
    line = str(caught.value)
    assert line.startswith(f"{file}: ")
    assert reason in line
    assert "\n" not in line
    assert "hunter2" not in line  # whoever put the key itself into the file does not find it in the log


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(KeysError, match=r"none\.toml: No such file or directory"):
        load_keys(tmp_path / "none.toml")
    with pytest.raises(KeysError, match="Is a directory"):
        load_keys(tmp_path)


def test_ring_takes_a_good_file_and_keeps_to_it(file: Path) -> None:
    ring = KeyRing(file)
    other, snippet = new_key("other")
    file.write_text(snippet)
    assert ring.keys.authenticate(KEY).name == "invoices"
    assert ring.reload() is ring.keys
    assert ring.keys.authenticate(other).name == "other"
    with pytest.raises(UnauthenticatedError):
        ring.keys.authenticate(KEY)
    for bad in (snippet + "nonsense", ""):
        file.write_text(bad)
        with pytest.raises(KeysError):
            ring.reload()
        assert ring.keys.authenticate(other).name == "other"
    file.unlink()
    with pytest.raises(KeysError):
        ring.reload()
    assert ring.keys.authenticate(other).name == "other"


def test_snippet_is_all_that_a_file_needs() -> None:
    assert tomllib.loads(SNIPPET) == {
        "keys": {"invoices": {"sha256": hashlib.sha256(KEY.encode()).hexdigest()}}
    }


@pytest.mark.parametrize(
    "given",
    [
        headers(authorization="Bearer K"),
        headers(authorization="bearer   K "),
        headers(x_api_key="K"),
        headers(x_api_key="K", authorization="Bearer K"),
        headers(x_api_key=["K", "K"]),
    ],
)
def test_key_is_found(given: Callable[[str], Sequence[str]]) -> None:
    assert presented_key(given) == "K"


def test_request_without_a_key() -> None:
    assert presented_key(headers()) is None


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (headers(x_api_key="K", authorization="Bearer L"), "several API keys"),
        (headers(x_api_key=["K", "L"]), "several API keys"),
        (headers(authorization=["Bearer K", "Bearer L"]), "several API keys"),
        (headers(x_api_key=["K", "ü"]), "several API keys"),
        (headers(authorization="Basic SzpL"), "no bearer token"),
        (headers(authorization="Bearer"), "no bearer token"),
        (headers(authorization="Bearer K L"), "no bearer token"),
        (headers(authorization="SzpL"), "no bearer token"),
        (headers(authorization="", x_api_key="K"), "no bearer token"),
    ],
)
def test_doubtful_credentials_are_refused(given: Callable[[str], Sequence[str]], reason: str) -> None:
    with pytest.raises(UnauthenticatedError, match=reason) as caught:
        presented_key(given)
    assert "SzpL" not in caught.value.detail
