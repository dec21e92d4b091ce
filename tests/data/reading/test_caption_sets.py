import pytest

from tests.data.reading.released import (
    BLIP_CAPTION,
    BLIP_CAPTIONS,
    COCO,
    KARPATHY,
    LAION,
    format_of,
    read_documents,
    read_records,
    sample,
)
from tuninglab.data.reading.captions import CAPTIONS
from tuninglab.data.reading.found import Reading
from tuninglab.errors import UserError

GIRAFFE = ("A giraffe by a tree.", "A tall giraffe.")


def test_each_caption_of_coco_is_a_sample_and_all_of_a_picture_are_answers():
    reading = Reading()
    samples, problems = read_documents(COCO, reading=reading)
    names = [f"COCO_val2014_{number:012d}.jpg" for number in (25, 9)]
    at = "set.json, annotation"
    assert samples == [
        sample([names[0]], "", GIRAFFE[0], f"{at} 1", id=25, answers=GIRAFFE),
        sample([names[1]], "", "Boxes of food.", f"{at} 2", id=9, answers=("Boxes of food.",)),
        sample([names[0]], "", GIRAFFE[1], f"{at} 3", id=25, answers=GIRAFFE),
    ]
    assert problems == []
    assert reading.notes == {"COCO images without a caption, left out": 1}


def test_pictures_of_coco_lie_in_the_folder_of_their_split_as_well(tmp_path):
    (tmp_path / "val2014").mkdir()
    (tmp_path / "val2014" / "COCO_val2014_000000000025.jpg").touch()
    # A folder of another split in the path is no split of the file.
    file = "/data/train2014/captions_val2014.json"
    samples, _ = read_documents(COCO, file=file, reading=Reading(root=tmp_path))
    assert [one.images for one in samples] == [
        ["val2014/COCO_val2014_000000000025.jpg"],
        ["COCO_val2014_000000000009.jpg"],  # nowhere: the name as it is, for the message
        ["val2014/COCO_val2014_000000000025.jpg"],
    ]


def test_a_caption_that_is_none_is_one_problem_among_others():
    broken = COCO["annotations"][0] | {"caption": 7}
    samples, problems = read_documents(COCO | {"annotations": [broken, *COCO["annotations"][1:]]})
    assert problems == ["set.json, annotation 1: the caption is 7; expected a text"]
    # It is no answer of its neighbour either.
    assert [one.answers for one in samples] == [("Boxes of food.",), ("A tall giraffe.",)]


def test_files_of_coco_that_do_not_hold_together_are_refused_with_counts():
    with pytest.raises(UserError, match=r"captions of 2 images have no entry .* image_id '25'"):
        read_documents(COCO | {"images": COCO["images"][2:]})
    twice = COCO["annotations"] + COCO["annotations"][:2]
    with pytest.raises(UserError, match=r"annotations: 2 have the id of an earlier one.* '7'"):
        read_documents(COCO | {"annotations": twice})
    images = [*COCO["images"], COCO["images"][0] | {"id": "9"}]
    with pytest.raises(UserError, match=r"set.json, images: 1 have the id"):
        read_documents(COCO | {"images": images})
    with pytest.raises(UserError, match=r"image 4: the id is a huge number; expected a whole"):
        read_documents(COCO | {"images": [*COCO["images"], {"id": 10**40}]})
    with pytest.raises(UserError, match=r"image 4: the record is 'x'; expected an object"):
        read_documents(COCO | {"images": [*COCO["images"], "x"]})


def test_karpathy_trains_on_restval_and_never_on_test():
    reading = Reading()
    samples, problems = read_documents(KARPATHY, reading=reading)
    shoe, two = ("A shoe.", "A dog."), ("Two.",)
    first = ["val2014/COCO_val2014_000000000042.jpg"]
    second = ["train2014/COCO_train2014_000000000072.jpg"]
    assert samples == [
        sample(first, "", "A shoe.", "set.json, image 1", id=42, answers=shoe),
        sample(first, "", "A dog.", "set.json, image 1", id=42, answers=shoe),
        sample(second, "", "Two.", "set.json, image 2", id=72, answers=two),
    ]
    assert problems == []
    left_out = "of other splits than train, left out (PATH:SPLIT reads them)"
    assert reading.notes == {left_out: 1}


