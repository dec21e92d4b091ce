import json

import pytest

from tuninglab.data.sample import Sample
from tuninglab.data.splits import fitting_samples, read_pair_splits, read_splits
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


def test_too_long_samples(processor, capsys):
    tokenizer = processor.tokenizer
    samples = [sample("a"), sample("a" * 400)]
    assert fitting_samples(samples, tokenizer, 300, skip=True) == samples[:1]
    assert "1 of 2 samples exceed 300 tokens" in capsys.readouterr().err
    with pytest.raises(DataError, match="(?s)row a.*, or --max_tokens.*--skip_bad_records"):
        fitting_samples(samples, tokenizer, 300, skip=False)
    with pytest.raises(DataError):
        fitting_samples(samples[1:], tokenizer, 300, skip=True)
