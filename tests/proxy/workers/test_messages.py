"""Values that travel between processes arrive as they were."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import errors
from backends.errors import EngineRefused, GatewayError, QueueFull, QuotaExceeded, RateLimited, Unavailable
from backends.places import Priority, Want
from proxy.config import ConfigError, load, parse
from proxy.principals import Allowance, Principal
from proxy.reload import Changes
from proxy.workers import messages as m
from proxy.workers.link import LinkLost

ROOT = Path(__file__).parents[3]


def travelled(value: Any) -> Any:
    return orjson.loads(orjson.dumps(value))


def tree(cls: type[GatewayError] = GatewayError) -> Iterator[type[GatewayError]]:
    yield cls
    for child in cls.__subclasses__():
        yield from tree(child)


OWN_ARGUMENTS: dict[str, dict[str, Any]] = {
    "MethodNotAllowed": {"allow": "GET, POST"},
    "RateLimited": {"kind": "tokens", "retry_after_s": 1.5},
    "QuotaExceeded": {"retry_after_s": 3600.0},
    "EngineRefused": {"status": 418, "type": "teapot", "param": "messages", "code": "short_and_stout"},
    "TransportError": {"detail": "10.0.0.1:8000"},
    "ConnectFailed": {"detail": "10.0.0.1:8000: refused"},
    "NotTheEngine": {"detail": "10.0.0.1:8000", "code": "engine_authentication_failed"},
    "Disconnected": {"detail": "10.0.0.1:8000", "received": True},
    "EngineTimeout": {"detail": "10.0.0.1:8000", "phase": "idle"},
    "MalformedResponse": {"detail": "10.0.0.1:8000"},
}
PLAIN_ARGUMENTS: dict[str, Any] = {"param": "model", "code": "some_code", "retry_after_s": 7.25}
COMMON = [cls for cls in tree() if cls.__module__ == errors.__name__]


def made(cls: type[GatewayError]) -> GatewayError:
    arguments = OWN_ARGUMENTS.get(cls.__name__, {} if cls.__name__ == "MethodNotAllowed" else PLAIN_ARGUMENTS)
    return cls("Something is the matter.", **arguments)


def assert_same(one: GatewayError, other: GatewayError) -> None:
    assert type(one) is type(other)
    assert str(one) == str(other)
    assert one.args == other.args
    for name in ("status", "type", "code", "param", "message", "retry_after_s", "headers", "quotes"):
        assert getattr(one, name) == getattr(other, name), name
    assert vars(one) == vars(other)
    assert one.body() == other.body()


@pytest.mark.parametrize("cls", COMMON, ids=lambda cls: cls.__name__)
def test_an_error_of_every_class_becomes_the_same_again(cls: type[GatewayError]) -> None:
    error = made(cls)
    assert_same(m.error_from(travelled(m.error_to(error))), error)


@pytest.mark.parametrize("cls", COMMON, ids=lambda cls: cls.__name__)
def test_what_is_set_on_an_error_later_travels_with_it(cls: type[GatewayError]) -> None:
    error = made(cls)
    error.headers = MappingProxyType({b"x-should-retry": b"false", b"x-ratelimit-limit-requests": b"\xff4"})
    error.quotes = True
    error.status = 499
    assert_same(m.error_from(travelled(m.error_to(error))), error)


def test_an_error_of_a_class_that_only_one_process_has_arrives_as_its_nearest_common_ancestor() -> None:
    class OfAPlugin(QueueFull):
        status = 420
        code = "enhance_your_calm"

    arrived = m.error_from(travelled(m.error_to(OfAPlugin("Later.", retry_after_s=3.0))))
    assert type(arrived) is QueueFull
    assert (arrived.status, arrived.code, arrived.retry_after_s) == (420, "enhance_your_calm", 3.0)
    assert type(m.error_from(travelled(m.error_to(LinkLost())))) is Unavailable


def test_errors_are_still_caught_by_their_class() -> None:
    arrived = m.error_from(travelled(m.error_to(QuotaExceeded("Spent.", retry_after_s=60.0))))
    assert isinstance(arrived, RateLimited)
    assert isinstance(m.error_from(travelled(m.error_to(made(EngineRefused)))), EngineRefused)


WANTS = st.builds(
    Want,
    st.text(st.characters(exclude_categories=["Cs"])),
    st.sampled_from(Priority),
    st.integers(0, 2**40),
    st.integers(0, 2**32 - 1),
    st.frozensets(st.text("abc-0123", min_size=1)),
    st.none() | st.floats(0, 1e9),
)


@given(want=WANTS)
def test_wants_arrive_as_they_were(want: Want) -> None:
    arrived = m.want_from(travelled(m.want_to(want)))
    assert arrived == want
    assert arrived.priority is want.priority


def test_of_a_principal_arrives_what_limits_look_at() -> None:
    principal = Principal(
        "key_1",
        "proj_1",
        models=frozenset({"m"}),
        admin=True,
        key_limits=Allowance(requests_per_minute=3, tokens_per_month=9),
        project_limits=Allowance(concurrent_requests=4),
    )
    arrived = m.principal_from(travelled(m.principal_to(principal)))
    assert (arrived.key_id, arrived.project_id) == ("key_1", "proj_1")
    assert arrived.key_limits == principal.key_limits
    assert arrived.project_limits == principal.project_limits
    assert arrived.limited


def test_a_configuration_arrives_as_it_is_with_the_options_of_the_command_line() -> None:
    config = load(ROOT / "config.example.toml")
    config = config.model_copy(update={"server": config.server.model_copy(update={"port": 1234})})
    assert m.config_from(travelled(m.config_to(config))) == config


def test_a_start_arrives_as_it_was() -> None:
    config = parse('[models.m]\nengine = "vllm"\nurls = ["http://127.0.0.1:1"]')
    start = m.Start(config, Path("/state"), True, {"m": m.ModelNow(1, "ready", None)})
    assert m.start_from(travelled(m.start_to(start))) == start


@pytest.mark.parametrize(
    "done",
    [
        Changes(),
        Changes(("a",), ("b",), ("c", "d"), limits=True, restart=("server.port",)),
    ],
)
def test_what_a_reload_has_changed_arrives_as_it_was(done: Changes) -> None:
    assert m.reloaded_from(travelled(m.reloaded_to(done))) == done


def test_a_refused_reload_arrives_with_every_mistake() -> None:
    told = travelled(m.reloaded_to(ConfigError("config.toml", ["models.a: is missing", "server.port: found 'x'"])))
    with pytest.raises(ConfigError) as caught:
        m.reloaded_from(told)
    assert caught.value.source == "config.toml"
    assert caught.value.mistakes == ["models.a: is missing", "server.port: found 'x'"]
