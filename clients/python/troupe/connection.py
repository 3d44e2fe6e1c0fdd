"""troupe/connection.py - what both clients do alike: the socket, the open streams, and who hears what."""

from __future__ import annotations

import weakref
from typing import Any, Generic, TypeVar, Union

import zmq

from .codec import FrameError, decode
from .common import Finished, Keys, RequestFailed, Tokens, Writer, default_endpoint, prepare, understand

Event = Union[Tokens, Finished, RequestFailed]


class OpenStream:
    """One request, as the connection knows it."""

    _client: Connection[Any]

    def __init__(self, client: Connection[Any], request: bytes):
        self.request = request
        self.finished: Finished | None = None
        self._client = client
        self._is_over = False

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

    def _silence(self) -> TimeoutError:
        return TimeoutError(f"nothing was heard for {self._client.silence_seconds} s; is the company up?")


AnyStream = TypeVar("AnyStream", bound=OpenStream)


def _abandon(socket: Any, context: Any) -> None:
    socket.close(linger=0)
    context.term()


class Connection(Generic[AnyStream]):
    """A socket to one ingress, and the streams that are open on it."""

    _context_class: Any = zmq.Context

    def __init__(self, endpoint: str | None = None, key: str = "", model: str = "", keys: Keys | None = None,
                 silence_seconds: float = 60.0):
        self.silence_seconds = silence_seconds
        self._writer = Writer(key, model)
        self._streams: dict[bytes, AnyStream] = {}
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

    def _hear(self, frame: bytes) -> None:
        """Give what a frame says to the streams it is about."""
        try:
            messages = decode(frame)
        except FrameError:
            return  # a peer's nonsense is dropped
        for message in messages:
            stream, event = self._streams.get(message.request), understand(message)
            if stream is not None and event is not None:
                stream._put(event)
