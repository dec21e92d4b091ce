"""Compare settings of the demo on the validation split, which shares no picture with the test.

    python -m tools.choose_demo_settings --learning_rates 2e-3 4e-3 --batch_sizes 16 32

Prints a JSON line for each setting: exact match over all validation questions and by type, time.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from itertools import product

from tuninglab.config import FinetuneConfig
from tuninglab.embedded.scoring import EmbeddedTask
from tuninglab.recipes.demo import PICTURES, SETTINGS
from tuninglab.recipes.flamingo import finetune


def main() -> None:
    """Run every combination of the values given."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--learning_rates", type=float, nargs="+", required=True)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[SETTINGS["batch_size"]])
    parser.add_argument("--pictures", type=int, default=PICTURES)
    parser.add_argument("--questions", type=int, default=800)
    options = parser.parse_args()
    base = FinetuneConfig(run_name="try", overwrite=True, **SETTINGS)
    for size, rate in product(options.batch_sizes, options.learning_rates):
        with tempfile.TemporaryDirectory() as folder:
            config = replace(base, output_dir=folder, learning_rate=rate, batch_size=size)
            task = EmbeddedTask(options.pictures, scored="val", questions=options.questions)
            report = finetune(config, task)
        after = report["evaluation"]["after"]
        figures = {"learning_rate": rate, "batch_size": size, "pictures": options.pictures} | {
            name: after[name] for name in ("exact_match", "by_type", "by_group")
        }
        print(json.dumps(figures | {"tuning_s": report["train"]["wall_s"]}), flush=True)


if __name__ == "__main__":
    main()
