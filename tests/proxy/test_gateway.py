"""The gateway over real sockets in front of engines that behave as named: answers, errors, logs, metrics."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import APIError, AsyncOpenAI

from tests.fakes.chat_engine import (
    USAGE,
    WORDS,
    Answers,
    AnswersWith,
    BreaksInItsStream,
    DiesMidStream,
    DiesOnRequests,
    Engine,
)
from tests.in_process import Served, serving

CHAT = "/v1/chat/completions"
QUESTION: dict[str, Any] = {"model": "org/m", "messages": [{"role": "user", "content": "secret prompt"}]}


def config(*engines: Engine, more: str = "") -> str:
    urls = json.dumps([engine.url for engine in engines])
    return f'[models."org/m"]\nengine = "vllm"\nurls = {urls}\n{more}'


def client(served: Served) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{served.url}/v1", api_key=served.key, max_retries=0)


async def post(served: Served, path: str = CHAT, **options: Any) -> httpx.Response:
    async with httpx.AsyncClient(timeout=30) as http:
        options.setdefault("headers", served.headers)
        return await http.post(served.url + path, **options)


def assert_openai_error(response: httpx.Response, status: int, **fields: Any) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert response.headers["x-request-id"].startswith("req_")
    assert {name: error[name] for name in fields} == fields
    return error


# -- answers ---------------------------------------------------------------------------------------------------------


async def test_an_answer_is_passed_on_as_the_engine_gave_it(tmp_path: Path) -> None:
    async with Answers() as engine, serving(config(engine), tmp_path) as served, client(served) as openai:
        answer = await openai.chat.completions.with_raw_response.create(**QUESTION)
        completion = answer.parse()
        assert completion.choices[0].message.content == "".join(WORDS)
        assert completion.model == "org/m"
        assert completion.usage is not None
        assert completion.usage.prompt_tokens == USAGE["prompt_tokens"]
        assert answer.headers["x-request-id"] == engine.requests[0].headers["x-request-id"]
        assert answer.headers["openai-version"] == "2020-10-01"


async def test_the_client_s_bytes_reach_the_engine_untouched_and_its_key_does_not(tmp_path: Path) -> None:
    raw = b'{ "messages" : [{"role":"user","content":"\xc3\xa9 \\u00e9"}],"x_unknown":[1.50],"model":"org/m" }'
    async with Answers() as engine, serving(config(engine), tmp_path) as served:
        assert (await post(served, content=raw)).status_code == 200
        assert engine.requests[0].raw == raw
        assert served.key not in str(engine.requests[0].headers)


async def test_a_stream_shows_usage_only_to_who_asked_and_counts_it_always(tmp_path: Path) -> None:
    async with Answers() as engine, serving(config(engine), tmp_path) as served, client(served) as openai:
        for options in (None, {"include_usage": False}, {"include_usage": True}):
            extra: dict[str, Any] = {} if options is None else {"stream_options": options}
            chunks = [c async for c in await openai.chat.completions.create(**QUESTION, stream=True, **extra)]
            assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "".join(WORDS)
            shown = [c.usage.total_tokens for c in chunks if c.usage]
            assert shown == ([10] if options == {"include_usage": True} else [])
            assert engine.requests[-1].body["stream_options"]["include_usage"] is True
        async with httpx.AsyncClient() as http:
            metrics = (await http.get(served.url + "/metrics")).text
        assert 'slurmgate_tokens_total{kind="prompt",model="org/m"} 21.0' in metrics
        assert 'slurmgate_requests_total{endpoint="/v1/chat/completions",model="org/m",status="200"} 3.0' in metrics


async def test_null_stream_options_are_as_none(tmp_path: Path) -> None:
    async with Answers() as engine, serving(config(engine), tmp_path) as served:
        answer = await post(served, json={**QUESTION, "stream": True, "stream_options": None})
        assert answer.text.endswith("data: [DONE]\n\n")
        assert '"usage": {' not in answer.text


async def test_a_stream_is_marked_as_one(tmp_path: Path) -> None:
    async with Answers() as engine, serving(config(engine), tmp_path) as served:
        answer = await post(served, json={**QUESTION, "stream": True})
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["cache-control"] == "no-cache"


async def test_requests_go_to_the_engine_with_the_fewest(tmp_path: Path) -> None:
    async with Answers() as one, Answers() as two, serving(config(one, two), tmp_path) as served:
        await asyncio.gather(*(post(served, json=QUESTION) for _ in range(20)))
        assert len(one.requests) + len(two.requests) == 20
        assert min(len(one.requests), len(two.requests)) >= 5


# -- an engine that fails --------------------------------------------------------------------------------------------


async def test_an_engine_that_is_gone_is_passed_over(tmp_path: Path) -> None:
    async with Answers() as gone, Answers() as there:
        await gone.__aexit__(None, None, None)
        async with serving(config(gone, there), tmp_path) as served:
            for _ in range(6):
                assert (await post(served, json=QUESTION)).status_code == 200
        assert len(there.requests) == 6


async def test_an_engine_that_dies_on_a_request_costs_one_more_try(tmp_path: Path) -> None:
    async with DiesOnRequests() as dies, Answers() as there, serving(config(dies, there), tmp_path) as served:
        for _ in range(6):
            assert (await post(served, json=QUESTION)).status_code == 200
        assert len(there.requests) == 6


async def test_a_request_that_kills_engines_is_not_tried_on_all(tmp_path: Path) -> None:
    async with DiesOnRequests() as a, DiesOnRequests() as b, DiesOnRequests() as c:
        async with serving(config(a, b, c), tmp_path) as served:
            response = await post(served, json=QUESTION)
            assert_openai_error(response, 502, type="server_error", code="engine_disconnected")
            assert response.headers["x-should-retry"] == "false"
        assert len(a.requests) + len(b.requests) + len(c.requests) == 2


async def test_no_engine_at_all(tmp_path: Path) -> None:
    async with Answers() as gone:
        await gone.__aexit__(None, None, None)
        async with serving(config(gone), tmp_path) as served:
            error = assert_openai_error(await post(served, json=QUESTION), 502, code="engine_unreachable")
            assert str(gone.port) not in error["message"]


async def test_an_engine_that_dies_mid_stream_gives_an_error_event_and_is_not_tried_again(tmp_path: Path) -> None:
    async with DiesMidStream() as dies, Answers() as there, serving(config(dies), tmp_path) as served:
        async with client(served) as openai:
            seen = []
            with pytest.raises(APIError) as caught:
                async for part in await openai.chat.completions.create(**QUESTION, stream=True):
                    seen += [part.choices[0].delta.content]
        assert seen == ["Slurm"]
        assert caught.value.code == "engine_disconnected"
        assert there.requests == []


@pytest.mark.parametrize(
    "error",
    [
        {"error": {"message": "out of memory", "http_status_code": 500}},
        {"error": {"code": 500, "message": "out of memory", "type": "server_error"}},
        {"error": "out of memory", "error_type": "generation"},
    ],
)
async def test_an_engine_s_error_inside_a_stream_gets_its_four_keys(tmp_path: Path, error: Any) -> None:
    async with BreaksInItsStream(error) as engine, serving(config(engine), tmp_path) as served:
        answer = await post(served, json={**QUESTION, "stream": True})
        last = json.loads(answer.text.strip().split("\n\n")[-1].removeprefix("data: "))
        assert last["error"].keys() == {"message", "type", "param", "code"}
        assert last["error"]["message"] == "out of memory"


@pytest.mark.parametrize(
    ("status", "body", "expected", "fields"),
    [
        (400, b'{"error":{"message":"bad","type":"BadRequestError","param":null,"code":400}}', 400, {"message": "bad"}),
        (422, b'{"error":"inputs too long","error_type":"validation"}', 400, {"type": "invalid_request_error"}),
        (429, b'{"error":"Model is overloaded","error_type":"overloaded"}', 429, {"code": "rate_limit_exceeded"}),
        (424, b'{"error":"CUDA died","error_type":"generation"}', 502, {"type": "server_error"}),
        (401, b"", 502, {"type": "server_error"}),
        (500, b"<html>oops</html>", 502, {"type": "server_error"}),
    ],
)
async def test_an_engine_s_own_error(
    tmp_path: Path, status: int, body: bytes, expected: int, fields: dict[str, Any]
) -> None:
    async with AnswersWith(status, body) as engine, serving(config(engine), tmp_path) as served:
        response = await post(served, json=QUESTION)
        assert response.json()["error"]["code"] != 400
        if expected == 502 and response.status_code == 500:
            expected = 500
        assert_openai_error(response, expected, **fields)
        if expected == 429:
            assert 0 < int(response.headers["retry-after"]) <= 120


# -- the caller's mistakes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "param", "code"),
    [
        (CHAT, b"", None, "invalid_json"),
        (CHAT, b"{", None, "invalid_json"),
        (CHAT, b'{"model":"\xff"}', None, "invalid_json"),
        (CHAT, b"[]", None, "invalid_type"),
        (CHAT, b"{}", "model", "missing_required_parameter"),
        (CHAT, b'{"model":3,"messages":[]}', "model", "invalid_type"),
        (CHAT, b'{"model":"org/m"}', "messages", "missing_required_parameter"),
        (CHAT, b'{"model":"org/m","messages":"hi"}', "messages", "invalid_type"),
        (CHAT, b'{"model":"org/m","messages":[]}', "messages", "empty_array"),
        (CHAT, b'{"model":"org/m","messages":["hi"]}', "messages[0]", "invalid_type"),
        (
            "/v1/chat/completions",
            b'{"model":"org/m","messages":[{}]}',
            "messages[0].role",
            "missing_required_parameter",
        ),
        (
            "/v1/chat/completions",
            b'{"model":"org/m","messages":[{"role":"user"}],"stream":1}',
            "stream",
            "invalid_type",
        ),
        (CHAT, b'{"model":"org/m","messages":[{"role":"user"}],"n":"2"}', "n", "invalid_type"),
        ("/v1/completions", b'{"model":"org/m"}', "prompt", "missing_required_parameter"),
        ("/v1/completions", b'{"model":"org/m","prompt":[]}', "prompt", "empty_array"),
        ("/v1/embeddings", b'{"model":"org/m"}', "input", "missing_required_parameter"),
        ("/v1/embeddings", b'{"model":"org/m","input":3}', "input", "invalid_type"),
        ("/v1/embeddings", b'{"model":"org/m","input":[]}', "input", "empty_array"),
        ("/v1/embeddings", b'{"model":"org/m","input":"a","stream":true}', "stream", "unsupported_parameter"),
    ],
)
async def test_a_wrong_body_is_told_what_is_wrong(
    tmp_path: Path, path: str, body: bytes, param: str | None, code: str
) -> None:
    async with Answers() as engine, serving(config(engine), tmp_path) as served:
        response = await post(served, path, content=body)
        assert_openai_error(response, 400, type="invalid_request_error", param=param, code=code)
        assert engine.requests == []


async def test_an_unknown_model(tmp_path: Path) -> None:
    async with Answers() as engine, serving(config(engine), tmp_path) as served:
        response = await post(served, json={**QUESTION, "model": "gpt-9"})
        assert_openai_error(response, 404, param="model", code="model_not_found")


async def test_an_unknown_route_and_a_wrong_method(tmp_path: Path) -> None:
    async with Answers() as engine, serving(config(engine), tmp_path) as served:
        assert_openai_error(await post(served, "/v1/nothing", json={}), 404, code="unknown_url")
        assert_openai_error(await post(served, "/nothing", json={}), 404, code="unknown_url")
        async with httpx.AsyncClient(headers=served.headers) as http:
            response = await http.get(served.url + "/v1/chat/completions")
        assert_openai_error(response, 405, code="method_not_allowed")
        assert response.headers["allow"] == "POST"


@pytest.mark.parametrize("header", [{}, {"authorization": "Bearer sk-wrong"}, {"authorization": "Basic abc"}])
async def test_a_missing_or_wrong_key(tmp_path: Path, header: dict[str, str]) -> None:
    async with Answers() as engine, serving(config(engine), tmp_path) as served:
        for path in ("/v1/chat/completions", "/v1/nothing"):
            response = await post(served, path, json=QUESTION, headers=header)
            assert_openai_error(response, 401, type="invalid_request_error", code="invalid_api_key")


async def test_a_body_that_is_too_large(tmp_path: Path) -> None:
    async with Answers() as engine, serving("[server]\nmax_body_mb = 1\n" + config(engine), tmp_path) as served:
        big = json.dumps({**QUESTION, "user": "x" * (1 << 20)}).encode()

        async def pieces() -> Any:
            for start in range(0, len(big), 10_000):
                yield big[start : start + 10_000]

        for content in (big, pieces()):
            assert_openai_error(await post(served, content=content), 413, code="request_too_large")
        assert engine.requests == []


async def test_a_body_that_does_not_come(tmp_path: Path) -> None:
    async with Answers() as engine, serving("[server]\nbody_timeout_s = 0.2\n" + config(engine), tmp_path) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {served.key}\r\n"
        writer.write(f"{head}content-length: 100\r\n\r\n".encode() + b'{"model":')
        answer = await reader.readuntil(b"}}")
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"code":"request_timeout"' in answer
        writer.close()


async def test_what_is_no_http_gets_an_openai_error_too(tmp_path: Path) -> None:
    async with Answers() as engine, serving(config(engine), tmp_path) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(b"\x16\x03\x01\x02\x00 garbage\r\n\r\n")
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert json.loads(answer.split(b"\r\n\r\n", 1)[1])["error"]["code"] == "invalid_http"
        writer.close()


# -- what else is served ---------------------------------------------------------------------------------------------


async def test_models_with_a_slash_in_their_name(tmp_path: Path) -> None:
    async with Answers() as engine, serving(config(engine), tmp_path) as served, client(served) as openai:
        assert [model.id async for model in openai.models.list()] == ["org/m"]
        card = (await openai.models.retrieve("org/m")).model_dump()
        assert (card["id"], card["state"], card["max_model_len"]) == ("org/m", "ready", None)
        async with httpx.AsyncClient(headers=served.headers) as http:
            for path in ("/v1/models/org/m", "/v1/models/org%2Fm"):
                assert (await http.get(served.url + path)).json()["id"] == "org/m"
            assert_openai_error(await http.get(served.url + "/v1/models/org"), 404, code="model_not_found")


async def test_health_and_ready_need_no_key(tmp_path: Path) -> None:
    async with Answers() as engine, serving(config(engine), tmp_path) as served, httpx.AsyncClient() as http:
        assert (await http.get(served.url + "/health")).json() == {"status": "ok"}
        ready = await http.get(served.url + "/ready")
        assert (ready.status_code, ready.json()) == (200, {"status": "ready", "models": {"org/m": 1}})


async def test_a_gateway_whose_models_are_at_zero_is_ready_for_their_first_requests(tmp_path: Path) -> None:
    at_zero = """
        [launcher]
        kind = "local"
        [models.m]
        engine = "llamacpp"
        source = "/nowhere/m.gguf"
        scaling = {min = 0, max = 1}
    """
    async with serving(at_zero, tmp_path) as served, httpx.AsyncClient() as http:
        ready = await http.get(served.url + "/ready")
        assert (ready.status_code, ready.json()) == (200, {"status": "ready", "models": {"m": 0}})


async def test_an_agent_without_its_token_is_refused(tmp_path: Path) -> None:
    async with Answers() as engine, serving(config(engine), tmp_path) as served:
        for headers in ({}, served.headers, {"authorization": "Bearer x"}):
            response = await post(served, "/internal/replicas/r1", json={}, headers=headers)
            assert_openai_error(response, 401)


# -- the log ---------------------------------------------------------------------------------------------------------


async def test_one_line_a_request_without_prompts_or_secrets(tmp_path: Path) -> None:
    async with Answers() as engine, serving(config(engine), tmp_path) as served:
        await post(served, json=QUESTION)
        await post(served, json={**QUESTION, "stream": True})
        await post(served, json={**QUESTION, "model": "unknown model"})
        await post(served, "/v1/secret-path", json=QUESTION, headers={"authorization": "Bearer sk-guess"})
        async with httpx.AsyncClient() as http:
            await http.get(served.url + "/health")
    text = served.log_text()
    for secret in ("secret prompt", "Slurm is", served.key, "sk-guess", "unknown model", "secret-path"):
        assert secret not in text
    lines = [json.loads(line) for line in text.splitlines()]
    requests = [line for line in lines if line["event"] == "request"]
    assert [line["status"] for line in requests] == [200, 200, 404, 401]
    plain, stream = requests[:2]
    assert (plain["model"], plain["prompt_tokens"], plain["completion_tokens"]) == ("org/m", 7, 3)
    assert (stream["stream"], stream["prompt_tokens"]) == (True, 7)
    assert stream["first_byte_ms"] <= stream["ms"]
    assert plain["id"] == engine.requests[0].headers["x-request-id"]
    assert requests[2]["error"] == "model_not_found"


async def test_metric_labels_never_come_from_a_request(tmp_path: Path) -> None:
    async with Answers() as engine, serving(config(engine), tmp_path) as served:
        for number in range(5):
            await post(served, f"/v1/made-up-{number}", json={})
            await post(served, json={**QUESTION, "model": f"made-up-{number}"})
        async with httpx.AsyncClient() as http:
            assert "made-up" not in (await http.get(served.url + "/metrics")).text


@pytest.mark.parametrize(("native", "path"), [("[]", CHAT), ('["/v1/responses"]', "/v1/responses")])
async def test_an_endpoint_that_an_engine_has_itself_is_passed_through(tmp_path: Path, native: str, path: str) -> None:
    async with Answers() as engine, serving(config(engine, more=f"native = {native}"), tmp_path) as served:
        await post(served, "/v1/responses", json={"model": "org/m", "input": "hi", "store": False})
        assert engine.requests[0].path == path


async def test_a_model_whose_engine_cannot_start_says_so_in_the_list(tmp_path: Path) -> None:
    text = '[launcher]\nkind = "local"\nservice = "t"\n[models.m]\nengine = "llamacpp"\nsource = "/none.gguf"\n'
    never = 'command = ["/bin/sleep", "1000"]\ncontext_length = 4096\n'
    async with serving(text + never, tmp_path) as served, httpx.AsyncClient(headers=served.headers) as http:
        card = (await http.get(served.url + "/v1/models/m")).json()
    assert (card["state"], card["max_model_len"]) == ("starting", 4096)
