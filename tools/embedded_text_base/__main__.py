"""Rebuild the embedded text base: `python -m tools.embedded_text_base --out build/text_base`.

It starts from nothing; what it reached goes to figures.json beside --out.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from tools.embedded_text_base.training import train_base


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("build/text_base"))
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    began_s = time.perf_counter()
    figures = train_base(options.out, options.steps)
    figures["wall_s"] = round(time.perf_counter() - began_s, 1)
    (options.out.parent / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(figures)


if __name__ == "__main__":
    main()
