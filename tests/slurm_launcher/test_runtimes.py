"""What stands around an engine: the command line of each runtime, and what a runtime does not take."""

from __future__ import annotations

from dataclasses import replace

import pytest

from slurm_launcher.runtimes import RUNTIMES, Wrapped, parse_bind
from slurm_launcher.spec import ModelSpec, Resources

ARGV = ["vllm", "serve", "/data/m", "--host", "{host}"]
ENVIRONMENT = {"VLLM_API_KEY": "secret", "HF_TOKEN": "hf_x"}
SPEC = ModelSpec("m", "vllm", "/data/m", binds=("/scratch", "/data:/data:ro"), resources=Resources(gpus=2))
IMAGES = {
    "apptainer": "/images/vllm.sif",
    "singularity": "docker://vllm/vllm-openai:v0.12.0",
    "podman": "docker.io/vllm/vllm-openai:v0.12.0",
    "enroot": "/images/vllm.sqsh",
    "pyxis": "nvcr.io#nvidia/vllm:25.10-py3",
    "charliecloud": "/images/vllm",
    "docker": "vllm/vllm-openai:v0.12.0",
}
CONTAINERS = tuple(name for name in RUNTIMES if name != "none")


def spec(runtime: str, **fields: object) -> ModelSpec:
    given: dict[str, object] = {"runtime": runtime, "image": IMAGES.get(runtime)}
    if runtime == "charliecloud":
        given["binds"] = ("/scratch", "/data")
    return replace(SPEC, **{**given, **fields})  # type: ignore[arg-type]


def wrap(runtime: str, argv: list[str] = ARGV, environment: dict[str, str] = ENVIRONMENT, **fields: object) -> Wrapped:
    return RUNTIMES[runtime].wrap(argv, environment, spec(runtime, **fields))


def line(runtime: str, **fields: object) -> str:
    return " ".join(wrap(runtime, **fields).argv)  # type: ignore[arg-type]


# -- command lines ----------------------------------------------------------------------------------------------------


def test_without_a_container_nothing_changes() -> None:
    assert wrap("none") == Wrapped(ARGV, ENVIRONMENT)


def test_apptainer_gets_gpus_binds_and_the_image() -> None:
    assert line("apptainer") == (
        "apptainer exec --nv --bind /scratch --bind /data:/data:ro /images/vllm.sif vllm serve /data/m --host {host}"
    )


def test_singularity_pulls_what_it_is_told_to() -> None:
    assert line("singularity").startswith("singularity exec --nv --bind /scratch ")
    assert " docker://vllm/vllm-openai:v0.12.0 vllm " in line("singularity")


@pytest.mark.parametrize(("name", "prefix"), [("apptainer", "APPTAINERENV_"), ("singularity", "SINGULARITYENV_")])
def test_for_apptainer_variables_have_a_prefix(name: str, prefix: str) -> None:
    assert wrap(name).environment == {
        f"{prefix}VLLM_API_KEY": "secret",
        f"{prefix}HF_TOKEN": "hf_x",
        f"{prefix}PYTHONNOUSERSITE": "1",
    }


def test_podman_gets_a_name_the_gpus_by_number_and_names_of_variables() -> None:
    assert line("podman") == (
        "podman run --rm --name={container} --label=slurmgate={uid} --pull=missing --network=host --shm-size=16g "
        "--security-opt=label=disable --log-driver=none --stop-timeout=1 --device=nvidia.com/gpu={gpu} "
        "--volume=/scratch:/scratch --volume=/data:/data:ro --env=HF_TOKEN --env=PYTHONNOUSERSITE --env=VLLM_API_KEY "
        "--entrypoint=vllm docker.io/vllm/vllm-openai:v0.12.0 serve /data/m --host {host}"
    )
    assert wrap("podman").container == {
        "list": ["podman", "ps", "--all", "--filter=label=slurmgate={uid}", "--format={{.Names}}"],
        "remove": ["podman", "rm", "--force", "--ignore", "--volumes"],
    }


def test_docker_runs_as_the_user_with_the_gpus_by_number() -> None:
    assert line("docker") == (
        "docker run --rm --name={container} --label=slurmgate={uid} --pull=missing --network=host --shm-size=16g "
        '--log-driver=none --user={uid}:{gid} --gpus="device={gpus}" --volume=/scratch:/scratch '
        "--volume=/data:/data:ro --env=HOME=/tmp --env=HF_TOKEN --env=PYTHONNOUSERSITE --env=USER --env=VLLM_API_KEY "
        "--entrypoint=vllm vllm/vllm-openai:v0.12.0 serve /data/m --host {host}"
    )
    container = wrap("docker").container
    assert container is not None
    assert container["remove"] == ["docker", "rm", "--force", "--volumes"]


