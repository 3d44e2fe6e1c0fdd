"""troupe/codec.py - messages to bytes and back, from the tables in protocol.json.

protocol.json is printed by the server's own build from proto/messages.def, so nothing is declared twice.
"""

from __future__ import annotations

import json
import math
import pathlib
from dataclasses import dataclass, field
from typing import Any

import msgpack

_TABLES: dict[str, Any] = json.loads(pathlib.Path(__file__).with_name("protocol.json").read_text())

PROTOCOL_VERSION: int = _TABLES["protocol_version"]
MESSAGE_BYTES_MAX: int = _TABLES["message_bytes_max"]
FINISH: list[str] = _TABLES["finish"]
ERRORS: dict[int, dict[str, Any]] = {row["code"]: row for row in _TABLES["errors"]}
MESSAGES: dict[str, dict[str, Any]] = {row["name"]: row for row in _TABLES["messages"]}
NO_REQUEST = bytes(16)

_BY_TAG: dict[int, dict[str, Any]] = {row["tag"]: row for row in _TABLES["messages"]}
_HEADER_FIELDS = len(_TABLES["header"])
_UINT_MAX = {"u32": 2**32 - 1, "u64": 2**64 - 1}


class FrameError(ValueError):
    """A frame is not what it claims to be, or a field is out of its range."""


@dataclass
class Message:
    """One message: its name, the request it concerns, and its fields by name."""

    name: str
    request: bytes = NO_REQUEST
    attempt: int = 0
    fields: dict[str, Any] = field(default_factory=dict)
    epoch: int = 0
    to_epoch: int = 0
    sequence: int = 0
    sent_us: int = 0


def _default(row: dict[str, Any]) -> Any:
    if "default" in row:
        return row["default"]
    return {"field": 0, "text": "", "list": [], "bytes": b""}[row["kind"]]


def _scalar(row: dict[str, Any], value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise FrameError(f"{row['name']}: found {value!r}, a number is needed")
    if row["type"] in _UINT_MAX:
        most = row.get("max", _UINT_MAX[row["type"]])
        if not isinstance(value, int) or not 0 <= value <= most:
            raise FrameError(f"{row['name']}: found {value!r}, allowed are whole numbers from 0 to {most}")
        return value
    if math.isnan(value):
        raise FrameError(f"{row['name']}: found NaN")
    least, most = row.get("least"), row.get("most")
    # Limits are stored as float 32: 0.01 is there 0.0099999998.
    if least is not None and most is not None and not least <= value <= most:
        raise FrameError(f"{row['name']}: found {value!r}, allowed is {least:g} to {most:g}")
    return float(value)


def _check(row: dict[str, Any], value: Any) -> Any:
    """The value as it may be sent, or as it was meant when it came."""
    kind = row["kind"]
    if kind == "field":
        return _scalar(row, value)
    if kind == "text":
        if not isinstance(value, str) or "\0" in value or len(value.encode()) > row["count_max"]:
            raise FrameError(f"{row['name']}: a text of at most {row['count_max']} bytes without NUL is needed")
        return value
    if kind == "list":
        if not isinstance(value, (list, tuple)) or len(value) > row["count_max"]:
            raise FrameError(f"{row['name']}: a list of at most {row['count_max']} entries is needed")
        return [_scalar(row, one) for one in value]
    if isinstance(value, str):
        value = value.encode()
    if not isinstance(value, (bytes, bytearray, memoryview)) or len(value) > row["count_max"]:
        raise FrameError(f"{row['name']}: at most {row['count_max']} bytes are needed")
    return bytes(value)


def encode(message: Message) -> bytes:
    """Header and body behind each other.  Fields left out take their defaults.  Raises FrameError."""
    table = MESSAGES.get(message.name)
    if table is None:
        raise FrameError(f"there is no message {message.name!r}")
    unknown = set(message.fields) - {row["name"] for row in table["fields"]}
    if unknown:
        raise FrameError(f"{message.name} has no field {sorted(unknown)[0]!r}")
    if len(message.request) != 16:
        raise FrameError("a request id has 16 bytes")
    header = [PROTOCOL_VERSION, table["tag"], message.request, message.attempt, message.epoch, message.to_epoch,
              message.sequence, message.sent_us]
    body = [_check(row, message.fields.get(row["name"], _default(row))) for row in table["fields"]]
    data: bytes = msgpack.packb(header) + msgpack.packb(body)
    if len(data) > MESSAGE_BYTES_MAX:
        raise FrameError(f"{message.name} has {len(data)} bytes, allowed are {MESSAGE_BYTES_MAX}")
    return data


def _header(values: Any) -> tuple[dict[str, Any], Message]:
    if not isinstance(values, list) or len(values) < _HEADER_FIELDS:
        raise FrameError("the header is no list of all its fields")
    version, tag, request, *numbers = values[:_HEADER_FIELDS]
    if version != PROTOCOL_VERSION:
        raise FrameError(f"protocol version {version!r}; this client speaks {PROTOCOL_VERSION}")
    if not isinstance(tag, int) or tag not in _BY_TAG:
        raise FrameError(f"there is no message with tag {tag!r}")
    if not isinstance(request, bytes) or len(request) != 16:
        raise FrameError("a request id has 16 bytes")
    if any(isinstance(one, bool) or not isinstance(one, int) or not 0 <= one < 2**64 for one in numbers):
        raise FrameError("a number of the header is out of range")
    attempt, epoch, to_epoch, sequence, sent_us = numbers
    table = _BY_TAG[tag]
    return table, Message(table["name"], request, attempt, {}, epoch, to_epoch, sequence, sent_us)


def decode(frame: bytes) -> list[Message]:
    """All messages of a frame.  Unknown fields at the end are skipped.  Raises FrameError."""
    unpacker = msgpack.Unpacker(raw=False, strict_map_key=False, max_buffer_size=2 * MESSAGE_BYTES_MAX)
    messages: list[Message] = []
    values: list[Any] = []
    consumed = 0
    try:
        unpacker.feed(frame)
        while consumed < len(frame):
            values.append(unpacker.unpack())
            consumed = unpacker.tell()
    except msgpack.OutOfData as error:
        raise FrameError("the frame is cut") from error
    except (ValueError, TypeError, msgpack.exceptions.UnpackException, RecursionError) as error:  # TypeError: a map as a key
        raise FrameError(f"no msgpack: {error}") from error
    if len(values) % 2 != 0:
        raise FrameError("the frame is cut")
    for header, body in zip(values[::2], values[1::2]):
        table, message = _header(header)
        rows = table["fields"]
        if not isinstance(body, list) or len(body) < len(rows):
            raise FrameError(f"{message.name} lacks fields")
        message.fields = {row["name"]: _check(row, value) for row, value in zip(rows, body)}
        messages.append(message)
    return messages
