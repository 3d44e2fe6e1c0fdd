#!/usr/bin/env python3
"""tests/bench/bench_ingress.py - what ingress costs: CPU per streamed token, short requests per second, idle streams held.

Starts a company with the stub engine; the load comes from this process, beside it on the same cores.  Prints a table of
figure, goal and their ratio, and what a plain epoll loop (bench_epoll, built beside troupe) spends on an event here: the goal
of 12 us is from a machine where that took 4.4.  Usage: bench_ingress.py [--streams 1000] [--idle 9000] [--seconds 5]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import selectors
import socket
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "api"))
from company import TROUPE, Company, company  # noqa: E402

TICKS = os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def served(settings: dict):
    """A company; what it leaves behind at its end is the concern of tests, not of a measurement."""
    manager = company(settings)
    yield manager.__enter__()
    with contextlib.suppress(AssertionError), contextlib.redirect_stdout(None):
        manager.__exit__(None, None, None)


def pid_of_ingress(running: Company) -> int:
    for pid in running.children():
        arguments = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1:]
        if any(argument.split(b".")[0] in (b"ingress", b"--role=ingress") for argument in arguments):
            return pid
    raise SystemExit("no process of ingress was found")


def cpu_seconds(pid: int) -> tuple[float, float]:
    """User and system time so far."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) / TICKS, int(fields[12]) / TICKS


def resident_mib(pid: int) -> float:
    return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def request(body: dict) -> bytes:
    text = json.dumps(body).encode()
    return b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(text) + text


def connect(port: int, data: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setblocking(False)
    connection.send(data)
    return connection


def count_events(selector: selectors.BaseSelector, seconds: float) -> int:
    end, events = time.monotonic() + seconds, 0
    while (left := end - time.monotonic()) > 0:
        for key, _ in selector.select(left):
            events += key.fileobj.recv(1 << 16).count(b"data: ")
    return events


def bench_streams(streams: int, seconds: float) -> tuple[float, float, float]:
    settings = {
        "engine": {"kind": "stub", "stub_token_us": 100000},
        "company": {"prefill_workers": 1, "prefill_ep": 1, "decode_workers": 1, "decode_ep": 1},
        "decode": {"batch_max": streams, "kv_blocks": streams * 8}, "prefill": {"requests_max": streams, "kv_blocks": streams + 64},
    }
    with served(settings) as running, selectors.DefaultSelector() as selector:
        pid = pid_of_ingress(running)
        data = request({"prompt": "x", "max_tokens": 400, "stream": True, "ignore_eos": True})
        connections = [connect(running.port, data) for _ in range(streams)]
        for connection in connections:
            selector.register(connection, selectors.EVENT_READ)
        count_events(selector, 4)
        user, system = cpu_seconds(pid)
        events = count_events(selector, seconds)
        user, system = (b - a for a, b in zip((user, system), cpu_seconds(pid)))
        for connection in connections:
            connection.close()
        time.sleep(1)
    return (user + system) * 1e6 / max(events, 1), user / max(user + system, 1e-9), events / seconds


def bench_epoll(streams: int) -> float:
    done = subprocess.run([str(TROUPE.parent / "tests" / "bench_epoll"), str(streams)], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[0])


def bench_short(seconds: float, clients: int = 64) -> tuple[float, float]:
    settings = {"engine": {"kind": "stub"}, "company": {"prefill_workers": 1, "prefill_ep": 1, "decode_workers": 1, "decode_ep": 1}}
    with served(settings) as running, selectors.DefaultSelector() as selector:
        pid = pid_of_ingress(running)
        data = request({"prompt": "x", "max_tokens": 1})
        for _ in range(clients):
            selector.register(connect(running.port, data), selectors.EVENT_READ)
        start, done, before = time.monotonic(), 0, sum(cpu_seconds(pid))
        while time.monotonic() - start < seconds:
            for key, _ in selector.select(1):
                answer = key.fileobj.recv(65536)
                assert b" 200 OK" in answer, answer[:300]
                done += 1
                key.fileobj.send(data)
        elapsed, cpu = time.monotonic() - start, sum(cpu_seconds(pid)) - before
        for key in list(selector.get_map().values()):
            key.fileobj.close()
        time.sleep(0.5)
    return done / elapsed, cpu * 1e6 / max(done, 1)


def bench_idle(streams: int) -> tuple[float, float]:
    """Streams that wait for their first token: an engine that takes minutes a step."""
    settings = {"engine": {"kind": "stub", "stub_token_us": 10000000, "stub_prefill_token_ns": 10000000}, "limits": {"queue_max": 1 << 20},
                "timing": {"probe_ms": 60000}}
    with served(settings) as running:
        pid = pid_of_ingress(running)
        before = resident_mib(pid)
        data = request({"prompt": "x " * 40, "max_tokens": 100, "stream": True})
        connections = []
        for i in range(streams):
            connections.append(connect(running.port, data))
            if i % 500 == 499:
                time.sleep(0.1)
        held = 0.0
        end = time.monotonic() + 30
        while held < streams and time.monotonic() < end:
            time.sleep(0.5)
            held = running.metrics()["requests_running", "ingress", "0"]
        after = resident_mib(pid)
        assert held == streams, f"{held} of {streams} are held"
        for connection in connections:
            connection.close()
        time.sleep(2)
    return before, after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--idle", type=int, default=9000)
    parser.add_argument("--seconds", type=float, default=5)
    options = parser.parse_args()
    print(f"{'figure':44} {'measured':>10} {'goal':>8} {'ratio':>6}")

    def row(name: str, measured: float, goal: float, less_is_better: bool = True) -> None:
        ratio = goal / measured if less_is_better else measured / goal
        print(f"{name:44} {measured:10.1f} {goal:8.0f} {ratio:6.2f}", flush=True)

    cost, user, rate = bench_streams(options.streams, options.seconds)
    row(f"CPU us per token event, {options.streams} streams", cost, 12)
    print(f"{'  of it user %, events/s':44} {user * 100:10.0f} {rate:8.0f}")
    least = bench_epoll(options.streams)
    print(f"{'  of a plain epoll loop; times that':44} {least:10.1f} {cost / least:8.2f}")
    rate, cost = bench_short(options.seconds)
    row("short requests/s", rate, 2000, False)
    print(f"{'  CPU us of ingress per request':44} {cost:10.1f}")
    before, after = bench_idle(options.idle)
    row(f"MiB resident with {options.idle} idle streams", after, 64)
    print(f"{'  MiB resident before':44} {before:10.1f}")


if __name__ == "__main__":
    main()
