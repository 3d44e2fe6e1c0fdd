"""troupe/client.py - the synchronous client."""

from __future__ import annotations

import collections
import time
from types import TracebackType
from typing import Any, Iterator, Sequence

import zmq

from .codec import FrameError, decode, encode
from .common import (Answer, ChatMessage, Finished, Keys, Prompt, RequestFailed, Tokens, Writer, chat_content,
                     complete_content, default_endpoint, prepare, understand)


class Stream(Iterator[Tokens]):
    """One request: iterate over its tokens, or take the whole answer with result()."""

    def __init__(self, client: Client, request: bytes):
        self.request = request
        self.finished: Finished | None = None
        self._client = client
        self._events: collections.deque[Tokens | Finished | RequestFailed] = collections.deque()
        self._is_over = False

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Tokens:
        if self._is_over:
            raise StopIteration
        silent_until = time.monotonic() + self._client.silence_seconds
        while not self._events:
            left = silent_until - time.monotonic()
            if left <= 0:
                self.cancel()
                self._end()
                raise TimeoutError(f"nothing was heard for {self._client.silence_seconds} s; is the company up?")
            self._client._pump(left)
        event = self._events.popleft()
        if isinstance(event, Tokens):
            return event
        self._end()
        if isinstance(event, RequestFailed):
            raise event
        self.finished = event
        raise StopIteration

    def _end(self) -> None:
        self._is_over = True
        self._client._streams.pop(self.request, None)

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


class Client:
    """A connection to one ingress.  Not for several threads at once; any number of streams may be open.

    Options of complete() and chat() are the fields of client_submit: max_tokens, temperature, top_p, top_k, min_p,
    presence_penalty, frequency_penalty, repetition_penalty, seed, logprobs, top_logprobs, ignore_eos, stop_ids; and stop (texts) and
    timeout (seconds).
    """

    def __init__(self, endpoint: str | None = None, key: str = "", model: str = "", keys: Keys | None = None,
                 silence_seconds: float = 60.0):
        self.silence_seconds = silence_seconds
        self._writer = Writer(key, model)
        self._streams: dict[bytes, Stream] = {}
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        prepare(self._socket, keys)
        self._socket.connect(endpoint or default_endpoint())

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
        self._socket.close()
        self._context.term()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _submit(self, kind: int, content: bytes, options: dict[str, Any]) -> Stream:
        message = self._writer.submit(kind, content, options)
        stream = Stream(self, message.request)
        self._socket.send(encode(message))
        self._streams[message.request] = stream
        return stream

    def _send_cancel(self, request: bytes) -> None:
        self._socket.send(encode(self._writer.cancel(request)))

    def _pump(self, seconds: float) -> None:
        if not self._socket.poll(int(seconds * 1000) + 1):
            return
        try:
            messages = decode(self._socket.recv())
        except FrameError:
            return  # a peer's nonsense is dropped
        for message in messages:
            stream, event = self._streams.get(message.request), understand(message)
            if stream is not None and event is not None:
                stream._events.append(event)
