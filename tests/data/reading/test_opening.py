"""What was read once is kept for as long as it stays so, for any process, in little memory."""

import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.data.reading.shards import write_tar
from tuninglab.config.data import DataPart
from tuninglab.data.reading import entries, opening
from tuninglab.data.reading.opening import Wishes, open_part, open_stored, read_samples
from tuninglab.errors import DataError, UserError, WorkError


def record(number, picture=None, answer="yes"):
    content = ("<image>" if picture else "") + f"is it {number}?"
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    return {"messages": turns, "images": [picture] if picture else []}


@pytest.fixture
def data(tmp_path):
    """Four records on two pictures."""
    for name in ("a", "b"):
        Image.new("RGB", (9, 7), "red" if name == "a" else "blue").save(tmp_path / f"{name}.png")
    path = tmp_path / "my.jsonl"
    lines = [record(n, "ab"[n % 2] + ".png") for n in range(4)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture
def builds(monkeypatch):
    """How often something was read from the start, as a list that grows."""
    found, build = [], opening.build
    monkeypatch.setattr(opening, "build", lambda *a: found.append(a[0]) or build(*a))
    return found


def test_what_was_read_is_read_again_from_where_it_is_kept(data, builds, capsys):
    first, again = read_samples(data), read_samples(data)
    assert len(builds) == 1
    assert list(first) == list(again) and first.content == again.content
    assert again[1].images[0].read_bytes() == (data.parent / "b.png").read_bytes()
    assert again[-1].origin == f"{data}, line 4"
    assert [s.origin for s in again[1:3]] == [f"{data}, line 2", f"{data}, line 3"]
    # Both say what they found.
    assert capsys.readouterr().err.count("4 records, 4 with 1 picture") == 2


def test_under_another_name_it_is_the_same_and_called_by_that_name(data, builds, monkeypatch):
    read_samples(data)
    monkeypatch.chdir(data.parent)
    assert [sample.origin for sample in read_samples("my.jsonl")][0] == "my.jsonl, line 1"
    assert len(builds) == 1


def test_changed_data_and_changed_pictures_are_read_anew(data, builds):
    before = read_samples(data)
    data.write_text(data.read_text() + "\n" + json.dumps(record(4)))
    grown = read_samples(data)
    assert (len(before), len(grown), len(builds)) == (4, 5, 2)
    Image.new("RGB", (9, 7), "green").save(data.parent / "a.png")
    recoloured = read_samples(data)
    assert len(builds) == 3 and recoloured.content != grown.content
    (data.parent / "a.png").unlink()
    with pytest.raises(DataError, match="line 1: picture .*a.png' does not exist"):
        read_samples(data)
    Image.new("RGB", (9, 7), "green").save(data.parent / "a.png")
    assert read_samples(data).content == recoloured.content


def test_pictures_that_stayed_are_not_decoded_again(data, monkeypatch):
    read_samples(data)
    data.write_text(data.read_text() + "\n" + json.dumps(record(4)))
    from tuninglab.data.reading import checking

    looked = []
    check = checking.check_picture
    monkeypatch.setattr(checking, "check_picture", lambda *a: looked.append(a[1]) or check(*a))
    Image.new("RGB", (9, 7), "green").save(data.parent / "b.png")
    read_samples(data)
    assert len(looked) == 1 and "b.png" in looked[0]


def test_wrong_records_are_remembered_too(data, builds, capsys):
    bad = record(9, "none.png"), record(8, answer=""), {"messages": []}
    data.write_text("\n".join([data.read_text(), *map(json.dumps, bad), "{broken"]))
    for _ in range(2):
        with pytest.raises(DataError) as raised:
            read_samples(data)
        told = str(raised.value).splitlines()
        assert [line.partition(":")[0] for line in told[:4]] == [
            f"{data}, line {n}" for n in (5, 6, 7, 8)
        ]
        assert len(builds) == 1
        left = read_samples(data, skip_bad_records=True)
        assert (len(left), left.skipped) == (4, 4)
    assert "4 of 8 records left out" in capsys.readouterr().err


def test_how_it_is_read_is_part_of_what_is_kept(data, builds, tmp_path):
    read_samples(data)
    (tmp_path / "else").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "else" / name).write_bytes((tmp_path / name).read_bytes())
    other = read_samples(data, image_root=tmp_path / "else")
    assert len(builds) == 2
    assert other[0].images[0] == tmp_path / "else" / "a.png"
    # The same pictures elsewhere: to a resumed run it is the same data.
    assert other.content == read_samples(data).content


