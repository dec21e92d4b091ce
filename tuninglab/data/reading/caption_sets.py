"""Sets of captions: COCO's own file, Karpathy's splits, BLIP's lists, LAION's rows.

Each caption is a sample of its own whose question is the picture alone; all captions of the picture
are its answers, for scores that compare with every one of them.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from tuninglab.data.reading.asking import answers_of, asked, id_of, pictures_of
from tuninglab.data.reading.fields import (
    alone,
    each,
    first_of,
    given,
    identity,
    indexed,
    listed,
    of_split,
    refuse_more,
    text_of,
)
from tuninglab.data.reading.found import Document, Format, RawRecord, Reading
from tuninglab.data.sample import Sample, brief
from tuninglab.errors import UserError

SPLIT = re.compile(r"(?:train|val|test)20\d\d")


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
            captions[identity(annotation.get("image_id"), "")].append(
                text_of(annotation, "caption")
            )
    if lost := [name for name in captions if name not in images]:
        raise UserError(
            f"{file}: captions of {len(lost):,} images have no entry under "
            f'"images", the first is image_id {brief(lost[0])}; the file is incomplete'
        )
    if bare := len(images.keys() - captions.keys()):
        reading.notes["COCO images without a caption, left out"] += bare
    split = SPLIT.search(file)

    def convert(annotation: dict[str, Any]) -> list[dict[str, Any]]:
        image_id = identity(annotation.get("image_id"), "the image_id")
        caption = text_of(annotation, "caption")
        name = text_of(images[image_id], "file_name")
        folders = [f"{split[0]}/{name}"] if split else []
        return [
            {
                "image": reading.existing([name, *folders]),
                "caption": caption,
                "answers": captions[image_id],
                "id": annotation["id"],
            }
        ]

    origins = (f"{file}, annotation {number}" for number in range(1, len(annotations) + 1))
    return each(zip(origins, annotations.values(), strict=True), convert)


def _is_karpathy(documents: Sequence[Any]) -> bool:
    return {"filename", "sentences"} <= first_of(alone(documents), "images").keys()


def _karpathy(documents: Sequence[Any], file: str, reading: Reading) -> Iterator[RawRecord]:
    items = [
        (f"{file}, image {number}", item)
        for number, item in enumerate(listed(documents[0], "images", file), 1)
    ]

    def split_of(image: dict[str, Any]) -> str:
        # The images of COCO's validation set that are in none of Karpathy's.
        return "train" if image.get("split") == "restval" else str(image.get("split", ""))[:40]

    def convert(image: dict[str, Any]) -> list[dict[str, Any]]:
        name = text_of(image, "filename")
        folder = given(image, "filepath")
        names = [f"{folder}/{name}", name] if isinstance(folder, str) else [name]
        sentences = image.get("sentences")
        if not isinstance(sentences, list) or not all(isinstance(one, dict) for one in sentences):
            raise ValueError(f"the sentences are {brief(sentences)}; expected a list of objects")
        captions = [one["raw"] for one in sentences if isinstance(one.get("raw"), str)]
        found = reading.existing(names)
        return [
            {
                "image": found,
                "caption": one.get("raw"),
                "answers": captions,
                "id": one.get("sentid"),
            }
            for one in sentences
        ]

    return each(of_split(items, split_of, file, reading), convert)


def _is_captions(record: Mapping[str, Any]) -> bool:
    return {"image", "caption"} <= record.keys() and not record.keys() & {"question", "query"}


def _captioned(record: dict[str, Any], origin: str, reading: Reading) -> list[Sample]:
    """A list of captions is as many samples, a single caption one."""
    refuse_more(record)
    pictures = pictures_of(record)
    if not pictures:
        raise ValueError("the record has a caption but no picture; name the picture")
    captions = answers_of(record, "caption")
    # Beside a single caption stand the others of the same picture.
    every = answers_of(record, "answers", "caption")
    own = id_of(record)
    samples = []
    for number, caption in enumerate(captions, 1):
        sample = asked("", [caption], pictures, origin)
        sample.answers = tuple(every)
        if own is not None:
            sample.id = own if len(captions) == 1 else f"{own}-{number}"
        samples.append(sample)
    return samples


def _is_laion(record: Mapping[str, Any]) -> bool:
    return {"URL", "TEXT"} <= record.keys()


def _laion(record: dict[str, Any], origin: str, reading: Reading) -> list[Sample]:
    raise ValueError(
        "the picture is an address (URL), and nothing is fetched while reading; download the rows "
        "with img2dataset and give the folder that it writes"
    )


COCO = Document("coco_captions", "COCO captions", _is_coco, _coco)
KARPATHY = Document("karpathy", "Karpathy's splits of captions", _is_karpathy, _karpathy)
CAPTIONS = Format("blip_captions", "pictures with captions (BLIP)", _is_captions, _captioned)
LAION = Format("laion", "addresses of pictures (LAION)", _is_laion, _laion)
