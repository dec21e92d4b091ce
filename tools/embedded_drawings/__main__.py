"""Make tuninglab/embedded/drawings.webp and drawings.json.

    python -m tools.embedded_drawings --font NotoColorEmoji.ttf --names emoji-test.txt \
        --keywords annotations.json

The three files: Debian's fonts-noto-color-emoji (SIL Open Font License 1.1) and unicode-data
(/usr/share/unicode/emoji), and annotations/en/annotations.json of npm's cldr-annotations-full
(Unicode License). One sheet holds all drawings, row by row in the order of the list.
"""

import argparse
import colorsys
import hashlib
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tools.embedded_drawings.kinds import SKIN, TONED, kind_of

SIDE_PX, COLUMNS = 64, 40
STRIKE_PX = 109  # the only size of the font's bitmaps
HELD_OUT_SHARE = 0.12
# A drawing has a main colour where this share of it is of one name.
MAIN_SHARE = 0.6
LINE = re.compile(r"([0-9A-F ]+); fully-qualified +# \S+ E[\d.]+ (.+)")
GROUP = re.compile(r"# (sub)?group: (.+)")


def listed(names: Path) -> list[dict[str, str]]:
    """All emoji that are drawn: `text`, `name`, `kind`, `tone`."""
    found, subgroup = [], ""
    for line in names.read_text(encoding="utf-8").splitlines():
        if group := GROUP.match(line):
            subgroup = group[2]
        elif emoji := LINE.match(line):
            text = "".join(chr(int(code, 16)) for code in emoji[1].split())
            name, _, rest = emoji[2].partition(": ")
            tone = rest.removesuffix(" skin tone")
            kind = kind_of(subgroup)
            if name == "flag":
                name, tone = f"flag of {rest}", ""
            elif name == "keycap":
                name, tone = f"key {rest}", ""
            elif rest and (tone not in SKIN or subgroup not in TONED.split()):
                continue
            if kind != "clock" or "thirty" not in name:
                found.append({"text": text, "name": name, "kind": kind, "tone": tone})
    return found


def drawn(text: str, font: ImageFont.FreeTypeFont) -> Image.Image | None:
    """The drawing cut to its outline, at most 64 px wide and high; None if the font has none."""
    canvas = Image.new("RGBA", (320, 160))
    ImageDraw.Draw(canvas).text((8, 8), text, font=font, embedded_color=True)
    box = canvas.getbbox()
    # A sequence that the font does not know is drawn as several.
    if box is None or box[2] - box[0] > 140:
        return None
    cut = canvas.crop(box)
    cut.thumbnail((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)
    return cut


def color_name(red: int, green: int, blue: int) -> str:
    """The plain English name of a colour."""
    hue, light, saturation = colorsys.rgb_to_hls(red / 255, green / 255, blue / 255)
    if light > 0.88 or (saturation < 0.15 and light > 0.8):
        return "white"
    if saturation < 0.18 or light < 0.15:
        return "black" if light < 0.38 else "gray"
    for limit, name in ((18, "red"), (37, "orange"), (68, "yellow"), (165, "green"), (255, "blue"),
                        (292, "purple"), (335, "pink"), (361, "red")):  # fmt: skip
        if hue * 360 < limit:
            if name in ("red", "orange") and (light < 0.3 or saturation < 0.5):
                return "brown"
            return "pink" if name == "red" and light > 0.7 else name
    raise AssertionError("a hue is below 360 degrees")


def main_color(cut: Image.Image) -> str:
    """The colour of most of a drawing; "" where none prevails."""
    pixels = np.asarray(cut).reshape(-1, 4)
    opaque = pixels[pixels[:, 3] > 127, :3]
    [(name, count)] = Counter(color_name(*map(int, p)) for p in opaque).most_common(1)
    return name if count >= MAIN_SHARE * len(opaque) else ""


def held_out(name: str) -> bool:
    """Whether a concept, in whatever skin, is kept out of all training."""
    share = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32
    return share < HELD_OUT_SHARE


def main() -> None:
    """Draw everything and write the sheet and the list."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--font", type=Path, required=True)
    parser.add_argument("--names", type=Path, required=True)
    parser.add_argument("--keywords", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("tuninglab/embedded"))
    options = parser.parse_args()
    font = ImageFont.truetype(options.font, STRIKE_PX)
    known = json.loads(options.keywords.read_text(encoding="utf-8"))["annotations"]["annotations"]
    cuts, entries = [], []
    for emoji in listed(options.names):
        cut = drawn(emoji["text"], font)
        if cut is None:
            continue
        words = known.get(emoji["text"].replace("\ufe0f", ""), {}).get("default", [])
        cuts.append(cut)
        entries.append(
            {
                "name": emoji["name"],
                "kind": emoji["kind"],
                "tone": emoji["tone"],
                "color": "" if emoji["kind"] in ("person", "hand", "flag") else main_color(cut),
                "keywords": [word for word in words if re.fullmatch(r"[a-z -]+", word)],
                "held_out": held_out(emoji["name"]),
            }
        )
    sheet = Image.new("RGBA", (SIDE_PX * COLUMNS, SIDE_PX * -(-len(cuts) // COLUMNS)))
    for k, cut in enumerate(cuts):
        # Centred in its square: whoever takes it out cuts it to its outline again.
        row, column = divmod(k, COLUMNS)
        x = SIDE_PX * column + (SIDE_PX - cut.width) // 2
        y = SIDE_PX * row + (SIDE_PX - cut.height) // 2
        sheet.paste(cut, (x, y))
    sheet.save(options.out / "drawings.webp", quality=75, method=6, alpha_quality=60)
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    (options.out / "drawings.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    print(f"{len(entries)} drawings, {sum(e['held_out'] for e in entries)} held out")


if __name__ == "__main__":
    main()