@pytest.mark.parametrize("name", ["about.json", "samples.jsonl", "table.npz", "pictures.json"])
@pytest.mark.parametrize("left", [0, 10])
def test_what_is_damaged_is_read_anew(data, builds, name, left):
    samples = read_samples(data)
    before, path = list(samples), samples.folder / name
    path.write_bytes(path.read_bytes()[:left])
    assert list(read_samples(data)) == before
    assert len(builds) == 2


def test_a_line_that_was_changed_is_told_with_the_remedy(data):
    samples = read_samples(data)
    path = samples.folder / "samples.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"messages"', b'"messages,'))
    with pytest.raises(UserError, match="is damaged.*delete that folder"):
        samples[0]


def _ask(samples, results):
    results.put([sample.origin for sample in samples])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_read_through_a_descriptor_of_their_own(data, method):
    samples = read_samples(data)
    assert samples[0].origin == f"{data}, line 1"
    context = multiprocessing.get_context(method)
    results = context.Queue()
    process = context.Process(target=_ask, args=(samples, results))
    process.start()
    assert results.get(timeout=60) == [sample.origin for sample in samples]
    process.join()
    assert list(pickle.loads(pickle.dumps(samples))) == list(samples)


def test_two_processes_read_the_same_data_once(data, tmp_path):
    code = (
        "import sys, time; from tuninglab.data.reading import opening; build = opening.build\n"
        "def slow(*a):\n    print('built', flush=True); time.sleep(1); return build(*a)\n"
        "opening.build = slow; print(len(opening.read_samples(sys.argv[1])))"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code, data], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=120)[0].split() for process in both]
    assert sorted(map(len, said)) == [1, 2] and all(words[-1] == "4" for words in said)


def test_a_process_killed_while_it_reads_leaves_nothing_in_the_way(data):
    code = (
        "import sys, os; from tuninglab.data.reading import building, opening\n"
        "building._Building.result = lambda *a: os.kill(os.getpid(), 9)\n"
        "opening.read_samples(sys.argv[1])"
    )
    assert subprocess.run([sys.executable, "-c", code, data], check=False).returncode == -9
    assert len(read_samples(data)) == 4


