from __future__ import annotations

from pathlib import Path

import pytest

from proxy.config import Config, ConfigError, load, parse
from slurm_launcher.autoscale import Scaling, Warm

MODEL = """
[models."org/llama"]
engine = "llamacpp"
source = "/models/llama.gguf"
"""


def mistakes(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    return caught.value.mistakes


def test_a_model_with_its_defaults() -> None:
    spec = parse(MODEL).specs["org/llama"]
    assert (spec.name, spec.engine, spec.scaling, spec.runtime) == ("org/llama", "llamacpp", Scaling(), "none")


def test_slurm_s_own_notations() -> None:
    config = parse(MODEL + 'slurm = { time = "2-12:30:00", memory = "64G", gpus = 2, gpu_type = "h100" }')
    resources = config.specs["org/llama"].resources
    assert (resources.time_limit_s, resources.memory_mb, resources.gpus) == ((60 * 60 + 30) * 60, 65536, 2)


def test_defaults_fill_in_and_a_model_s_own_keys_go_before_them() -> None:
    text = '[defaults]\nreplicas = 3\n[defaults.slurm]\npartition = "gpu"\ncpus = 4\n' + MODEL + "slurm = { cpus = 8 }"
    spec = parse(text).specs["org/llama"]
    assert (spec.scaling, spec.resources.partition, spec.resources.cpus) == (Scaling(3, 3), "gpu", 8)


def test_defaults_do_not_reach_engines_that_run_already() -> None:
    text = '[defaults]\nreplicas = 3\n[models.a]\nengine = "vllm"\nurls = ["http://h:1/v1"]'
    assert parse(text).models["a"].replicas == 1
    assert parse(text).specs == {}


def test_the_number_of_replicas_is_no_part_of_what_a_replica_is() -> None:
    one = parse(MODEL).specs["org/llama"]
    assert parse(MODEL + "replicas = 5").specs["org/llama"].config_hash == one.config_hash
    assert parse(MODEL + "context_length = 5").specs["org/llama"].config_hash != one.config_hash


def test_all_mistakes_at_once_each_with_its_path() -> None:
    found = mistakes(
        """
        [server]
        port = "x"
        [launcher]
        kind = "k8s"
        [models.a]
        engine = "foo"
        source = "x"
        [models.a.slurm]
        gpus = "two"
        time = "24h"
        """
    )
    assert found == [
        "server.port: found 'x', expected a whole number",
        "launcher.kind: found 'k8s', expected 'slurm' or 'local'",
        "models.a.engine: found 'foo', expected one of: llamacpp, sglang, tei, tgi, vllm",
        "models.a.slurm.gpus: found 'two', expected a whole number",
        'models.a.slurm.time: found \'24h\', expected Slurm\'s notation for a time, "HH:MM:SS" or "D-HH:MM:SS"',
    ]


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("", "models: is missing"),
        ("[models]\n", "models: expected at least one"),
        ("models = 3", "models: found 3, expected a table"),
        (MODEL + "gpu = 3", 'models."org/llama".gpu: unknown key'),
        ("[sever]\n" + MODEL, "sever: unknown key, did you mean 'server'?"),
        ("[server]\nhots = 1\n" + MODEL, "server.hots: unknown key, did you mean 'host'?"),
        ('[models.a]\nengine = "tgi"', "models.a: expected either `source`"),
        ('[models.a]\nengine = "tgi"\nsource = "x"\nruntime = "apptainer"', "models.a: expected `image`"),
        ('[models.a]\nengine = "tgi"\nsource = "x"\ntask = "embed"', "models.a: expected task = 'generate'"),
        (
            '[models.a]\nengine = "tgi"\nurls = ["https://h:1"]',
            "models.a.urls.0: found 'https://h:1', expected http://",
        ),
        ('[models.a]\nengine = "tgi"\nurls = ["http://h"]', "models.a.urls.0: found 'http://h', expected http://"),
        ('[models.a]\nengine = "tgi"\nurls = ["http://h:x"]', "models.a.urls.0: found 'http://h:x', expected http://"),
        ('[models."a b"]\nengine = "tgi"\nsource = "x"', 'models."a b"'),
        ("[models.a\n", "is not TOML: "),
        ("[defaults]\nreplicas = -1\n" + MODEL, "defaults.replicas: found -1, expected"),
        ("[defaults]\nreplcas = 1\n" + MODEL, "defaults.replcas: unknown key, did you mean 'replicas'?"),
    ],
)
def test_a_mistake_is_named(text: str, mistake: str) -> None:
    assert any(found.startswith(mistake) for found in mistakes(text)), mistakes(text)


