"""Rebuild the embedded base: `python -m tools.embedded_base --out build/embedded_base`.

It starts from nothing but text: --sources is a folder with WordNet's data.noun, data.verb, data.adj
and data.adv (Debian's wordnet-base) and the English and Chinese annotations.json of npm's
cldr-annotations-full as names.json and names_zh.json. Stages run in order, each leaves its part in
--out and its figures in figures.json; name one or more to run those.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from tools.embedded_base.english import English

STAGES = ("tokenizer", "lm", "tower", "bridge")


def run_stage(
    stage: str, out: Path, english: English, steps: int | None, earlier: Path | None
) -> dict[str, float]:
    """Run one stage with its default or the given number of steps; returns its figures."""
    if stage == "tokenizer":
        from tools.embedded_base.vocabulary import train_tokenizer

        tokenizer = train_tokenizer(english)
        tokenizer.save_pretrained(out / "tokenizer")
        return {"vocabulary_tokens": len(tokenizer)}
    if stage == "lm":
        from tools.embedded_base.language import train_language_model

        return train_language_model(out, english, steps or 3000, earlier)
    if stage == "tower":
        from tools.embedded_base.tower import train_tower

        return train_tower(out, steps or 4000, earlier)
    from tools.embedded_base.bridge import train_bridge

    return train_bridge(out, english, steps or 6000, earlier)


def main() -> None:
    """Parse the command line and run the stages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stages", nargs="*", help=f"of {', '.join(STAGES)}; none: all")
    parser.add_argument("--out", type=Path, default=Path("build/embedded_base"))
    parser.add_argument("--sources", type=Path, required=True)
    parser.add_argument("--earlier", type=Path, help="a base to go on from, instead of nothing")
    parser.add_argument("--steps", type=int, help="instead of the default of the stage")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    unknown = [stage for stage in options.stages if stage not in STAGES]
    if unknown:
        parser.error(f"unknown stage {unknown[0]!r}; there are {', '.join(STAGES)}")
    stages = options.stages or STAGES
    if options.steps and len(stages) != 1:
        parser.error("--steps is for one stage: name it")
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    english = English(options.sources)
    figures_file = options.out / "figures.json"
    for stage in stages:
        began_s = time.perf_counter()
        figures = run_stage(stage, options.out, english, options.steps, options.earlier)
        figures["wall_s"] = round(time.perf_counter() - began_s, 1)
        known = json.loads(figures_file.read_text()) if figures_file.exists() else {}
        figures_file.write_text(json.dumps({**known, stage: figures}, indent=2) + "\n")
        print(stage, figures, flush=True)


if __name__ == "__main__":
    main()
