"""tests/api/test_down.py - however a company is told to end, it ends in order and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time

from company import STUB, TROUPE, ask, company, is_alive, names_in, pids_of, restart


def test_down_ends_everything_and_leaves_nothing():
    with company(STUB) as running:
        pids = running.children()
        done = subprocess.run([str(TROUPE), "down", "--config", str(running.config)], capture_output=True, timeout=30, check=False)
        assert done.returncode == 0 and done.stdout == b"stopped\n", done.stderr
        assert running.process.wait(10) == 0
        assert names_in(running.directory) == [] and not [pid for pid in pids if is_alive(pid)]
        restart(running, [])


def test_down_drains_for_as_long_as_it_was_told():
    """Broken: streams are cut earlier or later than the operator said, or without a word."""
    with company(STUB) as running:
        body = json.dumps({"prompt": "The", "max_tokens": 4000, "ignore_eos": True, "stream": True}).encode()
        head = f"POST /v1/completions HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        with socket.create_connection(("127.0.0.1", running.port), 10) as client:
            client.sendall(head + body)
            said = client.recv(4096)
            began = time.monotonic()
            subprocess.run([str(TROUPE), "down", "--drain", "1", "--set", f"wire.directory={running.directory}"], timeout=20, check=True)
            client.settimeout(10)
            while more := client.recv(65536):
                said += more
        assert b'"code":"unavailable"' in said and b"[DONE]" not in said
        assert 0.5 < time.monotonic() - began < 8  # 12 s would be the stream's own end, 10 s a signal's
        assert running.process.wait(20) == 0
        restart(running, [])


def test_director_that_hangs_is_said_with_the_way_out():
    """Broken: an operator is told that nothing runs, starts another company, and cannot stop the first."""
    with company(STUB) as running:
        os.kill(pids_of(running)["director.0"], signal.SIGSTOP)
        for command in ("status", "down"):
            done = subprocess.run([str(TROUPE), command, "--config", str(running.config)], capture_output=True, timeout=30, check=False)
            assert done.returncode == 69 and b"its director does not answer" in done.stderr, done
        assert ask(running, 1)[0] == 200
        os.kill(int(re.search(rb"`kill (\d+)`", done.stderr)[1]), signal.SIGTERM)
        assert running.process.wait(30) == 0 and names_in(running.directory) == []
        restart(running, [])


def test_terminal_that_closes_stops_the_company_in_order():
    """Broken: a laptop's closed window leaves sockets, pools and a configuration behind, and cuts streams."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup, which children inherit
    with company(STUB) as running:
        running.process.send_signal(signal.SIGHUP)
        assert running.process.wait(20) == 0
        assert "company.yaml" not in names_in(running.directory)
        restart(running, [])


def test_signals_until_the_very_end_leave_nothing_behind():
    """Broken: who presses Ctrl-C once more while it ends finds a configuration of a company that does not run."""
    with company(STUB) as running:
        for last in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            running.process.send_signal(signal.SIGTERM)
            while running.process.poll() is None:
                running.process.send_signal(last)
                time.sleep(0.0001)
            assert running.process.returncode == 0 and names_in(running.directory) == []
            restart(running, [])
