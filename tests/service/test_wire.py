"""What the processes tell each other: every message comes out as it went in, and only who may say it says it."""

from dataclasses import asdict
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip4str_service import wire
from clip4str_service.readings import Alternative, BranchReading, Character, Reading
from clip4str_service.wire import FromFrontend, FromWorker, Settled, ToFrontend, ToWorker, Wanted
from tests.service.pixel_process import MODEL

MESSAGES: list[tuple[Any, msgspec.Struct]] = [
    (FromFrontend, wire.Admit(7, [0, 9], Wanted(2, "ab€"), True, 1e6 / 3, "tenant", "00-a-b-01")),
    (FromFrontend, wire.Submit(7, [1, 0], [b"", b"\0\xff" * 8])),
    (FromFrontend, wire.Withdraw(7, [0], None)),
    (FromFrontend, wire.Withdraw(7, [], "cancelled")),
    (FromFrontend, wire.Listening()),
    (FromFrontend, wire.StartFailed("no")),
    (FromFrontend, wire.Beat()),
    (ToFrontend, wire.Frontend("frontend-0", b'{"a": 1}', 5, 50051)),
    (ToFrontend, wire.Generation(3, MODEL, 1024, 64)),
    (ToFrontend, wire.Retired(3)),
    (ToFrontend, wire.State(wire.Phase.RESTARTING, 1500)),
    (ToFrontend, wire.Admitted(7, 3, [8, 2])),
    (ToFrontend, wire.Refused(7, "overloaded", "full", None, True)),
    (ToFrontend, wire.Outcomes([Settled(7, 0, b"r", "", 0.1, 0.2, 0.3)])),
    (ToFrontend, wire.Reload()),
    (ToFrontend, wire.Stop(2.5)),
    (ToWorker, wire.Load("worker", "default", None, "auto", None, 2, 64, "info")),
    (ToWorker, wire.Arena(1024)),
    (ToWorker, wire.Batch(1, [4, 3], [Wanted(), Wanted(5, "digits")])),
    (ToWorker, wire.Stop(0.0)),
    (FromWorker, wire.Loaded(MODEL, 2, 1, 64, 1)),
    (FromWorker, wire.Beat()),
    (FromWorker, wire.Done(1, [b"r", None], {"encode": 0.1})),
    (FromWorker, wire.StartFailed("no")),
]


@pytest.mark.parametrize(("direction", "message"), MESSAGES)
def test_message_comes_out_as_it_went_in(direction: Any, message: msgspec.Struct) -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=direction) == message


@pytest.mark.parametrize("direction", [FromFrontend, ToFrontend, ToWorker, FromWorker])
def test_every_message_is_tried(direction: Any) -> None:
    assert {type(message) for tried, message in MESSAGES if tried == direction} == set(get_args(direction))


@pytest.mark.parametrize("message", [message for _, message in MESSAGES])
def test_nobody_says_what_is_not_his_to_say(message: msgspec.Struct) -> None:
    content = msgspec.msgpack.encode(message)
    for other in (FromFrontend, ToFrontend, ToWorker, FromWorker):
        if type(message) not in get_args(other):
            with pytest.raises(msgspec.ValidationError):
                msgspec.msgpack.decode(content, type=other)


fractions = st.floats(0, 1)
characters = st.builds(
    Character,
    st.text(max_size=3),
    fractions,
    st.tuples(st.builds(Alternative, st.text(max_size=3), fractions)),
)
branches = st.builds(
    BranchReading, st.text(), fractions, fractions, st.lists(characters, max_size=3).map(tuple)
)


@settings(deadline=None)
@given(st.builds(Reading, branches, branches, truncated=st.booleans()))
def test_reading_comes_out_to_the_last_bit(reading: Reading) -> None:
    travelled = wire.decode_reading(wire.encode_reading(reading))
    assert travelled == reading
    assert asdict(travelled) == asdict(reading)
