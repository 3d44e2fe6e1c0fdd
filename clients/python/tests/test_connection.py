"""tests/test_connection.py - what a client does when ingress is slow, gone or new, and when nobody closes it: against a scripted ingress."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
import zmq

import troupe
from troupe.codec import Message, decode, encode


class Ingress:
    """A ROUTER that answers every message of clients as `answer` says: a function from message to messages."""

    def __init__(self, endpoint: str, answer):
        self.answer = answer
        self.epoch = 5
        self.heard: list[Message] = []
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.bind(endpoint)
        self.is_over = False
        self.thread = threading.Thread(target=self.run)

    def __enter__(self) -> Ingress:
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.is_over = True
        self.thread.join()
        self.socket.close(linger=0)
        self.context.term()

    def run(self) -> None:
        while not self.is_over:
            if not self.socket.poll(20):
                continue
            client, frame = self.socket.recv_multipart()
            for message in decode(frame):
                self.heard.append(message)
                for reply in self.answer(message):
                    reply.epoch = self.epoch
                    self.socket.send_multipart([client, encode(reply)])


def token(request: bytes, index: int = 0) -> Message:
    return Message("client_tokens", request, 1, {"first_index": index, "ids": [7], "text": "x"})


def only_token(message: Message) -> list[Message]:
    return [token(message.request)] if message.name == "client_submit" else []


def refusal(message: Message) -> list[Message]:
    failed = Message("client_failed", message.request, 1, {"error": 5, "message": "no such model"})
    return [failed] if message.name == "client_submit" else []


FORGOTTEN = """
def f():
    for part in troupe.Client(E).complete("The"):
        return part.text
f()
"""
FORGOTTEN_AFTER_REFUSAL = """
def f():
    try:
        troupe.Client(E).complete("The").result()
    except troupe.RequestFailed as failed:
        return weakref.ref(failed)
assert f()() is None, "the exception is part of a cycle"
"""
FORGOTTEN_BY_ITS_LOOP = """
async def f():
    return await (await troupe.AsyncClient(E).complete("The")).__anext__()
asyncio.run(f())
"""
FORGOTTEN_WHILE_ITS_LOOP_RUNS = """
async def f():
    stream = await troupe.AsyncClient(E).complete("The")
    await stream.__anext__()
    client = weakref.ref(stream._client)
    del stream
    gc.collect()
    assert client() is None, "the reader keeps the client"
    await asyncio.sleep(0.1)
    assert len(asyncio.all_tasks()) == 1, "the reader goes on"
asyncio.run(f())
"""
FORGOTTEN_AFTER_ASYNC_REFUSAL = """
async def f():
    try:
        await (await troupe.AsyncClient(E).complete("The")).result()
    except troupe.RequestFailed as failed:
        return weakref.ref(failed)
    gc.collect()
assert asyncio.run(f())() is None, "the exception is part of a cycle"
"""


@pytest.mark.parametrize("answer, program", [
    (only_token, FORGOTTEN), (refusal, FORGOTTEN_AFTER_REFUSAL), (only_token, FORGOTTEN_BY_ITS_LOOP),
    (only_token, FORGOTTEN_WHILE_ITS_LOOP_RUNS), (refusal, FORGOTTEN_AFTER_ASYNC_REFUSAL),
], ids=["sync", "sync refused", "asyncio", "asyncio in its loop", "asyncio refused"])
def test_client_that_nobody_closes_does_not_hang_the_process(tmp_path, answer, program):
    """pyzmq's context waits for open sockets: collected in the wrong order, it would wait for ever."""
    endpoint = troupe.endpoint_in(tmp_path)
    program = f"import asyncio, gc, weakref, troupe\nE = {endpoint!r}\n{program}\ngc.collect()\nprint('ended')"
    with Ingress(endpoint, answer):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=10, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"ended\n", b"")
