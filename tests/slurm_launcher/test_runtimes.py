"""What stands around an engine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from slurm_launcher.runtimes import RUNTIMES
from slurm_launcher.spec import ModelSpec, Resources

ARGV = ["vllm", "serve", "{host}"]
ENVIRONMENT = {"VLLM_API_KEY": "secret", "HF_TOKEN": "hf_x"}
SPEC = ModelSpec(
    "m", "vllm", "org/m", image="/images/vllm.sif", binds=("/scratch", "/data:/data:ro"), resources=Resources(gpus=1)
)


def test_without_a_container_nothing_changes() -> None:
    assert RUNTIMES["none"](ARGV, ENVIRONMENT, SPEC) == (ARGV, ENVIRONMENT)


def test_apptainer_gets_gpus_binds_and_the_image() -> None:
    argv, _ = RUNTIMES["apptainer"](ARGV, ENVIRONMENT, SPEC)
    assert " ".join(argv) == (
        "apptainer exec --nv --bind /scratch --bind /data:/data:ro /images/vllm.sif vllm serve {host}"
    )


def test_apptainer_without_gpus_asks_for_no_driver() -> None:
    argv, _ = RUNTIMES["apptainer"](ARGV, ENVIRONMENT, replace(SPEC, resources=Resources()))
    assert "--nv" not in argv


@pytest.mark.parametrize(("name", "prefix"), [("apptainer", "APPTAINERENV_"), ("singularity", "SINGULARITYENV_")])
def test_the_environment_goes_in_by_prefixed_variables_and_never_by_argv(name: str, prefix: str) -> None:
    argv, environment = RUNTIMES[name](ARGV, ENVIRONMENT, SPEC)
    assert argv[0] == name
    assert environment == {
        f"{prefix}VLLM_API_KEY": "secret",
        f"{prefix}HF_TOKEN": "hf_x",
        f"{prefix}PYTHONNOUSERSITE": "1",
    }
    assert not any("secret" in word or "hf_x" in word for word in argv)


def test_a_container_needs_an_image() -> None:
    with pytest.raises(ValueError, match="m: runtime apptainer needs an image"):
        RUNTIMES["apptainer"](ARGV, ENVIRONMENT, replace(SPEC, image=None))
