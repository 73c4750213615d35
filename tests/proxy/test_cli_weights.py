"""`slurmgate fit` and `slurmgate fetch` as a user types them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from proxy.cli_weights import mount
from proxy.config import load
from proxy.terminal import Mistake
from tests.fakes.hub import FakeHub
from tests.slurm_launcher.test_fit import BYTES_8B, BYTES_70B, LLAMA_8B, LLAMA_70B, lay_out
from tests.slurm_launcher.tiny_models import CONFIG, safetensors

pytest_plugins = ["tests.slurm_launcher.hub_fixture"]

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a command. A mistake is raised."""
    large = lay_out(tmp_path / "shared" / "large", LLAMA_70B, BYTES_70B)
    header = safetensors({"a": ("BF16", 8)})
    for path in large.glob("*.safetensors"):
        with path.open("r+b") as file:
            file.write(header)
    (tmp_path / "config.toml").write_text(
        f"""
        [models.large]
        engine = "vllm"
        source = "/models/large"
        binds = ["{tmp_path}/shared:/models:ro"]
        context_length = 32768
        slurm = {{ gpus = 2, gpu_type = "a100_80gb" }}
        [models.missing]
        engine = "tgi"
        source = "/models/missing"
        [models.elsewhere]
        engine = "vllm"
        urls = ["http://127.0.0.1:1"]
        """
    )
    app = typer.Typer()
    mount(app)

    def run(command: str, *arguments: str, config: bool = True) -> Result:
        options = ("--config", str(tmp_path / "config.toml")) if config else ()
        done = CliRunner().invoke(app, (command, *arguments, *options))
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done

    return run


def test_a_model_that_does_not_fit_is_shown_with_its_numbers(run: Run) -> None:
    done = run("fit", "large")
    assert done.exit_code == 1
    assert "weights, 4 files" in done.stdout
    assert "141.1 GB" in done.stdout
    assert "327,680 B" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("large fits into 2 x a100_80gb (80 GiB each) only with less: ")
    assert "4 of them (tensor parallel) are enough" in done.stdout


def test_options_go_over_the_configuration(run: Run) -> None:
    done = run("fit", "large", "--gpus", "4", "--gpu-type", "h100", "--concurrency", "4")
    assert done.exit_code == 0
    assert "large fits into 4 x h100" in done.stdout
    assert "note: h100 may also have" in done.stdout
    assert run("fit", "large", "--context", "16000").exit_code == 0
    assert run("fit", "large", "--gpu-memory", "96G").exit_code == 0


def test_for_programs_there_are_numbers(run: Run) -> None:
    told = json.loads(run("fit", "large", "--json").stdout)
    assert told["kind"] == "smaller_context"
    assert told["fits"] is False
    assert told["needed"] == 4
    assert told["kv_token_bytes"] == 327680
    assert told["weight_bytes"] == pytest.approx(BYTES_70B, abs=4)
    assert told["engine"] == "vllm"
    assert told["sentence"].startswith("large fits into 2 x a100_80gb")


def test_a_directory_needs_no_configuration(run: Run, tmp_path: Path) -> None:
    source = tmp_path / "small"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(LLAMA_8B))
    (source / "model.safetensors").write_bytes(safetensors({"a": ("BF16", 8)}))
    with (source / "model.safetensors").open("r+b") as file:
        file.truncate(BYTES_8B)
    done = run("fit", str(source), "--gpu-type", "l4", "--context", "8192", config=False)
    assert done.exit_code == 0
    assert "16.1 GB" in done.stdout
    assert "131,072 B" in done.stdout


def test_without_a_gpu_the_numbers_of_the_model_alone_are_shown(run: Run, tmp_path: Path) -> None:
    done = run("fit", str(tmp_path / "shared" / "large"), config=False)
    assert done.exit_code == 0
    assert "cannot be told: the memory of the GPUs is unknown" in done.stdout


def test_the_embedded_models_are_ggufs_that_fit_anything(run: Run) -> None:
    path = min(Path("proxy/embedded").absolute().glob("*.gguf"))
    assert run("fit", str(path), "--gpu-type", "t4", config=False).exit_code == 0


def test_a_model_on_the_hub_is_judged_before_it_is_fetched(run: Run, fake_hub: FakeHub) -> None:
    fake_hub.repositories["lab/tiny"] = {
        "config.json": json.dumps(CONFIG).encode(),
        "model.safetensors": safetensors({"a": ("BF16", 500)}),
    }
    fake_hub.claimed_sizes["model.safetensors"] = BYTES_70B
    done = run("fit", "lab/tiny", "--gpu-type", "h100", config=False)
    assert done.exit_code == 1
    assert "lab/tiny does not fit into 1 x h100" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "unknown"], "no model 'unknown'; known: large, missing, elsewhere"),
        (["fit", "elsewhere"], "elsewhere is not launched here: it has no `source`"),
        (["fit", "missing"], "/models/missing is not there"),
        (["fit", "large", "--gpu-type", "nonsense"], "nothing is known of a GPU 'nonsense'"),
        (["fit", "large", "--gpu-memory", "much"], 'expected a text such as "64G"'),
        (["fit", "large", "--engine", "none"], "no engine 'none'"),
        (["fetch", "large"], "/models/large is a path: there is nothing to fetch"),
        (["fetch", "unknown"], "no model 'unknown'"),
    ],
)
def test_mistakes_are_one_sentence(run: Run, arguments: list[str], message: str) -> None:
    with pytest.raises(Mistake) as mistake:
        run(*arguments)
    assert message in str(mistake.value)
    assert "\n" not in str(mistake.value)


def test_what_is_fetched_is_named_alone_on_standard_output(run: Run, fake_hub: FakeHub, tmp_path: Path) -> None:
    fake_hub.repositories["lab/tiny"] = {
        "config.json": json.dumps(CONFIG).encode(),
        "model.safetensors": safetensors({"a": ("BF16", 500)}),
        "original/consolidated.00.pth": bytes(100),
    }
    done = run("fetch", "lab/tiny", "--to", str(tmp_path / "models" / "tiny"), config=False)
    assert done.stdout.strip() == str(tmp_path / "models" / "tiny")
    assert "2 files, 0.0 GB (1 that vllm does not need are left out)" in done.stderr


def test_what_to_write_into_the_configuration_is_right(run: Run, fake_hub: FakeHub, tmp_path: Path) -> None:
    fake_hub.repositories["lab/tiny"] = {"config.json": b"{}", "model.safetensors": safetensors({"a": ("BF16", 500)})}
    for to in (["--to", str(tmp_path / "tiny")], []):
        done = run("fetch", "lab/tiny", *to, config=False)
        advice = done.stderr.partition("In the configuration:\n")[2]
        (tmp_path / "advised.toml").write_text(advice)
        spec = load(tmp_path / "advised.toml").specs["lab/tiny"]
        assert spec.source == done.stdout.strip()
        assert (Path(spec.source) / "model.safetensors").is_file()


def test_a_refusal_of_the_hub_is_one_sentence(run: Run, fake_hub: FakeHub) -> None:
    with pytest.raises(Mistake, match=r"^the hub has no model lab/none"):
        run("fetch", "lab/none", config=False)
    with pytest.raises(Mistake, match=r"^the hub has no model lab/none"):
        run("fit", "lab/none", config=False)
