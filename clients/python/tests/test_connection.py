"""tests/test_connection.py - what a client does when ingress is slow, gone or new, and when nobody closes it: against a scripted ingress."""

from __future__ import annotations

import asyncio
import queue
import subprocess
import sys
import threading
import time

import pytest
import zmq

import troupe
import troupe.connection
from troupe.codec import Message, decode, encode


class Ingress:
    """A ROUTER that answers submits as `answer` says, a function from message to messages; and hellos, as every actor does."""

    def __init__(self, endpoint: str, answer, is_beating: bool = False):
        self.answer = answer
        self.is_beating = is_beating
        self.epoch = 5
        self.clients: set[bytes] = set()
        self.heard: list[Message] = []
        self.outbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
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

    def start_anew(self) -> None:
        """Another life: it knows no request and no client."""
        self.clients.clear()
        self.epoch += 1

    def run(self) -> None:
        while not self.is_over:
            if self.socket.poll(20):
                client, frame = self.socket.recv_multipart()
                self.clients.add(client)
                for message in decode(frame):
                    self.hear(client, message)
            while not self.outbox.empty():
                self.say(self.outbox.get())
            if self.is_beating:
                self.say(Message("heartbeat"))

    def hear(self, client: bytes, message: Message) -> None:
        self.heard.append(message)
        if message.to_epoch not in (0, self.epoch):
            return
        replies = [Message("hello", fields={"role": 1})] if message.name == "hello" else []
        for reply in replies or (self.answer(message) if message.name == "client_submit" else []):
            self.say(reply, [client])

    def say(self, message: Message, clients: list[bytes] | None = None) -> None:
        message.epoch = self.epoch
        for client in list(self.clients) if clients is None else clients:
            self.socket.send_multipart([client, encode(message)])


def token(request: bytes, index: int = 0) -> Message:
    return Message("client_tokens", request, 1, {"first_index": index, "ids": [7], "text": "x"})


def end(request: bytes) -> Message:
    return Message("client_finished", request, 1, {"completion_tokens": 1})


def nothing(message: Message) -> list[Message]:
    return []


def only_token(message: Message) -> list[Message]:
    return [token(message.request)]


def whole(message: Message) -> list[Message]:
    return [token(message.request), end(message.request)]


def refusal(message: Message) -> list[Message]:
    return [Message("client_failed", message.request, 1, {"error": 5, "message": "no such model"})]


class Caller:
    """Client and AsyncClient behind one face: ask() begins a request, next() and result() wait for it."""

    def __init__(self, is_async: bool, endpoint: str, silence_seconds: float):
        self.runner = asyncio.new_event_loop() if is_async else None
        self.client = self.wait(self.make(troupe.AsyncClient if is_async else troupe.Client, endpoint, silence_seconds))

    def make(self, kind, endpoint: str, silence_seconds: float):
        async def made():
            return kind(endpoint, silence_seconds=silence_seconds)
        return made() if self.runner else kind(endpoint, silence_seconds=silence_seconds)

    def wait(self, value):
        return self.runner.run_until_complete(value) if self.runner else value

    def ask(self):
        return self.wait(self.client.complete("The"))

    def next(self, stream):
        return self.wait(stream.__anext__()) if self.runner else next(stream)

    def result(self, stream) -> troupe.Answer:
        return self.wait(stream.result())

    def close(self) -> None:
        self.wait(self.client.close())
        if self.runner:
            self.runner.close()


@pytest.fixture(params=[False, True], ids=["sync", "asyncio"])
def caller(request, tmp_path):
    """Makes a client that gives up after so many seconds of silence."""
    made: list[Caller] = []

    def make(silence_seconds: float) -> Caller:
        made.append(Caller(request.param, troupe.endpoint_in(tmp_path), silence_seconds))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def asks_soon(monkeypatch):
    monkeypatch.setattr(troupe.connection, "ASK_SECONDS", 0.1)


def test_request_of_an_ingress_that_was_started_anew_is_lost_at_once(tmp_path, caller, asks_soon):
    """The new ingress knows no clients: without a question of ours both would wait."""
    with Ingress(troupe.endpoint_in(tmp_path), only_token) as ingress:
        self = caller(30)
        first, second = self.ask(), self.ask()
        assert self.next(first).text == self.next(second).text == "x"
        ingress.start_anew()
        began = time.monotonic()
        for stream in (first, second):
            with pytest.raises(troupe.RequestFailed) as failed:
                self.next(stream)
            assert failed.value.error == "LOST" and failed.value.is_retry_safe
        assert time.monotonic() - began < 5
        ingress.answer = whole
        assert self.result(self.ask()).text == "x"


def test_request_after_a_start_anew_while_nothing_ran_is_not_lost(tmp_path, caller):
    with Ingress(troupe.endpoint_in(tmp_path), whole, is_beating=True) as ingress:
        self = caller(30)
        assert self.result(self.ask()).text == "x"
        time.sleep(0.1)  # heartbeats of the old life wait to be read
        ingress.start_anew()
        assert self.result(self.ask()).text == "x"


def test_request_that_goes_to_an_ingress_that_is_not_there_yet_waits(tmp_path, caller, asks_soon):
    self = caller(30)
    stream = self.ask()
    with Ingress(troupe.endpoint_in(tmp_path), whole):
        assert self.result(stream).text == "x"


def test_request_for_the_life_before_is_not_taken_by_the_next(tmp_path, caller, asks_soon):
    """Otherwise it would run there for nobody."""
    with Ingress(troupe.endpoint_in(tmp_path), only_token) as ingress:
        self = caller(30)
        assert self.next(self.ask()).text == "x"
        ingress.start_anew()
        stream = self.ask()
        with pytest.raises(troupe.RequestFailed) as failed:
            self.next(stream)
        assert failed.value.error == "LOST"
        submits = [message for message in ingress.heard if message.name == "client_submit"]
        assert [message.to_epoch for message in submits] == [0, 5]


def test_heartbeats_of_ingress_keep_a_queued_request_waiting(tmp_path, caller):
    with Ingress(troupe.endpoint_in(tmp_path), nothing, is_beating=True) as ingress:
        self = caller(0.3)
        stream = self.ask()
        late = whole(Message("client_submit", stream.request))
        threading.Timer(0.8, lambda: [ingress.outbox.put(reply) for reply in late]).start()
        assert self.result(stream).text == "x"


def test_heartbeats_after_a_silence_keep_nobody_waiting(tmp_path, caller, asks_soon):
    """Ingress drops the requests of a client whose connection broke, and tells it nothing when it comes back."""
    with Ingress(troupe.endpoint_in(tmp_path), only_token) as ingress:
        self = caller(0.5)
        stream = self.ask()
        assert self.next(stream).text == "x"
        threading.Timer(0.3, lambda: setattr(ingress, "is_beating", True)).start()
        with pytest.raises(TimeoutError):
            self.next(stream)


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
