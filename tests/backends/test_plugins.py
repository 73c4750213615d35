"""Plugins: what the example package adds, and what is said of broken ones."""

from __future__ import annotations

import json
from pathlib import Path

import orjson
import pytest

from backends.base import Call, EventStream, Reply
from backends.dialects import DIALECTS
from backends.plugins import PluginError, install_dialects, load_backends, make_backend
from slurm_launcher.engines import ENGINES
from slurm_launcher.plugins import PluginError as EnginePluginError
from slurm_launcher.plugins import install_engines
from slurm_launcher.spec import ModelSpec
from tests.plugins import distribution, example, installed


def call_of(**more: object) -> Call:
    body = {"model": "m", "messages": [{"role": "user", "content": "hello there"}], **more}
    return Call("req_1", "/v1/chat/completions", "m", body, orjson.dumps(body), more.get("stream") is True)


def test_without_plugins_there_is_nothing_to_load(tmp_path: Path) -> None:
    with installed(tmp_path):
        assert (load_backends(), install_dialects(), install_engines()) == ({}, [], [])


async def test_the_example_s_backend_answers(tmp_path: Path) -> None:
    example(tmp_path)
    with installed(tmp_path):
        backend = make_backend(load_backends()["echo"], "m", {"shout": True})
        reply = await backend.run(call_of())
        assert isinstance(reply, Reply)
        assert json.loads(reply.body)["choices"][0]["message"]["content"] == "HELLO THERE"
        stream = await backend.run(call_of(stream=True))
        assert isinstance(stream, EventStream)
        assert b"HELLO THERE" in b"".join([events async for events in stream])
        stream.close()


def test_the_example_s_engine_is_one_like_any_and_its_dialect_is_found_by_name(tmp_path: Path) -> None:
    example(tmp_path)
    with installed(tmp_path):
        assert install_engines() == install_engines() == ["parrot"]
        assert install_dialects() == install_dialects() == ["parrot"]
        argv = ENGINES["parrot"].argv(ModelSpec("m", "parrot", "/models/x"))
        assert argv == ["parrot-server", "--model", "/models/x", "--listen", "{host}:{port}"]
        prepare = DIALECTS["parrot"].prepare
        assert prepare is not None
        assert "logprobs" not in prepare(call_of(logprobs=True), True).body
    assert "parrot" not in ENGINES
    assert "parrot" not in DIALECTS


def test_what_a_factory_says_of_its_options_is_passed_on(tmp_path: Path) -> None:
    example(tmp_path)
    with installed(tmp_path), pytest.raises(ValueError, match="shout: found 'x', expected true or false"):
        make_backend(load_backends()["echo"], "m", {"shout": "x"})


def test_a_factory_that_makes_no_backend(tmp_path: Path) -> None:
    distribution(tmp_path, "bad", {"slurmgate.backends": {"b": "bad:make"}}, "def make(name, options): return {}")
    with installed(tmp_path), pytest.raises(ValueError, match=r"without run, in_flight, aclose\(\)"):
        make_backend(load_backends()["b"], "m", {})


BROKEN = {
    "does not import": ("raise RuntimeError('no libparrot.so')", "cannot be loaded: RuntimeError: no libparrot.so"),
    "has no such name": ("", "cannot be loaded: AttributeError"),
    "is something else": ("THING = 3", "found "),
}


@pytest.mark.parametrize("group", ["slurmgate.backends", "slurmgate.dialects", "slurmgate.engines"])
@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_plugin_is_named_with_its_distribution(tmp_path: Path, group: str, how: str) -> None:
    module, said = BROKEN[how]
    load = {"slurmgate.backends": load_backends, "slurmgate.dialects": install_dialects}.get(group, install_engines)
    distribution(tmp_path, "broken-thing", {group: {"parrot": "broken_thing:THING"}}, module)
    with installed(tmp_path), pytest.raises((PluginError, EnginePluginError)) as caught:
        load()
    message = str(caught.value)
    assert message.startswith(f"plugin 'parrot' of broken-thing 1.0 ({group}, broken_thing:THING): ")
    assert said in message


@pytest.mark.parametrize("group", ["slurmgate.backends", "slurmgate.dialects", "slurmgate.engines"])
def test_two_plugins_of_one_name(tmp_path: Path, group: str) -> None:
    example(tmp_path / "one")
    name, value = {"slurmgate.backends": ("echo", "make_backend"), "slurmgate.engines": ("parrot", "ENGINE")}.get(
        group, ("parrot", "DIALECT")
    )
    distribution(tmp_path / "two", "other", {group: {name: f"other:{value}"}}, "from slurmgate_echo import *")
    load = {"slurmgate.backends": load_backends, "slurmgate.dialects": install_dialects}.get(group, install_engines)
    with installed(tmp_path / "one"), installed(tmp_path / "two"):
        with pytest.raises((PluginError, EnginePluginError), match=r"remove one$"):
            load()


@pytest.mark.parametrize(
    ("group", "module"),
    [
        (
            "slurmgate.engines",
            "import dataclasses, slurm_launcher.engines as e\nX = dataclasses.replace(e.ENGINES['vllm'])",
        ),
        (
            "slurmgate.dialects",
            "import dataclasses, backends.dialects as d\nX = dataclasses.replace(d.DIALECTS['vllm'])",
        ),
    ],
)
def test_slurmgate_s_own_names_are_taken(tmp_path: Path, group: str, module: str) -> None:
    distribution(tmp_path, "taker", {group: {"vllm": "taker:X"}}, module)
    load = install_dialects if group == "slurmgate.dialects" else install_engines
    with installed(tmp_path), pytest.raises((PluginError, EnginePluginError), match=r"taker 1\.0.*of that name itself"):
        load()


@pytest.mark.parametrize("group", ["slurmgate.dialects", "slurmgate.engines"])
def test_a_plugin_under_another_name_than_its_own(tmp_path: Path, group: str) -> None:
    example(tmp_path / "one")
    value = "ENGINE" if group == "slurmgate.engines" else "DIALECT"
    distribution(tmp_path / "two", "other", {group: {"macaw": f"slurmgate_echo:{value}"}})
    load = install_dialects if group == "slurmgate.dialects" else install_engines
    with installed(tmp_path / "one"), installed(tmp_path / "two"):
        with pytest.raises((PluginError, EnginePluginError), match="calls itself 'parrot'"):
            load()
