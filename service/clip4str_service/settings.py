"""Every setting of the service in one typed object; nothing else reads the environment.

`CLIP4STR_HTTP_PORT=8081` in the environment and `--http-port 8081` on the command line set `http_port`;
the command line wins.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from clip4str_service.tracing import check_endpoint

PREFIX = "CLIP4STR_"

MAX_CROPS = 1024
"""The largest value that `max_crops` may have: what a request parser must bear before limits are known."""

Port = Annotated[int, Field(ge=0, le=65535)]
Count = Annotated[int, Field(ge=1)]

_MIB = 1 << 20
_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


def _devices(value: object) -> object:
    """Devices as they are written in one word."""
    return tuple(name.strip() for name in value.split(",")) if isinstance(value, str) else value


def _distinct(devices: tuple[str, ...]) -> tuple[str, ...]:
    if not devices or not all(_DEVICE.fullmatch(device) for device in devices):
        raise ValueError("name devices, separated by commas: auto, cpu, cuda or cuda:N")
    if len(set(devices)) < len(devices) or ("auto" in devices and len(devices) > 1):
        raise ValueError("name each device once; auto is one device, chosen alone")
    return devices


Devices = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_devices), AfterValidator(_distinct)]


class SettingsError(ValueError):
    """A setting is wrong; the message is one line that names it, by variable and by flag."""


class Settings(BaseSettings):
    """What the service was told, checked and frozen. Sizes in bytes, times in milliseconds."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True)

    model: str = Field("default", description="model to load: default, a fetched model's name, or a path")
    devices: Devices = Field(
        ("auto",),
        description="devices that run the model, a process each: auto, cpu, cuda or cuda:N, separated by commas",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="number format the model computes in; auto is bf16 where the device multiplies in it, else fp32",
    )
    threads: Count | None = Field(
        None, le=1024, description="threads of a model on the CPU; unset, as many as processors may be used"
    )

    cpu_processes: Count | None = Field(
        None,
        le=64,
        description="processes that share the CPU's threads, each with a model; unset, what suits the model",
    )

    frontends: Count = Field(
        1, le=64, description="processes that decode images and answer; more of them share the devices"
    )

    host: str = Field("127.0.0.1", min_length=1, description="address that all three ports listen on")
    http_port: Port = Field(8080, description="port of REST; 0 takes a free one")
    grpc_port: Port = Field(50051, description="port of gRPC; 0 takes a free one")
    metrics_port: Port = Field(9090, description="port of Prometheus metrics; 0 takes a free one")

    max_batch: Count = Field(64, le=4096, description="crops in a batch, at most")
    max_delay_ms: float = Field(
        2.0, ge=0, le=1000, description="how long a crop waits for company that is on its way"
    )
    cache_bytes: int = Field(
        0, ge=0, description="readings kept for crops of the same bytes and options; 0 keeps none"
    )
    queue_crops: Count = Field(1024, le=1_000_000, description="crops accepted and not yet answered, at most")
    queue_bytes: Count = Field(256 * _MIB, description="encoded bytes of crops accepted and not yet answered")

    max_crop_bytes: Count = Field(2 * _MIB, description="encoded bytes of one crop, at most")
    max_crop_pixels: Count = Field(4_000_000, le=100_000_000, description="pixels of one crop, at most")
    max_crops: Count = Field(128, le=MAX_CROPS, description="crops of one request, at most")
    max_request_bytes: Count = Field(
        16 * _MIB, le=1024 * _MIB, description="bytes of a REST body or gRPC message, at most"
    )
    stream_crops: Count | None = Field(
        None,
        description="crops of one gRPC stream in flight, at most; unset, twice as many as are read at a time",
    )

    max_connections: Count = Field(
        1024, le=65_536, description="connections of one front end, of REST and of gRPC each"
    )
    max_calls: Count = Field(1024, le=65_536, description="gRPC calls in progress of one front end")
    max_streams: Count = Field(64, le=65_536, description="gRPC streams in progress of one front end")
    head_timeout_ms: Count = Field(10_000, le=600_000, description="time for the head of an HTTP request")
    body_timeout_ms: Count = Field(
        30_000, le=600_000, description="time for the body of an HTTP request or the message of a gRPC call"
    )
    idle_timeout_ms: Count = Field(
        75_000,
        le=3_600_000,
        description="time that a connection or a gRPC stream may be silent, between requests or within one",
    )
    grpc_max_age_ms: Count | None = Field(
        None,
        le=86_400_000,
        description="age at which a gRPC connection is closed, so that clients find new replicas; unset, never",
    )

    api_keys_file: Path | None = Field(
        None, description="TOML file of API keys, see `clip4str-service key`; unset, everybody may call"
    )
    tls_cert_file: Path | None = Field(None, description="certificate chain (PEM) of both public ports")
    tls_key_file: Path | None = Field(None, description="its private key (PEM)")
    tls_client_ca_file: Path | None = Field(
        None, description="CA certificates (PEM); clients must show a certificate that one of them signed"
    )

    default_timeout_ms: Count = Field(30_000, le=600_000, description="deadline of a request that sets none")
    drain_timeout_ms: Count = Field(
        25_000, le=600_000, description="time for accepted crops to end at a stop"
    )
    decode_threads: Count = Field(
        default_factory=lambda: min(4, os.cpu_count() or 1), le=256, description="threads that decode images"
    )
    hang_timeout_ms: int = Field(
        5_000,
        ge=2_000,
        le=600_000,
        description="silence after which a process of the service is taken for hung",
    )
    batch_timeout_ms: Count = Field(
        10_000, le=3_600_000, description="time that any batch may take before its device is taken for hung"
    )
    otlp_endpoint: str | None = Field(
        None,
        description="URL of an OpenTelemetry collector (OTLP over HTTP) for traces; unset, there are none",
    )
    otlp_sample_ratio: float = Field(
        1.0, ge=0, le=1, description="part of the traces begun here that is recorded"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="lowest level logged")

    @field_validator("otlp_endpoint")
    @classmethod
    def _url(cls, endpoint: str | None) -> str | None:
        return None if endpoint is None else check_endpoint(endpoint)

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        ports = [port for port in (self.http_port, self.grpc_port, self.metrics_port) if port]
        if len(set(ports)) < len(ports):
            raise ValueError("http_port, grpc_port and metrics_port must differ")
        for inner, outer in (
            ("max_crops", "queue_crops"),
            ("max_crop_bytes", "max_request_bytes"),
            ("max_request_bytes", "queue_bytes"),
        ):
            if getattr(self, inner) > getattr(self, outer):
                raise ValueError(f"{inner} must not exceed {outer}: such a request could never be accepted")
        return self


