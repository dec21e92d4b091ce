"""Sets of captions: COCO's own file, Karpathy's splits, LAION's rows.

Each caption is a sample of its own whose question is the picture alone; all captions of the picture
are its answers, for scores that compare with every one of them, and they have its name.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from tuninglab.data.reading.fields import (
    alone,
    base_names,
    each,
    first_of,
    given,
    identity,
    indexed,
    listed,
    named_split,
    numbered,
    of_split,
    text_of,
)
from tuninglab.data.reading.found import Document, Format, RawRecord, Reading
from tuninglab.data.sample import Sample, brief
from tuninglab.errors import UserError


def _is_coco(documents: Sequence[Any]) -> bool:
    document = alone(documents)
    # Instances and key points have the same two lists.
    return "file_name" in first_of(document, "images") and "caption" in first_of(
        document, "annotations"
    )


def _coco(documents: Sequence[Any], file: str, reading: Reading) -> Iterator[RawRecord]:
    images = indexed(listed(documents[0], "images", file), "id", f"{file}, image")
    annotations = indexed(listed(documents[0], "annotations", file), "id", f"{file}, annotation")
    captions: dict[str, list[Any]] = defaultdict(list)
    for annotation in annotations.values():
        with suppress(ValueError):  # a broken annotation is refused below, under its number
            name = identity(annotation.get("image_id"), "the image_id")
            captions[name].append(text_of(annotation, "caption"))
    if lost := [name for name in captions if name not in images]:
        raise UserError(
            f"{file}: captions of {len(lost):,} images have no entry under "
            f'"images", the first is image_id {brief(lost[0])}; the file is incomplete'
        )
    if bare := len(images.keys() - captions.keys()):
        reading.notes["COCO images without a caption, left out"] += bare
    split = named_split(base_names(file))

    def convert(annotation: dict[str, Any]) -> list[dict[str, Any]]:
        """The caption of an annotation, as one record."""
        image_id = identity(annotation.get("image_id"), "the image_id")
        caption = text_of(annotation, "caption")
        name = text_of(images[image_id], "file_name")
        folders = [f"{split}/{name}"] if split else []
        return [
            {
                "image": reading.existing([name, *folders]),
                "caption": caption,
                "answers": captions[image_id],
                "id": annotation["image_id"],
            }
        ]

    return each(numbered(annotations.values(), f"{file}, annotation"), convert)


def _is_karpathy(documents: Sequence[Any]) -> bool:
    return {"filename", "sentences"} <= first_of(alone(documents), "images").keys()


def _karpathy(documents: Sequence[Any], file: str, reading: Reading) -> Iterator[RawRecord]:
    items = numbered(listed(documents[0], "images", file), f"{file}, image")

    def split_of(image: dict[str, Any]) -> Any:
        # The images of COCO's validation set that are in none of Karpathy's.
        return "train" if image.get("split") == "restval" else image.get("split")

    def convert(image: dict[str, Any]) -> list[dict[str, Any]]:
        """The captions of an image, a record each."""
        name, _ = text_of(image, "filename"), text_of(image, "split")
        folder = given(image, "filepath")
        names = [f"{folder}/{name}", name] if isinstance(folder, str) else [name]
        sentences = image.get("sentences")
        if not isinstance(sentences, list) or not all(isinstance(one, dict) for one in sentences):
            raise ValueError(f"the sentences are {brief(sentences)}; expected a list of objects")
        captions = [one["raw"] for one in sentences if isinstance(one.get("raw"), str)]
        of_all = {"image": reading.existing(names), "answers": captions}
        of_all["id"] = given(image, "cocoid", "imgid")
        return [of_all | {"caption": one.get("raw")} for one in sentences]

    return each(of_split(items, split_of, file, reading), convert)


def _is_laion(record: Mapping[str, Any]) -> bool:
    return {"URL", "TEXT"} <= record.keys()


def _laion(record: dict[str, Any], origin: str, reading: Reading) -> list[Sample]:
    raise ValueError(
        "the picture is an address (URL), and nothing is fetched while reading; download the rows "
        "with img2dataset and give the folder that it writes"
    )


COCO = Document("coco_captions", "COCO captions", _is_coco, _coco)
KARPATHY = Document("karpathy", "Karpathy's splits of captions", _is_karpathy, _karpathy)
LAION = Format("laion", "addresses of pictures (LAION)", _is_laion, _laion, ("URL", "TEXT"))
