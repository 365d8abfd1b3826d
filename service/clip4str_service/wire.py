"""What the processes of the service tell each other: one frozen message type for each thing said.

Times are CLOCK_MONOTONIC in seconds, which every process of a machine reads alike. A reading travels as the
bytes that the worker made of it: the supervisor passes it on unread.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, TypeAlias

import msgspec

from clip4str_service.readings import ModelInfo, Reading

DropReason: TypeAlias = Literal["cancelled", "deadline"]


class Phase(StrEnum):
    """Where the service is in its life."""

    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"  # no worker is up; one is on its way
    FAILED = "failed"  # workers end again and again: only a new service can help
    DRAINING = "draining"


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Written as an array that begins with the type's name."""


class Wanted(msgspec.Struct, frozen=True, array_like=True):
    """How a crop is to be read, as `ReadOptions` has it; checked before it is sent."""

    top_k: int = 0
    charset: str | None = None


# Front end -> supervisor


class Admit(_Message, frozen=True):
    """Asks for places for a call's crops, of `sizes` encoded bytes each."""

    call: int
    sizes: list[int]
    wanted: Wanted
    urgent: bool
    deadline: float
    tenant: str
    traceparent: str


class Submit(_Message, frozen=True):
    """These crops' pixels are in their slots. `digests` tell crops of equal bytes, b"" never equal."""

    call: int
    indices: list[int]
    digests: list[bytes]


class Withdraw(_Message, frozen=True):
    """These crops are given up, those not submitted for good: nobody writes to their slots any more.

    `reason` is None for a crop that could not be decoded.
    """

    call: int
    indices: list[int]
    reason: DropReason | None


class Listening(_Message, frozen=True):
    """The front end answers on its ports."""


# Supervisor -> front end


class Frontend(_Message, frozen=True):
    """What a front end is: the first message. `settings` is JSON, `http_socket` a descriptor it inherited."""

    name: str
    settings: bytes
    http_socket: int
    grpc_port: int


class Generation(_Message, frozen=True):
    """A loaded model and the slots for its crops; the arena's descriptor comes beside the message.

    `at_once`: crops that all its workers together read at a time.
    """

    number: int
    model: ModelInfo
    slots: int
    at_once: int


class Retired(_Message, frozen=True):
    """A generation has answered its last crop."""

    number: int


class State(_Message, frozen=True):
    """What the service is doing, for health checks; what new calls are told when it cannot take them."""

    phase: Phase
    retry_after_ms: int


class Admitted(_Message, frozen=True):
    """A call's crops have places, in these slots of that generation."""

    call: int
    generation: int
    slots: list[int]


class Refused(_Message, frozen=True):
    """A call has no places; `code` is an error's, `limited` an OverloadedError's."""

    call: int
    code: str
    detail: str
    retry_after_ms: int | None
    limited: bool


class Settled(msgspec.Struct, frozen=True, array_like=True):
    """The outcome of one crop: a reading (see `decode_reading`) or, where `code` is one, an error."""

    call: int
    index: int
    reading: bytes
    code: str
    submitted_at: float
    sealed_at: float
    finished_at: float


class Outcomes(_Message, frozen=True):
    """Outcomes that were ready together."""

    crops: list[Settled]


class Reload(_Message, frozen=True):
    """Key and certificate files may have changed."""


# Supervisor -> worker


class Load(_Message, frozen=True):
    """What a worker is: the first message. `device` None is the best there is.

    `processes`: how many a CPU's `threads` are for, this one included; None is what suits the model.
    """

    name: str
    model: str
    device: str | None
    precision: str
    threads: int | None
    processes: int | None
    max_batch: int
    log_level: str


class Arena(_Message, frozen=True):
    """The slots that batches will name; the descriptor comes beside the message."""

    slots: int


class Batch(_Message, frozen=True):
    """Crops to read together, by their slots."""

    number: int
    slots: list[int]
    wanted: list[Wanted]


# Worker -> supervisor


class Loaded(_Message, frozen=True):
    """The model is loaded and warm.

    `lanes` batches are read at a time, of `max_batch` crops at most; `processors` of the lanes share no
    hardware. The device has room for so many more `companions`, of as many lanes.
    """

    model: ModelInfo
    lanes: int
    processors: int
    max_batch: int
    companions: int


class Beat(_Message, frozen=True):
    """It lives."""


class Done(_Message, frozen=True):
    """A batch was read: a reading for each crop, or None where the model failed on it alone.

    `stages`: seconds that each part of the work took.
    """

    number: int
    readings: list[bytes | None]
    stages: dict[str, float]


# To any child, and from any child


class Stop(_Message, frozen=True):
    """End; answers that are ready have `grace` seconds to leave."""

    grace: float


class StartFailed(_Message, frozen=True):
    """The child cannot do its work; `reason` is one line."""

    reason: str


FromFrontend: TypeAlias = Admit | Submit | Withdraw | Listening | StartFailed | Beat
ToFrontend: TypeAlias = (
    Frontend | Generation | Retired | State | Admitted | Refused | Outcomes | Reload | Stop
)
ToWorker: TypeAlias = Load | Arena | Batch | Stop
FromWorker: TypeAlias = Loaded | Beat | Done | StartFailed

_READING_ENCODER = msgspec.msgpack.Encoder()
_READING_DECODER = msgspec.msgpack.Decoder(Reading)


def encode_reading(reading: Reading) -> bytes:
    """A reading as it travels."""
    return _READING_ENCODER.encode(reading)


def decode_reading(content: bytes) -> Reading:
    """A reading that `encode_reading` wrote."""
    return _READING_DECODER.decode(content)
