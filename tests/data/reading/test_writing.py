import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tuninglab.data.images import load_image
from tuninglab.data.picture_files import confined_path
from tuninglab.data.reading import picture_values, writing
from tuninglab.data.reading.formats import format_of, samples_of
from tuninglab.data.reading.found import Reading
from tuninglab.data.reading.opening import read_samples
from tuninglab.data.reading.slices import Slice
from tuninglab.data.reading.writing import write_samples
from tuninglab.data.sample import Sample
from tuninglab.errors import UserError, WorkError

ASKED = [{"role": "user", "content": "<image>Q?"}, {"role": "assistant", "content": "A."}]


def read(path):
    """The samples of a file of messages, their pictures as they stand there."""
    lines = path.read_text(encoding="utf-8").split("\n")
    assert lines.pop() == ""
    records = [json.loads(line) for line in lines]
    assert {format_of(record).name for record in records} <= {"messages"}
    return [s for record in records for s in samples_of(record, "sample", Reading())]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SAID = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)
PARTS = st.lists(
    st.just({"type": "image"}) | TEXT.map(lambda text: {"type": "text", "text": text}), max_size=3
)


@st.composite
def any_samples(draw):
    messages = []
    if draw(st.booleans()):
        system = draw(TEXT).replace("<image>", "")
        messages.append({"role": "system", "content": system})
    for _ in range(draw(st.integers(1, 3))):
        asked = [*draw(PARTS), {"type": "text", "text": draw(SAID)}]
        said = [{"type": "text", "text": draw(SAID)}, {"type": "text", "text": draw(TEXT)}]
        learned = draw(st.sampled_from([{}, {"loss": True}, {"loss": False}]))
        messages.append({"role": "user", "content": asked})
        messages.append({"role": "assistant", "content": said} | learned)
    messages[-1].pop("loss", None)
    count = sum(p == {"type": "image"} for m in messages for p in m["content"])
    pictures = draw(st.lists(st.binary(max_size=8), min_size=count, max_size=count))
    kind, name = draw(st.none() | TEXT), draw(st.none() | TEXT)
    return Sample(messages, pictures, "sample", kind, name, draw(st.lists(TEXT, max_size=3)))


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(samples=st.lists(any_samples(), max_size=3))
def test_samples_come_back_equal(tmp_path, samples):
    path = tmp_path / "out.jsonl"
    write_samples(samples, path)
    assert read(path) == samples


def test_files_below_the_folder_are_named_and_others_written_out(tmp_path, monkeypatch):
    folder, elsewhere = tmp_path / "set", tmp_path / "other"
    (folder / "子").mkdir(parents=True)
    elsewhere.mkdir()
    near, far = folder / "子" / "a b.png", elsewhere / "a.png"
    Image.new("RGB", (4, 3), "red").save(near)
    Image.new("RGB", (4, 3), "blue").save(far)
    (folder / "link.png").symlink_to(far)
    (folder / "data:a.png").write_bytes(far.read_bytes())
    (tmp_path / "all.tar").write_bytes(b"head" + far.read_bytes() + b"tail")
    stored = Slice(tmp_path / "all.tar", 4, far.stat().st_size, "a.png")
    drawn = Image.new("CMYK", (4, 3), (0, 0, 200, 0))
    monkeypatch.chdir(folder)
    pictures = [
        *(near, str(near), "子/../子/a b.png", confined_path("子/a b.png", folder)),
        *(far, folder / "link.png", folder / "data:a.png", stored, far.read_bytes()),
        drawn,
    ]
    for path in (folder / "out.jsonl", "out.jsonl"):
        write_samples([Sample(ASKED, [picture]) for picture in pictures], path)
        found = [sample.images[0] for sample in read(folder / "out.jsonl")]
        assert found[:4] == ["子/a b.png"] * 4
        assert found[4:-1] == [far.read_bytes()] * 5
        assert np.asarray(load_image(found[-1])).tolist() == np.asarray(load_image(drawn)).tolist()
        # And so they are found, without an image root.
        whole = read_samples(folder / "out.jsonl")
        assert [s.images[0] for s in whole[:4]] == [near] * 4
        assert [s.images[0].read() for s in whole[4:]] == found[4:]
    # Elsewhere there is no file to name.
    write_samples([Sample(ASKED, [near])], elsewhere / "out.jsonl")
    assert read(elsewhere / "out.jsonl")[0].images == [near.read_bytes()]


def test_what_cannot_be_written_is_told_and_the_old_file_stays(tmp_path, monkeypatch):
    path = tmp_path / "set" / "out.jsonl"
    path.parent.mkdir()
    write_samples([Sample(ASKED, ["a.png"])] * 0, path)
    assert read(path) == []
    write_samples([Sample(ASKED, [b"1"])], path)
    old = path.read_bytes()
    for module in (writing, picture_values):
        monkeypatch.setattr(module, "MAX_INLINE", 10)
    (tmp_path / "large.png").write_bytes(bytes(11))
    good = Sample(ASKED, [b"0123456789"])
    for picture in (bytes(11), tmp_path / "large.png", Slice(tmp_path / "large.png", 0, 11, "x")):
        with pytest.raises(UserError, match=f"too large to be written out .*{path.parent}"):
            write_samples([good, Sample(ASKED, [picture])], path)
    with pytest.raises(UserError, match="does not exist"):
        write_samples([Sample(ASKED, [tmp_path / "none.png"])], path)
    assert path.read_bytes() == old
    assert [entry.name for entry in path.parent.iterdir()] == ["out.jsonl"]
    write_samples([good], path)
    assert read(path) == [good]
    with pytest.raises(WorkError, match="could not be written"):
        write_samples([good], tmp_path / "none" / "out.jsonl")
