"""Cost of a training step of a Flamingo 768 wide: int8, 16-bit and their rivals.

    python benchmarks/flamingo_int8.py --rounds 9

What `tuninglab finetune --compare` measures, kept as benchmarks/results/flamingo_int8.json. Weights
are random.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "flamingo_int8.json"
sys.path.insert(0, str(ROOT))


def main() -> None:
    """Measure and write the result."""
    from tuninglab.comparison import compare_flamingo
    from tuninglab.config import FinetuneConfig

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = compare_flamingo(FinetuneConfig(rounds=options.rounds, output_dir=folder))
    result["command"] = "python benchmarks/flamingo_int8.py " + " ".join(sys.argv[1:])
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
