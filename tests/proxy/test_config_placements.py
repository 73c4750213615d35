"""`[[models.NAME.placements]]`: what stands in a configuration, and what becomes of it in scripts and findings."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from proxy.cli import app
from proxy.config import ConfigError, parse
from proxy.launching import Builder, clusters_of, site_of
from proxy.state import StateDir
from slurm_launcher.doctor import Verdict, model_findings
from slurm_launcher.spec import Placement, Resources, Secrets
from tests.slurm_launcher.test_doctor import SEEN

MODEL = """
[models.a]
engine = "vllm"
source = "org/a"
own_max = 2
scaling = { min = 0, max = 8 }
slurm = { gpus = 4, gpu_type = "h100", partition = "gpu", qos = "high", time = "08:00:00" }
"""
SPOT = """
[[models.a.placements]]
name = "spot"
slurm = { partition = "preempt", gpu_type = "a100", qos = "", cluster = "west" }
weight = 0.5
max = 4
batch_only = true
max_in_flight = 32
"""
WHOLE = MODEL + SPOT + '[[models.a.placements]]\nname = "more"\n'


def test_a_placement_s_slurm_section_is_laid_over_the_model_s_key_by_key() -> None:
    spec = parse(WHOLE).specs["a"]
    own = Resources(gpus=4, gpu_type="h100", partition="gpu", qos="high", time_limit_s=8 * 3600)
    spot = Resources(gpus=4, gpu_type="a100", partition="preempt", qos="", cluster="west", time_limit_s=8 * 3600)
    assert (spec.resources, spec.own_most) == (own, 2)
    assert spec.placements == (Placement("spot", spot, 0.5, 4, batch_only=True, limit=32), Placement("more", own))


def test_defaults_lie_below_both() -> None:
    text = '[defaults.slurm]\naccount = "lab"\n' + WHOLE
    assert {kind.resources.account for kind in parse(text).specs["a"].kinds} == {"lab"}


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        (MODEL + SPOT + SPOT, "models.a.placements.1.name: found 'spot', which is another placement of a already"),
        (MODEL + SPOT.replace('"spot"', '"Spot 1"'), "models.a.placements.0.name: found 'Spot 1', expected to match"),
        (MODEL + SPOT.replace('"spot"', '""'), "models.a.placements.0.name: found '', expected"),
        (MODEL + SPOT.replace('name = "spot"', ""), "models.a.placements.0.name: is missing"),
        (MODEL + SPOT.replace("0.5", "0"), "models.a.placements.0.weight: found 0, expected"),
        (MODEL + SPOT.replace("max = 4", "max = 0"), "models.a.placements.0.max: found 0, expected"),
        (MODEL + SPOT.replace("batch_only", "batchonly"), "models.a.placements.0.batchonly: unknown key, did you mean"),
        (MODEL + SPOT.replace("partition", "partitoin"), "models.a.placements.0.slurm.partitoin: unknown key"),
        (MODEL + SPOT.replace('cluster = "west"', "nodes = 0"), "models.a.placements.0.slurm.nodes: found 0, expected"),
        (MODEL, "models.a: expected `own_max` only with `placements`"),
        (
            MODEL.replace("scaling = { min = 0, max = 8 }", "replicas = 3") + SPOT,
            "models.a: expected `scaling` with a batch_only placement",
        ),
        ('[models.a]\nhosted = "openai/x"\nplacements = [{name = "spot"}]', "models.a: expected no `placements` with"),
    ],
)
def test_a_mistake_is_named(text: str, mistake: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert any(found.startswith(mistake) for found in caught.value.mistakes), caught.value.mistakes


def test_a_batch_only_placement_needs_no_limit_of_its_own() -> None:
    (spot,) = parse(MODEL + SPOT.replace("max = 4\n", "")).specs["a"].placements
    assert (spot.batch_only, spot.most) == (True, None)


def test_what_cannot_stand_in_a_script_is_refused_at_the_start_with_the_placement(tmp_path: Path) -> None:
    config = parse(MODEL + SPOT.replace("preempt", "pre\\nempt"))
    state = StateDir(tmp_path)
    build = Builder(config, site_of(config, state, "http://g:1"), Secrets(b""))
    with pytest.raises(ConfigError, match=r'models."a".placements."spot": --partition'):
        build.check(config.specs)


def test_every_placement_s_cluster_is_asked(tmp_path: Path) -> None:
    assert clusters_of(parse(WHOLE), StateDir(tmp_path)).keys() == {"", "west"}


def rendered(tmp_path: Path, *options: str) -> str:
    (tmp_path / "c.toml").write_text(WHOLE)
    where = ("--config", str(tmp_path / "c.toml"), "--state-dir", str(tmp_path / "state"))
    done = CliRunner().invoke(app, ["render", "a", *where, *options], catch_exceptions=False)
    return done.output


def test_render_shows_a_placement_s_script(tmp_path: Path) -> None:
    spot = rendered(tmp_path, "--placement", "spot")
    assert "#SBATCH --partition=preempt\n" in spot
    assert "#SBATCH --gres=gpu:a100:4\n" in spot
    assert "--qos" not in spot, "an empty text takes the model's own away"
    assert '"placement":"spot"' in spot
    own = rendered(tmp_path)
    assert "#SBATCH --partition=gpu\n#SBATCH --qos=high\n" in own
    assert '"placement":"spot"' not in own


def test_doctor_says_which_placement_is_wrong() -> None:
    config = parse(MODEL + SPOT.replace('"preempt"', '"nosuch"'))
    spot = config.specs["a"].at("spot")
    assert spot is not None
    wrong = [finding for finding in model_findings(spot, SEEN) if finding.verdict is Verdict.WRONG]
    assert wrong[0].what == "a (spot): partition"
    assert 'slurm.partition of models."a".placements."spot"' in wrong[0].advice
