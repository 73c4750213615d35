"""What models weigh: directories, GGUF files, and what the hub says of those that are not here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_launcher.gguf_header import BadGguf, configuration, read_header
from slurm_launcher.model_shape import KvGroup
from slurm_launcher.weights import WeightsUnknown, found, from_hub, hub_cache, local, outside
from tests.fakes.hub import FakeHub

from .tiny_models import CONFIG, LLAMA_GGUF, gguf, safetensors

pytest_plugins = ["tests.slurm_launcher.hub_fixture"]

EMBEDDED = Path(__file__).parents[2] / "proxy" / "embedded"


def lay_out(directory: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)
    return directory


def test_a_directory_weighs_what_its_safetensors_do(tmp_path: Path) -> None:
    one = safetensors({"a": ("BF16", 500), "norm": ("F32", 10)})
    two = safetensors({"b": ("BF16", 300)})
    lay_out(
        tmp_path,
        {
            "config.json": json.dumps(CONFIG).encode(),
            "model-00001-of-00002.safetensors": one,
            "model-00002-of-00002.safetensors": two,
            "consolidated.safetensors": one + two,
            "pytorch_model.bin": bytes(5000),
            "original/consolidated.00.pth": bytes(5000),
        },
    )
    weights = local(tmp_path)
    assert weights.bytes == len(one) + len(two)
    assert weights.files == 2
    assert weights.dtypes == (("BF16", 1600), ("F32", 40))
    shape = weights.shape("m")
    assert shape.weight_bytes == weights.bytes
    assert shape.kv == (KvGroup(2, 2, 32),)
    assert shape.max_context == 4096


@pytest.mark.parametrize(
    ("method", "dtype"), [("awq", "I32"), ("gptq", "I32"), ("fp8", "F8_E4M3"), ("bitsandbytes", "I8")]
)
def test_quantized_weights_count_as_their_files_do(tmp_path: Path, method: str, dtype: str) -> None:
    data = safetensors({"q": (dtype, 1000), "scales": ("F32", 2000)})
    config = {**CONFIG, "quantization_config": {"quant_method": method}}
    lay_out(tmp_path, {"config.json": json.dumps(config).encode(), "model.safetensors": data})
    assert local(tmp_path).shape("m").weight_bytes == len(data)


def test_without_safetensors_pytorchs_own_files_count(tmp_path: Path) -> None:
    lay_out(tmp_path, {"pytorch_model.bin": bytes(700), "training_args.bin": bytes(50), "config.json": b"{}"})
    weights = local(tmp_path)
    assert (weights.bytes, weights.dtypes) == (700, ())
    assert weights.shape("m").kv is None


def test_a_gguf_is_read_by_its_header(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(gguf(LLAMA_GGUF))
    weights = local(path)
    shape = weights.shape("m")
    assert weights.bytes == path.stat().st_size
    assert shape.kv == (KvGroup(2, 2, 32),)
    assert (shape.vocabulary, shape.max_context) == (5000, 4096)


def test_all_parts_of_a_split_gguf_count(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        (tmp_path / f"m-Q8_0-{number:05}-of-00003.gguf").write_bytes(gguf(LLAMA_GGUF, payload=number * 1000))
    (tmp_path / "other.gguf").write_bytes(bytes(10))
    weights = local(tmp_path / "m-Q8_0-00001-of-00003.gguf")
    assert weights.files == 3
    assert weights.bytes == sum(path.stat().st_size for path in tmp_path.glob("m-*"))


def test_the_projects_own_models_are_understood() -> None:
    """Real files, made by the real library."""
    files = sorted(EMBEDDED.glob("*.gguf"))
    assert files
    for path in files:
        shape = local(path).shape(path.name)
        assert shape.kv is not None
        assert shape.vocabulary > 0


def test_latent_attention_and_layers_that_differ_are_read_from_a_gguf(tmp_path: Path) -> None:
    deepseek = {
        "general.architecture": "deepseek2",
        "deepseek2.block_count": 61,
        "deepseek2.attention.head_count": 128,
        "deepseek2.attention.kv_lora_rank": 512,
        "deepseek2.rope.dimension_count": 64,
    }
    (tmp_path / "v3.gguf").write_bytes(gguf(deepseek))
    assert local(tmp_path / "v3.gguf").shape("m").kv == (KvGroup(61, 1, 576),)
    header = {"general.architecture": "x", "x.block_count": 3, "x.embedding_length": 64, "x.attention.head_count": 4}
    (tmp_path / "x.gguf").write_bytes(gguf({**header, "x.attention.head_count_kv": [2, 0, 1]}))
    assert local(tmp_path / "x.gguf").shape("m").kv == (KvGroup(1, 2, 32), KvGroup(1, 1, 32))


@given(st.binary(max_size=200))
def test_whatever_a_file_holds_it_is_a_header_or_a_bad_one(data: bytes) -> None:
    import io

    from slurm_launcher.gguf_header import parse_header

    for candidate in (data, b"GGUF\x03\x00\x00\x00" + data, gguf(LLAMA_GGUF)[: len(data)]):
        try:
            configuration(parse_header(io.BytesIO(candidate)))
        except BadGguf:
            continue


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model", b"GGUF\x01\x00\x00\x00" + bytes(100)])
def test_what_is_no_gguf_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(BadGguf):
        read_header(path)
    with pytest.raises(WeightsUnknown):
        local(path)


def test_directories_without_weights_are_unknown(tmp_path: Path) -> None:
    with pytest.raises(WeightsUnknown, match="holds no weights"):
        local(tmp_path)
    with pytest.raises(WeightsUnknown):
        local(tmp_path / "none")
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(WeightsUnknown, match="cannot be understood"):
        local(tmp_path)


# -- where they are --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "host"),
    [
        ("/models/llama", "/shared/models/llama"),
        ("/models", "/shared/models"),
        ("/modelstore/llama", "/modelstore/llama"),
        ("/data/x", "/data/x"),
        ("/elsewhere", "/elsewhere"),
    ],
)
def test_a_path_in_a_container_is_found_outside(source: str, host: str) -> None:
    assert outside(source, ["/shared/models:/models:ro", "/data"]) == host


def test_the_hubs_cache_is_where_its_variables_say(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub_cache({"HF_HUB_CACHE": "/c", "HF_HOME": "/h"}) == Path("/c")
    assert hub_cache({"HF_HOME": "/h"}) == Path("/h/hub")
    assert hub_cache({"XDG_CACHE_HOME": "/x"}) == Path("/x/huggingface/hub")
    monkeypatch.setenv("HOME", "/home/me")
    assert hub_cache({}) == Path("/home/me/.cache/huggingface/hub")


def test_what_is_nowhere_is_not_found(tmp_path: Path) -> None:
    assert found(str(tmp_path / "none"), "vllm") is None
    assert found("nobody/nothing", "vllm", environment={"HF_HUB_CACHE": str(tmp_path)}) is None
    assert found(str(tmp_path), "vllm") == tmp_path


# -- the hub ---------------------------------------------------------------------------------------------------------


def test_a_model_on_the_hub_weighs_what_its_metadata_say(fake_hub: FakeHub) -> None:
    weights = safetensors({"a": ("BF16", 500), "norm": ("F32", 10)})
    fake_hub.repositories["lab/tiny"] = {
        "config.json": json.dumps(CONFIG).encode(),
        "model.safetensors": weights + bytes(200_000),
        "pytorch_model.bin": bytes(300_000),
    }
    fake_hub.claimed_sizes["model.safetensors"] = 16_060_522_496  # nothing of it is fetched but the header
    found_weights = from_hub("lab/tiny", "vllm")
    assert found_weights.bytes == 16_060_522_496
    assert dict(found_weights.dtypes) == {"BF16": 1000, "F32": 40}
    assert found_weights.shape("m").kv == (KvGroup(2, 2, 32),)
    assert fake_hub.ranges
    assert not any(path.endswith(".bin") for path in fake_hub.paths)


def test_a_gguf_on_the_hub_is_known_by_its_first_part(fake_hub: FakeHub) -> None:
    fake_hub.repositories["lab/tiny-GGUF"] = {
        "tiny-Q4_K_M.gguf": gguf(LLAMA_GGUF, payload=3000),
        "tiny-Q8_0.gguf": gguf(LLAMA_GGUF, payload=6000),
    }
    four, eight = from_hub("lab/tiny-GGUF", "llamacpp"), from_hub("lab/tiny-GGUF:Q8_0", "llamacpp")
    assert eight.bytes - four.bytes == 3000
    assert eight.shape("m").kv == (KvGroup(2, 2, 32),)
    with pytest.raises(WeightsUnknown, match=r"no GGUF of quantization Q2_K; it has Q4_K_M, Q8_0"):
        from_hub("lab/tiny-GGUF:Q2_K", "llamacpp")
