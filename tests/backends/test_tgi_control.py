"""TGI's control side, by huggingface-hub over a real socket."""

from __future__ import annotations

import subprocess
import sys

import pytest

from backends.dialects.tgi_control import Control, Info, parse
from backends.errors import ConnectFailed, EngineTimeout, MalformedResponse, TransportError
from tests.fakes.chat_engine import AnswersWith, NeverBegins
from tests.fakes.dialect_engines import SpeaksTGI


async def test_an_engine_tells_its_limits() -> None:
    async with SpeaksTGI() as engine:
        info = await Control(engine.url, "the-engine's").info()
        assert isinstance(info, Info)
        assert (info.model_id, info.version) == ("org/model", "3.3.7")
        assert (info.max_concurrent_requests, info.max_total_tokens, info.max_stop_sequences) == (64, 4096, 4)
        assert engine.questions[0].headers["authorization"] == "Bearer the-engine's"


async def test_it_generates_natively() -> None:
    async with SpeaksTGI() as engine:
        output = await Control(engine.url).generate("Is it?", max_new_tokens=3)
        assert output.generated_text == "Slurm is up"
        assert output.details is not None
        assert output.details.generated_tokens == 3
        assert engine.requests[0].body["parameters"]["max_new_tokens"] == 3


async def test_the_users_own_token_stays_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    async with SpeaksTGI() as engine:
        await Control(engine.url).info()
        assert "hf_secret" not in str(engine.questions[0].headers)


async def test_what_goes_wrong_is_ours() -> None:
    async with SpeaksTGI() as engine:
        pass
    with pytest.raises(ConnectFailed):
        await Control(engine.url).info()
    async with NeverBegins() as silent:
        with pytest.raises(EngineTimeout):
            await Control(silent.url, timeout_s=0.05).info()
    async with AnswersWith(500, b"{}") as broken:
        with pytest.raises(TransportError):
            await Control(broken.url).info()
    async with AnswersWith(200, b"<html>") as other:
        with pytest.raises(MalformedResponse):
            await Control(other.url).info()


@pytest.mark.parametrize("info", [None, [], {}, {"model_id": 3}])
def test_what_is_no_tgi_is_told_so(info: object) -> None:
    with pytest.raises(MalformedResponse):
        parse(info)


def test_nothing_is_imported_until_something_is_asked() -> None:
    code = (
        "import sys, backends.compose, backends.dialects.tgi_control\n"
        "print([name for name in ('huggingface_hub', 'httpx') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
