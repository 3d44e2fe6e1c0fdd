"""tests/test_codec.py - the Python codec against frames that the C codec made, and against nonsense."""

from __future__ import annotations

import json
import pathlib

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from troupe import FrameError
from troupe.codec import ERRORS, MESSAGES, Message, decode, encode
from troupe.common import Finished, RequestFailed, Tokens, understand

FRAMES = {name: bytes.fromhex(text) for name, text in
          json.loads(pathlib.Path(__file__).with_name("frames.json").read_text()).items() if text}
REQUEST = bytes.fromhex("0123456789abcdeffedcba9876543210")


def one(name: str) -> Message:
    (message,) = decode(FRAMES[name])
    assert message.name == name
    assert (message.request, message.attempt, message.epoch, message.to_epoch) == (REQUEST, 1, 1 << 50, 7)
    assert (message.sequence, message.sent_us) == (300, 123456789)
    return message


def test_tokens_of_the_c_codec_are_understood():
    assert understand(one("client_tokens")) == Tokens(3, [5, 70000], [-0.5, -2.0], "so", "深é")


def test_ends_of_the_c_codec_are_understood():
    assert understand(one("client_finished")) == Finished("length", 100, 65536, 20, 64)
    failed = understand(one("client_failed"))
    assert isinstance(failed, RequestFailed)
    assert (failed.error, str(failed), failed.is_retry_safe, failed.retry_after_seconds) == ("OVERLOAD", "every queue is full", True, 1.5)


def test_submit_of_the_c_codec_has_the_same_fields():
    fields = one("client_submit").fields
    assert (fields["key"], fields["kind"], fields["seed"], fields["temperature"]) == ("secret", 2, 2**64 - 1, 0.5)
    assert (fields["stop_ids"], fields["stop"], fields["content"]) == ([9], b"end\0", b"[]")


@pytest.mark.parametrize("name", sorted(FRAMES))
def test_what_was_decoded_encodes_to_the_same_meaning(name):
    message = one(name)
    assert decode(encode(message)) == [message]


def test_several_messages_of_one_frame_come_in_order():
    names = ["hello", "client_tokens", "client_finished"]
    assert [message.name for message in decode(b"".join(FRAMES[name] for name in names))] == names


@pytest.mark.parametrize("name", sorted(FRAMES))
def test_every_cut_is_refused(name):
    for size in range(1, len(FRAMES[name])):
        with pytest.raises(FrameError):
            decode(FRAMES[name][:size])


def test_unknown_trailing_fields_are_skipped():
    header, body = _values(FRAMES["client_cancel"])
    frame = msgpack.packb([*header, "later"]) + msgpack.packb([*body, 1, 2])
    assert decode(frame)[0].name == "client_cancel"


def _values(frame: bytes):
    unpacker = msgpack.Unpacker()
    unpacker.feed(frame)
    return unpacker


@pytest.mark.parametrize("fields", [{"max_tokens": -1}, {"max_tokens": 262145}, {"max_tokens": 1.5}, {"temperature": float("nan")}, {"temperature": 3},
                                    {"key": "a\0b"}, {"key": "x" * 128}, {"stop_ids": [1] * 17}, {"content": 5}, {"nonsense": 1}])
def test_fields_out_of_range_are_refused_before_they_are_sent(fields):
    with pytest.raises(FrameError):
        encode(Message("client_submit", REQUEST, 1, fields))


@given(st.binary(max_size=200))
@example(b"\x81\x80\x00")  # a map whose key is a map
def test_nonsense_is_refused_and_never_crashes(data):
    try:
        decode(data)
    except FrameError:
        pass


def test_tables_name_every_error_once():
    assert len({row["name"] for row in ERRORS.values()}) == len(ERRORS)
    assert MESSAGES["client_submit"]["tag"] == 70
