import json
from functools import partial
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tuninglab.data.prompt import dialogue_tokens, encode_dialogue
from tuninglab.data.reading import groups as groups_module
from tuninglab.data.reading.groups import picture_groups, split_validation
from tuninglab.data.reading.lengths import fit, lengths_of
from tuninglab.data.reading.splits import read_pair_splits, read_splits
from tuninglab.data.sample import Sample
from tuninglab.data.sources import Records, Splits
from tuninglab.errors import DataError, UserError


def sample(answer: str) -> Sample:
    roles = ("user", "assistant")
    texts = ("Q?", answer)
    return Sample(
        [{"role": r, "content": t} for r, t in zip(roles, texts, strict=True)], [], f"row {answer}"
    )


@pytest.fixture
def write(tmp_path):
    def write(name: str, count: int) -> str:
        lines = [json.dumps({"messages": sample(f"{name} {n}").messages}) for n in range(count)]
        path = tmp_path / name
        path.write_text("\n".join(lines))
        return str(path)

    return write


def test_a_share_is_held_out(write):
    splits = read_splits(write("all.jsonl", 10), val_split=0.2)
    assert (splits.name, len(splits.train), len(splits.val)) == ("all.jsonl", 8, 2)
    origins = {s.origin for s in splits.train} | {s.origin for s in splits.val}
    assert len(origins) == 10


def test_validation_data_of_its_own(write):
    splits = read_splits(write("train.jsonl", 3), val_data=write("val.jsonl", 2))
    assert (len(splits.train), len(splits.val)) == (3, 2)
    assert "val.jsonl" in splits.val[0].origin


def test_no_validation_data(write):
    assert len(read_splits(write("train.jsonl", 3)).val) == 0


def test_pairs_are_split_as_dialogues_are(write):
    splits = read_pair_splits(write("all.jsonl", 10), val_split=0.2)
    assert (splits.name, len(splits.train), len(splits.val)) == ("all.jsonl", 8, 2)
    assert len({pair.target for pair in (*splits.train, *splits.val)}) == 10
    splits = read_pair_splits(write("train.jsonl", 3), val_data=write("val.jsonl", 2))
    assert [pair.target for pair in splits.val] == ["val.jsonl 0", "val.jsonl 1"]


def test_a_missing_validation_file_is_told(write):
    with pytest.raises(UserError, match=r"nowhere\.jsonl"):
        read_splits(write("train.jsonl", 3), val_data="nowhere.jsonl")


def pictured(*images: object, origin: str = "x") -> Sample:
    question = {"role": "user", "content": "<image>" * len(images) + "?"}
    return Sample([question, {"role": "assistant", "content": "a"}], list(images), origin)


@given(st.integers(2, 50), st.floats(0.01, 0.9), st.integers(0, 5))
def test_a_validation_split_is_disjoint_whole_and_seeded(length, fraction, seed):
    samples = [f"sample {index}" for index in range(length)]
    try:
        training, validation = split_validation(samples, fraction, seed)
    except UserError:
        assert round(length * fraction) >= length
        return
    assert sorted(training + validation) == sorted(samples)
    assert len(validation) == max(1, round(length * fraction))
    assert training == [sample for sample in samples if sample in training]
    assert (training, validation) == split_validation(samples, fraction, seed)


def test_split_edges():
    assert split_validation([1, 2], 0.0) == ([1, 2], [])
    for fraction in (-0.1, 1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="expected 0"):
            split_validation([1, 2], fraction)
    with pytest.raises(UserError, match="leaves none to train on"):
        split_validation([1], 0.5)


def components(rows: list[list[bytes]]) -> list[set[int]]:
    """Records that hang together by pictures, found by brute force."""
    groups = [{number} for number in range(len(rows))]
    for one in range(len(rows)):
        for other in range(one):
            if set(rows[one]) & set(rows[other]):
                mine, theirs = (next(g for g in groups if n in g) for n in (one, other))
                if mine is not theirs:
                    groups.remove(theirs)
                    mine |= theirs
    return groups


PICTURES = st.sampled_from([bytes([n]) for n in range(30)] + [b"as long", b"as wide"])


@given(
    st.lists(st.lists(PICTURES, max_size=3), min_size=2, max_size=40),
    st.floats(0.01, 0.5),
    st.integers(0, 5),
)
def test_no_picture_falls_on_both_sides(rows, fraction, seed):
    samples = [pictured(*images, origin=str(n)) for n, images in enumerate(rows)]
    groups = components(rows)
    assert sorted(map(sorted, picture_groups(samples))) == sorted(map(sorted, groups))
    count = max(1, round(len(samples) * fraction))
    if len(groups) == 1:
        with pytest.raises(UserError, match="samples, which all share pictures, leaves none"):
            split_validation(samples, fraction, seed)
        return
    training, validation = split_validation(samples, fraction, seed)
    assert training and validation
    numbers = [int(sample.origin) for part in (training, validation) for sample in part]
    assert sorted(numbers) == list(range(len(samples)))
    for part in (training, validation):
        assert [int(s.origin) for s in part] == sorted(int(s.origin) for s in part)
    seen = [
        {image for sample in part for image in sample.images} for part in (training, validation)
    ]
    assert not seen[0] & seen[1]
    # At most half a group beside the share, or the smallest where all are larger than twice it.
    largest = max(map(len, groups))
    smallest = min(map(len, groups))
    assert abs(len(validation) - count) <= largest / 2 or len(validation) == smallest > count
    assert (training, validation) == split_validation(samples, fraction, seed)


