"""Questions of a run to try, whoever made the run."""

import json
import os

import pytest
from PIL import Image

from tuninglab.serving.examples import MOST, Example, read_examples

PICTURE = "pictures/000.png"


@pytest.fixture
def run(tmp_path):
    """A run folder with one picture, and one beside it that is not of the run."""
    folder = tmp_path / "run"
    (folder / "pictures").mkdir(parents=True)
    for file in (folder / PICTURE, tmp_path / "other.png"):
        Image.new("RGB", (8, 6), "red").save(file)
    return folder


def written(run, cards):
    (run / "answers.json").write_text(json.dumps(cards))
    return read_examples(run)


def test_questions_as_a_run_writes_them(run):
    cards = [
        {"question": "What?", "truth": "red", "picture": PICTURE, "before": "a", "after": "b"},
        {"question": "Why?", "type": "all", "truth": "so"},
        {"question": "", "picture": PICTURE},
    ]
    picture = (run / PICTURE).read_bytes()
    assert written(run, cards) == [
        Example("What?", "red", picture),
        Example("Why?", "so"),
        Example("", "", picture),
    ]


def test_a_run_without_any(run):
    assert read_examples(None) == [] == read_examples(run)


@pytest.mark.parametrize("content", ["", "{", "[" * 2000, '"x"', "{}", "[1, null, [], {}]", "\xff"])
def test_a_file_that_is_none_ends_no_server(content, run):
    (run / "answers.json").write_text(content, encoding="latin-1")
    assert read_examples(run) == []


@pytest.mark.parametrize(
    "name",
    [
        "../other.png",
        "pictures/../../other.png",
        "pictures/link.png",
        "linked/other.png",
        "pictures/text.png",
        "pictures/cut.png",
        "pictures/none.png",
        "pictures/folder.png",
        "pictures/pipe.png",
        "pictures/page.svg",
        "answers.json",
        "loop/x.png",
        "a\0.png",
        "\ud800.png",
        f"{'x' * 5000}.png",
        "",
        3,
        ["pictures/000.png"],
        {},
        True,
    ],
)
def test_nothing_but_pictures_of_the_folder_is_shown(name, run, tmp_path):
    folder = run / "pictures"
    (folder / "link.png").symlink_to(tmp_path / "other.png")
    (run / "linked").symlink_to(tmp_path)
    (run / "loop").symlink_to(run / "loop")
    (folder / "text.png").write_text("root:x:0:0")
    (folder / "page.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (folder / "cut.png").write_bytes((folder / "000.png").read_bytes()[:40])
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    cards = [{"question": "What?", "truth": "x", "picture": name}, {"question": "And?"}]
    assert written(run, cards) == [Example("And?", "")]
    absolute = {"question": "What?", "picture": str(tmp_path / "other.png")}
    assert written(run, [absolute]) == []


def test_there_are_never_too_many(run):
    cards = [{"question": f"{k}?"} for k in range(1000)]
    assert [example.question for example in written(run, cards)] == [f"{k}?" for k in range(MOST)]
    assert written(run, [{"question": "x" * 10**6}, {"question": 3}, {"question": " "}]) == []
    assert written(run, [{"question": "?", "truth": ["a"]}]) == [Example("?", "")]