def test_values_of_the_environment_are_never_shown() -> None:
    found = mistakes('[models.a]\nengine = "tgi"\nsource = "x"\nenvironment = { HF_TOKEN = 12345678 }')
    assert found == ["models.a.environment.HF_TOKEN: expected a text"]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load(tmp_path / "none.toml")


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(tmp_path / "x.toml")


def test_the_configuration_cannot_be_changed() -> None:
    config: Config = parse(MODEL)
    with pytest.raises(Exception, match="frozen"):
        config.server.port = 1  # type: ignore[misc]


SCALED = '[models.a]\nengine = "vllm"\nsource = "m"\n[models.a.scaling]\n'


def test_scaling_follows_the_demand_within_its_bounds_and_hours() -> None:
    hours = (
        'warm = [{days = "mon-fri", start = "08:00", end = "18:30", replicas = 2}, {start = "22:00", end = "06:00"}]\n'
    )
    scaling = parse(SCALED + "min = 0\nmax = 4\nttft_goal_s = 1.5\n" + hours).specs["a"].scaling
    assert (scaling.least, scaling.most, scaling.ttft_goal_s) == (0, 4, 1.5)
    assert scaling.warm == (
        Warm(frozenset(range(5)), 8 * 3600, 18 * 3600 + 1800, 2),
        Warm(frozenset(range(7)), 22 * 3600, 6 * 3600, 1),
    )


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("min = 3\nmax = 2\n", "models.a.scaling: expected min (3) to be at most max (2)"),
        ('warm = [{days = "someday", start = "08:00", end = "09:00"}]\n', 'expected days such as "mon-fri"'),
        (
            'warm = [{start = "25:00", end = "09:00"}]\n',
            "models.a.scaling.warm.0.start: found '25:00', expected a time",
        ),
    ],
)
def test_scaling_that_contradicts_itself_is_refused(lines: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(SCALED + lines)
    assert told in str(caught.value)


def test_a_fixed_number_and_scaling_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="expected either `replicas`"):
        parse('[models.a]\nengine = "vllm"\nsource = "m"\nreplicas = 2\n[models.a.scaling]\nmax = 3\n')


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (
            "tokens_per_day = 10\ntokens_per_month = 5\n",
            "limits: expected tokens_per_day (10) to be at most tokens_per_month (5)",
        ),
        (
            "tokens_per_minute = 10\ntokens_per_day = 5\n",
            "expected tokens_per_minute (10) to be at most tokens_per_day",
        ),
        ("requests_per_minute = 0\n", "limits.requests_per_minute: found 0"),
    ],
)
def test_contradictory_limits_stop_the_start_with_their_paths(lines: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse("[limits]\n" + lines + '[models.a]\nengine = "vllm"\nurls = ["http://h:1"]\n')
    assert told in str(caught.value)


def test_an_alias_that_is_taken_is_refused_with_its_path() -> None:
    two = (
        '[models.a]\nengine = "vllm"\nurls = ["http://h:1"]\naliases = ["gpt-4o", "{}"]\n[models.b]\nengine = "vllm"\n'
    )
    two += 'urls = ["http://h:2"]\naliases = ["{}"]\n'
    with pytest.raises(ConfigError, match=r"models.a.aliases.1: found 'b', which is a model already"):
        parse(two.format("b", "x"))
    with pytest.raises(ConfigError, match=r"models.b.aliases.0: found 'gpt-4o', which is an alias of a already"):
        parse(two.format("y", "gpt-4o"))


def test_an_engine_of_a_model_may_have_a_weight_and_a_limit() -> None:
    text = (
        '[models.a]\nengine = "vllm"\nurls = ["http://h:1", {url = "http://h:2/v1", weight = 2.0, max_in_flight = 8}]\n'
    )
    first, second = parse(text).models["a"].urls
    assert (first.weight, first.max_in_flight) == (1.0, None)
    assert (second.url, second.weight, second.max_in_flight) == ("http://h:2/v1", 2.0, 8)


def test_a_default_number_of_replicas_does_not_contradict_a_model_that_scales() -> None:
    text = "[defaults]\nreplicas = 3\n" + SCALED + "max = 5\n"
    assert parse(text).specs["a"].scaling == Scaling(0, 5)
