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
from troupe.common import Finished, RequestFailed, Tokens, Writer, complete_content, understand

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


def test_options_that_are_none_are_not_given():
    options = dict.fromkeys(["max_tokens", "temperature", "stop", "stop_ids", "timeout", "seed", "logprobs", "key", "model"])
    message = Writer("secret", "tiny").submit(0, b"The", options)
    (back,) = decode(encode(message))
    assert (back.fields["max_tokens"], back.fields["temperature"], back.fields["stop"]) == (0, 1.0, b"")
    assert (back.fields["key"], back.fields["model"], back.fields["deadline_us"]) == ("secret", "tiny", 0)


@pytest.mark.parametrize("stop, content", [("a", b"a\0"), (["a", "b"], b"a\0b\0"), ([], b"")])
def test_stops_are_sent_each_with_its_end(stop, content):
    assert Writer("", "").submit(0, b"", {"stop": stop}).fields["stop"] == content


@pytest.mark.parametrize("stop", ["a\0b", ["c", "a\0b"]])
def test_stop_with_nul_would_be_two_and_is_refused(stop):
    with pytest.raises(ValueError, match=r"stop.*'a\\x00b'"):
        Writer("", "").submit(0, b"", {"stop": stop})


@pytest.mark.parametrize("value", [-1, 1 << 20, 1 << 32, 1.5, "7", None])
def test_prompt_with_what_is_no_id_is_refused_by_name(value):
    with pytest.raises(ValueError, match=f"{value!r} as id 2.*from 0 to 1048575"):
        complete_content([0, 1, value])


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
