"""tests/api/test_lost_files.py - somebody deletes files of a company that runs, and it goes on."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import subprocess
import time

from company import STUB, TROUPE, ask, company, names_in, pids_of, restart, wait_until


def test_pools_deleted_while_it_runs_requests_finish_unchanged(stub, expected):
    """Broken: who cleans up the directory ends all transfers of KV, while /health says that all is well."""
    for seed in range(4):
        for pool in stub.directory.glob("*.pool"):
            pool.unlink()
        assert ask(stub, seed) == expected[seed]
    wait_until(lambda: len(list(stub.directory.glob("*.pool"))) == 5, 5, "every pool has its name again")


def test_locks_deleted_while_it_runs_the_company_is_still_found_and_stopped():
    """Broken: an operator is told that nothing runs, or that it was stopped, while it serves."""
    with company(STUB) as running:
        def troupe(*arguments: str) -> subprocess.CompletedProcess:
            return subprocess.run([str(TROUPE), *arguments, "--set", f"wire.directory={running.directory}"], capture_output=True,
                                  timeout=30, check=False)
        for lock in running.directory.glob("*.lock"):
            lock.unlink()
        assert troupe("complete", "The", "-n", "2").returncode == 0
        refused = troupe("up")
        assert refused.returncode == 1 and b"already runs" in refused.stderr and ask(running, 1, 4)[0] == 200
        with concurrent.futures.ThreadPoolExecutor(1) as threads:
            last = threads.submit(ask, running, 3, 400)
            time.sleep(0.3)
            done = troupe("down")
            assert done.stdout == b"stopped\n" and names_in(running.directory) == [], done
            assert last.result(10)[0] == 200
        assert running.process.wait(10) == 0
        restart(running, [])


def test_sockets_deleted_while_it_runs_actors_are_still_restarted(stub, expected):
    """Broken: an actor that dies after somebody cleaned up the directory reaches nobody any more."""
    for socket in stub.directory.glob("*.sock"):
        socket.unlink()
    old = pids_of(stub)["decode_worker.0"]
    os.kill(old, signal.SIGKILL)
    wait_until(lambda: pids_of(stub).get("decode_worker.0", old) != old, 15, "decode_worker.0 is started again")
    wait_until(lambda: stub.get("/ready")[0] == 200, 10, "ready")
    assert ask(stub, 1) == expected[1]


def test_configuration_deleted_while_it_runs_actors_are_still_restarted(stub, expected):
    """Broken: the next actor that dies cannot read what it is to be, and takes the company with it; or an operator is told a wrong address."""
    (stub.directory / "company.yaml").unlink()
    told = subprocess.run([str(TROUPE), "status", "--set", f"wire.directory={stub.directory}"], capture_output=True, timeout=20, check=True)
    assert f"11 actors, {stub.url}\n".encode() in told.stdout
    for victim in ("decode_lb.0", "decode_worker.1"):
        old = pids_of(stub)[victim]
        os.kill(old, signal.SIGKILL)
        wait_until(lambda: pids_of(stub).get(victim, old) != old, 15, f"{victim} is started again")
    wait_until(lambda: stub.get("/ready")[0] == 200, 10, "ready")
    assert ask(stub, 1) == expected[1]
