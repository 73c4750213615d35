"""Clients as people have them, against the gateway: what works with OpenAI works here, and looks the same.

Each script in tests/clients/ runs once, in its own environment, and prints what it saw; these tests read it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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
from tests.fakes.chat_engine import TalksOn
from tests.fakes.tool_engine import AnswersInJSON, CallsTools, serving
from tests.gateway_process import GatewayProcess
from tests.waiting import until_sync

Look = Callable[[str], dict[str, Any]]
SCRIPTS = Path(__file__).parent.parent / "clients"
SDKS = ("openai2", "openai3", "node")
EVERYONE = (*SDKS, "langchain", "litellm", "curl")
NAMES_OF_TOKENS = (("prompt", "input"), ("completion", "output"))  # OpenAI's, and LangChain's
BOTH_CITY_CALLS = [["call_1", "weather", {"city": "Oslo"}], ["call_2", "time_in", {"city": "Oslo"}]]
TOOL_MODELS = """
[models.calls-tools]
engine = "vllm"
urls = ["{}"]

[models.answers-in-json]
engine = "vllm"
urls = ["{}"]

[models.talks-on]
engine = "vllm"
urls = ["{}"]
"""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with embedded_gateway(tmp_path_factory.mktemp("embedded")) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def tool_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with serving(CallsTools(), AnswersInJSON(), TalksOn()) as engines:
        config = TOOL_MODELS.format(*(engine.url for engine in engines))
        gateway = GatewayProcess(tmp_path_factory.mktemp("tools"), config)
        gateway.start()
        yield gateway
        assert gateway.stop() == 0


@pytest.fixture(scope="module")
def look(gateway: GatewayProcess, tool_gateway: GatewayProcess, tmp_path_factory: pytest.TempPathFactory) -> Look:
    """What a client saw, by its name."""
    environment = {
        **offline(),
        "OPENAI_BASE_URL": f"{gateway.url}/v1",
        "OPENAI_API_KEY": gateway.key(),
        "TOOLS_BASE_URL": f"{tool_gateway.url}/v1",
        "TOOLS_API_KEY": tool_gateway.key(),
    }
    commands: dict[str, Callable[[], list[str]]] = {
        "openai2": lambda: python_command(SCRIPTS / "openai_python.py", "openai2"),
        "openai3": lambda: python_command(SCRIPTS / "openai_python.py", "openai3"),
        "node": lambda: node_command(SCRIPTS / "openai_node.mjs", tmp_path_factory.mktemp("node")),
        "langchain": lambda: python_command(SCRIPTS / "langchain_client.py", "langchain"),
        "litellm": lambda: python_command(SCRIPTS / "litellm_client.py", None),
        "curl": lambda: [str(SCRIPTS / "curl.sh")],
    }
    seen: dict[str, dict[str, Any]] = {}

    def look(client: str) -> dict[str, Any]:
        if client not in seen:
            seen[client] = json.loads(output_of(commands[client](), environment).splitlines()[-1])
        return seen[client]

    return look


@pytest.mark.parametrize(
    ("client", "version"), [("openai2", "2."), ("openai3", "3."), ("node", "7."), ("langchain", "1.")]
)
def test_each_client_is_the_one_meant(look: Look, client: str, version: str) -> None:
    assert look(client)["version"].startswith(version)


@pytest.mark.parametrize("client", EVERYONE)
def test_a_chat_is_answered_and_its_tokens_counted(look: Look, client: str) -> None:
    chat = look(client)["chat"]
    assert "Slurm" in chat["text"]
    assert (chat["finish"], chat["model"]) == ("stop", CHAT)
    usage = chat["usage"]
    prompt, completion = (usage.get(f"{a}_tokens", usage.get(f"{b}_tokens")) for a, b in NAMES_OF_TOKENS)
    assert min(prompt, completion) > 0
    assert usage["total_tokens"] == prompt + completion


@pytest.mark.parametrize("client", [*SDKS, "curl"])
def test_a_request_has_an_id_that_the_log_knows(gateway: GatewayProcess, look: Look, client: str) -> None:
    chat = look(client)["chat"]
    assert chat["same_request_id"]
    until_sync(lambda: chat["request_id"] in logged(gateway))


def logged(gateway: GatewayProcess) -> dict[str, dict[str, Any]]:
    return {event["id"]: event for event in gateway.events("request")}


@pytest.mark.parametrize("client", EVERYONE)
def test_a_stream_says_what_a_plain_answer_says(look: Look, client: str) -> None:
    seen = look(client)
    for stream in (seen["stream"], seen["stream_usage"]):
        assert (stream["text"], stream["finish"]) == (seen["chat"]["text"], "stop")


@pytest.mark.parametrize("client", [*SDKS, "litellm", "curl"])
def test_a_stream_has_usage_only_when_asked_and_then_at_its_end(look: Look, client: str) -> None:
    seen = look(client)
    assert set(seen["stream"]["usages"]) == {None}
    *before, last = seen["stream_usage"]["usages"]
    assert before
    assert set(before) == {None}
    assert last["total_tokens"] == seen["chat"]["usage"]["total_tokens"]


@pytest.mark.parametrize("client", [*SDKS, "curl"])
def test_only_the_usage_chunk_has_no_choices(look: Look, client: str) -> None:
    seen = look(client)
    assert (seen["stream"]["without_choices"], seen["stream_usage"]["without_choices"]) == (0, 1)


def test_langchain_has_usage_in_a_stream_when_it_asks(look: Look) -> None:
    seen = look("langchain")
    assert seen["stream"]["total_tokens"] is None
    assert seen["stream_usage"]["total_tokens"] == seen["chat"]["usage"]["total_tokens"]


@pytest.mark.parametrize("client", EVERYONE)
def test_a_completion_is_the_same_plain_and_streamed(look: Look, client: str) -> None:
    completion = look(client)["completion"]
    assert completion["text"]
    assert completion["streamed"] == completion["text"]


@pytest.mark.parametrize("client", EVERYONE)
def test_embeddings_come_in_order_and_alike_in_every_encoding(look: Look, client: str) -> None:
    embeddings = look(client)["embeddings"]
    assert len(set(embeddings["widths"])) == 1
    assert len(embeddings["widths"]) == 3
    assert embeddings["widths"][0] > 100
    assert embeddings.get("indices", [0, 1, 2]) == [0, 1, 2]
    assert embeddings["same"]


@pytest.mark.parametrize("client", SDKS)
def test_an_empty_text_has_an_embedding(look: Look, client: str) -> None:
    seen = look(client)
    assert seen["empty_text"] == seen["embeddings"]["widths"][0]


def test_token_ids_as_langchain_sends_them_are_embedded_like_their_texts(look: Look) -> None:
    assert look("langchain")["token_embeddings"] == {"same": [True, True, True]}


@pytest.mark.parametrize("client", [*SDKS, "litellm", "curl"])
def test_models_are_listed(look: Look, client: str) -> None:
    assert set(look(client)["models"]) == {CHAT, EMBED}


@pytest.mark.parametrize("client", [*SDKS, "curl"])
def test_a_model_is_found_by_its_name(look: Look, client: str) -> None:
    assert look(client)["model"] == CHAT


@pytest.mark.parametrize("client", [*SDKS, "langchain", "curl"])
def test_errors_are_those_of_openai(look: Look, client: str) -> None:
    ours = {
        "model": ["NotFoundError", 404, "invalid_request_error", "model", "model_not_found"],
        "retrieve": ["NotFoundError", 404, "invalid_request_error", "model", "model_not_found"],
        "stream": ["NotFoundError", 404, "invalid_request_error", "model", "model_not_found"],
        "key": ["AuthenticationError", 401, "invalid_request_error", None, "invalid_api_key"],
        "field": ["BadRequestError", 400, "invalid_request_error", "messages", "missing_required_parameter"],
    }
    errors = look(client)["errors"]
    first = 1 if client == "curl" else 0  # curl has no classes
    assert {name: error[first:] for name, error in errors.items()} == {name: ours[name][first:] for name in errors}


def test_litellm_raises_its_classes(look: Look) -> None:
    assert look("litellm")["errors"] == {
        "model": ["NotFoundError", 404],
        "stream": ["NotFoundError", 404],
        "key": ["AuthenticationError", 401],
        "field": ["BadRequestError", 400],
    }


@pytest.mark.parametrize("client", EVERYONE)
def test_a_stream_that_is_left_midway_is_cancelled(tool_gateway: GatewayProcess, look: Look, client: str) -> None:
    cancelled = look(client)["cancelled"]
    assert cancelled["chunks"] == 3
    until_sync(lambda: cancelled["request_id"] in logged(tool_gateway))
    assert logged(tool_gateway)[cancelled["request_id"]]["error"] == "client_disconnected"


@pytest.mark.parametrize(("client", "name"), [*((sdk, "concurrent") for sdk in SDKS), ("langchain", "chain")])
def test_requests_at_the_same_time_do_not_mix(look: Look, client: str, name: str) -> None:
    seen = look(client)
    assert len(seen[name]) == 4
    assert all("Slurm" in text for text in seen[name])


def test_langchain_streams_asynchronously(look: Look) -> None:
    seen = look("langchain")
    assert seen["asynchronous"] == seen["chat"]["text"]


@pytest.mark.parametrize("client", EVERYONE)
def test_tools_are_called_in_parallel(look: Look, client: str) -> None:
    assert look(client)["tools"]["plain"] == BOTH_CITY_CALLS


@pytest.mark.parametrize("client", [*SDKS, "langchain", "litellm"])
def test_streamed_tool_calls_come_together_from_their_fragments(look: Look, client: str) -> None:
    tools = look(client)["tools"]
    assert tools["streamed"] == BOTH_CITY_CALLS
    assert tools["fragments"] > len(BOTH_CITY_CALLS)
    assert tools["finish"] == "tool_calls"


@pytest.mark.parametrize("client", [*SDKS, "langchain", "litellm"])
def test_a_tool_can_be_forced(look: Look, client: str) -> None:
    assert [name for _, name, _ in look(client)["tools"]["forced"]] == ["time_in"]


@pytest.mark.parametrize("client", [*SDKS, "langchain", "litellm"])
def test_what_tools_say_goes_back_to_the_model(look: Look, client: str) -> None:
    said = "fine in Oslo, noon in Oslo" if client == "langchain" else "fine, fine"
    assert look(client)["tools"]["after"] == f"The tools say: {said}"


@pytest.mark.parametrize("client", [*SDKS, "langchain", "litellm"])
def test_an_answer_has_the_form_that_was_asked_for(look: Look, client: str) -> None:
    structured = look(client)["structured"]
    subject = structured["parsed"]["name"]
    assert structured.pop("json_object") == {"subject": subject}
    assert structured
    assert all(answer == {"name": subject, "districts": 7} for answer in structured.values())


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("*.lock")), ids=lambda path: path.stem)
def test_the_locks_of_the_clients_name_no_index_and_have_hashes(path: Path) -> None:
    text = path.read_text()
    assert "://" not in text
    requirements = [line for line in text.splitlines() if "==" in line and not line.startswith(" ")]
    assert requirements
    assert all(line.endswith("\\") for line in requirements), "each requirement is followed by its hashes"


def test_the_lock_of_the_node_client_names_no_registry_and_has_hashes() -> None:
    packages = json.loads((SCRIPTS / "package-lock.json").read_text())["packages"]
    installed = [package for name, package in packages.items() if name]
    assert installed
    assert all("integrity" in package and "resolved" not in package for package in installed)


def test_what_is_installed_stays_out_of_the_repository() -> None:
    assert "/.clients/" in (ROOT / ".gitignore").read_text().splitlines()
