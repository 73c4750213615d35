"""Does a model fit: anchors that are known, and what must hold for any model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_launcher.engine_memory import RULES, rule_of
from slurm_launcher.fit import Verdict, fit
from slurm_launcher.fit_check import check_fit, line, missing_weights
from slurm_launcher.gpus import Gpu, gpu_of
from slurm_launcher.model_shape import KvGroup, ModelShape, shape_of
from slurm_launcher.spec import ModelSpec, Resources
from slurm_launcher.weights import WeightsUnknown, local

GIB = 1 << 30
LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16",
}
LLAMA_70B = {
    **LLAMA_8B,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "hidden_size": 8192,
    "intermediate_size": 28672,
}
BYTES_8B = 16_060_522_496
BYTES_70B = 141_107_412_992
SMALL, LARGE = shape_of("Llama-3.1-8B", LLAMA_8B, BYTES_8B), shape_of("Llama-3.1-70B", LLAMA_70B, BYTES_70B)
A100_80 = gpu_of("a100_80gb")
H100 = gpu_of("nvidia_h100_80gb_hbm3")


# -- anchors ---------------------------------------------------------------------------------------------------------


def test_a_token_of_the_llamas_takes_what_is_known() -> None:
    assert SMALL.kv_bytes_per_token() == 131072
    assert LARGE.kv_bytes_per_token() == 327680
    assert round(SMALL.weight_bytes / 1e9, 2) == 16.06
    assert round(LARGE.weight_bytes / 1e9) == 141


def test_70b_in_two_a100_leaves_little_for_the_cache_and_the_verdict_says_how_little() -> None:
    verdict = fit(LARGE, A100_80, 2, 32768)
    assert verdict.kind == "smaller_context"
    assert verdict.taken_bytes == pytest.approx(0.9 * 2 * 80 * GIB, rel=1e-6)
    assert 20_000 < verdict.largest_context < 30_000
    assert verdict.needed == 4
    assert f"1 sequence of {verdict.largest_context:,} tokens instead of 1 sequence of 32,768" in verdict.sentence
    assert "141.1 GB" in verdict.sentence


def test_counted_in_decimal_gigabytes_the_cache_would_be_nine_thousand_tokens() -> None:
    """2 x 80 GB x 0.9 = 144 GB less 141 GB of weights: the arithmetic on a napkin, without what running takes."""
    room = 2 * 80e9 * 0.9 - BYTES_70B
    assert 8_500 < room / LARGE.kv_bytes_per_token() < 9_000
    assert fit(LARGE, Gpu("80 decimal GB", int(80e9)), 2, 2048).kind == "more_gpus"


def test_70b_in_four_h100_fits_many_sequences() -> None:
    verdict = fit(LARGE, H100, 4, 8192, concurrency=16)
    assert verdict.kind == "fits"
    assert verdict.sequences >= 16
    assert f"{verdict.sequences} sequences of 8,192 tokens" in verdict.sentence


def test_8b_fits_one_a100_of_40_gb_which_is_what_a100_is_taken_for() -> None:
    verdict = fit(SMALL, gpu_of("a100"), 1, 8192)
    assert verdict.kind == "fits"
    assert verdict.gpu is not None
    assert verdict.gpu.memory_bytes == 40 * GIB
    assert any("40 GB is assumed" in note for note in verdict.notes)


def test_a_model_that_is_too_large_for_a_node_is_proposed_several() -> None:
    verdict = fit(LARGE, gpu_of("t4"), 8, 8192)
    assert (verdict.kind, verdict.needed, verdict.needed_nodes) == ("several_nodes", 16, 2)
    assert "16 of them on 2 nodes" in verdict.sentence
    assert fit(replace(LARGE, weight_bytes=10**15), H100, 8, 8192).kind == "too_large"


def test_a_number_of_gpus_that_does_not_divide_the_heads_is_refused() -> None:
    verdict = fit(SMALL, H100, 3, 8192)
    assert verdict.kind == "wrong_count"
    assert "3 GPUs cannot share 32 attention heads evenly; 2 can" in verdict.sentence
    assert fit(SMALL, H100, 3, 8192, engine="llamacpp").kind == "fits"


def test_without_the_gpus_memory_nothing_is_claimed() -> None:
    verdict = fit(SMALL, None, 1)
    assert verdict.kind == "unknown"
    assert "slurm.gpu_memory" in verdict.sentence


def test_a_model_of_unknown_cache_is_still_refused_where_its_weights_do_not_fit() -> None:
    mamba = shape_of("mamba", {"model_type": "mamba2", "num_hidden_layers": 64, "vocab_size": 50288}, BYTES_70B)
    assert mamba.kv is None
    assert fit(mamba, H100, 1, 8192).kind == "more_gpus"
    verdict = fit(mamba, H100, 4, 8192)
    assert verdict.kind == "unknown"
    assert "the weights fit, but mamba2 keeps a state" in verdict.sentence


# -- shapes ----------------------------------------------------------------------------------------------------------

GEMMA_3 = {
    "model_type": "gemma3",
    "text_config": {
        "model_type": "gemma3_text",
        "num_hidden_layers": 62,
        "num_attention_heads": 32,
        "num_key_value_heads": 16,
        "head_dim": 128,
        "hidden_size": 5376,
        "sliding_window": 1024,
    },
}
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "hidden_size": 7168,
    "quantization_config": {"quant_method": "fp8"},
}
GPT_OSS = {
    "model_type": "gpt_oss",
    "num_hidden_layers": 4,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "sliding_window": 128,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
QWEN3_NEXT = {
    "model_type": "qwen3_next",
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"],
}
QWEN2 = {**LLAMA_8B, "model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": False}
MISTRAL = {**LLAMA_8B, "model_type": "mistral", "sliding_window": 4096}
FALCON = {
    "model_type": "falcon",
    "num_hidden_layers": 32,
    "num_attention_heads": 71,
    "hidden_size": 4544,
    "multi_query": True,
}
GPT2 = {"model_type": "gpt2", "n_layer": 12, "n_head": 12, "n_embd": 768}
CHATGLM = {
    "model_type": "chatglm",
    "num_layers": 40,
    "num_attention_heads": 32,
    "multi_query_group_num": 2,
    "kv_channels": 128,
}


@pytest.mark.parametrize(
    ("config", "groups"),
    [
        (LLAMA_8B, (KvGroup(32, 8, 256),)),
        (GEMMA_3, (KvGroup(52, 16, 256, 1024), KvGroup(10, 16, 256))),
        (DEEPSEEK_V3, (KvGroup(61, 1, 576),)),
        (GPT_OSS, (KvGroup(2, 8, 128, 128), KvGroup(2, 8, 128))),
        (QWEN3_NEXT, (KvGroup(1, 2, 512),)),
        (QWEN2, (KvGroup(32, 8, 256),)),
        (MISTRAL, (KvGroup(32, 8, 256, 4096),)),
        (FALCON, (KvGroup(32, 1, 128),)),
        (GPT2, (KvGroup(12, 12, 128),)),
        (CHATGLM, (KvGroup(40, 2, 256),)),
        ({"model_type": "bert", "architectures": ["BertModel"], "num_hidden_layers": 12}, ()),
    ],
    ids=lambda value: value.get("model_type") if isinstance(value, dict) else "",
)
def test_what_a_model_remembers_of_a_token_is_read(config: dict[str, Any], groups: tuple[KvGroup, ...]) -> None:
    assert shape_of("m", config, 1).kv == groups


def test_deepseeks_latent_vector_is_kept_by_every_gpu() -> None:
    shape = shape_of("v3", DEEPSEEK_V3, 1)
    assert shape.kv_bytes_per_token() == 61 * 576 * 2
    assert shape.kv_bytes_per_token(tensor_parallel=8) == 61 * 576 * 2


def test_fewer_kv_heads_than_gpus_are_kept_twice() -> None:
    assert SMALL.kv_bytes_per_token(tensor_parallel=8) == 131072 / 8
    assert SMALL.kv_bytes_per_token(tensor_parallel=16) == 131072 / 8


def test_behind_its_window_a_layer_keeps_nothing_unless_the_engine_does() -> None:
    mistral = shape_of("mistral", MISTRAL, BYTES_8B)
    assert mistral.kv_bytes(100_000) == mistral.kv_bytes(4096)
    assert fit(mistral, H100, 1, 131072).sequences > fit(mistral, H100, 1, 131072, engine="tgi").sequences


def test_weights_in_32_bits_are_loaded_in_16() -> None:
    assert shape_of("m", {**LLAMA_8B, "torch_dtype": "float32"}, 1000).weight_bytes == 500
    assert shape_of("m", LLAMA_8B, 1000, (("F32", 900), ("BF16", 100))).weight_bytes == 550
    scales = {**LLAMA_8B, "quantization_config": {"quant_method": "gptq"}}
    assert shape_of("m", scales, 1000, (("F32", 900), ("I32", 100))).weight_bytes == 1000


@given(st.dictionaries(st.sampled_from([*LLAMA_8B, "layer_types", "text_config", "kv_lora_rank", "sliding_window"]),
                       st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers())))  # fmt: skip
def test_no_configuration_is_so_odd_that_reading_it_fails(config: dict[str, Any]) -> None:
    shape = shape_of("m", config, 10**9)
    assert (shape.kv is None) == bool(shape.kv_unknown)
    assert fit(shape, H100, 2, 4096).sentence


# -- what must hold --------------------------------------------------------------------------------------------------

shapes = st.builds(
    lambda layers, heads, group, size, weights: ModelShape(
        "m", weights, heads=heads * group, hidden=heads * group * size, vocabulary=32000,
        kv=(KvGroup(layers, heads, 2 * size),), max_context=131072,
    ),
    st.integers(1, 128), st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 4, 8]), st.sampled_from([64, 128]),
    st.integers(10**6, 10**12),
)  # fmt: skip
memories = st.integers(8, 288).map(lambda gib: Gpu("g", gib * GIB))
engines = st.sampled_from(sorted(RULES))
counts = st.sampled_from([1, 2, 4, 8])


@given(shapes, memories, counts, st.tuples(st.integers(16, 200_000), st.integers(1, 64)), engines)
def test_what_is_said_to_fit_does(shape: ModelShape, gpu: Gpu, gpus: int, wanted: tuple[int, int], engine: str) -> None:
    context, concurrency = wanted
    v = fit(shape, gpu, gpus, context, concurrency=concurrency, engine=engine)
    if v.kind == "fits":
        kept = v.context * v.concurrency * v.kv_token_bytes
        # the rounding of the bytes of a token apart
        assert v.weight_bytes + kept <= v.gpus * gpu.memory_bytes + v.context * v.concurrency
        assert v.sequences >= concurrency
    if v.kind == "smaller_context":
        assert v.largest_context < context or v.sequences < concurrency
        assert fit(shape, gpu, gpus, max(1, v.largest_context), concurrency=concurrency, engine=engine).kind in (
            ("fits",) if v.largest_context else ("fits", "smaller_context", "more_gpus", "several_nodes", "too_large")
        )


@given(shapes, memories, counts, st.integers(16, 200_000), engines)
def test_more_memory_never_makes_it_worse(shape: ModelShape, gpu: Gpu, gpus: int, context: int, engine: str) -> None:
    def rank(verdict: Verdict) -> tuple[bool, int, int]:
        return verdict.kind == "fits", verdict.sequences, verdict.largest_context

    before = fit(shape, gpu, gpus, context, engine=engine)
    # within one class of GPUs: a larger class computes more tokens at once, which costs activations
    more = Gpu("g", gpu.memory_bytes + GIB // 2)
    rule = RULES[engine]
    if rule.batched(more.memory_bytes) == rule.batched(gpu.memory_bytes):
        assert rank(fit(shape, more, gpus, context, engine=engine)) >= rank(before)


@given(shapes, memories, st.integers(16, 200_000), engines)
def test_what_is_proposed_fits(shape: ModelShape, gpu: Gpu, context: int, engine: str) -> None:
    v = fit(shape, gpu, 1, context, engine=engine)
    if v.needed is not None:
        assert fit(shape, gpu, v.needed // v.needed_nodes, context, engine=engine, nodes=v.needed_nodes).kind == "fits"


@given(shapes, memories, counts, st.integers(16, 100_000), engines)
def test_a_longer_context_never_has_more_sequences(
    shape: ModelShape, gpu: Gpu, gpus: int, context: int, engine: str
) -> None:
    short = fit(shape, gpu, gpus, context, engine=engine)
    long = fit(shape, gpu, gpus, context * 2, engine=engine)
    assert long.sequences <= short.sequences


# -- engines and GPUs ------------------------------------------------------------------------------------------------


def test_a_models_own_arguments_count() -> None:
    assert rule_of("vllm", ["--gpu-memory-utilization", "0.95"]).stated == 0.95
    assert rule_of("vllm", ["--gpu_memory_utilization=0.5"]).stated == 0.5
    assert rule_of("tgi", ["--cuda-memory-fraction", "0.5"]).stated == pytest.approx(0.45)
    assert rule_of("sglang", ["--mem-fraction-static", "nonsense"]).stated is None
    assert rule_of("vllm", ["--kv-cache-dtype", "fp8_e5m2"]).kv_element_bytes == 1
    half = fit(SMALL, H100, 1, 8192, engine=rule_of("vllm", ["--kv-cache-dtype=fp8"]))
    assert half.kv_token_bytes == 65536


def test_a_plugins_engine_is_taken_to_be_like_vllm_and_that_is_said() -> None:
    assert any("nothing is known of this engine" in note for note in fit(SMALL, H100, 1, engine="theirs").notes)


@pytest.mark.parametrize(
    ("spelled", "gib", "assumed"),
    [
        ("a100", 40, True),
        ("a100_80gb", 80, False),
        ("nvidia_a100-sxm4-40gb", 40, False),
        ("a100-64g", 64, False),
        ("a100_3g.20gb", 19, True),
        ("nvidia_a100_80gb_pcie_1g.10gb", 9.5, True),
        ("1g.5gb", 4.75, True),
        ("nvidia_h100_80gb_hbm3", 79.6, False),
        ("h100", 79.6, True),
        ("h100-96", 95.6, False),
        ("nvidia_h100_nvl", 93.6, False),
        ("H200", 140.4, False),
        ("nvidia_b200", 179.1, False),
        ("nvidia_gh200_480gb", 95.6, True),
        ("l4", 22.5, False),
        ("l40s", 45, False),
        ("a40", 45, False),
        ("a30", 24, False),
        ("a10", 22.5, False),
        ("v100", 16, True),
        ("tesla_v100-sxm2-32gb", 32, False),
        ("rtx_a6000", 45, False),
        ("rtx4090", 24, False),
        ("geforce_rtx_2080_ti", 11, False),
        ("nvidia_rtx_pro_6000_blackwell", 95.6, False),
        ("mi210", 64, False),
        ("mi250x", 64, False),
        ("amd_instinct_mi300x", 192, False),
    ],
)
def test_gpu_types_as_clusters_spell_them(spelled: str, gib: float, assumed: bool) -> None:
    gpu = gpu_of(spelled)
    assert gpu is not None
    assert gpu.memory_bytes / GIB == pytest.approx(gib, abs=0.1)
    assert bool(gpu.note) is assumed


def test_a_gpu_that_nobody_knows_has_the_memory_that_is_configured() -> None:
    assert gpu_of("a1000") is None
    assert gpu_of(None) is None
    assert gpu_of("", 0) is None
    given = gpu_of("special", 96 * 1024)
    assert given is not None
    assert given.memory_bytes == 96 * GIB


# -- at the start ----------------------------------------------------------------------------------------------------


def lay_out(directory: Path, config: dict[str, Any], size: int) -> Path:
    """A model's directory with weights that take no room: holes in files."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    for number in range(1, 5):
        with (directory / f"model-{number:05}-of-00004.safetensors").open("wb") as file:
            file.truncate(size // 4)
    return directory


def spec_of(source: Path | str, **changes: Any) -> ModelSpec:
    resources = changes.pop("resources", Resources(gpus=2, gpu_type="a100_80gb"))
    return ModelSpec("big", "vllm", str(source), resources=resources, **changes)


def test_at_the_start_a_model_that_does_not_fit_is_named_with_its_numbers(tmp_path: Path) -> None:
    source = lay_out(tmp_path / "m", LLAMA_70B, BYTES_70B)
    spec = spec_of(source)
    verdict = check_fit(spec, "refuse")
    assert verdict is not None
    assert line(spec, verdict).startswith(
        'models."big".slurm.gpus: big fits into 2 x a100_80gb (80 GiB each) only with'
    )
    assert check_fit(spec, "off") is None
    assert check_fit(replace(spec, context_length=16384), "refuse") is None
    assert check_fit(replace(spec, resources=Resources(gpus=4, gpu_type="h100")), "refuse") is None


def test_an_engine_that_takes_what_context_fits_is_not_refused_for_the_longest(tmp_path: Path) -> None:
    source = lay_out(tmp_path / "m", LLAMA_70B, BYTES_70B)
    assert check_fit(replace(spec_of(source), engine="tgi"), "refuse") is None


def test_a_path_inside_of_the_container_is_found_by_its_bind(tmp_path: Path) -> None:
    lay_out(tmp_path / "shared" / "m", LLAMA_70B, BYTES_70B)
    spec = spec_of("/models/m", binds=(f"{tmp_path}/shared:/models:ro",))
    assert check_fit(spec, "warn") is not None


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: (d / "config.json").write_text("{not json"),
        lambda d: [path.unlink() for path in d.iterdir()],
        lambda d: (d / "config.json").write_text("[]"),
    ],
)
def test_files_that_cannot_be_understood_stop_nothing(tmp_path: Path, spoil: Any) -> None:
    source = lay_out(tmp_path / "m", LLAMA_8B, BYTES_8B)
    spoil(source)
    assert check_fit(spec_of(source), "refuse") is None


