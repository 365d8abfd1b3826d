"""Settings: their defaults, where they come from, and one clear line for each wrong one."""

import pytest
from pydantic import ValidationError

from clip4str_service.settings import (
    Settings,
    SettingsError,
    flag,
    load_settings,
    unknown_variables,
    variable,
)


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for field in Settings.model_fields:
        monkeypatch.delenv(variable(field), raising=False)
    monkeypatch.delenv("CLIP4STR_API_KEYS_FILE", raising=False)


def test_defaults_are_those_that_clients_rely_on() -> None:
    settings = load_settings({})
    assert (settings.model, settings.host) == ("default", "127.0.0.1")
    assert (settings.http_port, settings.grpc_port, settings.metrics_port) == (8080, 50051, 9090)
    assert settings.max_crop_bytes == 2 * 1024 * 1024
    assert settings.max_request_bytes == 16 * 1024 * 1024
    assert (settings.max_crops, settings.max_crop_pixels) == (128, 4_000_000)
    assert settings.max_delay_ms == 2.0


def test_flag_wins_over_variable_wins_over_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIP4STR_HTTP_PORT", "1")
    monkeypatch.setenv("CLIP4STR_GRPC_PORT", "2")
    monkeypatch.setenv("CLIP4STR_MODEL", "")  # as unset
    settings = load_settings({"grpc_port": "3"})
    assert (settings.http_port, settings.grpc_port, settings.model) == (1, 3, "default")


@pytest.mark.parametrize(
    ("wrong", "mentions"),
    [
        ({"http_port": "http"}, ["CLIP4STR_HTTP_PORT (--http-port)", "integer"]),
        ({"http_port": "65536"}, ["CLIP4STR_HTTP_PORT", "65535"]),
        ({"precision": "fp8"}, ["CLIP4STR_PRECISION", "'fp32'"]),
        ({"devices": "cuda:0,cuda:1"}, ["CLIP4STR_DEVICES", "one device"]),
        ({"devices": "gpu"}, ["CLIP4STR_DEVICES", "cuda:N"]),
        ({"max_batch": "0"}, ["CLIP4STR_MAX_BATCH", "greater"]),
        ({"max_delay_ms": "-1"}, ["CLIP4STR_MAX_DELAY_MS", "greater"]),
        ({"log_level": "loud"}, ["CLIP4STR_LOG_LEVEL", "'warning'"]),
        ({"host": ""}, ["CLIP4STR_HOST"]),
        ({"http_port": "7", "grpc_port": "7"}, ["http_port", "differ"]),
        ({"max_crops": "65", "queue_crops": "64"}, ["max_crops", "queue_crops"]),
        ({"max_crop_bytes": "100", "max_request_bytes": "99"}, ["max_crop_bytes", "max_request_bytes"]),
        ({"queue_bytes": "100"}, ["max_request_bytes", "queue_bytes"]),
        ({"max_batch": "x", "max_crops": "y"}, ["CLIP4STR_MAX_BATCH", "CLIP4STR_MAX_CROPS"]),
    ],
)
def test_wrong_setting_is_named_in_one_line(wrong: dict[str, str], mentions: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(wrong)
    line = str(caught.value)
    assert "\n" not in line
    for mention in mentions:
        assert mention in line


def test_wrong_variable_is_named_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIP4STR_METRICS_PORT", "none")
    with pytest.raises(SettingsError, match=r"CLIP4STR_METRICS_PORT \(--metrics-port\)"):
        load_settings({})


@pytest.mark.parametrize("name", ["CLIP4STR_API_KEYS_FILE", "clip4str_api_keys_file"])
def test_wish_for_authentication_is_not_ignored(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "")  # as unset
    load_settings({})
    monkeypatch.setenv(name, "/keys")
    with pytest.raises(SettingsError, match=r"CLIP4STR_API_KEYS_FILE: authentication is not available"):
        load_settings({})


def test_equal_ports_may_all_be_free_ones() -> None:
    load_settings({"http_port": "0", "grpc_port": "0", "metrics_port": "0"})


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        setattr(load_settings({}), "http_port", 1)  # noqa: B010 (a plain assignment is a type error)


def test_misspelt_variables_are_found() -> None:
    environment = ["CLIP4STR_HTP_PORT", "CLIP4STR_HTTP_PORT", "clip4str_model", "PATH"]
    assert unknown_variables(environment) == ["CLIP4STR_HTP_PORT"]


def test_names_of_a_setting() -> None:
    assert (variable("max_crops"), flag("max_crops")) == ("CLIP4STR_MAX_CROPS", "--max-crops")


def test_every_setting_is_described() -> None:
    assert all(field.description for field in Settings.model_fields.values())