def test_files_are_told_apart_by_content_and_place(tmp_path):
    names = {"a": b"123", "same as a": b"123", "as long as a": b"124", "alone": b"1"}
    for name, data in names.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "link").symlink_to(tmp_path / "alone")
    rows = [[tmp_path / name] for name in [*names, "link"]]
    red, other = Image.new("RGB", (2, 2), "red"), Image.new("RGB", (4, 1), "red")
    rows += [[str(tmp_path / "a")], [b"1"], [red], [red.copy()], [other]]
    found = picture_groups([pictured(*row) for row in rows])
    assert found == [[0, 1, 5], [2], [3, 4, 6], [7, 8], [9]]


def test_only_files_of_equal_size_are_read(tmp_path):
    for length in (1, 2, 3):
        (tmp_path / str(length)).write_bytes(b"x" * length)
        (tmp_path / str(length)).chmod(0)
    read = []
    with mock.patch.object(groups_module, "picture_digest", lambda p: read.append(p) or "0"):
        assert len(picture_groups([pictured(tmp_path / str(n)) for n in (1, 2, 3, 3)])) == 3
    assert read == []


@pytest.fixture
def llava(tmp_path):
    """A function (name, pictures, questions each) -> file of questions about pictures."""

    def llava(name: str, pictures: range, questions: int) -> str:
        lines = []
        for number in pictures:
            Image.new("RGB", (3, 3), (number, 0, 0)).save(tmp_path / f"{name} {number}.png")
            record = {
                "image": f"{name} {number}.png",
                "conversations": [
                    {"from": "human", "value": "<image>?"},
                    {"from": "gpt", "value": "a"},
                ],
            }
            lines += [json.dumps(record)] * questions
        (tmp_path / name).write_text("\n".join(lines))
        return str(tmp_path / name)

    return llava


def test_questions_about_one_picture_stay_on_one_side(llava, capsys):
    splits = read_splits(llava("all.jsonl", range(50), 4), val_split=0.1, seed=3)
    train, val = ({s.images[0] for s in part} for part in (splits.train, splits.val))
    assert (len(splits.train), len(splits.val), len(val)) == (180, 20, 5) and not train & val
    said = capsys.readouterr().err
    assert "200 records in 50 groups that share pictures; 5 groups, 20 records for val" in said


def test_validation_data_with_pictures_of_the_training_data_is_told(llava, capsys):
    train = llava("train.jsonl", range(5), 2)
    read_splits(train, val_data=llava("other.jsonl", range(5, 9), 1))
    assert "training data too" not in capsys.readouterr().err
    # Copies under other names.
    read_splits(train, val_data=llava("val.jsonl", range(3, 9), 2))
    said = capsys.readouterr().err
    assert "4 of 12 validation records show a picture that is in the training data too" in said
    assert "val.jsonl, line 1:" in said


def test_too_long_samples(processor, capsys):
    tokenizer = processor.tokenizer
    tokens = partial(dialogue_tokens, tokenizer=tokenizer)
    count = partial(lengths_of, count=lambda some: [*map(tokens, some)], key=None)
    short, long, val = sample("a"), sample("a" * 400), sample("b")
    splits = Splits("x", Records([short, long]), Records([val]), skipped=2)
    fitting = fit(splits, count, 300, skip=True)
    assert fitting == Splits("x", Records([short]), Records([val]), skipped=3)
    said = capsys.readouterr().err
    assert "x: 1 of 2 records left out" in said and "tokens, at most 300 (" in said
    with pytest.raises(DataError, match="(?s)row a.*, or --max_tokens.*--skip_bad_records"):
        fit(splits, count, 300, skip=False)
    for train, held_out in (([long], [val]), ([short], [long])):
        with pytest.raises(DataError, match="No usable record is left"):
            fit(Splits("x", Records(train), Records(held_out)), count, 300, skip=True)
    # The limit itself fits.
    length = dialogue_tokens(long, tokenizer)
    assert length == len(encode_dialogue(long.messages, tokenizer).input_ids)
    assert fit(splits, count, length, skip=False) == splits
    with pytest.raises(DataError, match=f"{length} tokens, at most {length - 1} "):
        fit(splits, count, length - 1, skip=False)


def test_a_record_with_several_mistakes_is_skipped_once(llava, tmp_path):
    turns = [{"role": "user", "content": "<image>" * 3}, {"role": "assistant", "content": "a"}]
    bad = json.dumps({"messages": turns, "images": ["x.png", "y.png", "z.png"]})
    for name in ("train.jsonl", "val.jsonl"):
        with open(llava(name, range(2), 1), "a") as file:
            file.write(f"\n{bad}\n{bad}")
    data = {"data": str(tmp_path / "train.jsonl"), "val_data": str(tmp_path / "val.jsonl")}
    splits = read_splits(**data, skip_bad_records=True)
    assert (len(splits.train), len(splits.val), splits.skipped) == (2, 2, 4)
