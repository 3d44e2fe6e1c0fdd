"""troupe/client.py - the synchronous client."""

from __future__ import annotations

import collections
import contextlib
import time
from types import TracebackType
from typing import Any, Iterator, Sequence

import zmq

from .codec import encode
from .common import Answer, ChatMessage, Prompt, Tokens, chat_content, complete_content
from .connection import Connection, Event, OpenStream


class Stream(OpenStream, Iterator[Tokens]):
    """One request: iterate over its tokens, or take the whole answer with result()."""

    _client: Client

    def __init__(self, client: Client, request: bytes):
        super().__init__(client, request)
        self._events: collections.deque[Event] = collections.deque()

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Tokens:
        if self._is_over:
            raise StopIteration
        self._heard = time.monotonic()  # nobody listened before
        while not self._events:
            seconds = self._patience()
            if seconds <= 0:
                self.cancel()
                self._end()
                raise self._silence()
            self._client._pump(seconds)
        tokens = self._take(self._events.popleft())
        if tokens is None:
            raise StopIteration
        return tokens

    def _put(self, event: Event) -> None:
        self._events.append(event)

    def result(self) -> Answer:
        """Wait for the end.  Raises RequestFailed."""
        answer = Answer()
        for tokens in self:
            answer.add(tokens)
        answer.finished = self.finished
        return answer

    def cancel(self) -> None:
        """Stop it; the stream then ends with RequestFailed (CANCELLED)."""
        if not self._is_over:
            self._client._send_cancel(self.request)


class Client(Connection[Stream]):
    """A connection to one ingress.  Not for several threads at once; any number of streams may be open.

    Options of complete() and chat() are the fields of client_submit: max_tokens, temperature, top_p, top_k, min_p,
    presence_penalty, frequency_penalty, repetition_penalty, seed, logprobs, ignore_eos, stop_ids; and stop (texts) and timeout
    (seconds).  None means: not given.
    """

    def complete(self, prompt: Prompt, **options: Any) -> Stream:
        """Continue a text, or token ids."""
        return self._submit(*complete_content(prompt), options)

    def chat(self, messages: Sequence[ChatMessage], **options: Any) -> Stream:
        """Answer a conversation: messages as in OpenAI's API."""
        return self._submit(*chat_content(messages), options)

    def close(self) -> None:
        for stream in list(self._streams.values()):
            stream.cancel()
            stream._end()
        self._disconnect()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _submit(self, kind: int, content: bytes, options: dict[str, Any]) -> Stream:
        while self._socket.poll(0):  # streams may have ended that nobody waited for
            self._hear(self._socket.recv())
        request, frame = self._begin(kind, content, options)
        self._socket.send(frame)
        stream = self._streams[request] = Stream(self, request)
        return stream

    def _send_cancel(self, request: bytes) -> None:
        self._socket.send(encode(self._writer.cancel(request)))

    def _pump(self, seconds: float) -> None:
        if self._socket.poll(int(seconds * 1000) + 1):
            self._hear(self._socket.recv())
            return
        question = self._question()
        if question is not None:
            with contextlib.suppress(zmq.Again):
                self._socket.send(question, zmq.NOBLOCK)