def test_what_is_not_on_this_machine_or_has_no_gpus_stops_nothing(tmp_path: Path) -> None:
    assert check_fit(spec_of(tmp_path / "none"), "refuse") is None
    assert check_fit(spec_of("nobody/nothing", environment=(("HF_HOME", str(tmp_path)),)), "refuse") is None
    source = lay_out(tmp_path / "m", LLAMA_70B, BYTES_70B)
    assert check_fit(spec_of(source, resources=Resources()), "refuse") is None
    assert check_fit(spec_of(source, resources=Resources(gpus=1, gpu_type="unheard-of")), "refuse") is None
    assert check_fit(spec_of(source, arguments=("--quantization", "fp8")), "refuse") is None
    assert check_fit(spec_of(source, arguments=("--pipeline-parallel-size=2",)), "refuse") is None


def test_a_hub_id_is_found_in_the_cache_that_the_engine_would_use(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--meta-llama--L"
    lay_out(repository / "snapshots" / "abc", LLAMA_70B, BYTES_70B)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    assert check_fit(spec_of("meta-llama/L", environment=(("HF_HOME", str(tmp_path)),)), "warn") is not None


def test_a_check_reads_no_weights(tmp_path: Path) -> None:
    """Whoever looks into these files, 141 GB of holes, finds nonsense."""
    source = lay_out(tmp_path / "m", LLAMA_70B, BYTES_70B)
    with pytest.raises(WeightsUnknown):
        local(source)
    assert check_fit(spec_of(source), "warn") is not None


def test_weights_that_are_not_there_are_named_before_a_job_fails_of_it(tmp_path: Path) -> None:
    there = lay_out(tmp_path / "shared" / "m", LLAMA_8B, BYTES_8B)
    bound = {"runtime": "apptainer", "image": "/i.sif", "binds": (f"{tmp_path}/shared:/models:ro",)}
    assert missing_weights(spec_of(there)) is None
    assert missing_weights(spec_of("/models/m", **bound)) is None
    assert missing_weights(spec_of("org/model")) is None
    assert missing_weights(spec_of("/in/the/image", **bound)) is None
    said = missing_weights(spec_of("/models/other", **bound))
    assert said is not None
    assert said.startswith(f'models."big".source: {tmp_path}/shared/other (/models/other in the container) is not on')
    assert missing_weights(spec_of(tmp_path / "none")) is not None