def test_another_split_of_karpathy_is_read_on_request():
    samples, _ = read_documents(KARPATHY, reading=Reading(split="test"))
    assert [one.id for one in samples] == [73]
    with pytest.raises(UserError, match=r"no split 'dev'; it has 'train', 'test'"):
        read_documents(KARPATHY, reading=Reading(split="dev"))
    # The only one there is needs no name.
    samples, _ = read_documents(KARPATHY | {"images": KARPATHY["images"][2:]})
    assert [one.id for one in samples] == [73]
    with pytest.raises(UserError, match=r"no split 'train'; it has 'val', 'test'"):
        first, second, third = KARPATHY["images"]
        read_documents({"images": [first | {"split": "val"}, third, second | {"split": "val"}]})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"filename": None}, "the filename is missing; expected a text"),
        ({"split": ["train"]}, "the split is a list of 1; expected a text"),
        ({"sentences": "A shoe."}, "the sentences are 'A shoe.'; expected a list of objects"),
        ({"sentences": [{"raw": ""}]}, '"caption" is empty; write one or drop the record'),
    ],
)
def test_a_broken_image_of_karpathy_is_named(change, problem):
    first, *others = KARPATHY["images"]
    samples, problems = read_documents(KARPATHY | {"images": [first | change, *others]})
    assert problems == [f"set.json, image 1: {problem}"]
    assert len(samples) == 1


def test_a_list_of_captions_is_as_many_samples():
    rows = BLIP_CAPTIONS, BLIP_CAPTION, BLIP_CAPTIONS | {"id": 4}
    samples, problems = read_records(*rows, format=CAPTIONS)
    images = ["val2014/COCO_val2014_000000522418.jpg"]
    cake, knife = BLIP_CAPTIONS["caption"]
    assert samples == [
        sample(images, "", cake, "set.json, record 1", answers=(cake, knife)),
        sample(images, "", knife, "set.json, record 1", answers=(cake, knife)),
        sample(images, "", cake, "set.json, record 2"),
        sample(images, "", cake, "set.json, record 3", answers=(cake, knife), id=4),
        sample(images, "", knife, "set.json, record 3", answers=(cake, knife), id=4),
    ]
    assert problems == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"caption": []}, "the list of captions is empty; write one"),
        ({"caption": None}, '"caption" is empty; write one or drop the record'),
        ({"caption": ["a", ["b"]]}, "an answer is a list of 1; expected a text"),
        ({"image": []}, "the list of pictures is empty; name one"),
        ({"image": 7}, "a picture is named by 7; expected a path as text"),
        ({"image": "\ud800"}, "the text holds '\\ud800', half of a surrogate pair"),
        ({"rejected_response": "no"}, 'the record has "rejected_response", but learning from'),
        ({"loss": False}, 'the record has "loss" False, but every record counts alike'),
    ],
)
def test_a_broken_caption_is_named(change, problem):
    samples, (line,) = read_records(BLIP_CAPTION | change)
    assert samples == [] and line.startswith(f"set.json, record 1: {problem}")


def test_what_is_said_before_a_caption_is_kept():
    ((found,), _) = read_records(BLIP_CAPTION | {"system": "Be brief."})
    said = [{"type": "text", "text": "Be brief."}]
    assert found.messages[0] == {"role": "system", "content": said} and len(found.messages) == 3
    assert format_of(BLIP_CAPTION | {"image": None}) is None


def test_rows_of_addresses_are_refused_with_the_remedy():
    assert read_records(LAION)[1] == [
        "set.json, record 1: the picture is an address (URL), and nothing is fetched while "
        "reading; download the rows with img2dataset and give the folder that it writes"
    ]
