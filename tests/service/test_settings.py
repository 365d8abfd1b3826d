"""Settings: their defaults, where they come from, and one clear line for each wrong one."""

from pathlib import Path

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


def test_defaults_are_those_that_clients_rely_on() -> None:
    settings = load_settings({})
    assert (settings.model, settings.host) == ("default", "127.0.0.1")
    assert (settings.http_port, settings.grpc_port, settings.metrics_port) == (8080, 50051, 9090)
    assert settings.max_crop_bytes == 2 * 1024 * 1024
    assert settings.max_request_bytes == 16 * 1024 * 1024
    assert (settings.max_crops, settings.max_crop_pixels) == (128, 4_000_000)
    assert settings.max_delay_ms <= 2.0
    assert (settings.devices, settings.precision, settings.max_batch) == (("auto",), "auto", 64)
    assert (settings.frontends, settings.cache_bytes) == (1, 0)
    assert (settings.api_keys_file, settings.tls_cert_file, settings.otlp_endpoint) == (None, None, None)


def test_flag_wins_over_variable_wins_over_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIP4STR_HTTP_PORT", "1")
    monkeypatch.setenv("CLIP4STR_GRPC_PORT", "2")
    monkeypatch.setenv("CLIP4STR_MODEL", "")  # as unset
    settings = load_settings({"grpc_port": "3"})
    assert (settings.http_port, settings.grpc_port, settings.model) == (1, 3, "default")


@pytest.mark.parametrize(
    ("text", "devices"),
    [
        ("auto", ("auto",)),
        ("cpu", ("cpu",)),
        ("cuda", ("cuda",)),
        ("cuda:0,cuda:1", ("cuda:0", "cuda:1")),
        (" cuda:12 , cpu ", ("cuda:12", "cpu")),
    ],
)
def test_devices_are_a_list(monkeypatch: pytest.MonkeyPatch, text: str, devices: tuple[str, ...]) -> None:
    assert load_settings({"devices": text}).devices == devices
    monkeypatch.setenv("CLIP4STR_DEVICES", text)
    assert load_settings({}).devices == devices


def test_files_and_numbers_come_from_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIP4STR_API_KEYS_FILE", "/keys.toml")
    monkeypatch.setenv("CLIP4STR_OTLP_ENDPOINT", "https://collector:4318")
    settings = load_settings({"tls_cert_file": "/cert.pem", "otlp_sample_ratio": "0.25", "frontends": "4"})
    assert (settings.api_keys_file, settings.tls_cert_file) == (Path("/keys.toml"), Path("/cert.pem"))
    assert (settings.otlp_sample_ratio, settings.frontends) == (0.25, 4)


def test_settings_survive_the_way_to_a_front_end() -> None:
    settings = load_settings({"devices": "cuda:0,cpu", "tls_key_file": "/key.pem", "grpc_max_age_ms": "5"})
    assert Settings.model_validate_json(settings.model_dump_json()) == settings


@pytest.mark.parametrize(
    ("wrong", "mentions"),
    [
        ({"http_port": "http"}, ["CLIP4STR_HTTP_PORT (--http-port)", "integer"]),
        ({"http_port": "65536"}, ["CLIP4STR_HTTP_PORT", "65535"]),
        ({"precision": "fp8"}, ["CLIP4STR_PRECISION", "'fp32'"]),
        ({"devices": "gpu"}, ["CLIP4STR_DEVICES (--devices)", "cuda:N"]),
        ({"devices": "cuda:0,"}, ["CLIP4STR_DEVICES", "cuda:N"]),
        ({"devices": ""}, ["CLIP4STR_DEVICES", "cuda:N"]),
        ({"devices": "cuda:0,cuda:0"}, ["CLIP4STR_DEVICES", "once"]),
        ({"devices": "cpu,auto"}, ["CLIP4STR_DEVICES", "alone"]),
        ({"frontends": "0"}, ["CLIP4STR_FRONTENDS", "greater"]),
        ({"frontends": "65"}, ["CLIP4STR_FRONTENDS", "64"]),
        ({"stream_crops": "0"}, ["CLIP4STR_STREAM_CROPS", "greater"]),
        ({"cache_bytes": "-1"}, ["CLIP4STR_CACHE_BYTES", "greater"]),
        ({"max_connections": "0"}, ["CLIP4STR_MAX_CONNECTIONS", "greater"]),
        ({"max_calls": "65537"}, ["CLIP4STR_MAX_CALLS", "65536"]),
        ({"idle_timeout_ms": "never"}, ["CLIP4STR_IDLE_TIMEOUT_MS", "integer"]),
        ({"grpc_max_age_ms": "0"}, ["CLIP4STR_GRPC_MAX_AGE_MS", "greater"]),
        ({"hang_timeout_ms": "1999"}, ["CLIP4STR_HANG_TIMEOUT_MS", "2000"]),
        ({"otlp_endpoint": "collector:4318"}, ["CLIP4STR_OTLP_ENDPOINT (--otlp-endpoint)"]),
        ({"otlp_sample_ratio": "1.5"}, ["CLIP4STR_OTLP_SAMPLE_RATIO", "less"]),
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


def test_no_setting_has_two_bounds_of_a_kind() -> None:
    for name, field in Settings.model_fields.items():
        bounds = [type(bound) for bound in field.metadata]
        assert len(bounds) == len(set(bounds)), f"{name}: only the first one of a kind is enforced"
