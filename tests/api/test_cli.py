"""tests/api/test_cli.py - the troupe command as a person uses it: what it prints, and its exit codes."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys

import pytest

from company import ROOT, TINY, TROUPE, company, free_port, wait_until

CASES = json.loads((ROOT / "tests" / "golden" / "tokenizer_cases.json").read_text())
REFERENCE = json.loads((ROOT / "tests" / "golden" / "chat_reference.json").read_text())


def troupe(*arguments: str, text: str = "", timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(TROUPE), *arguments], input=text.encode(), capture_output=True, timeout=timeout, check=False)


def out(done) -> str:
    return done.stdout.decode()


def where_of(running) -> list[str]:
    return ["--set", f"wire.directory={running.directory}"]


def test_tokenize_prints_the_ids_and_decodes_them():
    for case in CASES[:20]:
        done = troupe("tokenize", "--tokenizer", str(TINY), text=case["text"])
        assert done.returncode == 0 and json.loads(out(done)) == case["tiny"]
        back = troupe("tokenize", "--tokenizer", str(TINY), "--decode", text=out(done))
        assert back.returncode == 0 and out(back) == case["text"]


@pytest.mark.parametrize("text", ["", "[1, -2]", "[1.0e99]", "{}", "[\"a\"]", "[2.9]", "[300, 2.5]", "[300] [301]", "[300]\0"])
def test_decode_refuses_what_are_no_ids(text):
    done = troupe("tokenize", "--tokenizer", str(TINY), "--decode", text=text)
    assert done.returncode == 1 and b"JSON array of ids" in done.stderr and not done.stdout


def test_run_continues_ids_and_text():
    ids = ",".join(map(str, REFERENCE[0]["prompt_ids"]))
    done = troupe("run", "--model", str(TINY), "--ids", ids, "--max-tokens", "24", "--json", "--ops", "judge")
    answer = json.loads(out(done))
    assert done.returncode == 0
    assert answer["prompt_ids"] == REFERENCE[0]["prompt_ids"]
    assert answer["ids"][-1] == 1 and len(answer["ids"]) == len(answer["top_logprobs"]) <= 24
    assert all(top[0][0] == chosen for top, chosen in zip(answer["top_logprobs"], answer["ids"]))
    text = troupe("run", "--model", str(TINY), "--prompt", "The", "--max-tokens", "4")
    assert text.returncode == 0 and out(text).strip()


def test_run_shows_its_loading_on_a_terminal_only():
    """A large model takes minutes to load: a person must see that something happens, a log file must not."""
    ours, theirs = pty.openpty()
    with open(ours, "rb", buffering=0) as terminal:
        arguments = [str(TROUPE), "run", "--model", str(TINY), "--prompt", "The", "--max-tokens", "1"]
        done = subprocess.run(arguments, stdout=subprocess.PIPE, stderr=theirs, timeout=60, check=False)
        os.close(theirs)
        shown = terminal.read(65536).decode()
    assert done.returncode == 0
    steps = [int(step) for step in re.findall(r"loading the model .*?(\d+)%", shown)]
    assert len(steps) > 2 and steps == sorted(steps) and steps[-1] == 100
    assert shown.endswith("\r\033[K"), "the line is wiped before the answer"
    assert b"loading" not in subprocess.run(arguments, capture_output=True, timeout=60, check=False).stderr


@pytest.mark.parametrize("arguments, code, part", [
    ([], 64, "Usage"),
    (["nonsense"], 64, "there is no command"),
    (["run"], 64, "--prompt or --ids"),
    (["run", "--ids", "1", "--max-tokens", "0"], 64, "--max-tokens must be"),
    (["run", "--ids", "1", "-n", "4294967297"], 64, "from 1 to 262144"),
    (["run", "--ids", "1", "-n", "-4294967290"], 64, "from 1 to 262144"),
    (["run", "--ids", "1", "-n", " 1"], 64, "from 1 to 262144"),
    (["complete", "-n", "1.5", "Hello"], 64, "--max-tokens must be a whole number from 1 to 262144, not \"1.5\""),
    (["chat", "--seed", "1.9", "Hello"], 64, "--seed must be a whole number from 0 to 9007199254740992, not \"1.9\""),
    (["complete", "-T", "nan", "Hello"], 64, "from 0 to 2"),
    (["down", "--drain", "-1"], 64, "--drain must be a whole number from 0 to 600"),
    (["help", "nonsense"], 64, "there is no command \"nonsense\""),
    (["run", "--model", "/nonexistent", "--ids", "1"], 78, "/nonexistent"),
    (["run", "--model", str(TINY), "--ids", "1", "--ops", "nonsense"], 78, "--ops: engine.ops is 'nonsense'; allowed are: auto|"),
    (["run", "--model", str(TINY), "--ids", "1,99999"], 1, "--ids"),
    (["run", "--model", str(TINY), "--ids", ""], 1, "--ids: \"\": ids from 0 to"),
    (["run", "--model", str(TINY), "--ids", "-18446744073709551615"], 1, "--ids"),
    (["tokenize", "--tokenizer", "/nonexistent"], 78, "No such file"),
    (["config", "show", "--set", "nonsense.key=1"], 78, "nonsense"),
    (["config", "check", "--set", "http.listen=127.0.0.1:0"], 78, "allowed are ports from 1 to 65535"),
    (["up", "--set", "model.path=/nonexistent"], 78, "model.path /nonexistent"),
    (["actor", "--role", "nobody"], 64, "there is no actor"),
])
def test_what_is_wrong_is_said_with_its_exit_code(arguments, code, part):
    done = troupe(*arguments)
    assert done.returncode == code and part in done.stderr.decode()


def test_config_show_is_a_configuration_that_check_accepts(tmp_path):
    shown = troupe("config", "show", "--set", "decode.batch_max=64")
    assert shown.returncode == 0 and "batch_max: 64" in out(shown)
    file = tmp_path / "shown.yaml"
    file.write_bytes(shown.stdout)
    assert troupe("config", "check", str(file)).returncode == 0
    file.write_text("decode:\n  batch_max: many\n")
    done = troupe("config", "check", str(file))
    assert done.returncode == 78 and f"{file}:2" in done.stderr.decode()


def test_every_command_has_help_and_is_completed():
    names = [line.split()[0] for line in out(troupe("help")).splitlines() if line.startswith("  ")]
    assert len(names) >= 10
    for name in names:
        assert troupe(name, "--help").returncode == 0
    script = out(troupe("completion", "bash"))
    assert all(name in script for name in names)
    assert subprocess.run(["bash", "-n"], input=script.encode(), check=False).returncode == 0


def test_keys_are_private_and_kept(tmp_path):
    keys = tmp_path / "keys"
    assert troupe("keys", str(keys)).returncode == 0
    assert keys.stat().st_mode & 0o777 == 0o700
    secrets = sorted(keys.glob("*_secret"))
    assert len(secrets) >= 12 and all(secret.stat().st_mode & 0o077 == 0 for secret in secrets)
    before = [secret.read_bytes() for secret in secrets]
    assert b"0 certificates" in troupe("keys", str(keys)).stdout
    assert before == [secret.read_bytes() for secret in secrets]
    keys.chmod(0o755)
    assert troupe("keys", str(keys)).returncode == 1


def test_nothing_runs_is_said(tmp_path):
    where = ["--set", f"wire.directory={tmp_path}/wire"]
    for command in (["status"], ["down"], ["chat", "Hello"], ["complete", "Hello"]):
        done = troupe(*command, *where)
        assert done.returncode == 69 and b"troupe up" in done.stderr


def test_company_is_shown_talked_to_and_not_started_twice():
    with company() as running:
        where = ["--set", f"wire.directory={running.directory}"]

        def are_all_up():  # ready means that tokens flow; the director hears of everybody a moment later
            status = json.loads(out(troupe("status", "--json", *where)))
            return len(status["actors"]) == 11 and all(actor["is_up"] and actor.get("pid") for actor in status["actors"])
        wait_until(are_all_up, 10, "troupe status shows every actor up")
        table = out(troupe("status", *where))
        assert re.search(rf"^supervisor\.0 +up +[\d.]+ \w+ +\d+ +{running.process.pid} ", table, re.M), table
        assert "decode_worker.1" in table and "KV BLOCKS" in table and "\033" not in table
        answer = troupe("chat", "What is 946 - 23?", "--hide-thinking", *where)
        assert answer.returncode == 0 and "923" in out(answer)
        talk = troupe("chat", *where, text="What is 946 - 23?\nWhat is 5 + 5?\n")
        assert "923" in out(talk) and "10" in out(talk)
        first, second = (troupe("complete", "The", "-n", "8", "-T", "1", "--seed", "3", *where) for _ in range(2))
        assert first.returncode == 0 and first.stdout == second.stdout
        again = troupe("up", "--config", str(running.config))
        assert again.returncode == 1 and b"already runs" in again.stderr


@pytest.mark.parametrize("arguments", [
    ["version"], ["help"], ["config", "show"], ["completion", "bash"], ["tokenize", "--tokenizer", str(TINY)],
    ["run", "--model", str(TINY), "--ids", "1", "-n", "1", "--json"], ["up", "--help"], ["help", "status"]])
def test_output_that_is_lost_is_a_failure(arguments):
    """Broken: a script goes on with an empty file because the disk was full."""
    for redirection in (">/dev/full", ">&-"):
        done = subprocess.run(["sh", "-c", f'"$@" {redirection}', "sh", str(TROUPE), *arguments], input=b"Hello", capture_output=True,
                              timeout=60, check=False)
        assert done.returncode == 1 and b"standard output cannot be written" in done.stderr, (redirection, done.stderr)


def test_a_reader_that_has_had_enough_is_no_failure():
    done = subprocess.run(["bash", "-c", 'trap "" PIPE; "$@" | true; exit ${PIPESTATUS[0]}', "bash", str(TROUPE), "config", "show"],
                          capture_output=True, timeout=60, check=False)
    assert done.returncode == 0 and not done.stderr


@pytest.mark.parametrize("command", ["tokenize", "complete", "chat"])
def test_input_that_cannot_be_read_is_not_taken_as_empty(tiny, command):
    where = ["--tokenizer", str(TINY)] if command == "tokenize" else where_of(tiny)
    for redirection in ("</", "<&-"):
        done = subprocess.run(["sh", "-c", f'"$@" {redirection}', "sh", str(TROUPE), command, *where], capture_output=True,
                              timeout=60, check=False)
        assert done.returncode == 1 and b"standard input: " in done.stderr and not done.stdout, (redirection, done)


def test_more_text_than_a_message_holds_is_refused(tiny):
    """Broken: a large file on standard input ends the program with an assertion."""
    for command in ("complete", "chat"):
        done = troupe(command, *where_of(tiny), text="a" * ((4 << 20) + 1))
        assert done.returncode == 1 and b"larger than allowed" in done.stderr and not done.stdout, done


def test_what_is_no_text_is_refused_in_the_words_of_who_wrote_it(tiny):
    """Broken: the model is asked something else than was written, or an error speaks of a JSON body that nobody wrote."""
    bad, where = b"ab\xff", where_of(tiny)

    def said(*arguments, stdin=b"") -> str:
        done = subprocess.run([str(TROUPE), *arguments], input=stdin, capture_output=True, timeout=60, check=False)
        assert done.returncode == 1 and not done.stdout.strip(), done
        return done.stderr.decode()
    byte = "must be UTF-8, but byte 0xff at position 2 is not"
    assert f"standard input {byte}" in said("tokenize", "--tokenizer", str(TINY), stdin=bad)
    assert f"standard input {byte}" in said("complete", *where, stdin=bad)
    assert f"PROMPT {byte}" in said("complete", bad, *where)
    assert f"--prompt {byte}" in said("run", "--model", str(TINY), "--prompt", bad)
    assert f"the message {byte}" in said("chat", bad, *where)
    assert f"--system {byte}" in said("chat", "--system", bad, "Hello", *where)
    assert f"the message {byte}" in said("chat", *where, stdin=bad + b"\n")
    assert "the message holds a NUL character at position 2" in said("chat", *where, stdin=b"ab\0cd\n")


def test_complete_prints_the_line_breaks_that_continue_a_text(tiny):
    """Broken: a continuation that begins with a line break is printed as another text than the API answers."""
    prompt = "<｜User｜>What is 946 - 23?<｜Assistant｜><think>\nI subtract.</think>"
    _, answer = tiny.post("/v1/completions", {"prompt": prompt, "max_tokens": 40, "temperature": 0})
    expected = answer["choices"][0]["text"]
    assert expected.startswith("\n")
    assert out(troupe("complete", prompt, "-n", "40", *where_of(tiny))) == expected + "\n"
    chat = out(troupe("chat", "What is 946 - 23?", "--hide-thinking", *where_of(tiny)))
    assert chat and not chat.startswith("\n"), "between reasoning and answer they are not wanted"


def test_what_up_says_to_try_works_as_it_stands(tmp_path):
    """Broken: a newcomer copies a line that cannot find the company, its address or its key."""
    arguments = ["--set", "wire.directory=wi re", "--set", f"http.listen=*:{free_port()}", "--set", "http.api_keys=[sesame]",
                 "--set", f"model.path={TINY}", "--set", "log.level=warn"]
    process = subprocess.Popen([str(TROUPE), "up", *arguments], stdout=subprocess.PIPE, cwd=tmp_path)
    try:
        said = ""
        while "Ctrl-C stops everything" not in said:
            said += process.stdout.readline().decode()
            assert process.poll() is None
        assert "sesame" not in said and "*" not in said
        key, *lines = [part.strip() for part in said.split("Try, in another terminal:")[1].split("\n\n")[1:-1]]
        assert key.startswith("export TROUPE_API_KEY=") and [line.split()[0] for line in lines] == ["curl", str(TROUPE), "python3"]
        for line, input_, part in zip(lines, (b"", b"What is 946 - 23?\n", b""), (b"data: [DONE]", b"923", b"")):
            line = re.sub("^python3", sys.executable, line)
            done = subprocess.run(["sh", "-c", line], input=input_, capture_output=True, timeout=60, check=False, cwd="/",
                                  env={**os.environ, "TROUPE_API_KEY": "sesame"})
            assert done.returncode == 0 and done.stdout.strip() and part in done.stdout, (line, done)
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def test_request_of_an_ingress_that_was_killed_fails_at_once():
    """The new ingress knows nothing of the request, and says nothing to a client that it has not heard of."""
    with company({"engine": {"kind": "stub", "stub_token_us": 20000}}) as running:
        where = where_of(running)

        def pid_of_ingress():  # the supervisor tells the director a moment after it is ready
            status = json.loads(out(troupe("status", "--json", *where)))
            return next(actor.get("pid") for actor in status["actors"] if actor["role"] == "ingress")
        pid = wait_until(pid_of_ingress, 10, "troupe status shows ingress")
        process = subprocess.Popen([str(TROUPE), "complete", "The", "-n", "2000", *where], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout.read(1)
        os.kill(pid, signal.SIGKILL)
        try:
            _, errors = process.communicate(timeout=10)
        finally:
            process.kill()
        assert process.returncode == 1 and b"started anew" in errors and b"trying again" in errors
        wait_until(lambda: troupe("complete", "The", "-n", "2", *where).returncode == 0, 10, "the next request is served")


@pytest.mark.parametrize("arguments", [[], ["--one-process"]])
def test_down_stops_a_company_and_leaves_nothing(tmp_path, arguments):
    wire = tmp_path / "wire"
    where = ["--set", f"wire.directory={wire}"]
    process = subprocess.Popen([str(TROUPE), "up", *arguments, *where, "--set", f"model.path={TINY}", "--set",
                                f"http.listen=127.0.0.1:{free_port()}", "--set", "log.level=warn"], stdout=subprocess.PIPE)
    try:
        while b"Ctrl-C stops everything" not in process.stdout.readline():
            assert process.poll() is None
        assert (wire / "company.yaml").stat().st_mode & 0o777 == 0o600
        done = troupe("down", *where)
        assert done.returncode == 0 and out(done) == "stopped\n"
        assert process.wait(10) == 0
        assert not (wire / "company.yaml").exists() and not list(wire.glob("*.sock"))
    finally:
        process.kill()
        process.wait()
