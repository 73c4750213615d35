"""Configuration of hosted models, plugins and fallbacks."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from backends.fallback import REASONS
from backends.hosted import HostedBackend
from proxy.config import Config, ConfigError, Fallback, parse
from proxy.providers import foreign_backends, links_of
from tests.plugins import distribution, example, installed

HOSTED = '[models.gpt]\nhosted = "openai/gpt-4o-mini"\n'
ENGINE = '[models.a]\nengine = "vllm"\nurls = ["http://h:1"]\n'


def mistakes(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    return caught.value.mistakes


def starting(config: Config) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        foreign_backends(config.models)
    return caught.value.mistakes


def test_a_hosted_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUR_KEY", "sk-1")
    text = HOSTED + 'api_key_env = "OUR_KEY"\napi_base = "https://h/v1"\ntimeouts = { first_byte_s = 9.0 }\n'
    backend = foreign_backends(parse(text).models)["gpt"]
    assert isinstance(backend, HostedBackend)
    assert (backend.name, backend.provider) == ("gpt", "openai")


def test_a_key_that_is_not_there_stops_the_start_with_the_variable_s_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OUR_KEY", raising=False)
    config = parse(HOSTED + 'api_key_env = "OUR_KEY"\n[models."org/b"]\nhosted = "mistral/x"\napi_key_env = "OUR_KEY"')
    expected = "expected the provider's key in the environment variable OUR_KEY"
    assert starting(config) == [
        f"models.gpt.api_key_env: {expected}",
        f'models."org/b".api_key_env: {expected}',
    ]


def test_defaults_are_for_engines_only() -> None:
    text = '[defaults]\nengine = "tgi"\nreplicas = 3\n' + HOSTED + '[models.e]\nbackend = "echo"'
    assert parse(text).models["gpt"].engine == parse(text).models["e"].engine == ""
    assert parse(text).specs == {}


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ('[models.a]\nhosted = "gpt-4o"', "models.a.hosted: found 'gpt-4o', expected PROVIDER/MODEL"),
        ('[models.a]\nhosted = "openai/"', "models.a.hosted: found 'openai/', expected PROVIDER/MODEL"),
        (HOSTED + 'source = "x"', "models.gpt: expected either `source` (an engine to launch), `urls` (engines that"),
        (HOSTED + 'backend = "x"', "models.gpt: expected either `source`"),
        (HOSTED + 'engine = "vllm"', "models.gpt: expected no `engine` with `hosted`"),
        (HOSTED + "slurm = { gpus = 1 }", "models.gpt: expected no `slurm` with `hosted`"),
        (HOSTED + "options = { a = 1 }", "models.gpt: expected `options` only with `backend`"),
        (HOSTED + 'api_base = "h:1"', "models.gpt.api_base: found 'h:1', expected http://HOST... or https://HOST..."),
        (HOSTED + 'hsoted = "x"', "models.gpt.hsoted: unknown key, did you mean 'hosted'?"),
        (ENGINE + 'api_base = "http://h"', "models.a: expected `api_base` only with `hosted`"),
        ('[models.a]\nurls = ["http://h:1"]', "models.a: expected `engine`, one of: "),
        (
            '[models.a]\nbackend = "x"\napi_key_env = "X"',
            "models.a: expected `api_key_env` only with `urls` or `hosted`",
        ),
        (ENGINE + 'fallbacks = ["b"]', "models.a.fallbacks.0: found 'b', expected one of the models: a"),
        (ENGINE + 'fallbacks = [{ model = "b", on = ["x"] }]', "models.a.fallbacks.0.on.0: found 'x', expected 'unav"),
        (ENGINE + 'fallbacks = [{ model = "b", on = [] }]', "models.a.fallbacks.0.on: found [], expected at least one"),
        (ENGINE + 'fallbacks = [{ on = ["context"] }]', "models.a.fallbacks.0.model: is missing"),
        (ENGINE + 'fallbacks = [{ model = "b", no = 1 }]', "models.a.fallbacks.0.no: unknown key"),
        (ENGINE + "fallbacks = [3]", "models.a.fallbacks.0: found 3, expected a table"),
        (ENGINE + 'fallbacks = ["a"]', "models.a.fallbacks.0: expected no circle, found a -> a"),
    ],
)
def test_a_mistake_is_named(text: str, mistake: str) -> None:
    assert any(found.startswith(mistake) for found in mistakes(text)), mistakes(text)


def test_circles_are_refused_where_they_are_written() -> None:
    b = '[models.b]\nhosted = "openai/b"\nfallbacks = ["c"]\n'
    c = '[models.c]\nhosted = "openai/c"\nfallbacks = ["d", "b"]\n[models.d]\nhosted = "openai/d"'
    assert mistakes(ENGINE + 'fallbacks = ["b"]\n' + b + c) == [
        "models.b.fallbacks.0: expected no circle, found b -> c -> b",
        "models.c.fallbacks.1: expected no circle, found c -> b -> c",
    ]


def test_a_name_alone_means_every_reason() -> None:
    fallbacks = 'fallbacks = ["gpt", { model = "e", on = ["context"] }]\n'
    links = links_of(parse(ENGINE + fallbacks + HOSTED + '[models.e]\nbackend = "echo"').models)
    assert [(link.model, set(link.on)) for link in links["a"]] == [("gpt", set(REASONS)), ("e", {"context"})]
    assert list(links) == ["a"]


def test_the_configuration_knows_the_same_reasons_as_the_backend() -> None:
    (literal, _) = get_args(Fallback.model_fields["on"].annotation)
    assert get_args(literal) == REASONS


# -- plugins ---------------------------------------------------------------------------------------------------------


def test_a_plugin_s_backend_and_its_options(tmp_path: Path) -> None:
    example(tmp_path)
    echo = '[models."org/echo"]\nbackend = "echo"\n'
    with installed(tmp_path):
        assert set(foreign_backends(parse(echo + "options = { shout = true }").models)) == {"org/echo"}
        wrong = parse(echo + "options = { shuot = true }\n[models.x]\nbackend = 'ehco'")
        assert starting(wrong) == [
            "models.\"org/echo\".options: unknown option 'shuot', known are: shout",
            "models.x.backend: found 'ehco', expected the name of a plugin (echo)",
        ]
    assert starting(parse(echo)) == [
        "models.\"org/echo\".backend: found 'echo', expected the name of a plugin (none is installed)"
    ]


def test_a_plugin_s_engine_is_known_to_the_configuration(tmp_path: Path) -> None:
    example(tmp_path)
    text = '[models.p]\nengine = "parrot"\nsource = "/m"\n'
    with installed(tmp_path):
        assert parse(text).specs["p"].engine == "parrot"
        assert "task = 'generate': parrot does not serve embeddings" in mistakes(text + 'task = "embed"')[0]
    assert mistakes(text)[0].startswith("models.p.engine: found 'parrot', expected one of: ")


@pytest.mark.parametrize("group", ["slurmgate.backends", "slurmgate.dialects", "slurmgate.engines"])
def test_a_broken_plugin_stops_the_start(tmp_path: Path, group: str) -> None:
    distribution(tmp_path, "broken-thing", {group: {"x": "broken_thing:X"}}, "import nothing_like_this")
    with installed(tmp_path), pytest.raises(ConfigError) as caught:
        foreign_backends(parse(HOSTED).models)
    assert caught.value.mistakes[0].startswith("plugin 'x' of broken-thing 1.0")
    assert "No module named 'nothing_like_this'" in caught.value.mistakes[0]
