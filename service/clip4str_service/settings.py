"""Every setting of the service in one typed object; nothing else reads the environment.

`CLIP4STR_HTTP_PORT=8081` in the environment and `--http-port 8081` on the command line set `http_port`;
the command line wins.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "CLIP4STR_"

MAX_CROPS = 1024
"""The largest value that `max_crops` may have: what a request parser must bear before limits are known."""

Port = Annotated[int, Field(ge=0, le=65535)]
Count = Annotated[int, Field(ge=1)]

_API_KEYS_FILE = PREFIX + "API_KEYS_FILE"

_MIB = 1 << 20
_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


class SettingsError(ValueError):
    """A setting is wrong; the message is one line that names it, by variable and by flag."""


class Settings(BaseSettings):
    """What the service was told, checked and frozen. Sizes in bytes, times in milliseconds."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True)

    model: str = Field("default", description="model to load: default, a fetched model's name, or a path")
    devices: str = Field("auto", description="device that runs the model: auto, cpu, cuda or cuda:N")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="number format the model computes in; auto is bf16 where the device multiplies in it, else fp32",
    )
    threads: Count | None = Field(
        None, le=1024, description="threads of a model on the CPU; unset, as many as processors may be used"
    )

    host: str = Field("127.0.0.1", min_length=1, description="address that all three ports listen on")
    http_port: Port = Field(8080, description="port of REST; 0 takes a free one")
    grpc_port: Port = Field(50051, description="port of gRPC; 0 takes a free one")
    metrics_port: Port = Field(9090, description="port of Prometheus metrics; 0 takes a free one")

    max_batch: Count = Field(64, le=4096, description="crops in a batch, at most")
    max_delay_ms: float = Field(
        2.0, ge=0, le=1000, description="how long a crop waits for company that is on its way"
    )
    queue_crops: Count = Field(1024, description="crops accepted and not yet answered, at most")
    queue_bytes: Count = Field(256 * _MIB, description="encoded bytes of crops accepted and not yet answered")

    max_crop_bytes: Count = Field(2 * _MIB, description="encoded bytes of one crop, at most")
    max_crop_pixels: Count = Field(4_000_000, le=100_000_000, description="pixels of one crop, at most")
    max_crops: Count = Field(128, le=MAX_CROPS, description="crops of one request, at most")
    max_request_bytes: Count = Field(
        16 * _MIB, le=1024 * _MIB, description="bytes of a REST body or gRPC message, at most"
    )

    default_timeout_ms: Count = Field(30_000, le=600_000, description="deadline of a request that sets none")
    drain_timeout_ms: Count = Field(
        25_000, le=600_000, description="time for accepted crops to end at a stop"
    )
    decode_threads: Count = Field(
        default_factory=lambda: min(4, os.cpu_count() or 1), le=256, description="threads that decode images"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="lowest level logged")

    @field_validator("devices")
    @classmethod
    def _one_device(cls, devices: str) -> str:
        if not _DEVICE.fullmatch(devices):
            raise ValueError("name one device: auto, cpu, cuda or cuda:N")
        return devices

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
        SettingsError: one or more are wrong, or the environment asks for authentication.
    """
    if any(name.upper() == _API_KEYS_FILE and value for name, value in os.environ.items()):
        # Who sets it believes the service is locked; a warning would leave it open.
        raise SettingsError(
            f"{_API_KEYS_FILE}: authentication is not available in this version; remove the variable, "
            "or put the service behind an authenticating proxy"
        )
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
