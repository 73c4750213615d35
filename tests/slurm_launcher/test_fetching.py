"""Weights from the hub: only what an engine needs, gone on with after a break, and every refusal in one sentence."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from slurm_launcher import hub
from slurm_launcher.fetching import CannotFetch, carry_out, prepare
from slurm_launcher.model_files import NoSuchFiles, gguf_of, needed, tag_of
from slurm_launcher.weights import found, local
from tests.fakes.hub import COMMIT, FakeHub

from .tiny_models import CONFIG, LLAMA_GGUF, gguf, safetensors

pytest_plugins = ["tests.slurm_launcher.hub_fixture"]

WEIGHTS = safetensors({"a": ("BF16", 50_000)})
LLAMA = {
    "config.json": json.dumps(CONFIG).encode(),
    "generation_config.json": b"{}",
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
    "README.md": b"# a model",
    "model-00001-of-00002.safetensors": WEIGHTS,
    "model-00002-of-00002.safetensors": WEIGHTS + b"2",
    "model.safetensors.index.json": b"{}",
    "original/consolidated.00.pth": bytes(900),
    "original/params.json": b"{}",
    "consolidated.safetensors": bytes(800),
    "pytorch_model-00001-of-00001.bin": bytes(700),
    "pytorch_model.bin.index.json": b"{}",
    "onnx/model.onnx": bytes(600),
    "picture.png": bytes(10),
}
NEEDED = {
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "README.md",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
}
QUANTIZED = {
    "README.md": b"",
    "m-Q4_K_M.gguf": gguf(LLAMA_GGUF, 100),
    "m-IQ4_XS.gguf": gguf(LLAMA_GGUF, 90),
    "Q8_0/m-Q8_0-00001-of-00002.gguf": gguf(LLAMA_GGUF, 200),
    "Q8_0/m-Q8_0-00002-of-00002.gguf": bytes(150),
    "mmproj-F16.gguf": bytes(50),
}


def sizes(files: dict[str, bytes]) -> dict[str, int]:
    return {name: len(data) for name, data in files.items()}


# -- which files -----------------------------------------------------------------------------------------------------


def test_the_same_weights_are_not_fetched_twice() -> None:
    assert set(needed(sizes(LLAMA), "vllm")) == NEEDED


def test_where_there_are_no_safetensors_pytorchs_files_are_fetched() -> None:
    files = {name: size for name, size in sizes(LLAMA).items() if not name.endswith(".safetensors")}
    assert "pytorch_model-00001-of-00001.bin" in needed(files, "tgi")
    assert "pytorch_model.bin.index.json" in needed(files, "tgi")


def test_parts_of_an_embedding_model_in_folders_are_fetched() -> None:
    files = {
        "model.safetensors": 9,
        "1_Pooling/config.json": 1,
        "2_Dense/model.safetensors": 2,
        "2_Dense/pytorch_model.bin": 2,
    }
    assert set(needed(files, "tei")) == {"model.safetensors", "1_Pooling/config.json", "2_Dense/model.safetensors"}


def test_of_a_repository_of_ggufs_one_quantization_is_fetched_with_all_its_parts() -> None:
    assert list(gguf_of(sizes(QUANTIZED))) == ["m-Q4_K_M.gguf"]
    assert list(gguf_of(sizes(QUANTIZED), "q8_0")) == [f"Q8_0/m-Q8_0-0000{n}-of-00002.gguf" for n in (1, 2)]
    assert list(gguf_of(sizes(QUANTIZED), "IQ4_XS")) == ["m-IQ4_XS.gguf"]
    with pytest.raises(NoSuchFiles, match="it has IQ4_XS, Q4_K_M, Q8_0"):
        gguf_of(sizes(QUANTIZED), "Q2_K")


def test_a_repository_without_what_an_engine_reads_is_refused() -> None:
    with pytest.raises(NoSuchFiles, match="only GGUF files, which are for llamacpp"):
        needed(sizes(QUANTIZED), "vllm")
    with pytest.raises(NoSuchFiles, match="no GGUF file"):
        needed(sizes(LLAMA), "llamacpp")
    with pytest.raises(NoSuchFiles, match="no weights"):
        needed({"README.md": 1}, "vllm")


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("Llama-3.1-8B-Instruct-Q4_K_M.gguf", "Q4_K_M"),
        ("llama.q8_0.gguf", "Q8_0"),
        ("m-UD-IQ1_S-00001-of-00004.gguf", "UD-IQ1_S"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("m.gguf", ""),
    ],
)
def test_the_quantization_is_in_the_files_name(name: str, tag: str) -> None:
    assert tag_of(name) == tag


# -- fetching --------------------------------------------------------------------------------------------------------


def test_a_model_is_fetched_into_a_directory(fake_hub: FakeHub, tmp_path: Path) -> None:
    fake_hub.repositories["lab/llama"] = LLAMA
    plan = prepare("lab/llama", "vllm", tmp_path / "models" / "llama")
    seen: list[int] = []
    path = carry_out(plan, seen.append)
    assert path == tmp_path / "models" / "llama"
    there = {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file() and ".cache" not in p.parts}
    assert there == NEEDED
    assert (seen[0], seen[-1]) == (0, plan.total)
    assert seen == sorted(seen)
    assert local(path).bytes == 2 * len(WEIGHTS) + 1


def test_without_a_directory_it_goes_into_the_hubs_cache_where_engines_find_it(
    fake_hub: FakeHub, tmp_path: Path
) -> None:
    fake_hub.repositories["lab/llama"] = LLAMA
    path = carry_out(prepare("lab/llama", "vllm"))
    assert path == tmp_path / "hf" / "hub" / "models--lab--llama" / "snapshots" / COMMIT
    assert found("lab/llama", "vllm") == path


def test_only_the_wanted_gguf_is_fetched(fake_hub: FakeHub, tmp_path: Path) -> None:
    fake_hub.repositories["lab/m-GGUF"] = QUANTIZED
    path = carry_out(prepare("lab/m-GGUF:Q8_0", "llamacpp", tmp_path / "m"))
    assert path == tmp_path / "m" / "Q8_0" / "m-Q8_0-00001-of-00002.gguf"
    assert {p.name for p in (tmp_path / "m").rglob("*.gguf")} == {f"m-Q8_0-0000{n}-of-00002.gguf" for n in (1, 2)}


def test_what_is_there_is_not_fetched_again(fake_hub: FakeHub, tmp_path: Path) -> None:
    fake_hub.repositories["lab/llama"] = LLAMA
    carry_out(prepare("lab/llama", "vllm", tmp_path / "m"))
    fake_hub.paths.clear()
    plan = prepare("lab/llama", "vllm", tmp_path / "m")
    assert plan.present == plan.total
    seen: list[int] = []
    carry_out(plan, seen.append)
    assert set(seen) == {plan.total}
    assert not [path for path in fake_hub.paths if path.endswith(".safetensors")]


def test_a_download_that_breaks_goes_on_where_it_was(fake_hub: FakeHub, tmp_path: Path) -> None:
    """The library writes pieces of 10 MiB, and asks for the rest."""
    large = safetensors({"a": ("I8", 12 << 20)})
    fake_hub.repositories["lab/large"] = {"config.json": b"{}", "model.safetensors": large}
    fake_hub.cut_after = 11 << 20
    path = carry_out(prepare("lab/large", "vllm", tmp_path / "m"))
    assert f"bytes={10 << 20}-" in fake_hub.ranges
    assert (path / "model.safetensors").read_bytes() == large


def test_a_hub_that_breaks_off_again_and_again_is_told_apart_from_one_that_is_not_there(
    fake_hub: FakeHub, tmp_path: Path
) -> None:
    fake_hub.repositories["lab/llama"] = LLAMA
    fake_hub.cut_after = 100
    with pytest.raises(CannotFetch, match=r"^the connection to .* broke: run the command again"):
        carry_out(prepare("lab/llama", "vllm", tmp_path / "m"))
    fake_hub.cut_after = None
    assert carry_out(prepare("lab/llama", "vllm", tmp_path / "m")).is_dir()


def test_a_file_of_another_size_than_promised_is_noticed(fake_hub: FakeHub, tmp_path: Path) -> None:
    fake_hub.repositories["lab/llama"] = LLAMA
    plan = prepare("lab/llama", "vllm", tmp_path / "m")
    plan.files["tokenizer.json"] = 99
    with pytest.raises(CannotFetch, match=r"tokenizer\.json is not whole: run the command again"):
        carry_out(plan)


# -- refusals --------------------------------------------------------------------------------------------------------


def test_a_model_that_is_not_there(fake_hub: FakeHub) -> None:
    with pytest.raises(
        CannotFetch, match=r"^the hub has no model lab/nothing, or none that can be seen without a token"
    ):
        prepare("lab/nothing", "vllm")


def test_a_gated_model_wants_a_token_and_takes_it(
    fake_hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_hub.repositories["lab/llama"] = LLAMA
    fake_hub.gated.add("lab/llama")
    with pytest.raises(CannotFetch, match=r"^lab/llama is gated: ask for access at .*/lab/llama, and set HF_TOKEN"):
        carry_out(prepare("lab/llama", "vllm", tmp_path / "m"))
    monkeypatch.setenv("HF_TOKEN", fake_hub.token)
    assert carry_out(prepare("lab/llama", "vllm", tmp_path / "m")).is_dir()


def test_the_token_may_be_in_the_hubs_own_file(fake_hub: FakeHub, tmp_path: Path) -> None:
    fake_hub.repositories["lab/llama"] = LLAMA
    fake_hub.gated.add("lab/llama")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_text(fake_hub.token)
    assert carry_out(prepare("lab/llama", "vllm", tmp_path / "m")).is_dir()


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, fake_hub: FakeHub) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(CannotFetch, match=r"^http://127.0.0.1:1 cannot be reached from here"):
        prepare("lab/llama", "vllm")


def test_a_hub_that_must_not_be_asked(monkeypatch: pytest.MonkeyPatch, fake_hub: FakeHub) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CannotFetch, match="HF_HUB_OFFLINE is set"):
        prepare("lab/llama", "vllm")


@pytest.mark.parametrize("source", ["a/b/c", "no spaces/please", "..", ""])
def test_what_is_no_id_is_said_to_be_none(source: str, fake_hub: FakeHub) -> None:
    with pytest.raises(CannotFetch, match="neither a path on this machine nor a hub id"):
        prepare(source, "vllm")


def test_a_disk_that_is_too_small_is_noticed_before(
    fake_hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_hub.repositories["lab/llama"] = LLAMA
    fake_hub.claimed_sizes["model-00001-of-00002.safetensors"] = 200 * 10**9
    Usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, 50 * 10**9))
    with pytest.raises(CannotFetch, match=r"^lab/llama takes 200\.0 GB more, and .* has 50\.0 GB free"):
        prepare("lab/llama", "vllm", tmp_path / "m")


def test_a_directory_that_cannot_be_written(fake_hub: FakeHub, tmp_path: Path) -> None:
    fake_hub.repositories["lab/llama"] = LLAMA
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotFetch, match=r"m cannot be read or written|file.* cannot be read or written"):
        carry_out(prepare("lab/llama", "vllm", tmp_path / "file" / "m"))


def test_no_error_tells_the_token(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    fake_hub.repositories["lab/llama"] = LLAMA
    fake_hub.gated.add("lab/llama")
    for source in ("lab/nothing", "lab/llama"):
        with pytest.raises(CannotFetch) as refused:
            carry_out(prepare(source, "vllm", tmp_path / "m"))
        assert "secret" not in str(refused.value)


def test_the_librarys_bars_are_back_afterwards(fake_hub: FakeHub, tmp_path: Path) -> None:
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled

    before = are_progress_bars_disabled()
    fake_hub.repositories["lab/llama"] = LLAMA
    hub.download(hub.listing("lab/llama"), ["config.json"], tmp_path / "m")
    assert are_progress_bars_disabled() == before