def load_settings(flags: Mapping[str, object]) -> Settings:
    """Settings from the environment and, above it, `flags` (field name -> text).

    Raises:
        SettingsError: one or more are wrong.
    """
    try:
        return Settings(**flags)  # type: ignore[arg-type]  # pydantic checks and converts them
    except ValidationError as error:
        raise SettingsError(
            "; ".join(_complaint(each["loc"], each["msg"]) for each in error.errors())
        ) from None


def variable(field: str) -> str:
    """The environment variable that sets a field."""
    return PREFIX + field.upper()


def flag(field: str) -> str:
    """The command-line flag that sets a field."""
    return "--" + field.replace("_", "-")


def unknown_variables(environment: Iterable[str]) -> list[str]:
    """Names of variables that look like settings and are none, such as misspelt ones."""
    known = {variable(field) for field in Settings.model_fields} | {PREFIX + "CACHE_DIR"}  # the library's own
    return sorted(name for name in environment if name.startswith(PREFIX) and name.upper() not in known)


def _complaint(location: tuple[int | str, ...], message: str) -> str:
    message = message.removeprefix("Value error, ")
    if not location:
        return message
    field = str(location[0]).lower().removeprefix(PREFIX.lower())
    return f"{variable(field)} ({flag(field)}): {message}"
