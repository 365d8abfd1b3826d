"""Room that tenants share: who is alone has all of it, and nobody keeps another out."""

from collections import Counter, deque

from hypothesis import assume, given
from hypothesis import strategies as st

from clip4str_service.batching.room import Room

EXPECTED = 60.0  # seconds that a refused tenant is expected back


class Queue:
    """A room whose items are finished in the order in which they came."""

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self.room = Room(bound, 10 * bound)
        self.line: deque[str] = deque()
        self.wishes: dict[str, int] = {}
        self.now = 0.0

    @property
    def held(self) -> Counter[str]:
        """Each tenant's items."""
        return Counter(self.line)

    def ask(self, tenant: str, items: int) -> bool:
        """Whether the tenant has room for so many more items, of ten bytes each."""
        if self.room.refusal(tenant, items, 10 * items, self.now):
            self.room.wish(tenant, items, 10 * items, self.now + EXPECTED)
            if items <= self.bound:
                self.wishes[tenant] = items
            return False
        self.room.take(tenant, items, 10 * items)
        self.line.extend([tenant] * items)
        if self.wishes.get(tenant, 0) <= items:
            self.wishes.pop(tenant, None)
        assert self.room.items == len(self.line) <= self.bound
        assert self.room.nbytes == 10 * len(self.line)
        return True

    def finish(self) -> None:
        """The oldest item is done."""
        self.room.free(self.line.popleft(), 10)


REQUESTS = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 20), st.integers(0, 30)), max_size=30)


@given(st.integers(1, 40), REQUESTS)
def test_whoever_is_alone_has_all_the_room(bound: int, requests: list[tuple[str, int, int]]) -> None:
    queue = Queue(bound)
    for _, items, finished in requests:
        fits = len(queue.line) + items <= bound
        assert queue.ask("a", items) is fits
        for _ in range(min(finished, len(queue.line))):
            queue.finish()


@given(st.integers(1, 60), REQUESTS)
def test_equal_part_is_refused_only_when_there_is_no_room(
    bound: int, requests: list[tuple[str, int, int]]
) -> None:
    queue = Queue(bound)
    for tenant, items, finished in requests:
        active = {*queue.line, *queue.wishes, tenant}
        entitled = queue.held[tenant] + items <= bound // (len(active) + 1)
        fits = len(queue.line) + items <= bound
        admitted = queue.ask(tenant, items)
        assert admitted or not (entitled and fits)
        assert not admitted or fits
        for _ in range(min(finished, len(queue.line))):
            queue.finish()


@given(
    st.integers(3, 120),
    st.lists(st.integers(1, 20), min_size=1, max_size=4),
    st.integers(1, 60),
    st.integers(1, 9),
)
def test_nobody_is_locked_out(bound: int, greedy: list[int], wanted: int, pause: int) -> None:
    """Tenants that at any time take what they can get, one that had it all first, leave room for another.

    Though they always ask before it does, and it asks only now and then.
    """
    assume(wanted <= min(bound // 2, bound // (len(greedy) + 2)))
    queue = Queue(bound)

    def grab() -> None:
        for index, items in enumerate(greedy):
            while queue.ask(f"greedy {index}", items):
                pass

    while queue.ask("greedy 0", 1):
        pass
    finished = 0
    grab()
    while not queue.ask("modest", wanted):
        for _ in range(min(pause, len(queue.line))):
            queue.finish()
            finished += 1
            grab()
        assert finished <= (len(greedy) + 1) * bound + pause, "each had its turn, and another again"


def test_equal_part_is_there_although_another_holds_nearly_all() -> None:
    queue = Queue(100)
    assert queue.ask("a", 90)
    assert queue.ask("b", 8)
    assert queue.ask("b", 1)  # it holds something, and little is free
    assert not queue.ask("a", 1)


def test_busy_tenants_have_more_than_an_equal_part_and_leave_some_room() -> None:
    queue = Queue(100)
    assert queue.ask("a", 1)
    assert queue.ask("b", 1)
    for tenant in ("a", "b") * 60:
        queue.ask(tenant, 1)
    held = queue.held
    assert held["a"] + held["b"] == 88  # of two, each has up to four times what is left
    assert abs(held["a"] - held["b"]) <= 1


def test_much_at_once_is_not_kept_out_by_its_size() -> None:
    queue = Queue(100)
    while queue.ask("small", 1):
        pass
    for _ in range(100):
        if queue.ask("large", 50):
            break
        queue.finish()
        while queue.ask("small", 1):
            pass
    assert queue.held["large"] == 50


def test_two_that_ask_for_much_do_not_block_each_other() -> None:
    queue = Queue(100)
    queue.ask("small", 10)
    queue.ask("a", 40)
    assert not queue.ask("b", 60)
    assert not queue.ask("c", 60)
    for _ in range(30):
        queue.finish()
    assert queue.ask("b", 60)


def test_absent_tenant_stops_nobody() -> None:
    queue = Queue(100)
    assert queue.ask("a", 100)
    assert not queue.ask("absent", 80)
    for _ in range(100):
        queue.finish()
    assert queue.ask("a", 50)  # half of the room at most is kept,
    assert not queue.ask("a", 50)
    queue.now = EXPECTED  # and not for ever
    assert queue.ask("a", 50)


def test_bytes_are_shared_like_items() -> None:
    room = Room(1000, 100)
    room.take("a", 1, 100)
    refusal = room.refusal("b", 10, 20, 0)
    assert refusal is not None
    assert (refusal.reason, refusal.missing) == ("the queue has room for 100 bytes of items", 10)
    room.wish("b", 10, 20, 1)
    room.free("a", 100)
    room.take("a", 1, 60)
    refusal = room.refusal("a", 1, 20, 0)
    assert refusal is not None
    assert refusal.reason == "you hold 1 of 1000 places for items in the queue, and others need room"
    assert room.refusal("b", 10, 20, 0) is None


def test_wish_for_more_than_there_ever_is_is_none() -> None:
    room = Room(10, 100)
    room.take("a", 5, 5)
    room.wish("b", 11, 11, 1)
    assert room.refusal("a", 5, 5, 0) is None
