"""troupe/connection.py - what both clients do alike: the socket, the open streams, and who hears what."""

from __future__ import annotations

import time
import weakref
from typing import Any, Generic, TypeVar, Union

import zmq

from .codec import FrameError, Message, decode, encode
from .common import Finished, Keys, RequestFailed, Tokens, Writer, default_endpoint, lost, prepare, understand

Event = Union[Tokens, Finished, RequestFailed]

ASK_SECONDS = 1.0  # silence after which ingress is asked whether it is the one that it was


class OpenStream:
    """One request, as the connection knows it."""

    _client: Connection[Any]

    def __init__(self, client: Connection[Any], request: bytes):
        self.request = request
        self.finished: Finished | None = None
        self._client = client
        self._is_over = False
        self._is_doubtful = False  # ingress was silent: it lives, but may have forgotten us
        self._heard = time.monotonic()

    def _put(self, event: Event) -> None:
        raise NotImplementedError

    def _end(self) -> None:
        self._is_over = True
        self._client._streams.pop(self.request, None)

    def _take(self, event: Event) -> Tokens | None:
        """The next tokens; None at a good end.  Raises RequestFailed at any other."""
        if isinstance(event, Tokens):
            return event
        self._end()
        if isinstance(event, RequestFailed):
            try:
                raise event
            finally:
                del event  # or the exception and this frame, which its traceback keeps, would hold each other
        self.finished = event
        return None

    def _hear(self, event: Event) -> None:
        self._is_doubtful = False
        self._heard = time.monotonic()
        self._put(event)

    def _patience(self) -> float:
        """How many seconds to listen until ingress should be asked; none: it was silent for too long."""
        client = self._client
        is_held = client._life != 0 and not self._is_doubtful  # as long as ingress lives
        heard = max(self._heard, client._heard) if is_held else self._heard
        return min(heard + client.silence_seconds - time.monotonic(), ASK_SECONDS)

    def _silence(self) -> TimeoutError:
        return TimeoutError(f"nothing was heard for {self._client.silence_seconds} s; is the company up?")


AnyStream = TypeVar("AnyStream", bound=OpenStream)


def _abandon(socket: Any, context: Any) -> None:
    socket.close(linger=0)
    context.term()


class Connection(Generic[AnyStream]):
    """A socket to one ingress, and the streams that are open on it.

    An ingress that was started anew knows nothing of the requests before, and nothing of us until we speak.  So a hello goes before
    the first request and whenever ingress is silent; its answer says which life of ingress has what was sent behind the hello.
    While requests run, a word of another life means that they are lost.
    """

    _context_class: Any = zmq.Context

    def __init__(self, endpoint: str | None = None, key: str = "", model: str = "", keys: Keys | None = None,
                 silence_seconds: float = 60.0):
        self.silence_seconds = silence_seconds
        self._writer = Writer(key, model)
        self._streams: dict[bytes, AnyStream] = {}
        self._life = 0  # epoch of the ingress that has our requests; 0: not known yet
        self._heard = self._asked = 0.0  # when ingress said anything; when it was asked
        self._context = self._context_class()
        self._socket = self._context.socket(zmq.DEALER)
        # A client that nobody closed dies in any order with its context, which would wait for the open socket for ever.
        self._finalizer = weakref.finalize(self, _abandon, self._socket, self._context)
        prepare(self._socket, keys)
        self._socket.connect(endpoint or default_endpoint())

    def _disconnect(self) -> None:
        self._finalizer.detach()
        self._socket.close()
        self._context.term()

    def _begin(self, kind: int, content: bytes, options: dict[str, Any]) -> tuple[bytes, bytes]:
        """The id of a request, and the frame that submits it.  Raises FrameError."""
        hello = b""
        if not self._streams:  # since the last one ended, ingress may have been started anew
            self._life = 0
            hello = encode(self._writer.hello())
        message = self._writer.submit(kind, content, options)
        message.to_epoch = self._life
        return message.request, hello + encode(message)

    def _question(self) -> bytes | None:
        """What to send now because ingress is silent, if anything is: not before the first hello was answered."""
        now = time.monotonic()
        if self._life == 0 or now - max(self._heard, self._asked) < ASK_SECONDS:
            return None
        self._asked = now
        for stream in self._streams.values():
            stream._is_doubtful = True
        return encode(self._writer.hello())

    def _meet(self, message: Message) -> None:
        """Learn which life of ingress speaks, and that it does."""
        self._heard = time.monotonic()
        if self._life == 0 and message.name == "hello":
            self._life = message.epoch
        if self._life in (0, message.epoch):
            return
        self._life = message.epoch
        streams = list(self._streams.values())
        self._streams.clear()
        for stream in streams:
            stream._hear(lost())

    def _hear(self, frame: bytes) -> None:
        """Give what a frame says to the streams it is about."""
        try:
            messages = decode(frame)
        except FrameError:
            return  # a peer's nonsense is dropped
        for message in messages:
            self._meet(message)
            stream, event = self._streams.get(message.request), understand(message)
            if stream is None or event is None:
                continue
            if not isinstance(event, Tokens):
                del self._streams[message.request]
            stream._hear(event)
