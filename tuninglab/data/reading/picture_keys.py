"""The keys that pictures have in raw records, wherever a container had them."""

from collections.abc import Iterable, Mapping
from typing import Any

from tuninglab.data.reading.found import Reading

IMAGE_KEYS = ("image", "images")
# What img2dataset writes about each picture that it fetched.
ABOUT = {"key", "status", "url"}
NO_CAPTION = "pictures without a caption left out"
NO_PICTURE = "captions without a picture left out"


def gathered(record: dict[str, Any], pictures: Iterable[str], reading: Reading) -> dict[str, Any]:
    """A record whose pictures are where every format looks for them, `image` or `images`.

    Args:
        record: of any keys.
        pictures: the keys that hold pictures, in order; of a table's columns also those that are
            absent here, so that what stands in for them in other rows is the same in all.
        reading: the keys that it names are left as they are.
    """
    pictures = list(pictures)
    kept = [name for name in pictures if name in (*IMAGE_KEYS, *reading.columns.values())]
    for name in set(pictures) - set(kept) if kept else ():
        if record.pop(name, None) is not None:
            note = f"pictures of the column {name[:40]} left out: others are in {kept[0]}"
            reading.notes[note] += 1
    values = [record.pop(name) for name in pictures if name in record and not kept]
    if not values:
        return record
    flat = [one for value in values for one in (value if isinstance(value, list) else [value])]
    return record | ({"image": flat[0]} if len(flat) == 1 else {"images": flat})


def about_fetched(told: Mapping[str, Any]) -> dict[str, Any]:
    """What img2dataset noted of a picture, as a record without the picture."""
    caption = told.get("caption") or told.get("txt")
    return {"id": str(told["key"])} | ({"text": caption} if caption else {})
