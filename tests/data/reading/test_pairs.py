import json
import subprocess
import sys

import pytest

from tuninglab.data.reading.pairs import read_pairs
from tuninglab.data.sample import Pair
from tuninglab.errors import DataError, UserError


@pytest.fixture
def write(tmp_path):
    def write(*records) -> str:
        path = tmp_path / "pairs.jsonl"
        lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
        path.write_text("\n".join(lines))
        return str(path)

    return write


def dialogue(*turns, **more):
    return {"messages": [{"role": role, "content": text} for role, text in turns], **more}


def test_both_formats_become_pairs(write):
    path = write(
        {"source": " 3 March ", "target": "3/3", "id": 7},
        dialogue(("user", "Hello?"), ("assistant", "Hi.")),
        dialogue(("system", "Be brief."), ("user", "Hello?"), ("assistant", "Hi.")),
    )
    pairs = read_pairs(path)
    assert (pairs.problems, pairs.skipped) == ([], 0)
    assert pairs.samples == [
        Pair(" 3 March ", "3/3", f"{path}, line 1"),
        Pair("Hello?", "Hi.", f"{path}, line 2"),
        Pair("Be brief.\n\nHello?", "Hi.", f"{path}, line 3"),
    ]


def test_a_json_list_of_pairs(tmp_path):
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps([{"source": "a", "target": "b"}], indent=2))
    assert read_pairs(path).samples == [Pair("a", "b", f"{path}, record 1")]


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"source": "a"}, "the target is missing; expected a text"),
        ({"source": 3, "target": "b"}, "the source is 3; expected a text"),
        ({"source": "a", "target": None}, "the target is null"),
        ({"source": "a", "target": " \n"}, "the target is empty; write one or drop the record"),
        ({"source": "", "target": "b"}, "the source is empty"),
        ({"source": "\ud800", "target": "b"}, "half of a surrogate pair"),
        ({"text": "a"}, 'neither "source" and "target" nor "messages"'),
        ({"source": "a", "target": "b", "messages": []}, "both texts and a dialogue"),
        (["a", "b"], "the record is a list of 2; expected an object"),
        ('{"source": "a", "target": }', "broken JSON at column 27"),
        (dialogue(("user", "a")), "there is no answer"),
        (dialogue(("user", "<image>a"), ("assistant", "b")), "1 <image> marks"),
        (dialogue(("user", "<image>a"), ("assistant", "b"), images=["x.png"]), "has pictures"),
        (dialogue(*[("user", "a"), ("assistant", "b")] * 2), "make a record of each"),
    ],
)
def test_a_wrong_record_is_named_with_its_line_and_remedy(write, record, problem):
    path = write({"source": "a", "target": "b"}, record)
    with pytest.raises(DataError) as caught:
        read_pairs(path)
    (line,) = caught.value.problems
    assert line.startswith(f"{path}, line 2: ") and problem in line
    assert "--skip_bad_records" in str(caught.value)
    pairs = read_pairs(path, skip_bad_records=True)
    assert len(pairs) == 1 and pairs.problems == [line] and pairs.skipped == 1


def test_all_problems_are_told_at_once_and_a_file_of_them_alone_fails(write, capsys):
    path = write({"source": "a"}, {"target": "b"}, {"source": "a", "target": "b"})
    with pytest.raises(DataError) as caught:
        read_pairs(path)
    assert [line.split(": ")[0] for line in caught.value.problems] == [
        f"{path}, line 1",
        f"{path}, line 2",
    ]
    read_pairs(path, skip_bad_records=True)
    assert "2 of 3 records left out" in capsys.readouterr().err
    with pytest.raises(DataError, match="No usable record is left"):
        read_pairs(write({"source": "a"}), skip_bad_records=True)
    with pytest.raises(UserError, match="does not exist"):
        read_pairs("nowhere.jsonl")


def test_import_loads_no_torch():
    code = "import sys, tuninglab.data.reading.pairs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
