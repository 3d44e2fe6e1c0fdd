"""tests/api/test_bad_input.py - hostile and broken input gets a clear error, leaks nothing, and the company serves on."""

import json
import socket
import time

import pytest

from company import company, wait_until


@pytest.fixture(scope="module")
def stub():
    settings = {"engine": {"kind": "stub"}, "http": {"receive_seconds": 2, "connections_max": 512}}
    with company(settings) as running:
        yield running
        used = {key: value for key, value in running.metrics().items()
                if key[0] in ("kv_blocks_used", "kv_leases", "requests_running", "requests_waiting")}
        assert used and not any(used.values()), used


def chat(**fields):
    return {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, **fields}


def serves(running):
    status, answer = running.post("/v1/chat/completions", chat())
    return status == 200 and answer["usage"]["completion_tokens"] == 2


MALFORMED = [
    b"", b"{", b"[]", b"nul", b"{\"messages\":", b"\xff\xfe{}", b"{}" + b" " * 10 + b"x", b"[" * 100000,
    b"{\"messages\":[{\"role\":\"user\",\"content\":\"\xc3\x28\"}]}", b"{\"a\":" * 5000,
]


@pytest.mark.parametrize("body", MALFORMED, ids=range(len(MALFORMED)))
def test_malformed_json_is_refused_with_400(stub, body):
    status, answer = stub.post("/v1/chat/completions", body)
    assert status == 400 and answer["error"]["type"] == "invalid_request_error" and answer["error"]["message"]
    assert serves(stub)


WRONG = [
    ("temperature", "hot"), ("temperature", -1), ("temperature", 3), ("top_p", 2), ("top_p", "x"), ("n", 0), ("n", 1.5),
    ("n", 100000), ("max_tokens", -1), ("max_tokens", "many"), ("max_tokens", 1e30), ("stream", "yes"), ("stop", 5), ("stop", [1]),
    ("stop", ["x"] * 100), ("seed", "s"), ("logit_bias", {"a": 1}), ("logit_bias", {"5": 1000}), ("logit_bias", []),
    ("top_logprobs", 21), ("top_logprobs", 2), ("presence_penalty", 3), ("frequency_penalty", None.__class__.__name__),
    ("messages", "hi"), ("messages", [{"role": "wizard", "content": "x"}]), ("messages", [{"role": "user"}]),
    ("messages", [{"role": "user", "content": 5}]), ("messages", [5]), ("model", 7), ("stream_options", {"include_usage": True}),
    ("tempratur", 1),
]


@pytest.mark.parametrize("field,value", WRONG, ids=[f"{f}-{i}" for i, (f, _) in enumerate(WRONG)])
def test_wrong_field_is_named_in_the_error(stub, field, value):
    status, answer = stub.post("/v1/chat/completions", chat(**{field: value}))
    assert status == 400, answer
    assert (answer["error"]["param"] or "").split(".")[0].split("[")[0] == field, answer
    assert field in answer["error"]["message"], answer


def test_megabyte_prompt_is_refused_by_length_not_by_crash(stub):
    status, answer = stub.post("/v1/completions", {"prompt": "word " * 200000, "max_tokens": 1})
    assert status == 400 and answer["error"]["code"] == "context_length_exceeded"
    assert serves(stub)


def test_unknown_paths_and_methods_are_told_apart(stub):
    assert stub.get("/v1/nothing")[0] == 404
    status, body = stub.get("/v1/chat/completions")
    assert status == 405 and json.loads(body)["error"]["message"]


@pytest.mark.parametrize("headers,status", [
    ("Content-Type: application/json; charset=utf-8\r\nOrigin: http://page\r\n", 200), ("", 200), ("Origin: http://page\r\n", 415),
    ("Content-Type: application/x-www-form-urlencoded\r\n", 415), ("Content-Type: text/plain\r\nOrigin: http://page\r\n", 415),
], ids=["json", "none", "none-from-a-page", "curl-d", "text-from-a-page"])
def test_body_that_any_web_page_may_send_is_refused(stub, headers, status):
    body = json.dumps(chat()).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
    answer = raw(stub, head.encode() + body)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer
    assert status == 200 or b"-H 'Content-Type: application/json'" in answer


def test_prompt_that_fills_the_context_is_scored():
    ask = {"prompt": [66] * 4096, "echo": True, "logprobs": 0}
    with company({"engine": {"kind": "stub"}}) as running:
        status, answer = running.post("/v1/completions", {**ask, "max_tokens": 0})
        assert status == 200 and answer["usage"]["prompt_tokens"] == 4096 and answer["usage"]["completion_tokens"] == 0, answer
        assert len(answer["choices"][0]["logprobs"]["token_logprobs"]) == 4096
        assert running.post("/v1/completions", {**ask, "max_tokens": 1})[0] == 400


def raw(running, data, seconds=10.0):
    """Send bytes; all that comes back until the server closes or falls silent."""
    with socket.create_connection(("127.0.0.1", running.port), timeout=seconds) as connection:
        connection.sendall(data)
        received = b""
        try:
            while part := connection.recv(65536):
                received += part
        except (TimeoutError, ConnectionResetError):
            pass
        return received


def test_half_sent_request_is_closed_within_its_time(stub):
    start = time.monotonic()
    raw(stub, b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{\"mess", 15)
    assert time.monotonic() - start < 10, "a half-sent request holds its connection for ever"
    assert serves(stub)


@pytest.mark.parametrize("data", [
    b"GARBAGE\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x00" * 1000, b"POST / HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"X-A: " + b"y" * 100000 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % i for i in range(20000)) + b"\r\n",
], ids=["garbage", "version", "zeros", "negative", "huge", "long-header", "many-headers"])
def test_hostile_bytes_are_refused_and_nobody_else_notices(stub, data):
    answer = raw(stub, data, 5)
    assert not answer.startswith(b"HTTP/1.1 200")
    assert serves(stub)


def test_two_hundred_idle_connections_do_not_keep_others_out(stub):
    idle = [socket.create_connection(("127.0.0.1", stub.port)) for _ in range(200)]
    assert serves(stub)
    for connection in idle:
        connection.close()
    wait_until(lambda: stub.metrics()["http_connections", "ingress", "0"] < 20, 10, "closed connections are forgotten")


def test_client_that_goes_away_stops_its_work():
    """Work goes on for nobody if this fails: the stream is cut after two chunks, the company must be at rest soon."""
    slow = {"engine": {"kind": "stub", "stub_token_us": 20000}}
    with company(slow) as running:
        body = json.dumps(chat(max_tokens=2000, stream=True)).encode()
        for _ in range(8):
            with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:
                connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                received = b""
                while received.count(b"data: ") < 3:
                    received += connection.recv(4096)

        def is_at_rest():
            metrics = running.metrics()
            held = [key for key, value in metrics.items()
                    if key[0] in ("requests_running", "kv_blocks_used", "kv_leases") and value]
            return not held and metrics["requests_cancelled_total", "ingress", "0"] == 8
        wait_until(is_at_rest, 6, "8 cut streams are cancelled and nothing is held")
        generated = running.metrics()["generation_tokens_total", "ingress", "0"]
        assert generated < 8 * 500, "the streams ran on after their clients had gone"
