"""Whatever the order of answers, breaks and refusals: every text once, in order, within the window."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from trimtab.core.reorder import Message, ReorderBuffer


class Connection(RuleBasedStateMachine):
    """A window, and a model of what a server and a caller may do to it."""

    @initialize(size=st.integers(1, 12), texts=st.integers(1, 5), room=st.integers(1, 30))
    def open(self, size: int, texts: int, room: int) -> None:
        self.size, self.texts, self.message_bytes = size, texts, room
        self.window: ReorderBuffer[str] = ReorderBuffer(size, texts, room)
        self.now = 0.0
        self.read: list[str] = []
        self.taken: list[str] = []
        self.sizes: dict[str, int] = {}
        self.flying: dict[int, Message[str]] = {}
        self.seen: dict[int, list[str]] = {}  # the texts of each message when it was first sent
        self.answered: set[int] = set()
        self.not_before: dict[int, float] = {}

    @precondition(lambda self: self.window.room)
    @rule(size=st.integers(1, 30))
    def read_text(self, size: int) -> None:
        text = f"text {len(self.read)}"
        self.read.append(text)
        self.sizes[text] = size
        self.window.add(text, size)

    @rule()
    def send(self) -> None:
        message = self.window.send(self.now)
        if message is None:
            return
        assert message.id not in self.flying
        assert message.id not in self.answered
        assert self.not_before.get(message.id, 0) <= self.now
        assert self.seen.setdefault(message.id, message.texts) == message.texts
        assert 1 <= len(message.texts) <= self.texts
        filled = sum(self.sizes[text] for text in message.texts)
        assert filled <= self.message_bytes or len(message.texts) == 1
        self.flying[message.id] = message

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        message = self.flying.pop(data.draw(st.sampled_from(sorted(self.flying))))
        assert self.window.sent(message.id) is message
        self.window.answer(message, [text.upper() for text in message.texts])
        self.answered.add(message.id)
        assert self.window.sent(message.id) is None

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), delay=st.floats(0, 5))
    def refuse(self, data: st.DataObject, delay: float) -> None:
        message = self.flying.pop(data.draw(st.sampled_from(sorted(self.flying))))
        self.not_before[message.id] = self.now + delay
        self.window.retry(message, self.now + delay)

    @rule()
    def lose_connection(self) -> None:
        self.window.lost()
        self.flying.clear()

    @rule(seconds=st.floats(0, 5))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def take(self) -> None:
        row = self.window.take()
        if row is not None:
            self.taken.append(row)

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "window"):
            return
        assert 0 <= self.window.room == self.size - len(self.read) + len(self.taken)
        assert self.taken == [text.upper() for text in self.read[: len(self.taken)]]
        sent = [text for message in self.seen.values() for text in message]
        assert sent == self.read[: len(sent)]
        answered = sum(len(self.seen[id]) for id in self.answered)
        assert self.window.owed == (answered < len(self.read))

    def teardown(self) -> None:
        if not hasattr(self, "window"):
            return
        self.window.end()
        while not self.window.finished:
            due = self.window.due()
            self.now = max(self.now, due or 0)
            self.send()
            for message in list(self.flying.values()):
                self.window.answer(self.flying.pop(message.id), [text.upper() for text in message.texts])
            self.take()
        assert self.window.complete
        assert self.taken == [text.upper() for text in self.read]


Connection.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestConnection = Connection.TestCase


def filled(texts: int = 3, message: int = 1) -> ReorderBuffer[str]:
    window: ReorderBuffer[str] = ReorderBuffer(10, message, 1000)
    for index in range(texts):
        window.add(f"text {index}", 10)
    return window


def test_nothing_is_read_beyond_the_window() -> None:
    window: ReorderBuffer[str] = ReorderBuffer(2, 16, 1000)
    window.add("a", 1)
    window.add("b", 1)
    with pytest.raises(ValueError, match="no room"):
        window.add("c", 1)


def test_an_error_is_raised_in_its_place() -> None:
    window = filled()
    first, second, third = (window.send(0) for _ in range(3))
    assert first
    assert second
    assert third
    window.answer(third, ["C"])
    window.fail(second, KeyError("b"))
    assert window.take() is None
    window.answer(first, ["A"])
    assert window.take() == "A"
    with pytest.raises(KeyError):
        window.take()


def test_the_error_that_ended_the_texts_comes_after_their_rows() -> None:
    window = filled(1)
    window.end(OSError("the disk"))
    assert window.room == 0
    message = window.send(0)
    assert message
    assert window.take() is None
    window.answer(message, ["A"])
    assert window.take() == "A"
    assert not window.finished
    with pytest.raises(OSError, match="the disk"):
        window.take()


def test_what_was_lost_goes_before_what_is_new() -> None:
    window = filled(3)
    assert window.send(0)
    window.lost()
    resent = window.send(0)
    assert resent
    assert resent.texts == ["text 0"]
    following = window.send(0)
    assert following
    assert following.texts == ["text 1"]


def test_a_refused_message_waits_until_it_is_due() -> None:
    window = filled(1)
    message = window.send(0)
    assert message
    window.retry(message, 5.0)
    assert window.send(4.9) is None
    assert window.due() == 5.0
    assert window.owed
    assert window.send(5.0) is message
    assert message.refusals == 1
    assert window.due() is None
