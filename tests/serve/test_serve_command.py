"""`limner serve` as a process: what it refuses before it serves, and how it leaves."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from limner.cli.main import main
from limner.cli.serve import TOKENS, read_tokens
from limner.errors import ConfigError
from limner.serve.server import load_checker


def run(*arguments: str | Path) -> int:
    """The exit status, wherever it comes from."""
    try:
        return main([str(a) for a in arguments])
    except SystemExit as e:
        return int(e.code or 0)


def test_what_cannot_be_served_is_said(tmp_path: Path, capsys: Any) -> None:
    for arguments, said in (
        (("--model", tmp_path), "no folder with a model"),
        (("--checker", "no_such_module:f"), "cannot be loaded"),
        (("--tokens", tmp_path / "absent"), "Cannot read tokens"),
        (("--rate", "0"), "rate"),
    ):
        assert run("serve", *arguments) == 2
        assert said in capsys.readouterr().err.replace("\n", " ")


def test_tokens_of_file_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokens").write_text("first-one\nsecond-one\n")
    (tmp_path / "empty").write_text("\n")
    monkeypatch.setenv(TOKENS, "third-one, first-one")
    assert read_tokens(tmp_path / "tokens") == ("third-one", "first-one", "second-one")
    monkeypatch.delenv(TOKENS)
    assert read_tokens(None) == ()
    with pytest.raises(ConfigError, match="no token"):
        read_tokens(tmp_path / "empty")


def test_a_checker_is_a_function_with_a_name() -> None:
    assert load_checker("os.path:join") is os.path.join
    for name in ("os.path", "os.path:nothing", "os:sep", ":", "no_such:f"):
        with pytest.raises(ConfigError):
            load_checker(name)


def test_on_sigterm_it_finishes_what_it_accepted(tiny_folder: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "limner.cli.main",
        "serve",
        "--model",
        str(tiny_folder),
        "--port",
        "0",
        "--no-page",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200"})
    try:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "is ready on" in line)
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found is not None

        def ask(path: str, body: Any = None) -> Any:
            headers = {"X-Caller-Key": "k" * 30, "Content-Type": "application/json"}
            data = None if body is None else json.dumps(body).encode()
            return urllib.request.urlopen(urllib.request.Request(found[0] + path, data, headers), timeout=60)

        job = json.load(ask("/v1/jobs", {"prompt": "a chef", "steps": 20, "number": 8}))["id"]
        stream = ask(f"/v1/jobs/{job}/events")
        process.send_signal(signal.SIGTERM)
        text = stream.read().decode()
        last = json.loads(text.rsplit("data: ", 1)[1])
        assert last["status"] == "done"
        for picture in last["pictures"]:
            assert ask(picture["url"]).read().startswith(b"\x89PNG")
            time.sleep(0.2)  # it stays until the last one is fetched
        assert process.wait(60) in (0, -signal.SIGTERM)
    finally:
        process.kill()
