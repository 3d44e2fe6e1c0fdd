"""troupe/aio.py - the asyncio client."""

from __future__ import annotations

import asyncio
import contextlib
import time
import weakref
from types import TracebackType
from typing import Any, AsyncIterator, Sequence

import zmq
import zmq.asyncio

from .codec import encode
from .common import Answer, ChatMessage, Keys, Prompt, Tokens, chat_content, complete_content
from .connection import Connection, Event, OpenStream


class AsyncStream(OpenStream, AsyncIterator[Tokens]):
    """One request: iterate over its tokens with `async for`, or await result()."""

    _client: AsyncClient

    def __init__(self, client: AsyncClient, request: bytes):
        super().__init__(client, request)
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> Tokens:
        if self._is_over:
            raise StopAsyncIteration
        tokens = self._take(await self._next_event())
        if tokens is None:
            raise StopAsyncIteration
        return tokens

    async def _next_event(self) -> Event:
        self._heard = time.monotonic()
        while (seconds := self._patience()) > 0:
            try:
                return await asyncio.wait_for(self._events.get(), seconds)
            except asyncio.TimeoutError:
                await self._client._ask()
        await self.cancel()
        self._end()
        raise self._silence()

    def _put(self, event: Event) -> None:
        self._events.put_nowait(event)

    async def result(self) -> Answer:
        """Wait for the end.  Raises RequestFailed."""
        answer = Answer()
        async for tokens in self:
            answer.add(tokens)
        answer.finished = self.finished
        return answer

    async def cancel(self) -> None:
        """Stop it; the stream then ends with RequestFailed (CANCELLED)."""
        if not self._is_over:
            await self._client._socket.send(encode(self._client._writer.cancel(self.request)))


async def _read(client: weakref.ref[AsyncClient], socket: Any) -> None:
    """The task that hears for a client.  It must not keep alive a client that everybody else has forgotten."""
    while True:
        frame = await socket.recv()
        hearer = client()
        if hearer is None:
            return
        hearer._hear(frame)
        del hearer


class AsyncClient(Connection[AsyncStream]):
    """As Client, for one event loop: `async with AsyncClient() as client`."""

    _context_class = zmq.asyncio.Context

    def __init__(self, endpoint: str | None = None, key: str = "", model: str = "", keys: Keys | None = None,
                 silence_seconds: float = 60.0):
        super().__init__(endpoint, key, model, keys, silence_seconds)
        self._reader: asyncio.Task[None] | None = None

    async def complete(self, prompt: Prompt, **options: Any) -> AsyncStream:
        """Continue a text, or token ids."""
        return await self._submit(*complete_content(prompt), options)

    async def chat(self, messages: Sequence[ChatMessage], **options: Any) -> AsyncStream:
        """Answer a conversation: messages as in OpenAI's API."""
        return await self._submit(*chat_content(messages), options)

    async def close(self) -> None:
        for stream in list(self._streams.values()):
            await stream.cancel()
            stream._end()
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        self._disconnect()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def _submit(self, kind: int, content: bytes, options: dict[str, Any]) -> AsyncStream:
        request, frame = self._begin(kind, content, options)
        stream = self._streams[request] = AsyncStream(self, request)
        if self._reader is None:
            self._reader = asyncio.get_running_loop().create_task(_read(weakref.ref(self), self._socket))
        await self._socket.send(frame)
        return stream

    async def _ask(self) -> None:
        question = self._question()
        if question is not None:
            with contextlib.suppress(zmq.Again):
                await self._socket.send(question, zmq.NOBLOCK)
