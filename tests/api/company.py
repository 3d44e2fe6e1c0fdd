"""tests/api/company.py - starts a whole company on free ports, in a directory of its own, for tests and benchmarks."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
TROUPE = pathlib.Path(os.environ.get("TROUPE", ROOT / "build" / "troupe")).resolve()
TINY = ROOT / "models" / "tiny"
SMALL = {"prefill_workers": 2, "prefill_ep": 1, "decode_workers": 2, "decode_ep": 1}
STUB = {"engine": {"kind": "stub", "stub_token_us": 3000}, "company": SMALL}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Company:
    """A running company: its address, and what its metrics and status say."""

    def __init__(self, port: int, process: subprocess.Popen, directory: pathlib.Path, log: pathlib.Path, config: pathlib.Path):
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.process = process
        self.directory = directory
        self.log = log
        self.config = config

    def get(self, path: str, timeout: float = 10) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(self.url + path, timeout=timeout) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def post(self, path: str, body: object, timeout: float = 60) -> tuple[int, dict]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def metrics(self) -> dict[tuple[str, str, str], float]:
        """(metric, role, index) -> value, for everything but histogram buckets; waits for the first reports."""
        return wait_until(self.read_metrics, 10, "every actor has reported")

    def read_metrics(self) -> dict[tuple[str, str, str], float]:
        status, text = self.get("/metrics")
        assert status == 200, text
        found = {}
        for line in text.splitlines():
            match = re.match(r'troupe_(\w+)\{role="(\w+)",index="(\d+)"\} (\S+)$', line)
            if match:
                found[match[1], match[2], match[3]] = float(match[4])
        roles = {role for _, role, _ in found}
        return found if {"ingress", "prefill_worker", "decode_worker", "kv_store"} <= roles else {}

    def children(self) -> list[int]:
        """Process ids of all actors."""
        pids = []
        for entry in pathlib.Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError, IndexError):
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                if int(fields[1]) == self.process.pid:
                    pids.append(int(entry.name))
        return pids


def wait_until(condition, seconds: float, what: str):
    """Poll until condition() is true; its value."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def yaml_of(settings: dict[str, dict]) -> str:
    lines = []
    for section, keys in settings.items():
        lines.append(f"{section}:")
        for key, value in keys.items():
            lines.append(f"  {key}: {json.dumps(value)}")
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def company(settings: dict[str, dict] | None = None, ready_seconds: float = 60, arguments: list[str] | None = None):
    """Start, wait until ready, yield, stop by Ctrl-C; then nothing may be left: no process, no socket, no pool."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="troupe-") as temporary:
        top = pathlib.Path(temporary)
        merged: dict[str, dict] = {
            "model": {"path": str(TINY)},
            "http": {"listen": f"127.0.0.1:{port}"},
            "wire": {"directory": str(top / "wire")},
        }
        for section, keys in (settings or {}).items():
            merged.setdefault(section, {}).update(keys)
        config = top / "company.yaml"
        config.write_text(yaml_of(merged))
        log = top / "log"
        with log.open("wb") as output:
            process = subprocess.Popen([str(TROUPE), "up", "--config", str(config), *(arguments or [])],
                                       stdout=output, stderr=subprocess.STDOUT, cwd=top)
        self = Company(port, process, top / "wire", log, config)
        try:
            def is_ready():
                assert process.poll() is None, "troupe up ended:\n" + log.read_text(errors="replace")[-4000:]
                with contextlib.suppress(OSError):
                    return self.get("/ready", timeout=2)[0] == 200
                return False
            wait_until(is_ready, ready_seconds, "GET /ready is 200; log:\n" + log.read_text(errors="replace")[-4000:])
            yield self
            pids = self.children()
            assert process.poll() is None, "troupe up ended early:\n" + log.read_text(errors="replace")[-4000:]
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0, log.read_text(errors="replace")[-4000:]
            left = [pid for pid in pids if pathlib.Path(f"/proc/{pid}").exists()]
            assert not left, f"processes left after Ctrl-C: {left}"
            sockets = [p.name for p in (top / "wire").glob("*.sock")] if (top / "wire").exists() else []
            pools = [p.name for p in (top / "wire").glob("*pool*")] if (top / "wire").exists() else []
            assert not sockets and not pools, f"left behind: {sockets + pools}"
        except BaseException:
            print("---- log of the company ----\n" + log.read_text(errors="replace")[-6000:])
            raise
        finally:
            if process.poll() is None:
                for pid in [*self.children(), process.pid]:
                    with contextlib.suppress(OSError):
                        os.kill(pid, signal.SIGKILL)
                process.wait()


def names_in(directory: pathlib.Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir()) if directory.exists() else []


def is_alive(pid: int) -> bool:
    """Not gone, and no zombie that nobody has buried yet."""
    with contextlib.suppress(OSError):
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def pids_of(running) -> dict[str, int]:
    """"role.index" -> process id, of the actors that live now."""
    found = {}
    for pid in running.children():
        with contextlib.suppress(OSError, ValueError):
            words = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            found[f"{words[words.index('--role') + 1]}.{words[words.index('--index') + 1]}"] = pid
    return found


def ask(running, seed: int, tokens: int = 40) -> tuple[int, str]:
    status, answer = running.post("/v1/completions", {"prompt": "The box", "max_tokens": tokens, "seed": seed, "ignore_eos": True})
    return status, answer["choices"][0]["text"] if status == 200 else json.dumps(answer)


def restart(running, arguments: list[str]):
    """Another life in the same directory, for company() to end."""
    began = time.monotonic()
    with running.log.open("ab") as output:
        running.process.__init__([str(TROUPE), "up", "--config", str(running.config), *arguments], stdout=output,
                                 stderr=subprocess.STDOUT, cwd=running.directory.parent)

    def is_ready():
        assert running.process.poll() is None, running.log.read_text()[-3000:]
        with contextlib.suppress(OSError):
            return running.get("/ready", timeout=2)[0] == 200
        return False
    wait_until(is_ready, 20, "ready again; log:\n" + running.log.read_text()[-3000:])
    print(f"ready again after {time.monotonic() - began:.2f} s")
