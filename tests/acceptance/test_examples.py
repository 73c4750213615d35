"""What stands in examples/ works when it is run as its first lines say, against the embedded default."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client_environments import (
    CHAT,
    EMBED,
    ROOT,
    embedded_gateway,
    node_command,
    offline,
    output_of,
    python_command,
)
from tests.fakes.tool_engine import AnswersInJSON, serving
from tests.gateway_process import GatewayProcess

EXAMPLES = ROOT / "examples"
DOCUMENTS = EXAMPLES / "documents"
MORE = "tell me more"
ASKED = (
    ("What happens at the wall time?", "wall_time.md"),
    (MORE, "wall_time.md"),
    ("How do I revoke a key?", "keys.md"),
    ("And how do I list them?", "keys.md"),
    ("How many calls does a tribunal make?", "tribunal.md"),
    ("When does a batch expire?", "batches.md"),
    ("What is a cold start?", "cold_starts.md"),
    (MORE, "cold_starts.md"),
    ("Which engine runs GGUF models?", "engines.txt"),
)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with embedded_gateway(tmp_path_factory.mktemp("embedded")) as gateway:
        yield {**offline(), "OPENAI_BASE_URL": f"{gateway.url}/v1", "OPENAI_API_KEY": gateway.key()}


@pytest.fixture(scope="module")
def conversation(environment: dict[str, str]) -> list[str]:
    """The chatbot's answers to `ASKED`, each with its citations."""
    questions = [word for question, _ in ASKED for word in ("--question", question)]
    command = [*python_command(EXAMPLES / "rag_chatbot.py", "langchain"), str(DOCUMENTS), *questions]
    return output_of(command, environment).strip().split("\n\n")


def cited(answer: str) -> list[str]:
    """Names of files, the nearest passage's first."""
    return re.findall(r"^  \[\d\] (\S+): ", answer, re.M)


@pytest.mark.parametrize("number", range(len(ASKED)), ids=[question for question, _ in ASKED])
def test_the_chatbot_cites_the_right_document(conversation: list[str], number: int) -> None:
    assert cited(conversation[number])[0] == ASKED[number][1], conversation[number]


def test_the_chatbot_answers_before_it_cites(conversation: list[str]) -> None:
    assert len(conversation) == len(ASKED)
    assert "wall time" in conversation[0].splitlines()[0]


def test_the_passage_is_in_its_document(conversation: list[str]) -> None:
    name, passage = re.findall(r"^  \[1\] (\S+): (.+)$", conversation[0], re.M)[0]
    assert passage in " ".join((DOCUMENTS / name).read_text().split())


def test_the_same_follow_up_means_what_was_asked_before_it(conversation: list[str]) -> None:
    answers = [cited(answer)[0] for (question, _), answer in zip(ASKED, conversation, strict=True) if question == MORE]
    assert answers == ["wall_time.md", "cold_starts.md"]


READER = """
[models.reader]
engine = "vllm"
urls = ["{reader}"]

[models.slurmgate-embed]
engine = "vllm"
task = "embed"
urls = ["{embedded}"]
api_key_env = "EMBEDDED_KEY"
"""


def test_a_model_that_reads_gets_passages_and_history_and_its_own_citations_are_shown(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """The reader repeats the last word of a question; embeddings come from the first gateway, as from any engine."""
    with serving(AnswersInJSON()) as (reader,):
        config = READER.format(reader=reader.url, embedded=environment["OPENAI_BASE_URL"].removesuffix("/v1"))
        gateway = GatewayProcess(tmp_path, config, {**os.environ, "EMBEDDED_KEY": environment["OPENAI_API_KEY"]})
        gateway.start()
        try:
            at = ["--base-url", f"{gateway.url}/v1", "--api-key", gateway.key(), "--model", "reader"]
            questions = ["--question", "What is a cold start?", "--question", "Just say [2]"]
            command = [*python_command(EXAMPLES / "rag_chatbot.py", "langchain"), str(DOCUMENTS), *at, *questions]
            first, second = output_of(command, environment).strip().split("\n\n")
        finally:
            gateway.stop()
        system, *others = reader.requests[1].body["messages"]
    assert [line[:5].strip() for line in first.splitlines()] == ["start", "[1]", "[2]"]
    assert [line[:5].strip() for line in second.splitlines()] == ["[2]", "[2]"]
    assert all(f"\n[{number}] " in system["content"] for number in (1, 2))
    assert [(message["role"], message["content"]) for message in others] == [
        ("user", "What is a cold start?"),
        ("assistant", "start"),
        ("user", "Just say [2]"),
    ]


def test_the_python_example(environment: dict[str, str]) -> None:
    lines = output_of(python_command(EXAMPLES / "openai_python.py", "openai3"), environment).splitlines()
    assert set(lines[0].split()[1:]) == {CHAT, EMBED}
    assert "wall time" in lines[1]
    assert re.fullmatch(r"\d+ tokens", lines[2])
    assert re.fullmatch(r"an embedding has \d+ numbers", lines[3])
    assert lines[4].startswith("model_not_found req_")


def test_the_node_example(environment: dict[str, str], tmp_path: Path) -> None:
    lines = output_of(node_command(EXAMPLES / "openai_node.mjs", tmp_path), environment).splitlines()
    assert set(lines[:2]) == {f"model: {CHAT}", f"model: {EMBED}"}
    assert "wall time" in lines[2]
    assert lines[4].startswith("model_not_found req_")


def test_the_langchain_example(environment: dict[str, str]) -> None:
    lines = output_of(python_command(EXAMPLES / "langchain_chat.py", "langchain"), environment).splitlines()
    assert "wall time" in lines[0]
    assert "partition" in lines[1]
    assert re.fullmatch(r"an embedding has \d+ numbers", lines[3])


def test_the_litellm_example(environment: dict[str, str]) -> None:
    lines = output_of(python_command(EXAMPLES / "litellm_sdk.py", None), environment).splitlines()
    assert "wall time" in lines[0]
    assert re.fullmatch(r"\d+ tokens", lines[1])


def test_the_curl_example(environment: dict[str, str]) -> None:
    lines = output_of([str(EXAMPLES / "curl.sh")], environment).splitlines()
    assert {model["id"] for model in json.loads(lines[0])["data"]} == {CHAT, EMBED}
    assert "data: [DONE]" in lines
    assert len(json.loads(lines[-1])["data"]) == 2


def test_every_example_is_in_the_readme() -> None:
    text = (EXAMPLES / "README.md").read_text()
    files = {path.name for path in EXAMPLES.iterdir() if path.is_file()} - {"README.md"}
    assert files
    assert {name for name in files if f"`{name}`" not in text} == set()
