"""What each engine says differently: pure repair of requests and replies, one small file an engine.

    Call --prepare--> the engine's body --> engine --> reply --repair_reply--> OpenAI's reply
                                                   --> chunks --repair_chunks--> OpenAI's chunks

    PLAIN     OpenAI's own        seam.py      the `Dialect` value and what all of them share
    DIALECTS  by engine name      tgi.py, vllm.py, sglang.py, llamacpp.py, tei.py

Nothing here does I/O or knows of replicas (but tgi_control.py, which is TGI's control side and imported by nobody on
the hot path).
"""

from __future__ import annotations

from .llamacpp import LLAMACPP
from .seam import EVERYWHERE, PLAIN, ChunkRepair, Dialect, Json, ReplyRepair
from .sglang import SGLANG
from .tei import TEI
from .tgi import TGI
from .vllm import VLLM

__all__ = ["DIALECTS", "EVERYWHERE", "PLAIN", "ChunkRepair", "Dialect", "Json", "ReplyRepair"]

DIALECTS: dict[str, Dialect] = {dialect.name: dialect for dialect in (TGI, VLLM, SGLANG, LLAMACPP, TEI)}
"""By the engine's name in the configuration."""