def test_enroot_runs_the_engine_in_place_of_the_images_command_script() -> None:
    wrapped = wrap("enroot")
    flags = "none:x-create=auto,rbind"
    assert " ".join(wrapped.argv) == (
        "enroot start --root --rw --rc {tmp}/rc "
        f"--mount /scratch:/scratch:{flags} --mount /data:/data:{flags},ro --mount {{tmp}}:{{tmp}}:{flags} "
        "--env CUDA_VISIBLE_DEVICES --env HF_TOKEN --env NVIDIA_VISIBLE_DEVICES --env PYTHONNOUSERSITE "
        "--env VLLM_API_KEY /images/vllm.sqsh vllm serve /data/m --host {host}"
    )
    assert wrapped.environment["NVIDIA_VISIBLE_DEVICES"] == "all"
    assert wrapped.files["{tmp}/rc"].endswith('exec "$@"\n')


def test_pyxis_is_a_step_of_slurm_with_a_container() -> None:
    wrapped = wrap("pyxis")
    assert wrapped.argv == ARGV
    assert wrapped.step == (
        "--container-image=nvcr.io#nvidia/vllm:25.10-py3",
        "--container-mounts=/scratch:/scratch,/data:/data:ro",
        "--container-writable",
        "--container-remap-root",
        "--no-container-entrypoint",
    )
    assert wrapped.environment["PYXIS_CONTAINER_ENV"] == "HF_TOKEN,NVIDIA_VISIBLE_DEVICES,PYTHONNOUSERSITE,VLLM_API_KEY"


def test_charliecloud_reads_variables_from_a_file_over_those_of_the_image() -> None:
    wrapped = wrap("charliecloud")
    assert " ".join(wrapped.argv) == (
        "ch-run --env-no-expand --set-env --set-env={tmp}/environment-{rank} --bind=/scratch:/scratch "
        "--bind=/data:/data /images/vllm -- vllm serve /data/m --host {host}"
    )
    assert wrapped.files == {
        "{tmp}/environment-{rank}": (
            "HF_TOKEN=hf_x\nHOME={tmp}\nPYTHONNOUSERSITE=1\nTMPDIR=/tmp\nVLLM_API_KEY=secret\n"
        )
    }


@pytest.mark.parametrize("name", RUNTIMES)
def test_no_value_of_the_environment_is_on_a_command_line(name: str) -> None:
    wrapped = wrap(name)
    for word in (*wrapped.argv, *(wrapped.step or ())):
        assert "secret" not in word
        assert "hf_x" not in word


@pytest.mark.parametrize("name", CONTAINERS)
def test_without_gpus_no_driver_is_asked_for(name: str) -> None:
    wrapped = wrap(name, resources=Resources())
    text = " ".join((*wrapped.argv, *(wrapped.step or ())))
    for word in ("--nv", "nvidia.com", "--gpus", "CUDA"):
        assert word not in text
    assert wrapped.environment.get("NVIDIA_VISIBLE_DEVICES", "void") == "void"


# -- what the engine sees ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONTAINERS)
def test_weights_that_are_a_path_are_seen_inside(name: str) -> None:
    def shown(source: str) -> str:
        wrapped = wrap(name, argv=["vllm"], source=source, binds=())
        return " ".join((*wrapped.argv, *(wrapped.step or ())))

    assert "/weights/llama:/weights/llama" in shown("/weights/llama")
    assert "/weights:/weights" in shown("/weights/llama.Q4.gguf"), "with the other parts of the file"
    assert "org/llama" not in shown("org/llama")


@pytest.mark.parametrize("name", CONTAINERS)
def test_weights_under_a_bind_are_not_bound_again(name: str) -> None:
    wrapped = wrap(name, source="/mnt/0/llama", binds=("/data/models:/mnt/0",), argv=["vllm"])
    text = " ".join((*wrapped.argv, *(wrapped.step or ())))
    assert "/data/models:/mnt/0" in text
    assert "llama" not in text.replace("vllm", "")


@pytest.mark.parametrize("name", CONTAINERS)
def test_the_nodes_own_copy_of_the_weights_is_seen_inside(name: str) -> None:
    wrapped = wrap(name, local_copy="/local")
    assert "{weights}:{weights}" in " ".join((*wrapped.argv, *(wrapped.step or ())))


