"""GPU types, as clusters spell them in GRES -> memory of one GPU. Pure.

Slurm lets sites choose the names: `a100`, `tesla_v100-sxm2-16gb`, and what its NVML plugin finds, such as
`nvidia_h100_80gb_hbm3` or `a100_3g.20gb` for a MIG slice. So a name is read: its family, its size in GB if it has one.
A family with several sizes and no size in the name counts as the smallest that is common, and says so.

Sizes are the totals that nvidia-smi and rocm-smi show, in MiB, with ECC on where it is by default. They lie up to a few
percent beside the number on the box.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MIB = 1 << 20

_USABLE = 0.95
"""Of the gigabytes in a name: a `1g.5gb` slice shows 4,864 MiB (NVIDIA MIG user guide)."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU.

    name           for people
    memory_bytes   all of it
    note           what had to be assumed; "" for nothing
    """

    name: str
    memory_bytes: int
    note: str = ""


_FAMILIES: dict[str, dict[int, int]] = {
    # NVIDIA, data centre
    "gb300": {279: 284208},
    "gb200": {186: 189471},
    "gh200": {96: 97871, 144: 143771},
    "b300": {288: 275040},
    "b200": {180: 183359},
    "h200": {141: 143771},
    "h800": {80: 81559},
    "h100": {64: 65247, 80: 81559, 94: 95830, 96: 97871},
    "h20": {96: 97871, 141: 143771},
    "a800": {40: 40960, 80: 81920},
    "a100": {40: 40960, 64: 65536, 80: 81920},
    "a40": {48: 46068},
    "a30": {24: 24576},
    "a16": {16: 15356},
    "a10g": {24: 23028},
    "a10": {24: 23028},
    "a2": {16: 15356},
    "l40s": {48: 46068},
    "l40": {48: 46068},
    "l20": {48: 46068},
    "l4": {24: 23034},
    "v100s": {32: 32768},
    "v100": {16: 16384, 32: 32768},
    "t4": {16: 15360},
    "p100": {12: 12288, 16: 16384},
    "p40": {24: 22919},
    # NVIDIA, workstations
    "rtx pro 6000": {96: 97887},
    "rtx 6000 ada": {48: 46068},
    "rtx 5000 ada": {32: 32760},
    "rtx 8000": {48: 46080},
    "rtx 6000": {24: 23040},
    "a6000": {48: 46068},
    "a5000": {24: 23028},
    "a4500": {20: 20470},
    "a4000": {16: 16376},
    "5090": {32: 32607},
    "5080": {16: 16303},
    "4090": {24: 24564},
    "4080": {16: 16376},
    "3090": {24: 24576},
    "3080": {10: 10240, 12: 12288},
    "2080": {8: 8192, 11: 11264},
    "1080": {8: 8192, 11: 11264},
    "titan rtx": {24: 24576},
    # AMD; a MI250 is two GPUs to Slurm, 64 GB each
    "mi355x": {288: 294896},
    "mi350x": {288: 294896},
    "mi325x": {256: 262128},
    "mi300x": {192: 196592},
    "mi300a": {128: 131072},
    "mi250x": {64: 65520},
    "mi250": {64: 65520},
    "mi210": {64: 65520},
    "mi100": {32: 32752},
    # Intel
    "gaudi3": {128: 131072},
    "gaudi2": {96: 98304},
}
"""Family -> GB on the box -> MiB shown."""

_USUAL = {"h100": 80, "gh200": 96}
"""What a name without a size means where the smallest is rare; still the smallest of those that are common."""

_SIZES_IN_WORDS = {("h100", "nvl"): 94, ("2080", "ti"): 11, ("1080", "ti"): 11}

_MIG = re.compile(r"(?<![0-9a-z])(\d)g[ .](\d+)gb(?![a-z])")
_SIZE = re.compile(r"(?<![0-9a-z.])(\d+) ?gi?b?(?![0-9a-z.])")


def gpu_of(gpu_type: str | None, memory_mb: int = 0) -> Gpu | None:
    """The GPU that `gpus` of this type are; None if nothing tells its memory.

    gpu_type    as in `--gres=gpu:TYPE:N`
    memory_mb   of one GPU, in MiB, where it is known; counts before the table
    """
    spelled = (gpu_type or "").strip()
    if memory_mb:
        return Gpu(spelled or f"GPU of {memory_mb / 1024:.0f} GiB", memory_mb * MIB)
    if not spelled:
        return None
    words = re.sub(r"[\s_:-]+", " ", spelled.lower())
    if slice_ := _MIG.search(words):
        return _sized(spelled, int(slice_[2]), "a MIG slice")
    family = _family(words)
    return _of_family(spelled, family, _size(family, words)) if family is not None else None


def _of_family(spelled: str, family: str, size: int | None) -> Gpu:
    sizes = _FAMILIES[family]
    if size is not None:
        nearest = min(sizes, key=lambda gb: abs(gb - size))
        if abs(nearest - size) <= size * 0.1:
            return Gpu(spelled, sizes[nearest] * MIB)
        return _sized(spelled, size, "a GPU")  # a variant that the table lacks
    chosen = _USUAL.get(family, min(sizes))
    note = ""
    if others := " or ".join(f"{gb} GB" for gb in sizes if gb != chosen):
        note = f"{spelled} may also have {others}; {chosen} GB is assumed (slurm.gpu_memory says otherwise)"
    return Gpu(spelled, sizes[chosen] * MIB, note)


def _sized(spelled: str, gb: int, kind: str) -> Gpu:
    """By what its name says, less ECC and the like."""
    return Gpu(spelled, int(gb * _USABLE * 1024) * MIB, f"{spelled} is taken for {kind} of {gb} GB")


def _family(words: str) -> str | None:
    """The family whose name stands earliest; of those the longest. `a100` is not in `a1000`."""
    found = []
    for family in _FAMILIES:
        # GeForce names come glued to a prefix or a suffix: rtx4090, 2080ti
        before = r"(?:(?<![0-9a-z])|(?<=rtx)|(?<=gtx))"
        pattern = before + family.replace(" ", " ?") + r"(?:ti)?(?![0-9a-z])"
        if match := re.search(pattern, words):
            found.append((-len(family), match.start(), family))
    return min(found)[2] if found else None


def _size(family: str, words: str) -> int | None:
    for (other, word), gb in _SIZES_IN_WORDS.items():
        if other == family and re.search(rf"(?<![a-z]){word}(?![0-9a-z])", words):
            return gb
    sizes = _FAMILIES[family]
    plain = {int(word) for word in words.split() if word.isdigit()} & sizes.keys()  # h100-96
    if len(plain) == 1:
        return plain.pop()
    match = _SIZE.search(words)
    if match is None or int(match[1]) > 2 * max(sizes):  # "GH200 480GB" counts what its CPU has
        return None
    return int(match[1])
