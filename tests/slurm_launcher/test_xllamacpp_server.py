"""The real engine of the embedded default, with the project's own models."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import proxy.embedded

MODELS = Path(proxy.embedded.__file__).parent
SERVER = (sys.executable, "-m", "slurm_launcher.xllamacpp_server")
KEY = "a-key"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(*arguments: str, before: tuple[str, ...] = ()) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A server that answers; the port and the process."""
    port = free_port()
    process = subprocess.Popen(
        [*before, *SERVER, "--port", str(port), *arguments],
        env={**os.environ, "LLAMA_API_KEY": KEY},
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 20
        while ask(port, "GET", "/health")[0] != 200:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield port, process
    finally:
        process.kill()
        process.wait()


def ask(port: int, method: str, path: str, body: Any = None, key: str | None = None) -> tuple[int, bytes]:
    """Status and body; status 0 where nobody listens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except OSError:
        return 0, b""
    finally:
        connection.close()


@pytest.fixture(scope="module")
def chat() -> Iterator[int]:
    model = str(MODELS / "guide.gguf")
    with serving("--model", model, "--alias", "some/name", "--ctx-size", "2048", "--metrics") as (port, _):
        yield port


def test_it_completes_text_under_its_alias(chat: int) -> None:
    request = {"model": "some/name", "prompt": "Hello", "max_tokens": 1}
    status, body = ask(chat, "POST", "/v1/completions", request, KEY)
    assert status == 200
    answer = json.loads(body)
    assert len(answer["choices"]) == 1
    assert answer["model"] == "some/name"
    assert answer["usage"]["completion_tokens"] == 1


def test_it_chats_and_streams(chat: int) -> None:
    request = {"messages": [{"role": "user", "content": "What is Slurm?"}], "max_tokens": 4}
    status, body = ask(chat, "POST", "/v1/chat/completions", request, KEY)
    assert status == 200
    assert json.loads(body)["choices"][0]["message"]["role"] == "assistant"
    status, body = ask(chat, "POST", "/v1/chat/completions", {**request, "stream": True}, KEY)
    assert status == 200
    assert body.rstrip().endswith(b"data: [DONE]")


def test_a_wrong_key_is_refused_and_health_needs_none(chat: int) -> None:
    request = {"prompt": "Hello", "max_tokens": 1}
    assert ask(chat, "POST", "/v1/completions", request, "wrong")[0] == 401
    assert ask(chat, "POST", "/v1/completions", request)[0] == 401
    assert ask(chat, "GET", "/health")[0] == 200


def test_it_shows_metrics_and_its_model(chat: int) -> None:
    status, body = ask(chat, "GET", "/metrics", key=KEY)
    assert status == 200
    assert b"llamacpp:prompt_tokens_total" in body
    status, body = ask(chat, "GET", "/v1/models", key=KEY)
    assert json.loads(body)["data"][0]["id"] == "some/name"


def test_it_embeds_and_ends_at_once_on_term() -> None:
    with serving("--model", str(MODELS / "embed.gguf"), "--embeddings") as (port, process):
        status, body = ask(port, "POST", "/v1/embeddings", {"input": ["one", "two"]}, KEY)
        assert status == 200
        vectors = [item["embedding"] for item in json.loads(body)["data"]]
        assert len(vectors) == 2
        assert vectors[0] != vectors[1]
        process.send_signal(signal.SIGTERM)
        assert process.wait(1) == 0


def test_it_ends_with_the_process_that_started_it() -> None:
    shell = ("/bin/sh", "-c", '"$@" & wait', "sh")
    with serving("--model", str(MODELS / "guide.gguf"), before=shell) as (port, process):
        process.kill()
        deadline = time.monotonic() + 5
        while ask(port, "GET", "/health")[0]:
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(None, "No such file or directory"), (b"PK\x03\x04", "is not a GGUF file"), (b"GGUF and no more", "cannot serve")],
)
def test_what_is_wrong_with_a_file_is_said(content: bytes | None, complaint: str, tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    if content is not None:
        model.write_bytes(content)
    done = failing("--model", str(model), "--port", "0")
    assert done.returncode == 1
    assert complaint in done.stderr
    assert str(model) in done.stderr


def test_a_taken_port_is_called_so_that_the_agent_tries_another() -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        done = failing("--model", str(MODELS / "guide.gguf"), "--port", str(busy.getsockname()[1]))
    assert done.returncode == 1
    assert "Address already in use" in done.stderr


def test_a_flag_it_does_not_know_is_an_error() -> None:
    done = failing("--model", "x.gguf", "--port", "1", "--unheard-of")
    assert done.returncode == 2
    assert "--unheard-of" in done.stderr


def failing(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*SERVER, *arguments], capture_output=True, text=True, check=False, timeout=20)
