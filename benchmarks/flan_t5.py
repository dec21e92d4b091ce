"""Cost of a training step at flan-t5-small's shape: int8, 16-bit and their rivals.

    python benchmarks/flan_t5.py --rounds 9
    python benchmarks/flan_t5.py --rounds 9 --pieces

The first is what `tuninglab flan-t5 --compare` measures, kept as benchmarks/results/flan_t5.json.
The second takes the memory savers apart: int8 alone, each saver added to the ones before it, then
checkpointed blocks; benchmarks/results/flan_t5_pieces.json. Weights are random in both.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
sys.path.insert(0, str(ROOT))


def compared(rounds: int) -> dict[str, Any]:
    """What the command measures."""
    from tuninglab.comparison import compare
    from tuninglab.config import FlanT5Config

    with tempfile.TemporaryDirectory() as folder:
        return compare(FlanT5Config(rounds=rounds, output_dir=folder))


def taken_apart(rounds: int) -> dict[str, Any]:
    """Plain 16-bit, int8 alone, and int8 with one saver more in each row."""
    from tuninglab.comparison import compare_rows, device_here, rows_of
    from tuninglab.comparison.variants import Variant
    from tuninglab.comparison.workloads import TextWorkload
    from tuninglab.config import FlanT5Config

    int8, plain, *_ = rows_of(FlanT5Config(), device_here())
    rows = [int8, plain, Variant("int8 alone", plain.precision, "int8")]
    for count in range(1, len(int8.savers) + 1):
        savers = int8.savers[:count]
        rows.append(Variant(f"and {savers[-1]}", plain.precision, "int8", savers))
    for every in (2, 1):
        name = f"and checkpoint_every {every}"
        rows.append(Variant(name, plain.precision, "int8", int8.savers, every))
    return compare_rows(rows, TextWorkload(), rounds)


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--pieces", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result = taken_apart(options.rounds) if options.pieces else compared(options.rounds)
    result["command"] = "python benchmarks/flan_t5.py " + " ".join(sys.argv[1:])
    name = "flan_t5_pieces.json" if options.pieces else "flan_t5.json"
    (options.out or RESULTS / name).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
