"""Ask pycocoevalcap for the figures that tests/evaluation/metrics/captions.json holds.

    python tools/caption_figures.py tests/evaluation/metrics/captions.json

Needs `pip install pycocoevalcap==1.2` and java. The file keeps its images, each with a prediction
and answers, and its oddities, texts that are hard to divide; tokens and scores are written anew.
"""

import json
import sys
from pathlib import Path

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer


def main(path: Path) -> None:
    """Write tokens and scores into the file."""
    asked = json.loads(path.read_text(encoding="utf-8"))
    images, oddities = asked["images"], asked["oddities"]
    tokenize = PTBTokenizer().tokenize
    predicted = tokenize({n: [{"caption": one["prediction"]}] for n, one in enumerate(images)})
    right = tokenize(
        {n: [{"caption": text} for text in one["answers"]] for n, one in enumerate(images)}
    )
    figures: dict[str, float] = {}
    for name, scorer in (("cider", Cider()), ("bleu4", Bleu(4)), ("rouge_l", Rouge())):
        value, each = scorer.compute_score(right, predicted)
        if name == "bleu4":
            value, each = value[-1], each[-1]
        figures[name] = float(value)
        for one, score in zip(images, each, strict=True):
            one[name] = float(score)
    for n, one in enumerate(images):
        one["tokens"] = [*predicted[n], *right[n]]
    # What ends a text may depend on the next one, so the next one is always the same.
    divided = tokenize(
        {n: [{"caption": one["text"]}, {"caption": "The"}] for n, one in enumerate(oddities)}
    )
    for n, one in enumerate(oddities):
        one["tokens"] = divided[n][0]
    parts = [f'"figures": {json.dumps(figures)}']
    for name, entries in (("images", images), ("oddities", oddities)):
        lines = ",\n".join(json.dumps(one, ensure_ascii=False) for one in entries)
        parts.append(f'"{name}": [\n{lines}\n]')
    path.write_text("{" + ",\n".join(parts) + "}\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