def test_where_nothing_can_be_kept_it_works_all_the_same(data, monkeypatch, tmp_path, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv(entries.PLACE, str(tmp_path / "file" / "cache"))
    entries.kept_folder.cache_clear()
    try:
        assert len(read_samples(data)) == 4
        assert "is not kept for the next start" in capsys.readouterr().err
    finally:
        entries.kept_folder.cache_clear()


def test_a_limit_draws_by_the_seed_and_keeps_the_order_of_the_file(data):
    def origins(path, seed, limit=None):
        return [s.origin for s in open_part(DataPart(path, limit=limit), Wishes(seed=seed))]

    drawn = origins(f"{data}#2", 0)
    assert len(drawn) == 2 and drawn == sorted(drawn)
    assert drawn == origins(str(data), 0, 2)
    assert {tuple(origins(f"{data}#2", seed)) for seed in range(20)} > {tuple(drawn)}
    assert len(origins(f"{data}#9", 0)) == 4


def test_pictures_in_records_are_kept_once_and_byte_for_byte(data, tmp_path):
    from base64 import b64encode

    png = (tmp_path / "a.png").read_bytes()
    url = "data:image/png;base64," + b64encode(png).decode()
    data.write_text("\n".join(json.dumps(record(n, url)) for n in range(3)))
    samples = read_samples(data)
    assert [sample.images[0].read() for sample in samples] == [png] * 3
    assert (samples.folder / "own-pictures.bin").read_bytes() == png


# A damaged picture is found where it is read whole, one of which the header is fine is not
# otherwise; what is no picture at all is always found.
@pytest.mark.parametrize(("check", "wrong"), [(float("inf"), 3), (1, 2), (2, 3), (0, 2)])
def test_as_many_pictures_as_wanted_are_decoded(tmp_path, check, wrong):
    noise = Image.effect_noise((64, 64), 60).convert("RGB")
    noise.save(tmp_path / "0.jpg")
    noise.save(tmp_path / "1.jpg")
    whole = (tmp_path / "1.jpg").read_bytes()
    (tmp_path / "1.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "2.jpg").write_bytes(b"no picture")
    lines = [record(n, f"{n}.jpg") for n in range(4)]
    (tmp_path / "my.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(DataError) as raised:
        read_samples(tmp_path / "my.jsonl", check=check)
    assert len(raised.value.problems) == wrong


def test_a_record_costs_little_memory(tmp_path):
    """The peaks of two processes of their own that read 2,000 and 42,000 records."""
    Image.new("RGB", (9, 7), "red").save(tmp_path / "a.png")
    code = (
        "import sys; from tuninglab.data.reading.opening import read_samples\n"
        "samples = read_samples(sys.argv[1])\n"
        "for number in range(0, len(samples), 100): samples[number]\n"
        "print([line for line in open('/proc/self/status') if 'VmHWM' in line][0].split()[1])"
    )
    peaks = []
    for count in (2_000, 42_000):
        path = tmp_path / f"{count}.jsonl"
        path.write_text("\n".join(json.dumps(record(n, "a.png")) for n in range(count)))
        asked = [sys.executable, "-c", code, path]
        peaks.append(int(subprocess.run(asked, capture_output=True, check=True).stdout))
    assert (peaks[1] - peaks[0]) * 1024 / 40_000 < 1024


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(st.tuples(st.text(min_size=1), st.sampled_from(["a.png", None])), min_size=1))
def test_any_texts_come_back_as_they_were(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("texts")
    Image.new("RGB", (9, 7), "red").save(folder / "a.png")
    lines = [record("?", picture, answer=f"a{text}") for text, picture in rows]
    (folder / "my.json").write_text(json.dumps(lines))
    samples = read_samples(folder / "my.json")
    answers = [sample.messages[-1]["content"][0]["text"] for sample in samples]
    assert answers == [f"a{text}" for text, _ in rows]
    assert [len(sample.images) for sample in samples] == [
        picture is not None for _, picture in rows
    ]


def test_the_stamp_is_taken_before_reading(data, builds, monkeypatch):
    """A file that grows while it is read is not taken for known at the next start."""
    build = opening.build

    def grow(*words):
        built = build(*words)
        data.write_text(data.read_text() + "\n" + json.dumps(record(4)))
        os.utime(data, ns=(time.time_ns(), time.time_ns() + 10**9))
        return built

    monkeypatch.setattr(opening, "build", grow)
    assert len(read_samples(data)) == 4
    monkeypatch.setattr(opening, "build", build)
    assert len(read_samples(data)) == 5


def test_a_split_of_a_file_that_holds_several_is_read_by_its_name(tmp_path):
    sentences = [{"raw": "A cat.", "sentid": 1}]
    images = [
        {"filename": f"{split}.jpg", "split": split, "sentences": sentences, "cocoid": number}
        for number, split in enumerate(["train", "val", "restval"])
    ]
    for image in images:
        Image.new("RGB", (9, 7)).save(tmp_path / image["filename"])
    path = tmp_path / "dataset_coco.json"
    path.write_text(json.dumps({"images": images, "dataset": "coco"}))
    found = {split: read_samples(f"{path}{split}") for split in ("", ":val", ":train#1")}
    shown = {split: [s.images[0].name for s in samples] for split, samples in found.items()}
    assert shown == {
        "": ["train.jpg", "restval.jpg"],
        ":val": ["val.jpg"],
        ":train#1": shown[":train#1"],
    }
    assert len(shown[":train#1"]) == 1
    with pytest.raises(UserError, match="has no split 'test'; it has 'train', 'val'"):
        read_samples(f"{path}:test")


def test_a_split_of_what_has_none_is_refused(data, tmp_path):
    with pytest.raises(UserError, match="my.jsonl is a file, which has no splits; leave out :val"):
        read_samples(f"{data}:val")
    questions = {"questions": [{"question_id": 1, "image_id": 1, "question": "Q?"}]}
    answers = {"annotations": [{"question_id": 1, "image_id": 1, "answers": [{"answer": "a"}]}]}
    for name, value in (("q.json", questions), ("a.json", answers)):
        (tmp_path / name).write_text(json.dumps(value))
    with pytest.raises(UserError, match="has no splits; leave out :val"):
        read_samples(f"{tmp_path}/q.json+{tmp_path}/a.json:val")


def test_where_a_record_stands_is_said_whole_however_the_data_was_named(tmp_path, monkeypatch):
    text = json.dumps({"messages": record(1)["messages"]}).encode()
    for name in ("0.tar", "1.tar"):
        write_tar(tmp_path / name, [("a.json", text), ("b.json", b"{")])
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "2.tar").write_bytes((tmp_path / "0.tar").read_bytes())
    monkeypatch.chdir(tmp_path)
    for data, first, other in (
        ("{0..1}.tar", "0.tar", "1.tar"),
        ("rows", "rows/2.tar", None),
        (str(tmp_path / "rows"), f"{tmp_path}/rows/2.tar", None),
    ):
        # Built, and as it was kept.
        for _ in range(2):
            stored, _ = open_stored(DataPart(data), Wishes())
            files = [name for name in (first, other) if name]
            assert [sample.origin for sample in stored] == [f"{name}: a" for name in files]
            told = [problem.partition(": broken")[0] for problem in stored.problems]
            assert told == [f"{name}: b" for name in files]


def test_a_bad_picture_that_a_record_shows_often_is_told_once(tmp_path, capsys):
    path = tmp_path / "my.jsonl"
    path.write_text(
        json.dumps(record(1) | {"images": ["no.png"] * 3}).replace("is it", "<image>" * 3)
    )
    with pytest.raises(DataError) as raised:
        read_samples(path)
    assert str(raised.value).count("does not exist") == 1
    assert capsys.readouterr().err.startswith(f"{path}: messages")
    path.write_text('{"a": "b"}')
    with pytest.raises(DataError, match="no known format"):
        read_samples(path)
    # Of no format, nothing is said in its place.
    assert capsys.readouterr().err == f"{path}: 1 record.\n"


def test_what_was_read_is_kept_in_no_folder_of_everybody(
    data, builds, tmp_path, monkeypatch, capsys
):
    place = tmp_path / "shared"
    place.mkdir()
    place.chmod(0o777)
    monkeypatch.setenv(entries.PLACE, str(place))
    entries.kept_folder.cache_clear()
    try:
        read_samples(data)
        assert not list(place.iterdir())
        assert "can be written by everybody" in capsys.readouterr().err
        place.chmod(0o700)
        entries.kept_folder.cache_clear()
        first = read_samples(data)
        # A link in the place of the lock empties nothing.
        other, lock = tmp_path / "other", first.folder.with_name(f"{first.folder.name}.lock")
        other.write_text("mine")
        lock.unlink()
        lock.symlink_to(other)
        assert read_samples(data).content == first.content and other.read_text() == "mine"
    finally:
        entries.kept_folder.cache_clear()


def test_a_full_disk_says_how_to_keep_data_elsewhere(data, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(opening, "keep", full)
    with pytest.raises(WorkError, match="No space left .*TUNINGLAB_DATA_CACHE names a folder"):
        read_samples(data)
