"""The batch script: what is in it, what real bash makes of it, what a person may see."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slurm_launcher.engines import ENGINES
from slurm_launcher.on_node import KILL_AFTER_S
from slurm_launcher.script import AGENT, DELIMITER, ON_NODE, assemble, manifest, render
from slurm_launcher.spec import ModelSpec, Resources, Secrets, Site

LAUNCH = Secrets(b"a secret of the gateway").launch("m-1")
SITE = Site("test", "http://login1:8000", "/shared/url", Path("/shared/logs"))
SPEC = ModelSpec("org/m", "vllm", "org/m", environment=(("HF_TOKEN", "hf_x"),), resources=Resources(gpus=1))


def test_it_begins_with_a_shebang_and_the_directives() -> None:
    lines = render(SPEC, LAUNCH, SITE, directives=["#SBATCH --job-name=x", "#SBATCH --gpus=1"]).splitlines()
    assert lines[:3] == ["#!/bin/bash", "#SBATCH --job-name=x", "#SBATCH --gpus=1"]
    assert lines.index("umask 077") < lines.index(f"exec python3 -I -S - <<'{DELIMITER}'")
    assert lines[-2:] == ["sys.exit(main(json.loads(MANIFEST)))", DELIMITER]


def test_the_same_values_make_the_same_script() -> None:
    assert render(SPEC, LAUNCH, SITE) == render(SPEC, LAUNCH, SITE)


def test_the_manifest_says_all_the_agent_has_to_know() -> None:
    told = manifest(SPEC, LAUNCH, SITE, cluster_name="c1")
    assert json.loads(json.dumps(told)) == told
    expected = {
        "replica": "m-1",
        "model": "org/m",
        "config": SPEC.config_hash,
        "cluster": "c1",
        "gateway_url": "http://login1:8000",
        "rendezvous": "/shared/url",
        "token": LAUNCH.token,
        "heartbeat_s": 5.0,
        "start_timeout_s": 1800.0,
        "drain_grace_s": 120.0,
        "host": None,
        "gpus": 1,
    }
    assert expected.items() <= told.items()
    engine = told["engine"]
    assert engine["argv"] == ENGINES["vllm"].argv(SPEC)
    assert engine["environment"] == {"HF_TOKEN": "hf_x", "VLLM_API_KEY": LAUNCH.engine_key, "VLLM_NO_USAGE_STATS": "1"}
    assert engine["key"] == LAUNCH.engine_key


def test_after_term_an_agent_ends_before_its_scheduler_kills_it() -> None:
    kill_wait_s = {None: 30, "127.0.0.1": 10}  # Slurm's by default, LocalCluster's
    for host, wait_s in kill_wait_s.items():
        assert manifest(SPEC, LAUNCH, SITE, host=host)["term_grace_s"] + KILL_AFTER_S < wait_s


def test_for_people_secrets_and_the_models_variables_are_blacked_out() -> None:
    spec = replace(SPEC, runtime="apptainer", image="/images/x.sif")
    text = render(spec, LAUNCH, SITE, redact=True)
    for secret in (LAUNCH.token, LAUNCH.engine_key, "hf_x"):
        assert secret in render(spec, LAUNCH, SITE)
        assert secret not in text
    assert '"APPTAINERENV_HF_TOKEN": "<redacted>"' in text
    assert '"token": "<redacted>"' in text
    assert spec.config_hash in text


NASTY = (
    "$(touch hacked) `touch hacked` ${HOME}",
    "quotes ' \" ''' \"\"\" \\ \\\\ \\n \\u0041",
    f"\n{DELIMITER}\n",
    "Zeichen: äöü €, 字, \U0001f600, \x00, \x1b",
    "r\"\"\"'''",
    '\\"""',
)


@pytest.mark.parametrize("value", NASTY)
def test_no_value_gets_out_of_the_manifest(value: str, tmp_path: Path) -> None:
    """Through real bash, into what stands for Python."""
    python = tmp_path / "a python"
    python.write_text(f"#!/bin/sh\necho \"$@\" > '{tmp_path}/arguments'\ncat > '{tmp_path}/program'\n")
    python.chmod(0o755)
    spec = replace(SPEC, name=value, source=value, arguments=(value,), environment=(("X", value),))
    site = replace(SITE, python=str(python), rendezvous=value)
    text = render(spec, LAUNCH, site)
    assert text.isascii()
    run_bash(text, tmp_path)
    assert not (tmp_path / "hacked").exists()
    assert (tmp_path / "arguments").read_text() == "-I -S -\n"
    program = (tmp_path / "program").read_text()
    assert program.endswith(AGENT.rstrip() + "\n\n\nsys.exit(main(json.loads(MANIFEST)))\n")
    names: dict[str, Any] = {}
    exec(program.split("\n\n")[0], names)  # noqa: S102  # MANIFEST = ..., our own
    assert json.loads(names["MANIFEST"]) == manifest(spec, LAUNCH, site)


def run_bash(text: str, directory: Path) -> str:
    path = directory / "script"
    path.write_text(text)
    done = subprocess.run(
        ["/bin/bash", str(path)],
        capture_output=True,
        text=True,
        cwd=directory,
        env={"HOME": str(directory), "PATH": "/usr/local/bin:/usr/bin:/bin"},
        check=False,
        timeout=20,
    )
    assert done.stderr == ""
    return done.stdout


