"""tests/test_company.py - the client against a running company; TROUPE names the program."""

from __future__ import annotations

import asyncio
import json
import os
import pathlib
import signal
import socket
import subprocess
import time

import pytest

import troupe

PROGRAM = os.environ.get("TROUPE")
MODEL = pathlib.Path(__file__).resolve().parents[3] / "models" / "tiny"
QUESTION = [{"role": "user", "content": "What is 946 - 23?"}]
pytestmark = pytest.mark.skipif(not PROGRAM, reason="TROUPE does not name the troupe program")


def ready(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as connection:
            connection.sendall(b"GET /ready HTTP/1.0\r\n\r\n")
            return b" 200 " in connection.recv(64)
    except OSError:
        return False


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("troupe") / "wire"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([PROGRAM, "up", "--set", f"wire.directory={directory}", "--set", f"http.listen=127.0.0.1:{port}",
                                "--set", f"model.path={MODEL}", "--set", "log.level=warn"])
    try:
        end = time.monotonic() + 60
        while not ready(port):
            assert process.poll() is None and time.monotonic() < end, "the company did not get ready"
            time.sleep(0.1)
        yield troupe.endpoint_in(directory)
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


def test_chat_streams_reasoning_and_answer(endpoint):
    with troupe.Client(endpoint) as client:
        stream = client.chat(QUESTION, temperature=0)
        parts = list(stream)
        assert len(parts) > 1
        assert [part.first_index for part in parts] == sorted({part.first_index for part in parts})
        assert "923" in "".join(part.text for part in parts)
        assert "".join(part.reasoning for part in parts)
        assert stream.finished.reason == "stop"
        assert stream.finished.completion_tokens >= sum(len(part.ids) for part in parts)


def test_same_seed_gives_same_text_and_limits_are_kept(endpoint):
    with troupe.Client(endpoint) as client:
        first, second = (client.complete("The", max_tokens=12, seed=5, temperature=1.0, ignore_eos=True).result() for _ in range(2))
        assert first.ids == second.ids and first.text == second.text
        assert len(first.ids) == 12 and first.finished.reason == "length"


def test_ids_as_prompt_and_logprobs(endpoint):
    with troupe.Client(endpoint) as client:
        answer = client.complete([0, 4082, 321, 444], max_tokens=4, temperature=0, logprobs=True, ignore_eos=True).result()
        assert len(answer.ids) == len(answer.logprobs) == 4
        assert all(value <= 0 for value in answer.logprobs)
        assert answer.finished.prompt_tokens == 4


def test_reasoning_and_answer_are_split_alike_in_parts_and_whole(endpoint):
    with troupe.Client(endpoint) as client:
        parts = list(client.chat(QUESTION, temperature=0))
        whole = client.chat(QUESTION, temperature=0).result()
        assert "".join(part.reasoning for part in parts) == whole.reasoning
        assert "".join(part.text for part in parts) == whole.text
        assert whole.reasoning and "think>" not in whole.reasoning + whole.text
        assert 0 < whole.finished.reasoning_tokens < whole.finished.completion_tokens
        assert [index for part in parts for index in range(part.first_index, part.first_index + len(part.ids))] \
            == list(range(whole.finished.completion_tokens))


def test_text_and_its_ids_are_the_same_prompt(endpoint):
    with troupe.Client(endpoint) as client:
        text = client.complete("One, two,", max_tokens=6, temperature=0, ignore_eos=True).result()
        assert text.finished.prompt_tokens > 1 and len(text.ids) == 6
        again = client.complete("One, two,", max_tokens=6, temperature=0, ignore_eos=True, logprobs=True).result()
        assert again.ids == text.ids and len(again.logprobs) == 6


def test_stop_text_is_left_out(endpoint):
    with troupe.Client(endpoint) as client:
        whole = client.chat(QUESTION, temperature=0).result()
        cut = client.chat(QUESTION, temperature=0, stop=["923", "never"]).result()
        assert "923" not in cut.text and whole.text.startswith(cut.text) and cut.finished.reason == "stop"


def test_timeout_of_a_request_is_kept_by_the_server(endpoint):
    with troupe.Client(endpoint) as client:
        stream = client.complete("The", max_tokens=4000, ignore_eos=True, timeout=0.3)
        with pytest.raises(troupe.RequestFailed) as failed:
            stream.result()
        assert failed.value.error == "DEADLINE"


def test_what_is_refused_says_why(endpoint):
    with troupe.Client(endpoint) as client:
        with pytest.raises(troupe.RequestFailed) as failed:
            client.chat(QUESTION, model="no-such-model").result()
        assert failed.value.error == "NOT_FOUND" and not failed.value.is_retry_safe
        with pytest.raises(troupe.RequestFailed):
            client.chat([{"role": "nobody", "content": "x"}]).result()


def test_cancel_ends_the_stream(endpoint):
    with troupe.Client(endpoint) as client:
        stream = client.complete("The", max_tokens=2000, ignore_eos=True)
        next(stream)
        stream.cancel()
        with pytest.raises(troupe.RequestFailed) as failed:
            stream.result()
        assert failed.value.error == "CANCELLED"
        assert "923" in client.chat(QUESTION, temperature=0).result().text


def test_asyncio_runs_many_at_once(endpoint):
    async def run() -> list[troupe.Answer]:
        async with troupe.AsyncClient(endpoint) as client:
            streams = [await client.chat(QUESTION, temperature=0) for _ in range(16)]
            return await asyncio.gather(*(stream.result() for stream in streams))

    answers = asyncio.run(run())
    assert len({answer.text for answer in answers}) == 1 and "923" in answers[0].text


def test_asyncio_streams_ids_logprobs_and_says_why_it_refuses(endpoint):
    async def run() -> None:
        async with troupe.AsyncClient(endpoint) as client:
            stream = await client.chat(QUESTION, temperature=0)
            parts = [part async for part in stream]
            assert len(parts) > 1 and "923" in "".join(part.text for part in parts)
            assert "".join(part.reasoning for part in parts) and stream.finished.reason == "stop"
            answer = await (await client.complete([0, 4082, 321], max_tokens=4, temperature=0, logprobs=True,
                                                  ignore_eos=True)).result()
            assert len(answer.ids) == len(answer.logprobs) == 4 and answer.finished.prompt_tokens == 3
            with pytest.raises(troupe.RequestFailed) as failed:
                await (await client.chat(QUESTION, model="no-such-model")).result()
            assert failed.value.error == "NOT_FOUND"

    asyncio.run(run())


def test_asyncio_cancel_ends_one_stream_only(endpoint):
    async def run() -> None:
        async with troupe.AsyncClient(endpoint) as client:
            long = await client.complete("The", max_tokens=3000, ignore_eos=True)
            other = await client.chat(QUESTION, temperature=0)
            await long.__anext__()
            await long.cancel()
            with pytest.raises(troupe.RequestFailed) as failed:
                await long.result()
            assert failed.value.error == "CANCELLED"
            assert "923" in (await other.result()).text

    asyncio.run(run())


def test_nobody_there_is_an_error_not_a_wait_for_ever(tmp_path):
    with troupe.Client(troupe.endpoint_in(tmp_path), silence_seconds=0.2) as client:
        with pytest.raises(TimeoutError):
            client.complete("The").result()


def pid_of_ingress(endpoint: str) -> int:
    directory = pathlib.Path(endpoint[len("ipc://"):]).parent
    end = time.monotonic() + 10
    while time.monotonic() < end:  # the supervisor tells the director a moment after the company is ready
        shown = subprocess.run([PROGRAM, "status", "--json", "--set", f"wire.directory={directory}"], capture_output=True, check=True)
        pid = next(actor.get("pid") for actor in json.loads(shown.stdout)["actors"] if actor["role"] == "ingress")
        if pid:
            return pid
    raise AssertionError("troupe status does not show ingress")


def test_request_of_an_ingress_that_was_killed_is_lost_and_the_next_is_served(endpoint):
    """The last test: the company starts ingress anew."""
    with troupe.Client(endpoint) as client:
        stream = client.complete("The", max_tokens=4000, ignore_eos=True)
        next(stream)
        os.kill(pid_of_ingress(endpoint), signal.SIGKILL)
        began = time.monotonic()
        with pytest.raises(troupe.RequestFailed) as failed:
            stream.result()
        assert failed.value.error == "LOST" and failed.value.is_retry_safe
        assert time.monotonic() - began < 10
        assert "923" in client.chat(QUESTION, temperature=0).result().text