@pytest.mark.parametrize("name", [name for name in CONTAINERS if name not in ("charliecloud", "enroot")])
def test_the_private_directory_is_seen_inside_where_an_engine_asks_for_it(name: str) -> None:
    def seen(argv: list[str]) -> bool:
        wrapped = wrap(name, argv=argv)
        return any("{tmp}" in word for word in (*wrapped.argv[: len(wrapped.argv) - len(argv)], *(wrapped.step or ())))

    assert seen(["tgi", "--shard-uds-path", "{tmp}/shard"])
    assert not seen(["tgi"])


def test_with_several_nodes_pyxis_makes_the_private_directory_inside() -> None:
    step = wrap("pyxis", argv=["x", "{tmp}"], resources=Resources(gpus=1, nodes=2)).step
    assert step is not None
    assert "{tmp}" not in " ".join(step)


def test_pyxis_over_several_nodes_cannot_mount_a_copy_that_is_made_later() -> None:
    with pytest.raises(ValueError, match="local_copy: with pyxis over several nodes"):
        wrap("pyxis", local_copy="/local", resources=Resources(nodes=2))


def test_a_models_home_is_its_own_business() -> None:
    home = {"HOME": "/scratch/home"}
    assert "HOME=/scratch/home\n" in wrap("charliecloud", environment=home).files["{tmp}/environment-{rank}"]
    assert "--env=HOME=/tmp" not in wrap("docker", environment=home).argv


# -- what cannot be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_container_needs_an_image(name: str) -> None:
    with pytest.raises(ValueError, match=f"image: runtime {name} needs an image"):
        wrap(name, image=None)


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("apptainer", "images/vllm.sif"),
        ("apptainer", "vllm/vllm-openai"),
        ("singularity", "--writable"),
        ("podman", "/images/vllm.sif"),
        ("podman", "--privileged"),
        ("podman", "two words"),
        ("docker", "docker://vllm/vllm-openai"),
        ("docker", "/images/vllm.tar"),
        ("enroot", "vllm/vllm-openai:latest"),
        ("enroot", "docker://vllm/vllm-openai"),
        ("pyxis", "images/\nvllm.sqsh"),
        ("pyxis", "oras://x/y"),
        ("charliecloud", "docker://vllm/vllm-openai"),
        ("charliecloud", "-w"),
    ],
)
def test_an_image_that_a_runtime_does_not_take_is_named(name: str, image: str) -> None:
    with pytest.raises(ValueError, match=r"^image: ") as refused:
        wrap(name, image=image)
    assert repr(image) in str(refused.value)


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("apptainer", "oras://ghcr.io/org/vllm:1"),
        ("apptainer", "docker-daemon:vllm:latest"),
        ("podman", "localhost/mine:1"),
        ("podman", "oci-archive:/images/vllm.tar"),
        ("podman", "vllm@sha256:0123"),
        ("enroot", "vllm+vllm-openai+v0.12.0"),
        ("pyxis", "/images/vllm.sqsh"),
        ("pyxis", "$oauthtoken@nvcr.io#nvidia/vllm:25.10-py3"),
        ("pyxis", "docker://vllm/vllm-openai:latest"),
        ("charliecloud", "vllm/vllm-openai:v0.12.0"),
    ],
)
def test_images_are_named_in_a_runtimes_own_way(name: str, image: str) -> None:
    wrapped = wrap(name, image=image)
    assert any(image in word for word in (*wrapped.argv, *(wrapped.step or ())))


@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.parametrize("bind", ["data", "./data:/data", "/data:data", "~/data", "$HOME/data:/data"])
def test_a_relative_bind_is_named(name: str, bind: str) -> None:
    with pytest.raises(ValueError, match=r"^binds: .*relative; expected an absolute path"):
        wrap(name, binds=(bind,))


@pytest.mark.parametrize("bind", ["", "/a:/b:/c", "/a:/b:ro:z", "/a:/b:noexec", "/a b", "/a,/b", "/a\n"])
def test_a_bind_of_another_form_is_refused(bind: str) -> None:
    with pytest.raises(ValueError, match=r"^binds: "):
        parse_bind(bind)


def test_charliecloud_has_no_read_only_binds() -> None:
    with pytest.raises(ValueError, match="binds: /data:/data:ro: runtime charliecloud cannot mount read-only"):
        wrap("charliecloud", binds=("/data:/data:ro",))


@pytest.mark.parametrize("name", ["charliecloud", "enroot"])
def test_a_variable_of_several_lines_is_refused_without_its_value(name: str) -> None:
    with pytest.raises(ValueError, match="environment: KEYS holds a line break") as refused:
        RUNTIMES[name].check(replace(spec(name), environment=(("KEYS", "private\nlines"),)))
    assert "private" not in str(refused.value)
