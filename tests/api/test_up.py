"""tests/api/test_up.py - `troupe up` starts, also after a crash, and says what is wrong where it cannot."""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import threading
import time

import pytest

from company import STUB, TINY, TROUPE, ask, company, free_port, is_alive, names_in, pids_of, restart, wait_until, yaml_of

STARTED_US = 10


def up_to_its_end(tmp_path: pathlib.Path, settings: dict[str, dict]) -> tuple[int, str, float]:
    """Exit code, the lines that troupe itself says, and seconds of a `troupe up` that cannot serve."""
    merged = {"model": {"path": str(TINY)}, "http": {"listen": f"127.0.0.1:{free_port()}"},
              "wire": {"directory": str(tmp_path / "wire")}, "log": {"file": str(tmp_path / "log")}}
    for section, keys in settings.items():
        merged.setdefault(section, {}).update(keys)
    config = tmp_path / "up.yaml"
    config.write_text(yaml_of(merged))
    began = time.monotonic()
    done = subprocess.run([str(TROUPE), "up", "--config", str(config)], capture_output=True, timeout=60, check=False)
    assert b"Troupe serves" not in done.stdout
    return done.returncode, done.stderr.decode(), time.monotonic() - began


# ---- what cannot be served ---------------------------------------------------------------------------------


def test_truncated_model_ends_up_with_file_and_reason_once(tmp_path):
    """Broken: a company that cannot load its model seems to serve."""
    bad = tmp_path / "bad"
    shutil.copytree(TINY, bad)
    weights = bad / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 4096)
    code, said, seconds = up_to_its_end(tmp_path, {"model": {"path": str(bad)}})
    assert code == 1 and said.count(str(weights)) == 1 and said.count("\n") == 1, said
    assert "does not start" in said and seconds < 20
    assert names_in(tmp_path / "wire") == []


def test_model_of_other_shapes_ends_up_with_the_tensor(tmp_path):
    """Broken: weights that do not fit config.json are found out by nobody."""
    bad = tmp_path / "bad"
    shutil.copytree(TINY, bad)
    shapes = json.loads((bad / "config.json").read_text())
    shapes["moe_intermediate_size"] *= 2
    (bad / "config.json").write_text(json.dumps(shapes))
    code, said, _ = up_to_its_end(tmp_path, {"model": {"path": str(bad)}})
    assert code == 1 and said.count("\n") == 1 and "model.layers" in said, said


def test_config_of_no_model_is_refused_before_anything_starts(tmp_path):
    bad = tmp_path / "bad"
    shutil.copytree(TINY, bad)
    (bad / "config.json").write_text("{}")
    code, said, seconds = up_to_its_end(tmp_path, {"model": {"path": str(bad)}})
    assert code == 78 and str(bad) in said and said.count("\n") == 1 and seconds < 5, said


def test_missing_model_is_refused_at_once(tmp_path):
    code, said, seconds = up_to_its_end(tmp_path, {"model": {"path": str(tmp_path / "nowhere")}})
    assert code == 78 and f"{tmp_path}/nowhere: No such file or directory" in said and said.count("\n") == 1, said
    assert seconds < 5


