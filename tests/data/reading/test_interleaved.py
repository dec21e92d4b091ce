import base64

import pytest

from tests.data.reading.released import MMC4, read_records
from tuninglab.data.reading.found import Reading
from tuninglab.data.sample import Sample

PICTURE = {"type": "image"}
FIT_NONE = "MMC4 pictures that fit no sentence, left out"
SMALL = "MMC4 pictures of at most 10,000 bytes, left out"
NO_PICTURE = "MMC4 pages without a fitting picture, left out"


def text(value):
    return {"type": "text", "text": value}


def page(*pictures, sentences=8, **more):
    """A page of numbered sentences; pictures are (sentence, similarity) each."""
    infos = [
        {"image_name": f"{number}.png", "matched_text_index": place, "matched_sim": like}
        for number, (place, like) in enumerate(pictures)
    ]
    return {"text_list": [f"s{n}" for n in range(sentences)], "image_info": infos} | more


def test_pictures_stand_before_their_sentences_in_the_order_of_the_sentences():
    reading = Reading()
    samples, problems = read_records(MMC4, reading=reading)
    assert samples == [
        Sample(
            [
                {"role": "user", "content": [text("Before."), PICTURE]},
                {"role": "assistant", "content": [text("A cat sleeps. It is warm.")]},
                {"role": "user", "content": [PICTURE]},
                {"role": "assistant", "content": [text("A dog barks. The end.")]},
            ],
            ["cat.png", "dog.png"],
            "set.json, record 1",
        )
    ]
    assert problems == []
    assert reading.notes == {FIT_NONE: 1}


def test_several_pictures_of_a_sentence_stand_in_one_turn():
    ((found,), _) = read_records(page((2, 0.3), (0, 0.24), (2, 0.5), sentences=3))
    assert found.messages == [
        {"role": "user", "content": [PICTURE]},
        {"role": "assistant", "content": [text("s0 s1")]},
        {"role": "user", "content": [PICTURE, PICTURE]},
        {"role": "assistant", "content": [text("s2")]},
    ]
    assert found.images == ["1.png", "0.png", "2.png"]


def test_the_first_six_pictures_are_kept():
    reading = Reading()
    ((found,), _) = read_records(page(*((7 - n, 0.3) for n in range(8))), reading=reading)
    assert found.images == [f"{number}.png" for number in (7, 6, 5, 4, 3, 2)]
    assert found.messages[-1]["content"] == [text("s5 s6 s7")]
    assert reading.notes == {"MMC4 pictures beyond the first 6 of a page, left out": 2}


def test_pages_without_a_picture_are_left_out_and_counted():
    reading = Reading()
    rows = page(), page((0, 0.2399)), page((0, float("nan")))
    assert read_records(*rows, reading=reading) == ([], [])
    assert reading.notes == {NO_PICTURE: 3, FIT_NONE: 2}


def test_icons_in_the_record_itself_are_left_out():
    inline = [bytes([number]) * size for number, size in ((1, 10_000), (2, 10_001))]
    record = page((0, 0.3), (1, 0.3))
    for info, data in zip(record["image_info"], inline, strict=True):
        info["image_base64"] = base64.b64encode(data).decode()
    reading = Reading()
    ((found,), _) = read_records(record, reading=reading)
    assert found.images == [inline[1]] and reading.notes == {SMALL: 1}


def test_similarities_may_stand_in_the_matrix_alone():
    record = page((1, None), (0, None), sentences=2, similarity_matrix=[[0, 0.3], [0.2, 0]])
    reading = Reading()
    ((found,), _) = read_records(record, reading=reading)
    assert found.images == ["0.png"] and reading.notes == {FIT_NONE: 1}


def test_without_matches_each_picture_gets_a_sentence_of_its_own():
    # Both fit the second sentence best, the second picture better; the third fits none.
    matrix = [[0.1, 0.4, 0.3], [0.1, 0.5, 0.4], [0.2, 0.2, 0.2]]
    record = page((None, None), (None, None), (None, None), sentences=3, similarity_matrix=matrix)
    reading = Reading()
    ((found,), _) = read_records(record, reading=reading)
    assert found.images == ["1.png", "0.png"]
    assert found.messages[-1]["content"] == [text("s2")]
    assert reading.notes == {FIT_NONE: 1}


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        (page((8, 0.3)), "a picture stands at sentence 8, from 0, of 8"),
        (page((-1, 0.3)), "matched_text_index is -1; expected a whole number"),
        (page((0, "0.3")), "the similarity of a picture is '0.3'; expected a number"),
        (page((0, True)), "the similarity of a picture is True; expected a number"),
        (page((0, None)), "the similarity of a picture is missing; expected a number"),
        (page((None, 0.3)), "there is neither a matched_text_index of every picture nor a simi"),
        (
            page((None, 0.3), similarity_matrix=[[0.3] * 7]),
            "there is neither a matched_text_index of every picture nor a similarity_matrix of 1 "
            "pictures by 8 sentences",
        ),
        (page((None, 0.3), sentences=1, similarity_matrix=[["x"]]), "the similarity of a picture"),
        (page() | {"text_list": []}, '"text_list" is empty; expected a list of texts'),
        (page() | {"text_list": ["a", 4]}, 'number 2 of "text_list" is 4, not a text'),
        (page() | {"image_info": {}}, "image_info is an object of 0; expected a list"),
        (page() | {"image_info": [4]}, "the record is 4; expected an object"),
        (page() | {"image_info": [{}]}, "the image_name is missing; expected a text"),
        (page() | {"image_info": [{"image_base64": "+*"}]}, "a picture is given as '+*', which"),
        (page((0, 0.3)) | {"text_list": [" "]}, "message 2: the answer is empty"),
        (page((0, 0.3), weight=2), 'the record has "weight" 2, but every record counts alike'),
        (page((0, 0.3), history=[["a", "b"]]), 'the record has "history", but nothing is said'),
    ],
)
def test_a_broken_page_is_named(record, problem):
    samples, (line,) = read_records(record)
    assert samples == [] and line.startswith(f"set.json, record 1: {problem}")
