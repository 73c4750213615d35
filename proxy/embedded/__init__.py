"""The default without a configuration: two small models of the project's own on this machine, no Slurm, no download.

guide.gguf   answers questions about slurmgate and Slurm, and knows nothing else
embed.gguf   embeddings
Both are made by the scripts in examples/embedded_model/.
"""

from __future__ import annotations

import sys
from pathlib import Path

from proxy.config import Config, LauncherSection, Model

CHAT_MODEL = "slurmgate-guide"
EMBEDDING_MODEL = "slurmgate-embed"

_HERE = Path(__file__).parent
_SERVER = (sys.executable, "-m", "slurm_launcher.xllamacpp_server")


def configuration() -> Config:
    """llama.cpp by the local launcher; the engines end with the gateway."""
    return Config(
        launcher=LauncherSection(
            kind="local",
            service="embedded",
            python=sys.executable,
            heartbeat_s=2.0,
            orphan_timeout_s=60.0,
            poll_busy_s=1.0,
            poll_calm_s=5.0,
            stop_replicas_on_exit=True,
        ),
        models={
            CHAT_MODEL: Model(
                engine="llamacpp",
                source=str(_HERE / "guide.gguf"),
                command=_SERVER,
                context_length=2048,
                arguments=("--ctx-size", "8192"),  # four slots of what it was trained for
                start_timeout_s=60.0,
                drain_timeout_s=10.0,
            ),
            EMBEDDING_MODEL: Model(
                engine="llamacpp",
                source=str(_HERE / "embed.gguf"),
                task="embed",
                command=_SERVER,
                context_length=8192,
                start_timeout_s=60.0,
                drain_timeout_s=10.0,
            ),
        },
    )
