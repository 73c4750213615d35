"""`model="tribunal"` as a client sees it, over real sockets, asked by the official client."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import APIError, APIStatusError, BadRequestError, InternalServerError

from tests.tribunal.court import QUESTION, Court, court
from tests.tribunal.members import (
    Dies,
    DiesMidway,
    Garbage,
    Hangs,
    Member,
    Script,
    Status,
    Text,
    Tools,
    phase_of,
    preferring,
    scoring,
)
from tests.waiting import until

THREE = 'members = ["a", "b", "c"]\njudge = "b"\n'
ANSWERS = {"a": "Four apples.", "b": "Five apples.", "c": "Six apples."}
SYNTHESIS = "There are five apples in all."


def thinker(draft: str, *, best: str = "Five apples.", verdict: Any = SYNTHESIS) -> Script:
    """A member that takes part in every phase."""
    return {
        "draft": draft,
        "critique": scoring(lambda text: 9 if text == best else 3),
        "judge": preferring(best),
        "refine": draft,
        "verdict": verdict,
    }


def three(**scripts: Any) -> dict[str, Member]:
    return {name: Member(scripts.get(name, thinker(draft))) for name, draft in ANSWERS.items()}


# -- answers ---------------------------------------------------------------------------------------------------------


async def test_members_that_agree_answer_at_once(tmp_path: Path) -> None:
    members = {name: Member("42") for name in "abc"}
    async with court(tmp_path, members, THREE) as c:
        answer = await c.ask()
        assert answer.choices[0].message.content == "42"
        assert answer.choices[0].finish_reason == "stop"
        assert answer.model == "tribunal"
        assert answer.system_fingerprint is not None
        assert answer.system_fingerprint.startswith("fp_")
        assert c.calls == 3
        assert {phase_of(r.body) for m in members.values() for r in m.requests} == {"draft"}


async def test_members_that_differ_are_criticised_and_the_answer_is_written_anew(tmp_path: Path) -> None:
    async with court(tmp_path, three(), THREE) as c:
        response = await c.post()
        assert response.json()["choices"][0]["message"]["content"] == SYNTHESIS
        told = await c.deliberation(response)
        assert (told["verdict"], told["outcome"], told["degraded"]) == ("synthesise", "answered", None)
        assert [call["phase"] for call in told["calls"]] == ["draft"] * 3 + ["critique"] * 3 + ["verdict"]
        best = next(one for one in told["candidates"] if one["id"] == told["ranking"][0])
        assert best["text"] == "Five apples."


async def test_the_best_candidate_is_given_word_for_word(tmp_path: Path) -> None:
    async with court(tmp_path, three(), THREE + 'verdict = "select"') as c:
        answer = await c.ask()
        assert answer.choices[0].message.content == "Five apples."


async def test_several_profiles_are_models(tmp_path: Path) -> None:
    profiles = THREE + '[tribunal.profiles.quick]\nrounds = 0\nverdict = "select"\n'
    async with court(tmp_path, three(), profiles) as c:
        listed = [model.id async for model in c.openai.models.list()]
        assert listed == ["a", "b", "c", "tribunal", "tribunal/quick"]
        assert (await c.openai.models.retrieve("tribunal/quick")).id == "tribunal/quick"
        answer = await c.ask(model="tribunal/quick")
        assert answer.model == "tribunal/quick"
        assert c.calls <= 5
        assert answer.system_fingerprint != (await c.ask()).system_fingerprint


async def test_messages_reach_members_as_they_are(tmp_path: Path) -> None:
    members = {name: Member("42") for name in "abc"}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What is this?"},
                                     {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "a cat"},
        {"role": "user", "content": "And now?"},
    ]  # fmt: skip
    async with court(tmp_path, members, THREE) as c:
        await c.ask(messages=messages, temperature=0.25, stop=["END"])
        for member in members.values():
            body = member.requests[0].body
            assert body["messages"] == messages
            assert (body["temperature"], body["stop"]) == (0.25, ["END"])
            assert "tribunal" not in body


async def test_a_later_phase_has_the_whole_conversation_before_its_task(tmp_path: Path) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "How many?"}, image]}]
    async with court(tmp_path, three(), THREE) as c:
        await c.ask(messages=messages)
        for member in c.members.values():
            for request in member.of_phase("critique"):
                first = request.body["messages"][0]["content"]
                assert first[:2] == messages[0]["content"]


# -- streams ---------------------------------------------------------------------------------------------------------


async def test_a_stream_begins_with_the_role_before_any_member_has_answered(tmp_path: Path) -> None:
    members = {name: Member(Hangs()) for name in "abc"}
    async with court(tmp_path, members, THREE) as c:
        stream = await c.openai.chat.completions.create(model="tribunal", messages=QUESTION, stream=True)
        first = await anext(aiter(stream))
        assert first.choices[0].delta.role == "assistant"
        assert not any(member.used.calls for member in members.values())
        await stream.close()


async def test_a_synthesis_reaches_the_client_word_by_word_as_it_is_written(tmp_path: Path) -> None:
    members = three()
    gate = asyncio.Semaphore(0)
    for member in members.values():
        member.gate = gate
    async with court(tmp_path, members, THREE) as c:
        stream = aiter(await c.openai.chat.completions.create(model="tribunal", messages=QUESTION, stream=True))
        heard: list[str] = []
        words = ["There", " are", " five", " apples", " in", " all."]
        for number in range(len(words)):
            while len(heard) <= number:  # the engine waits at the gate, so what is heard is what was written so far
                if content := (await anext(stream)).choices[0].delta.content:
                    heard.append(content)
            assert heard == words[: number + 1]
            gate.release()
        rest = [chunk async for chunk in stream]
        assert rest[-1].choices[0].finish_reason == "stop"


async def test_a_candidate_that_is_the_answer_is_streamed_too(tmp_path: Path) -> None:
    members = {name: Member("42") for name in "abc"}
    async with court(tmp_path, members, THREE) as c:
        chunks = await c.stream()
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "42"
        assert chunks[-1].choices[0].finish_reason == "stop"
        assert len({chunk.id for chunk in chunks}) == 1


async def test_usage_is_the_last_chunk_and_null_in_all_others(tmp_path: Path) -> None:
    async with court(tmp_path, three(), THREE) as c:
        response = await c.post(stream=True, stream_options={"include_usage": True})
        events = [json.loads(line[6:]) for line in response.text.split("\n\n") if line.startswith("data: {")]
        assert response.text.endswith("data: [DONE]\n\n")
        assert all(event["usage"] is None for event in events[:-1])
        assert events[-1]["choices"] == []
        usage = events[-1]["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == c.used
        without = await c.post(stream=True)
        assert "usage" not in without.text


async def test_progress_is_told_to_who_asks_for_it_and_to_nobody_else(tmp_path: Path) -> None:
    async with court(tmp_path, three(), THREE) as c:
        told = await c.stream(extra_body={"tribunal": {"progress": True}})
        thoughts = [
            text for chunk in told if (text := (chunk.choices[0].delta.model_extra or {}).get("reasoning_content"))
        ]
        assert len(thoughts) >= 3
        quiet = await c.stream()
        deltas = [chunk.choices[0].delta.model_dump(exclude_none=True) for chunk in quiet]
        assert not any("reasoning_content" in delta for delta in deltas)
        assert deltas[0]["role"] == "assistant"
        assert deltas[1]["content"] == "There"


async def test_a_stream_is_never_silent_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tribunal.stream.QUIET_S", 0.02)
    members = {name: Member(Hangs()) for name in "abc"}
    async with court(tmp_path, members, THREE) as c:
        stream = aiter(await c.openai.chat.completions.create(model="tribunal", messages=QUESTION, stream=True))
        for _ in range(5):
            chunk = await anext(stream)
            assert not chunk.choices[0].delta.content


# -- usage -----------------------------------------------------------------------------------------------------------


async def test_usage_is_the_sum_of_all_children_and_what_is_not_seen_is_reasoning(tmp_path: Path) -> None:
    members = three(b=thinker(ANSWERS["b"], verdict=Text(SYNTHESIS, reasoning=5)))
    async with court(tmp_path, members, THREE) as c:
        answer = await c.ask()
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == c.used
        assert answer.usage.total_tokens == sum(c.used)
        details = answer.usage.completion_tokens_details
        assert details is not None
        assert details.reasoning_tokens == c.used[1] - (len(SYNTHESIS) // 4 + 1)
        assert answer.usage.prompt_tokens_details is not None
        assert answer.usage.prompt_tokens_details.cached_tokens == 2 * c.calls
        table = await c.in_the_table()
        assert table["tribunal"] == (1, 0, 0, 0)
        assert sum(row[2] for row in table.values()) == answer.usage.prompt_tokens
        assert sum(row[3] for row in table.values()) == answer.usage.completion_tokens
        assert sum(row[0] for row in table.values()) == c.calls + 1


async def test_a_key_that_may_have_one_request_at_a_time_can_ask_a_tribunal(tmp_path: Path) -> None:
    more = "[limits]\nconcurrent_requests = 1\ntokens_per_day = 1000000\n"
    async with court(tmp_path, three(), THREE, more=more) as c:
        for _ in range(3):
            answer = await c.ask()
            assert answer.choices[0].message.content == SYNTHESIS
        assert len([chunk async for chunk in await c.openai.chat.completions.create(
            model="tribunal", messages=QUESTION, stream=True)]) > 3  # fmt: skip
        limits: Any = c.served.gateway.control.limits
        assert limits.in_flight == 0
        [plan] = limits._plans.values()
        assert [(budget.used, budget.reserved) for budget in plan.budgets] == [(sum(c.used), 0)]


async def test_a_request_of_a_tribunal_counts_as_one_and_reckons_with_its_calls(tmp_path: Path) -> None:
    more = "[limits]\nrequests_per_minute = 2\n"
    async with court(tmp_path, three(), THREE, more=more) as c:
        first = await c.post()
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        assert (await c.post()).status_code == 200
        assert (await c.post()).status_code == 429


# -- what clients may ask --------------------------------------------------------------------------------------------

TOOLS: Any = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_only_the_final_call_has_tools_and_may_call_them(tmp_path: Path, stream: bool) -> None:
    members = three(b=thinker(ANSWERS["b"], verdict=Tools("look", '{"where": "there"}')))
    async with court(tmp_path, members, THREE) as c:
        if stream:
            chunks = await c.stream(tools=TOOLS, tool_choice="auto")
            parts = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
            assert {part.index for part in parts} == {0}
            assert [part.id for part in parts if part.id] == ["call_1"]
            assert [part.function.name for part in parts if part.function and part.function.name] == ["look"]
            arguments = "".join(part.function.arguments or "" for part in parts if part.function)
            assert chunks[-1].choices[0].finish_reason == "tool_calls"
        else:
            answer = await c.ask(tools=TOOLS, tool_choice="auto")
            [call] = answer.choices[0].message.tool_calls or []
            assert call.type == "function"
            arguments = call.function.arguments
            assert answer.choices[0].finish_reason == "tool_calls"
            assert answer.choices[0].message.content is None
        assert arguments == '{"where": "there"}'
        for member in members.values():
            for request in member.requests:
                final = phase_of(request.body) == "verdict"
                assert ("tools" in request.body) == final
                assert ("tool_choice" in request.body) == final


SCHEMA = {
    "type": "object",
    "properties": {"apples": {"type": "integer"}},
    "required": ["apples"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_an_answer_that_breaks_its_format_gives_way_to_the_best_that_keeps_to_it(
    tmp_path: Path, stream: bool
) -> None:
    good, better = '{"apples": 4}', '{"apples": 5}'
    script = {"a": good, "b": better, "c": "five, I think"}
    members = {name: Member(thinker(draft, best=better, verdict="five")) for name, draft in script.items()}
    asked: Any = {"type": "json_schema", "json_schema": {"name": "count", "schema": SCHEMA, "strict": True}}
    async with court(tmp_path, members, THREE + 'verdict = "synthesise"\nearly_exit = false') as c:
        if stream:
            chunks = await c.stream(response_format=asked)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        else:
            text = (await c.ask(response_format=asked)).choices[0].message.content or ""
        assert json.loads(text) == {"apples": 5}


async def test_n_choices_are_n_verdicts_of_one_deliberation(tmp_path: Path) -> None:
    async with court(tmp_path, three(), THREE) as c:
        answer = await c.ask(n=3)
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        assert {choice.message.content for choice in answer.choices} == {SYNTHESIS}
        verdicts = [r for m in c.members.values() for r in m.of_phase("verdict")]
        drafts = [r for m in c.members.values() for r in m.of_phase("draft")]
        assert (len(drafts), len(verdicts)) == (3, 3)
        assert len({request.body["seed"] for request in verdicts}) == 3
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == c.used
        chunks = await c.stream(n=2)
        for index in (0, 1):
            mine = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
            assert mine[0].delta.role == "assistant"
            assert "".join(choice.delta.content or "" for choice in mine) == SYNTHESIS
            assert [choice.finish_reason for choice in mine if choice.finish_reason] == ["stop"]


async def test_the_same_seed_asks_every_child_the_same(tmp_path: Path) -> None:
    def asked(c: Court) -> list[bytes]:
        bodies = sorted(r.raw for member in c.members.values() for r in member.requests)
        for member in c.members.values():
            member.requests.clear()
        return bodies

    async with court(tmp_path, three(), THREE) as c:
        first = await c.post(seed=7)
        once = asked(c)
        second = await c.post(seed=7)
        assert asked(c) == once
        assert len(once) == 7
        assert first.json()["system_fingerprint"] == second.json()["system_fingerprint"]
        await c.post(seed=8)
        assert asked(c) != once
        await c.post()
        without = asked(c)
        await c.post()
        assert asked(c) != without


async def test_max_tokens_bounds_the_visible_answer_and_not_the_work_behind_it(tmp_path: Path) -> None:
    async with court(tmp_path, three(), THREE) as c:
        await c.ask(max_completion_tokens=17)
        for member in c.members.values():
            for request in member.requests:
                bound = request.body.get("max_tokens")
                phase = phase_of(request.body)
                assert bound == 17 if phase == "verdict" else bound != 17 or phase == "draft", phase


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"logprobs": True}, "logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logit_bias": {"5": 1}}, "logit_bias"),
    ({"modalities": ["audio"]}, "modalities"),
    ({"n": 0}, "n"),
    ({"n": 17}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_completion_tokens": "5"}, "max_completion_tokens"),
    ({"response_format": {"type": "poem"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nope"}}}},
        "response_format.json_schema.schema",
    ),
    ({"tribunal": []}, "tribunal"),
    ({"tribunal": {"colour": 1}}, "tribunal.colour"),
    ({"tribunal": {"rounds": 5}}, "tribunal.rounds"),
    ({"tribunal": {"rounds": True}}, "tribunal.rounds"),
    ({"tribunal": {"members": ["a", "z"]}}, "tribunal.members"),
    ({"tribunal": {"members": []}}, "tribunal.members"),
    ({"tribunal": {"kind": "song"}}, "tribunal.kind"),
    ({"tribunal": {"verdict": "both"}}, "tribunal.verdict"),
    ({"tribunal": {"deadline_s": 100000}}, "tribunal.deadline_s"),
    ({"tribunal": {"deadline_s": "soon"}}, "tribunal.deadline_s"),
    ({"tribunal": {"max_calls": 0}}, "tribunal.max_calls"),
    ({"tribunal": {"quorum": 4}}, "tribunal.quorum"),
    ({"tribunal": {"early_exit": 1}}, "tribunal.early_exit"),
    ({"tribunal": {"progress": "yes"}}, "tribunal.progress"),
]


async def test_what_cannot_be_is_refused_with_the_fields_name_before_any_member_is_asked(tmp_path: Path) -> None:
    async with court(tmp_path, three(), THREE) as c:
        for body, param in REFUSED:
            response = await c.post(**body)
            error = response.json()["error"]
            assert (response.status_code, error["param"]) == (400, param), (body, error)
            assert set(error) == {"message", "type", "param", "code"}
            assert error["type"] == "invalid_request_error"
        with pytest.raises(BadRequestError) as raised:
            await c.ask(logprobs=True, stream=True)
        assert raised.value.param == "logprobs"
        assert c.calls == 0


async def test_a_request_can_have_fewer_members_and_another_way_to_its_verdict(tmp_path: Path) -> None:
    async with court(tmp_path, three(), THREE) as c:
        answer = await c.ask(extra_body={"tribunal": {"members": ["a", "c"], "rounds": 0, "verdict": "select"}})
        assert answer.choices[0].message.content in {ANSWERS["a"], ANSWERS["c"]}
        assert not c.members["b"].of_phase("draft")


async def test_endpoints_that_are_not_chat_are_refused(tmp_path: Path) -> None:
    async with court(tmp_path, three(), THREE) as c:
        for path, body in (("/v1/completions", {"prompt": "x"}), ("/v1/embeddings", {"input": "x"})):
            response = await c.http.post(path, json={"model": "tribunal", **body})
            assert response.status_code in (400, 404), response.text
            assert response.json()["error"]["type"] == "invalid_request_error"


async def test_it_answers_at_responses_and_at_messages(tmp_path: Path) -> None:
    async with court(tmp_path, three(), THREE) as c:
        response = await c.openai.responses.create(model="tribunal", input="How many?")
        assert response.output_text == SYNTHESIS
        assert response.usage is not None
        assert (response.usage.input_tokens, response.usage.output_tokens) == c.used
        stream = await c.openai.responses.create(model="tribunal", input="How many?", stream=True)
        parts = [event.delta async for event in stream if event.type == "response.output_text.delta"]
        assert "".join(parts) == SYNTHESIS
        assert len(parts) > 3
        answer = await c.http.post(
            "/v1/messages",
            json={"model": "tribunal", "max_tokens": 50, "messages": [{"role": "user", "content": "How many?"}]},
        )
        assert answer.json()["content"][0]["text"] == SYNTHESIS
        with pytest.raises(BadRequestError):
            await c.openai.responses.create(model="tribunal", input="?", extra_body={"tribunal": {"rounds": 9}})


# -- failures --------------------------------------------------------------------------------------------------------


async def test_no_usable_answer_is_an_upstream_error_that_is_not_tried_again(tmp_path: Path) -> None:
    members = {name: Member({"draft": said}) for name, said in (("a", Status(500)), ("b", Dies()), ("c", Garbage()))}
    async with court(tmp_path, members, THREE) as c:
        with pytest.raises(InternalServerError) as raised:
            await c.ask()
        assert raised.value.status_code in (502, 503, 504)
        assert raised.value.response.headers["x-should-retry"] == "false"
        assert raised.value.response.headers["x-slurmgate-deliberation"].startswith("delib_")
        asked = len({r.headers["x-request-id"].rsplit("-", 1)[0] for m in members.values() for r in m.requests})
        assert asked == 1, "the client has not tried again"
        with pytest.raises(APIError):
            await c.stream()
        table = await c.in_the_table()
        assert table["tribunal"] == (2, 2, 0, 0)


async def test_what_every_member_refuses_is_the_callers_mistake(tmp_path: Path) -> None:
    members = {name: Member({"draft": Status(400, "context_length_exceeded")}) for name in "abc"}
    async with court(tmp_path, members, THREE) as c:
        with pytest.raises(APIStatusError) as raised:
            await c.ask()
        assert raised.value.status_code == 400
        assert raised.value.code == "context_length_exceeded"
        assert raised.value.type == "invalid_request_error"


@pytest.mark.parametrize("broken", [Hangs(), Dies(), DiesMidway(), Garbage(), Status(500), Status(429), ""], ids=repr)
async def test_one_broken_member_costs_no_answer(tmp_path: Path, broken: Any) -> None:
    members = three(a={"draft": broken, "critique": broken})
    async with court(tmp_path, members, THREE + "grace_s = 0.2\ndeadline_s = 10") as c:
        answer = await c.ask()
        assert answer.choices[0].message.content == SYNTHESIS
        await c.at_rest()


async def test_a_synthesis_that_breaks_after_its_first_word_is_an_error_event(tmp_path: Path) -> None:
    members = three(b=thinker(ANSWERS["b"], verdict=DiesMidway("Half")))
    async with court(tmp_path, members, THREE) as c:
        response = await c.post(stream=True)
        assert response.status_code == 200
        assert "Half" in response.text
        last = response.text.strip().split("\n\n")[-1]
        assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
        with pytest.raises(APIError):
            await c.stream()


async def test_a_synthesis_that_fails_before_its_first_word_is_replaced(tmp_path: Path) -> None:
    members = three(b=thinker(ANSWERS["b"], verdict=Status(500)))
    async with court(tmp_path, members, THREE) as c:
        chunks = await c.stream()
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert text in {ANSWERS["b"], SYNTHESIS}


# -- the client leaves -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_client_that_leaves_ends_every_child(tmp_path: Path, stream: bool) -> None:
    members = {name: Member(Hangs()) for name in "abc"}
    async with court(tmp_path, members, THREE) as c:
        body = {"model": "tribunal", "messages": QUESTION, "stream": stream}

        async def ask() -> None:
            async with httpx.AsyncClient(base_url=c.served.url, headers=c.served.headers) as http:
                await http.post("/v1/chat/completions", json=body)

        asking = asyncio.create_task(ask(), name="client")
        for member in members.values():
            await member.request()
        asking.cancel()
        await asyncio.wait([asking])
        for member in members.values():
            await member.requests[0].over.wait()
        await until(lambda: '"client_disconnected"' in _log(c))


async def test_a_client_that_leaves_within_the_synthesis_ends_it(tmp_path: Path) -> None:
    members = three()
    gate = members["b"].gate = asyncio.Semaphore(1)
    async with court(tmp_path, members, THREE) as c:
        stream = await c.openai.chat.completions.create(model="tribunal", messages=QUESTION, stream=True)
        async for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        await stream.close()
        [verdict] = members["b"].of_phase("verdict")
        await until(lambda: '"client_disconnected"' in _log(c))
        for _ in range(9):  # the engine would go on: it notices at one of its next words
            gate.release()
        await verdict.over.wait()
        table = await c.in_the_table()
        assert table["tribunal"] == (1, 0, 0, 0)
        drafts_and_critiques = c.used
        assert sum(row[2] for row in table.values()) > drafts_and_critiques[0], "what was streamed is estimated"
        lines = [json.loads(line) for line in _log(c).splitlines()]
        [request] = [line for line in lines if line["event"] == "request"]
        calls = [line for line in lines if line["event"] == "tribunal_call"]
        assert request["outcome"] == "cancelled"
        assert sum(line["prompt_tokens"] for line in calls) == sum(row[2] for row in table.values())


def _log(c: Court) -> str:
    c.served.gateway.serving._lines.flush()
    return c.served.log_text()


# -- what is kept ----------------------------------------------------------------------------------------------------


async def test_a_deliberation_can_be_read_by_its_key_and_by_no_other(tmp_path: Path) -> None:
    from proxy.keys import KeyStore

    async with court(tmp_path, three(), THREE) as c:
        response = await c.post()
        told = await c.deliberation(response)
        assert told["request_id"] == response.headers["x-request-id"]
        assert told["usage"]["prompt"] == c.used[0]
        other = KeyStore(c.served.gateway.serving._database).create("other")
        await asyncio.to_thread(c.served.gateway.serving._keys.refresh)
        path = f"/v1/tribunal/deliberations/{told['id']}"
        foreign = await c.http.get(path, headers={"authorization": f"Bearer {other}"})
        assert foreign.status_code == 404
        unknown = await c.http.get("/v1/tribunal/deliberations/delib_0")
        assert foreign.json()["error"]["type"] == unknown.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("how", ["profile", "request", "store"])
async def test_a_redacted_deliberation_has_no_text(tmp_path: Path, how: str) -> None:
    async with court(tmp_path, three(), THREE + ("redact = true" if how == "profile" else "")) as c:
        wishes: dict[str, dict[str, Any]] = {"request": {"tribunal": {"redact": True}}, "store": {"store": False}}
        asked = wishes.get(how, {})
        told = await c.deliberation(await c.post(**asked))
        assert told["redacted"] is True
        assert "apples" not in json.dumps(told)


async def test_nothing_that_was_said_is_in_the_log(tmp_path: Path) -> None:
    async with court(tmp_path, three(), THREE) as c:
        await c.post()
        text = _log(c)
        assert "apples" not in text
        assert "How many?" not in text
        lines = [json.loads(line) for line in text.splitlines()]
        calls = [line for line in lines if line["event"] == "tribunal_call"]
        [request] = [line for line in lines if line["event"] == "request"]
        assert len(calls) == request["calls"] == 7
        assert {line["id"].rsplit("-", 1)[0] for line in calls} == {request["id"]}
        assert sum(line["prompt_tokens"] for line in calls) == request["calls_prompt_tokens"] == c.used[0]


async def test_metrics_tell_phases_and_outcomes(tmp_path: Path) -> None:
    async with court(tmp_path, three(), THREE) as c:
        await c.ask()
        text = (await c.http.get("/metrics")).text
        said = 'slurmgate_tribunal_deliberations_total{model="tribunal",outcome="answered",verdict="synthesise"} 1.0'
        assert said in text
        assert 'slurmgate_tribunal_calls_total{model="tribunal",outcome="replied",phase="draft"} 3.0' in text
        assert 'slurmgate_tribunal_phase_duration_seconds_count{model="tribunal",phase="critique"} 1.0' in text
        assert 'slurmgate_tokens_total{kind="prompt",model="tribunal"} 0.0' in text