def show_python(tmp_path: Path, shows: str) -> Site:
    """A site whose Python is a shell script that shows what it finds."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{shows}\n")
    python.chmod(0o755)
    return replace(SITE, python=str(python))


def test_the_prologue_runs_first_and_what_it_exports_is_there(tmp_path: Path) -> None:
    site = show_python(tmp_path, 'echo "$MODULE, umask $(umask)"')
    spec = replace(SPEC, prologue=("export MODULE=loaded", "umask 022 # cannot stay"))
    assert run_bash(render(spec, LAUNCH, site), tmp_path) == "loaded, umask 0022\n"
    assert run_bash(render(SPEC, LAUNCH, site), tmp_path) == ", umask 0077\n"


def test_a_prologue_makes_it_a_login_shell_where_module_is_defined() -> None:
    assert render(replace(SPEC, prologue=("module load cuda",)), LAUNCH, SITE).startswith("#!/bin/bash -l\n")
    assert render(SPEC, LAUNCH, SITE).startswith("#!/bin/bash\n")


def test_bash_becomes_the_agent(tmp_path: Path) -> None:
    site = show_python(tmp_path, "echo $$")
    spec = replace(SPEC, prologue=("echo $$",))
    before, after = run_bash(render(spec, LAUNCH, site), tmp_path).split()
    assert before == after


def test_modules_in_the_working_directory_do_not_reach_the_agent(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')")
    text = assemble({"replica": "r", "model": "m"}).replace(
        "sys.exit(main(json.loads(MANIFEST)))", "print(json.loads(MANIFEST))"
    )
    assert run_bash(text, tmp_path) == "{'replica': 'r', 'model': 'm'}\n"


def test_the_agent_cannot_end_its_own_heredoc() -> None:
    assert DELIMITER not in AGENT


# -- containers and steps ---------------------------------------------------------------------------------------------


def plan(**fields: object) -> dict[str, Any]:
    spec = replace(SPEC, **fields)  # type: ignore[arg-type]
    engine: dict[str, Any] = manifest(spec, LAUNCH, SITE)["engine"]
    return engine


def test_a_container_that_may_be_left_behind_comes_with_its_clean_up() -> None:
    engine = plan(runtime="podman", image="vllm/vllm-openai")
    assert engine["container"]["remove"] == ["podman", "rm", "--force", "--ignore", "--volumes"]
    assert plan(runtime="apptainer", image="/x.sif")["container"] is None


def test_pyxis_makes_the_engine_a_step() -> None:
    engine = plan(runtime="pyxis", image="/x.sqsh")
    text = " ".join(engine["argv"])
    assert text.startswith("srun --nodes=1 --ntasks=1 --export=ALL --overlap ")
    assert " --container-image=/x.sqsh " in text
    assert " ".join(ENGINES["vllm"].argv(SPEC)) in text
    assert engine["step"] is None


def test_an_engine_over_several_nodes_is_one_step_on_all_of_them() -> None:
    spec = replace(SPEC, resources=Resources(gpus=4, nodes=2))
    engine = plan(resources=spec.resources)
    assert engine["argv"] == ENGINES["vllm"].argv(spec)
    assert engine["follower"] == ENGINES["vllm"].argv(spec, follower=True)
    assert engine["step"]["program"] == ON_NODE
    assert " ".join(engine["step"]["argv"]) == (
        "srun --nodes=2 --ntasks=2 --ntasks-per-node=1 --label --export=ALL --overlap --mem=0 --cpu-bind=none "
        "--mpi=none --kill-on-bad-exit=1 python3 -I -S -c"
    )
    text = json.dumps(engine["step"]) + json.dumps(engine["argv"]) + json.dumps(engine["follower"])
    for secret in (LAUNCH.token, LAUNCH.engine_key, "hf_x"):
        assert secret not in text


def test_over_several_nodes_each_node_has_its_container() -> None:
    resources = Resources(gpus=4, nodes=2)
    engine = plan(runtime="podman", image="vllm/vllm-openai", resources=resources)
    assert engine["argv"][:2] == engine["follower"][:2] == ["podman", "run"]
    assert engine["follower"][-1] == "--headless"
    engine = plan(runtime="pyxis", image="/x.sqsh", resources=resources)
    assert "--container-image=/x.sqsh" in engine["step"]["argv"]
    assert engine["step"]["argv"][-4:] == ["python3", "-I", "-S", "-c"]
    assert engine["argv"][0] == "vllm"


def test_without_slurm_there_is_one_node() -> None:
    with pytest.raises(ValueError, match=r"slurm\.nodes: only Slurm has several nodes"):
        manifest(replace(SPEC, resources=Resources(nodes=2)), LAUNCH, SITE, host="127.0.0.1")


def test_files_with_secrets_are_blacked_out_for_people_as_well() -> None:
    spec = replace(SPEC, runtime="charliecloud", image="/images/vllm")
    assert "HF_TOKEN=hf_x" in render(spec, LAUNCH, SITE)
    text = render(spec, LAUNCH, SITE, redact=True)
    assert "HF_TOKEN=<redacted>" in text
    assert LAUNCH.engine_key not in text
