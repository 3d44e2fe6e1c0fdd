"""troupe/common.py - what the synchronous and the asyncio client share: values, addresses, requests."""

from __future__ import annotations

import json
import operator
import os
import pathlib
import secrets
import struct
import time
from dataclasses import dataclass, field
from typing import Any, Mapping, Sequence, Union

import zmq

from .codec import ERRORS, FINISH, MESSAGES, FrameError, Message

Prompt = Union[str, Sequence[int]]
ChatMessage = Mapping[str, Any]

_ID_MAX: int = next(row["max"] for row in MESSAGES["client_submit"]["fields"] if row["name"] == "stop_ids")


@dataclass(frozen=True)
class Tokens:
    """The next tokens of an answer, and the text that they complete."""

    first_index: int
    ids: list[int]
    logprobs: list[float]
    reasoning: str
    text: str


@dataclass(frozen=True)
class Finished:
    """How a request ended well."""

    reason: str
    prompt_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    cached_tokens: int


@dataclass
class Answer:
    """A whole answer."""

    text: str = ""
    reasoning: str = ""
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finished: Finished | None = None

    def add(self, tokens: Tokens) -> None:
        self.text += tokens.text
        self.reasoning += tokens.reasoning
        self.ids += tokens.ids
        self.logprobs += tokens.logprobs


class RequestFailed(Exception):
    """The server ended a request; says why, and whether trying again is safe."""

    def __init__(self, error: str, message: str, param: str, is_retry_safe: bool, retry_after_seconds: float):
        super().__init__(message or error)
        self.error = error
        self.param = param
        self.is_retry_safe = is_retry_safe
        self.retry_after_seconds = retry_after_seconds


def lost() -> RequestFailed:
    """The end of a request that an ingress held which is no more."""
    return RequestFailed("LOST", "ingress was started anew while it held this request; it may be sent again", "", True, 0.0)


@dataclass(frozen=True)
class Keys:
    """CURVE keys for a company on tcp, in Z85, as `troupe keys` writes them."""

    server_public: str
    client_public: str
    client_secret: str


def default_endpoint(ingress: int = 0) -> str:
    """Where the company of this user listens on this machine, unless its configuration says otherwise."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    directory = f"{runtime}/troupe" if runtime.startswith("/") else f"/tmp/troupe-{os.getuid()}"
    return f"ipc://{directory}/ingress-{ingress}.sock"


def endpoint_in(directory: str | os.PathLike[str], ingress: int = 0) -> str:
    """The same for a company with wire.directory set."""
    return f"ipc://{pathlib.Path(directory)}/ingress-{ingress}.sock"


def prepare(socket: Any, keys: Keys | None) -> None:
    socket.setsockopt(zmq.ROUTING_ID, f"client.{os.getpid()}-{secrets.token_hex(4)}".encode())
    socket.setsockopt(zmq.LINGER, 500)
    if keys is not None:
        socket.setsockopt_string(zmq.CURVE_SERVERKEY, keys.server_public)
        socket.setsockopt_string(zmq.CURVE_PUBLICKEY, keys.client_public)
        socket.setsockopt_string(zmq.CURVE_SECRETKEY, keys.client_secret)


class Writer:
    """Fills in the headers of one client's messages."""

    def __init__(self, key: str, model: str):
        self.key = key
        self.model = model
        self.epoch = secrets.randbits(63) | 1
        self.sequence = 0

    def _seal(self, message: Message) -> Message:
        self.sequence += 1
        message.epoch = self.epoch
        message.sequence = self.sequence
        message.sent_us = time.monotonic_ns() // 1000
        return message

    def submit(self, kind: int, content: bytes, options: dict[str, Any]) -> Message:
        request = secrets.token_bytes(16)
        fields = {name: value for name, value in options.items() if value is not None}  # None is left out, as in OpenAI's client
        fields["stop"] = _stop_content(fields.pop("stop", []))
        if "timeout" in fields:
            fields["deadline_us"] = int(fields.pop("timeout") * 1e6)
        fields.setdefault("seed", secrets.randbits(63))
        fields = {name: int(value) if isinstance(value, bool) else value for name, value in fields.items()}
        fields.update(kind=kind, content=content)
        fields.setdefault("key", self.key)
        fields.setdefault("model", self.model)
        return self._seal(Message("client_submit", request, 1, fields))

    def hello(self) -> Message:
        """Asks who is there: the answer is a hello, too."""
        return self._seal(Message("hello"))

    def cancel(self, request: bytes) -> Message:
        return self._seal(Message("client_cancel", request, 1))


def _stop_content(stop: str | Sequence[str]) -> bytes:
    stops = [stop] if isinstance(stop, str) else list(stop)
    for one in stops:
        if "\0" in one:
            raise FrameError(f"stop: found {one!r}, allowed are texts without NUL")
    return b"".join(one.encode() + b"\0" for one in stops)


def _id(value: Any, position: int) -> int:
    try:
        number = operator.index(value)  # ids of numpy are welcome
    except TypeError:
        number = -1
    if not 0 <= number <= _ID_MAX:
        raise FrameError(f"prompt: found {value!r} as id {position}, allowed are whole numbers from 0 to {_ID_MAX}")
    return number


def complete_content(prompt: Prompt) -> tuple[int, bytes]:
    if isinstance(prompt, str):
        return 0, prompt.encode()
    return 1, struct.pack(f"<{len(prompt)}I", *(_id(value, position) for position, value in enumerate(prompt)))


def chat_content(messages: Sequence[ChatMessage]) -> tuple[int, bytes]:
    return 2, json.dumps(list(messages), ensure_ascii=False).encode()


def understand(message: Message) -> Tokens | Finished | RequestFailed | None:
    """What a message of ingress means to its request; None: nothing."""
    fields = message.fields
    if message.name == "client_tokens":
        return Tokens(fields["first_index"], fields["ids"], fields["logprobs"], fields["reasoning"].decode(errors="replace"),
                      fields["text"].decode(errors="replace"))
    if message.name == "client_finished":
        return Finished(FINISH[fields["reason"]], fields["prompt_tokens"], fields["completion_tokens"], fields["reasoning_tokens"],
                        fields["cached_tokens"])
    if message.name == "client_failed":
        return RequestFailed(ERRORS[fields["error"]]["name"], fields["message"], fields["param"], fields["is_retry_safe"] == 1,
                             fields["retry_after_ms"] / 1000)
    return None
