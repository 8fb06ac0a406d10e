"""Texts into requests: what is refused, and how much goes into one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.core.answers import Limits
from trimtab.core.options import Options
from trimtab.core.requests import check_texts, split, text_size
from trimtab.errors import InvalidArgument
from trimtab.v1 import encoder_pb2 as pb


@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), max_size=40),
    most=st.integers(0, 7),
    room=st.integers(300, 600),
)
def test_parts_keep_the_order_and_the_limits(texts: list[str], most: int, room: int) -> None:
    options = Options(encoder="some-encoder", role="query", dimensions=128, dtype="int8")
    parts = split(texts, options, Limits(max_texts=most, max_text_bytes=0, max_message_bytes=room))
    assert [text for part in parts for text in part] == texts
    assert len(parts) == 1 or all(parts)
    for part in parts:
        assert not most or len(part) <= most
        streamed = pb.EmbedStreamRequest(id=2**63, request=options.request(part))
        assert streamed.ByteSize() <= room


def test_no_texts_are_one_empty_request_for_the_server_to_refuse() -> None:
    assert split([], Options(), Limits(max_texts=0, max_text_bytes=0, max_message_bytes=0)) == [[]]


@pytest.mark.parametrize("texts", ["one text", b"bytes"])
def test_a_single_text_is_not_taken_for_its_characters(texts: str) -> None:
    with pytest.raises(InvalidArgument, match=r"pass a list of str: \[text\]"):
        check_texts(texts)


def test_what_is_no_text_is_named() -> None:
    with pytest.raises(InvalidArgument, match=r"texts\[1\] is int"):
        check_texts(["a", 1])  # type: ignore[list-item]
    with pytest.raises(InvalidArgument, match=r"texts\[7\] is NoneType"):
        text_size(None, 7, 100)  # type: ignore[arg-type]


def test_half_a_surrogate_pair_is_named() -> None:
    with pytest.raises(InvalidArgument, match=r"texts\[3\].*character 2"):
        text_size("ab\ud800", 3, 100)


def test_a_text_above_the_message_limit_is_refused_with_both_numbers() -> None:
    limits = Limits(max_texts=0, max_text_bytes=0, max_message_bytes=1024)
    with pytest.raises(InvalidArgument, match=r"texts\[1\] has 2,000 bytes.*holds 9\d\d"):
        split(["a", "x" * 2000], Options(), limits)