def test_port_in_use_ends_up_with_address_and_reason(tmp_path):
    """Broken: somebody else's server is taken for ours, or the reason is lost among restarts."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        code, said, seconds = up_to_its_end(tmp_path, {"http": {"listen": f"127.0.0.1:{port}"}})
    assert code == 1 and f"127.0.0.1:{port}" in said and "Address already in use" in said, said
    assert said.count("\n") == 1 and seconds < 20
    assert names_in(tmp_path / "wire") == []


def test_port_of_another_company_is_not_ours(tmp_path):
    """Broken: `troupe up` says that it serves when another company answers on its port."""
    with company(STUB) as running:
        code, said, _ = up_to_its_end(tmp_path, {**STUB, "http": {"listen": f"127.0.0.1:{running.port}"}})
        assert code == 1 and "Address already in use" in said, said
        assert ask(running, 1)[0] == 200


def test_directory_of_somebody_else_is_refused(tmp_path):
    """Broken: others could read prompts, or a company speaks through sockets that others made."""
    foreign = tmp_path / "foreign"
    foreign.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(foreign, 65534, 65534)
    else:
        foreign = pathlib.Path("/")
    code, said, seconds = up_to_its_end(tmp_path, {"wire": {"directory": str(foreign)}})
    assert code == 78 and "belongs to another user" in said and said.count("\n") == 1 and seconds < 5, said
    open_ = tmp_path / "open"
    open_.mkdir()
    open_.chmod(0o755)
    code, said, _ = up_to_its_end(tmp_path, {"wire": {"directory": str(open_)}})
    assert code == 78 and "chmod 700" in said, said


def test_too_few_descriptors_are_refused_before_anything_starts(tmp_path):
    """Broken: libzmq ends one actor after the other, and nobody learns why."""
    def up(limit: int, *arguments: str) -> subprocess.Popen:
        said = ["--set", f"model.path={TINY}", "--set", f"wire.directory={tmp_path / 'wire'}", "--set", "engine.kind=stub",
                "--set", f"http.listen=127.0.0.1:{free_port()}", "--set", f"log.file={tmp_path / 'log'}", *arguments]
        return subprocess.Popen(["sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh", str(TROUPE), "up", *said],
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for limit in (20, 45, 60):
        refused = up(limit)
        said = refused.communicate(timeout=20)[1]
        assert refused.returncode == 78 and re.fullmatch(rf"troupe: {limit} open files are allowed .*an actor may need \d+\n", said), said
    together = up(200, "--one-process")
    assert "the company may need" in together.communicate(timeout=20)[1] and together.returncode == 78
    assert names_in(tmp_path / "wire") == []
    enough = up(int(said.split()[-1]))
    try:
        assert "Troupe serves" in "".join(iter(enough.stdout.readline, "Try, in another terminal:\n"))
        enough.send_signal(signal.SIGINT)
        assert enough.wait(20) == 0 and "SUPERVISOR-EXIT" not in (tmp_path / "log").read_text()
    finally:
        enough.kill()


def test_of_several_ups_at_once_one_serves_as_it_was_told(tmp_path):
    """Broken: one that is refused overwrites the configuration that the actors of the other read, or deletes it."""
    ports = [free_port() for _ in range(4)]
    command = [str(TROUPE), "up", "--set", f"model.path={TINY}", "--set", f"wire.directory={tmp_path / 'wire'}", "--set", "engine.kind=stub"]
    ups = [subprocess.Popen([*command, "--set", f"http.listen=127.0.0.1:{port}", "--set", f"log.file={tmp_path}/{port}.log"],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE) for port in ports]
    try:
        wait_until(lambda: sum(up.poll() is not None for up in ups) == 3, 20, "three of four are refused")
        (port, first), = ((port, up) for port, up in zip(ports, ups) if up.poll() is None)
        assert f"http://127.0.0.1:{port}".encode() in b"".join(iter(first.stdout.readline, b"Try, in another terminal:\n"))
        assert f"listen: \"127.0.0.1:{port}\"" in (tmp_path / "wire" / "company.yaml").read_text()
        assert all(up.returncode == 1 and up.stderr.read().count(b"\n") == 1 for up in ups if up is not first)
        first.send_signal(signal.SIGINT)
        assert first.wait(20) == 0
    finally:
        for up in ups:
            up.kill()


def test_second_up_is_refused_and_the_first_unharmed():
    """Broken: two companies write into one directory."""
    with company(STUB) as running:
        before, expected = pids_of(running), ask(running, 1)
        again = subprocess.run([str(TROUPE), "up", "--config", str(running.config)], capture_output=True, timeout=20, check=False)
        assert again.returncode == 1 and b"already runs" in again.stderr and again.stderr.count(b"\n") == 1
        assert (running.directory / "company.yaml").exists()
        assert pids_of(running) == before and ask(running, 1) == expected


# ---- starts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], ["--one-process"]])
def test_start_is_quick_and_the_end_leaves_nothing(arguments):
    """Broken: a restart is an outage, or every run leaves files."""
    for model in (STUB, {}):
        began = time.monotonic()
        with company(model, arguments=arguments) as running:
            seconds = time.monotonic() - began
            print(f"ready after {seconds:.2f} s {arguments}")
            assert seconds < STARTED_US
            assert bool(running.children()) == (not arguments)
            assert ask(running, 1, 4)[0] == 200
            running.process.send_signal(signal.SIGINT)
            assert running.process.wait(20) == 0
            assert names_in(running.directory) == []
            restart(running, arguments)


def test_up_right_after_down_waits_for_the_last_to_tidy_up():
    """Broken: `troupe down && troupe up` is refused now and then."""
    with company(STUB) as running:
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(20) == 0
        last = os.open(running.directory, os.O_RDONLY)
        fcntl.flock(last, fcntl.LOCK_EX)
        threading.Timer(0.3, os.close, [last]).start()
        restart(running, [])
        assert ask(running, 1, 4)[0] == 200


def test_all_killed_the_next_start_is_clean():
    """Broken: after a crash somebody has to remove files by hand."""
    with company({}) as running:
        expected = ask(running, 5)
        running.process.send_signal(signal.SIGSTOP)  # else it would restart them
        for pid in [*running.children(), running.process.pid]:
            os.kill(pid, signal.SIGKILL)
        running.process.wait()
        assert "company.yaml" in names_in(running.directory)
        restart(running, [])
        assert ask(running, 5) == expected


def test_supervisor_killed_the_next_start_waits_for_its_actors():
    """Broken: actors that still drain make the next start fail, or are robbed of their sockets."""
    with company(STUB) as running:
        with concurrent.futures.ThreadPoolExecutor(1) as threads:
            last = threads.submit(ask, running, 3, 300)
            time.sleep(0.3)
            pids = running.children()
            running.process.kill()
            running.process.wait()
            restart(running, [])
            with contextlib.suppress(OSError, ValueError):
                assert last.result(30)[0] in (200, 503)
        assert not [pid for pid in pids if is_alive(pid)]
        assert ask(running, 3)[0] == 200
