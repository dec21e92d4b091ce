"""What --data, `data:` and Python may give, and what it comes to."""

import pytest

from tuninglab.config import DataConfig, FinetuneConfig
from tuninglab.config.data import DataPart, columns_of, parts_of, pictures_checked, split_path
from tuninglab.config.flags import parse
from tuninglab.config.yaml_file import config_yaml, read_config
from tuninglab.errors import UserError


def flags(*words):
    return parse("tuninglab finetune", FinetuneConfig, words)


def test_one_path_several_paths_and_parts():
    assert parts_of(flags("--data", "a.json").data) == [DataPart("a.json")]
    several = flags("--data", "a.json", "b/", "--run_name", "x")
    assert parts_of(several.data) == [DataPart("a.json"), DataPart("b/")]
    assert several.typed == {"data", "run_name"}
    assert parts_of(None) is None and flags().data is None


def test_parts_of_a_file_and_back(tmp_path):
    text = """
data:
- {path: vqa.jsonl, weight: 3, image_root: coco}
- {path: mmc4/, weight: 1, format: mmc4, limit: 200000}
- alpaca.json
mix: {strategy: weights, epoch_rows: 500}
"""
    (tmp_path / "c.yaml").write_text(text)
    config = flags("--config", str(tmp_path / "c.yaml"))
    assert parts_of(config.data) == [
        DataPart("vqa.jsonl", weight=3, image_root="coco"),
        DataPart("mmc4/", weight=1, format="mmc4", limit=200000),
        DataPart("alpaca.json"),
    ]
    assert (config.mix.strategy, config.mix.epoch_rows) == ("weights", 500)
    (tmp_path / "again.yaml").write_text(config_yaml(config))
    again = read_config(tmp_path / "again.yaml", FinetuneConfig)
    assert (again.data, again.mix) == (config.data, config.mix)
    # A path alone stays one, as runs have it.
    assert "\ndata: a.json\n" in config_yaml(FinetuneConfig(data="a.json"))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("5", "data is 5; expected a path"),
        ("[]", r"data is \[\]; expected a path"),
        ("[3]", "data holds 3; expected a path"),
        ("[{weight: 3}]", "path is ''; expected text"),
        ("[{path: a, wieght: 3}]", "unknown key 'wieght'. Known: path, weight"),
        ("[{path: a, weight: 0}]", "weight is 0; expected a number above 0"),
        ("[{path: a, weight: .nan}]", "weight is nan"),
        ("[{path: a, limit: 1.5}]", "limit is 1.5"),
        ("[{path: a, weight: 1, repeat: 2}]", "a weight and a repeat"),
        ("[{path: a, image_root: 3}]", "image_root is 3; expected text"),
    ],
)
def test_what_is_none_is_refused_by_name(tmp_path, data, words):
    (tmp_path / "c.yaml").write_text(f"data: {data}")
    with pytest.raises(UserError, match=words):
        flags("--config", str(tmp_path / "c.yaml"))


@pytest.mark.parametrize("flag", ["--data", "--val_data"])
def test_addresses_are_not_fetched(flag):
    words = [*(["--data", "a"] if flag == "--val_data" else []), flag, "https://x.org/a.json"]
    with pytest.raises(UserError, match=f"{flag} is 'https.*not fetched"):
        flags(*words)


def test_the_end_of_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a#5", "q+a.json", "b"):
        (tmp_path / name).touch()
    assert split_path("b#500") == (["b"], "#500")
    assert split_path("b:train") == (["b"], ":train")
    assert split_path("b:train#7") == (["b"], ":train#7")
    assert split_path("q.json+a.json#3") == (["q.json", "a.json"], "#3")
    # What exists as it stands is no other path with an end.
    assert split_path("a#5") == (["a#5"], "") and split_path("q+a.json") == (["q+a.json"], "")
    assert DataPart("b:train#7").located().path == f"{tmp_path}/b:train#7"
    assert DataPart("b+none").located().path == f"{tmp_path}/b+none"


def test_a_run_keeps_where_its_data_lies(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.json").touch()
    located = FinetuneConfig(data=["a.json", {"path": "none", "weight": 2}]).located()
    assert located.data == [f"{tmp_path}/a.json", {"path": "none", "weight": 2}]


def test_columns_and_checks():
    assert columns_of("query=Q, response = A") == {"query": "Q", "response": "A"}
    assert columns_of(None) == {}
    for wrong in ("query", "query=", "=A", "a=b,,"):
        with pytest.raises(UserError, match="--columns is"):
            columns_of(wrong)
    assert [pictures_checked(word) for word in ("all", "headers", "20")] == [float("inf"), 0, 20]
    for wrong in ("-1", "some", "1e3", "²", "9" * 20):
        with pytest.raises(UserError, match="--check is"):
            flags("--check", wrong)


def test_mixes_that_mean_nothing_are_refused():
    with pytest.raises(UserError, match=r"mix.temperature is 0.0"):
        flags("--mix.temperature", "0")
    with pytest.raises(UserError, match=r"mix.epoch_rows is 0"):
        flags("--mix.epoch_rows", "0")
    with pytest.raises(UserError, match=r"temperature levels sizes"):
        flags("--mix.temperature", "2", "--mix.strategy", "weights")


def test_the_file_of_a_training_tells_its_data_too(tmp_path):
    text = "data: a.jsonl\nimage_root: pics\nval_split: 0.1\nlr: 1e-3\ntuning_config: {r: 4}\n"
    (tmp_path / "c.yaml").write_text(text)
    config = parse("tuninglab data", DataConfig, ["--config", str(tmp_path / "c.yaml")])
    assert (config.data, config.image_root) == ("a.jsonl", "pics")
    # What is no setting of either is a mistake all the same.
    (tmp_path / "c.yaml").write_text(text + "val_splitt: 0.1")
    with pytest.raises(UserError, match="unknown key 'val_splitt'"):
        parse("tuninglab data", DataConfig, ["--config", str(tmp_path / "c.yaml")])
