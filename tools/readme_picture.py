"""Draw docs/images/answers.png: pictures of a run with their questions, answered before and after.

    python -m tools.readme_picture runs/demo

Two of each group are shown, the first ones scored, whatever their answers.
"""

import argparse
import json
import textwrap
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

EACH, COLUMNS = 2, 4
RIGHT, WRONG, INK = "#1a7f37", "#b3261e", "#222222"


def chosen(run: Path) -> list[dict[str, str]]:
    """The cards to show: the first of each group, in the order of the groups."""
    cards = json.loads((run / "answers.json").read_text(encoding="utf-8"))
    groups: dict[str, list[dict[str, str]]] = {}
    for card in cards:
        groups.setdefault(card.get("group", ""), []).append(card)
    return [card for of_group in groups.values() for card in of_group[:EACH]]


def draw(run: Path, out: Path) -> None:
    """Write the picture."""
    cards = chosen(run)
    rows = -(-len(cards) // COLUMNS)
    figure = Figure(figsize=(2.75 * COLUMNS, 3.7 * rows), dpi=110)
    # By hand: room for two lines of the question above, and for two answers below.
    figure.subplots_adjust(
        left=0.01, right=0.99, top=1 - 0.13 / rows, bottom=0.17 / rows, wspace=0.06, hspace=0.42
    )
    for axes in figure.subplots(rows, COLUMNS, squeeze=False).flat:
        axes.axis("off")
    for axes, card in zip(figure.axes, cards, strict=False):
        with Image.open(run / card["picture"]) as picture:
            axes.imshow(picture.convert("RGB"), interpolation="lanczos")
        axes.set_title("\n".join(textwrap.wrap(card["question"], 30)), fontsize=10, color=INK)
        for line, when in enumerate(("before", "after")):
            answer = card[when] or "(nothing)"
            color = RIGHT if card[when] == card["truth"] else WRONG
            text = textwrap.shorten(answer, 32, placeholder=" …")
            place = {"transform": axes.transAxes, "ha": "left", "va": "top", "fontsize": 10}
            axes.text(0.0, -0.04 - 0.13 * line, f"{when}:", color=INK, **place)
            axes.text(0.3, -0.04 - 0.13 * line, text, color=color, weight="bold", **place)
    out.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(out, metadata={"Software": None})


def main() -> None:
    """Parse the command line and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/images/answers.png"))
    options = parser.parse_args()
    draw(options.run, options.out)


if __name__ == "__main__":
    main()
