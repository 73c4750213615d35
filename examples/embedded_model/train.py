"""Train, export and evaluate the two embedded models: ``python train.py guide | embed | evaluate``.

``guide`` writes guide.gguf (chat) and ``embed`` writes embed.gguf (embeddings), from facts.txt and a seed;
``evaluate`` asks the written files through llama.cpp itself, on questions that were not trained on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

TARGET = Path(__file__).resolve().parents[2] / "proxy" / "embedded"


def main() -> None:
    """Parse the command line and run one of the three."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("guide", "embed", "evaluate"))
    parser.add_argument("--out", type=Path, default=TARGET, help="folder of the .gguf files")
    parser.add_argument("--steps", type=int, default=None, help="training steps (default: that of the committed file)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--start", type=Path, help="guide: go on from this file, at a third of the rate")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 products: faster where the CPU has them")
    parser.add_argument("--show", action="store_true", help="evaluate: print every wrong answer")
    options = parser.parse_args()
    if options.what == "evaluate":
        from evaluate import evaluate  # noqa: PLC0415 (each command loads only its own heavy packages)

        evaluate(options.out, show=options.show)
        return
    import torch  # noqa: PLC0415

    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.what == "guide":
        from train_guide import STEPS, train  # noqa: PLC0415

        train(options.out / "guide.gguf", options.steps or STEPS, options.seed, options.bf16, options.start)
    else:
        import train_embed  # noqa: PLC0415

        train_embed.train(options.out / "embed.gguf", options.steps or train_embed.STEPS, options.seed, options.bf16)


if __name__ == "__main__":
    main()
