import io
import json
import multiprocessing
import os
import pickle
import re
import tarfile
from operator import methodcaller

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.reading.shards import picture, records, with_bytes, write_tar
from tuninglab.data.reading import tar_members, tars
from tuninglab.data.reading.found import Reading
from tuninglab.data.reading.opening import read_samples
from tuninglab.data.reading.tar_members import members, opened
from tuninglab.data.reading.tars import expanded, tar_shards
from tuninglab.errors import DataError, UserError


def read(path, reading=None):
    return records(tar_shards([path]), reading)


def test_captions_are_records_in_order_and_pictures_are_read_where_they_lie(tmp_path):
    path = write_tar(
        tmp_path / "a.tar",
        [
            ("set/0001.jpg", picture(1)),
            ("set/0001.txt", b"a cat\r\n"),
            ("set/0002.WebP", picture(2)),
            ("set/0002.caption", "ein Käfer".encode()),
        ],
    )
    assert read(path) == [
        {"id": "set/0001", "text": "a cat", "image": picture(1)},
        {"id": "set/0002", "text": "ein Käfer", "image": picture(2)},
    ]
    (origin, record), _ = tar_shards([path]).records(Reading())
    assert origin == f"{path}: set/0001"
    assert record["image"].name == f"{path}: set/0001.jpg" and record["image"].group is None


def test_the_key_ends_at_the_first_dot_of_the_base_name(tmp_path):
    path = write_tar(
        tmp_path / "a.tar",
        [("v1.0/a.b.jpg", picture(1)), ("v1.0/a.txt", b"x"), ("README", b"?"), ("q/.hidden", b"?")],
    )
    reading = Reading()
    assert read(path, reading) == [{"id": "v1.0/a", "text": "x", "image": picture(1)}]
    assert reading.notes == {tars.NO_KEY: 2}


def test_several_pictures_come_by_number(tmp_path):
    several = [(f"a.{number}.png", picture(number)) for number in (0, 1, 10, 2)]
    path = write_tar(tmp_path / "a.tar", [*several, ("a.txt", b"four")])
    assert read(path)[0]["images"] == [picture(number) for number in (0, 1, 2, 10)]
    named = [(f"b.{name}.png", picture(i)) for i, name in enumerate(("right", "left"))]
    path = write_tar(tmp_path / "b.tar", [*named, ("b.txt", b"two")])
    assert read(path)[0]["images"] == [picture(0), picture(1)]


def test_json_is_a_whole_record_or_about_the_picture(tmp_path):
    messages = [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "Yes."}]
    turns = [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "Yes."}]
    whole = [
        {"messages": messages},
        {"id": "mine", "messages": messages, "images": ["c.0.jpg"]},
        turns,
        {"image": "coco/elsewhere.jpg", "conversations": turns},
    ]
    files = [("a.jpg", picture(9)), ("a.json", b'{"width": 5}'), ("a.txt", b"a cat")]
    for name, record in zip("bcde", whole, strict=True):
        files += [(f"{name}.0.jpg", picture(1)), (f"{name}.json", json.dumps(record).encode())]
    assert read(write_tar(tmp_path / "a.tar", files)) == [
        {"id": "a", "text": "a cat", "image": picture(9)},
        {"id": "b", "messages": messages, "image": picture(1)},
        {"id": "mine", "messages": messages, "image": picture(1)},
        {"id": "d", "conversations": turns, "image": picture(1)},
        {"id": "e", "conversations": turns, "image": picture(1)},
    ]


def test_pictures_are_put_in_the_order_in_which_the_record_names_them(tmp_path):
    record = {"messages": [], "images": ["x/a.right.jpg", "left.jpg"]}
    files = [("a.left.jpg", picture(1)), ("a.right.jpg", picture(2))]
    path = write_tar(tmp_path / "a.tar", [*files, ("a.json", json.dumps(record).encode())])
    assert read(path)[0]["images"] == [picture(2), picture(1)]


def test_img2dataset_without_captions_counts_what_it_leaves_out(tmp_path):
    about = {"key": "0", "status": "success", "url": "http://x", "caption": None, "width": 5}
    kept = about | {"key": "2", "caption": "a dog"}
    files = [
        ("0.jpg", picture(0)),
        ("0.json", json.dumps(about, indent=4).encode()),
        ("1.jpg", picture(1)),
        ("2.jpg", picture(2)),
        ("2.json", json.dumps(kept, indent=4).encode()),
        ("3.jpg", picture(3)),
        ("3.txt", b""),
        ("4.txt", b"no picture"),
        ("5.jpg", picture(5)),
        ("5.txt", b"five"),
        ("5.npy", b"numbers"),
        ("6.jpg", picture(6)),
        ("6.txt", b" \n"),
    ]
    reading = Reading()
    assert read(write_tar(tmp_path / "a.tar", files), reading) == [
        {"id": "2", "text": "a dog", "image": picture(2)},
        {"id": "5", "text": "five", "image": picture(5)},
    ]
    assert reading.notes == {
        "pictures without a caption left out": 4,
        "captions without a picture left out": 1,
        "files .npy not read": 1,
    }


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([("a.json", b"{")], "broken JSON"),
        ([("a.json", b"[1]")], "holds a list of 1; expected an object"),
        ([("a.json", b"[" * 100_000)], "nested too deeply"),
        ([("a.jpg", b""), ("a.txt", b"\xff")], "not UTF-8"),
        ([("a.mp4", b""), ("a.txt", b"x")], ".mp4 is film or sound"),
        ([("a.txt", b"x"), ("a.caption", b"y")], "several texts"),
        ([("a.jpg", b"x"), ("a.jpg", b"y"), ("a.txt", b"")], "jpg more than once"),
        ([("a.jpg", b"x"), ("a.txt", b"x"), ("a.json", b'{"messages": []}')], "both hold"),
        ([("a.jpg", b"x"), ("a.json", b'{"images": ["b", "c"]}')], "names 2 pictures, but 1 lie"),
        ([("a.jpg", b"x"), ("a.json", b'{"images": ["b"], "image": "b"}')], "keep one of the two"),
    ],
)
def test_a_broken_sample_is_one_bad_record_among_others(tmp_path, files, said):
    good = [("z.jpg", picture(1)), ("z.txt", b"z")]
    bad, fine = read(write_tar(tmp_path / "a.tar", files + good))
    assert said in bad
    assert fine["text"] == "z"


def test_members_of_a_sample_that_stand_apart_are_told(tmp_path):
    files = [("a.jpg", picture(1)), ("b.jpg", picture(2)), ("a.txt", b"a"), ("b.txt", b"b")]
    found = read(write_tar(tmp_path / "a.tar", files))
    assert len(found) == 2 and all("stand apart" in one and "--sort=name" in one for one in found)


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_links_are_not_followed(tmp_path, kind):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("a.jpg")
        link.type, link.linkname = kind, "/etc/passwd"
        tar.addfile(link)
        for name, content in (("a.txt", b"a"), ("b.jpg", picture(1)), ("b.txt", b"b")):
            about = tarfile.TarInfo(name)
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))
    bad, fine = read(path)
    assert "a.jpg is a link" in bad and fine["text"] == "b"


def test_what_has_no_bytes_of_its_own_is_refused(tmp_path):
    for kind in (b"S", b"M", b"Q"):
        path = tmp_path / "a.tar"
        with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
            about = tarfile.TarInfo("a.jpg")
            about.type = kind
            tar.fileobj.write(about.tobuf(tarfile.GNU_FORMAT))
        with pytest.raises(UserError, match=r"a\.jpg is (sparse|of kind)"):
            read(path)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        about = tarfile.TarInfo("a.jpg")
        about.pax_headers = {"GNU.sparse.major": "1"}
        tar.addfile(about)
    with pytest.raises(UserError, match=r"GNU\.sparse"):
        read(path)


def test_a_tar_that_is_cut_off_anywhere_is_named(tmp_path):
    files = [("a.jpg", b"x" * 700), ("a.txt", b"a"), ("n" * 150 + ".txt", b"b")]
    whole = write_tar(tmp_path / "whole.tar", files, format=tarfile.PAX_FORMAT).read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as tar:
        begins = {one.offset for one in tar.getmembers()}
    path = tmp_path / "a.tar"
    for size in {*range(1, whole.rindex(b"b") + 512, 37), *begins - {0}}:
        path.write_bytes(whole[:size])
        # Where a member ends it looks like the end of a tar without a mark of its end.
        if size in begins:
            read(path)
            continue
        with pytest.raises(UserError, match=re.escape(str(path))):
            read(path)
    path.write_bytes(whole[: 512 + 600])
    with pytest.raises(UserError, match=r"a\.tar is cut off in a\.jpg: 100 bytes are missing"):
        read(path)


def test_joined_tars_are_told_and_not_read_in_half(tmp_path):
    one = write_tar(tmp_path / "1.tar", [("a.jpg", picture(1)), ("a.txt", b"a")])
    two = write_tar(tmp_path / "2.tar", [("b.jpg", picture(1)), ("b.txt", b"b")])
    (tmp_path / "both.tar").write_bytes(one.read_bytes() + two.read_bytes())
    with pytest.raises(UserError, match="joined by `cat`"):
        read(tmp_path / "both.tar")


def test_other_files_are_no_tar(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(b"x" * 2000)
    with pytest.raises(UserError, match=r"a\.tar is no tar"):
        read(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="no regular file"):
        read(path)


def test_large_sizes_are_binary_numbers(tmp_path):
    about = tarfile.TarInfo("a.jpg")
    about.size = 2**40
    header = about.tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "a.tar").write_bytes(header + b"x" * 512)
    with pytest.raises(UserError, match=f"{2**40 - 512:,} bytes are missing"):
        read(tmp_path / "a.tar")


def test_braces_stand_for_numbers_and_words(tmp_path):
    for name in ("t-098", "t-099", "t-100", "v-098", "v-099", "v-100"):
        write_tar(tmp_path / f"{name}.tar", [(f"{name}.jpg", picture(1)), (f"{name}.txt", b"x")])
    files = expanded(f"{tmp_path}/{{t,v}}-{{098..100}}.tar")
    names = [file.stem for file in files]
    assert names == ["t-098", "t-099", "t-100", "v-098", "v-099", "v-100"]
    assert [record["id"] for record in records(tar_shards(files))] == names
    for wrong, said in {
        "t-{098..101}.tar": "1 of the 4 files",
        "t-{100..098}.tar": r"write \{098\.\.100\}",
        "{0..999999999}.tar": "more than 1,000,000",
        "{0..9999}{0..9999}.tar": "more than 1,000,000",
    }.items():
        with pytest.raises(UserError, match=said):
            expanded(f"{tmp_path}/{wrong}")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_pictures_are_read_in_other_processes(tmp_path, method):
    path = write_tar(tmp_path / "a.tar", [("a.jpg", picture(1)), ("a.txt", b"a")])
    ((_, record),) = tar_shards([path]).records(Reading())
    assert pickle.loads(pickle.dumps(record["image"])) == record["image"]
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(methodcaller("read"), (record["image"],)) == picture(1)


def test_a_tar_that_became_shorter_is_named(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("a.jpg", picture(1)), ("a.txt", b"a")])
    ((_, record),) = tar_shards([path]).records(Reading())
    os.truncate(path, 520)
    with pytest.raises(UserError, match=r"a\.tar has changed"):
        record["image"].read()


NAMES = st.one_of(
    st.text("abz.é/", min_size=1, max_size=9).map(lambda name: "d" + name),
    st.tuples(st.text("xy", min_size=1, max_size=2), st.sampled_from(["jpg", "txt", "0.png"])).map(
        lambda parts: "k" * 120 + "/" + "m" * 90 + ".".join(parts)
    ),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    st.lists(st.tuples(NAMES, st.binary(max_size=1100), st.sampled_from("ffffdls")), max_size=9),
    st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_members_are_those_of_tarfile(tmp_path, files, form):
    path = tmp_path / "a.tar"
    kinds = {"d": tarfile.DIRTYPE, "l": tarfile.LNKTYPE, "s": tarfile.SYMTYPE, "f": tarfile.REGTYPE}
    with tarfile.open(path, "w", format=form) as tar:
        for name, content, kind in files:
            about = tarfile.TarInfo(name)
            about.type, about.size = kinds[kind], len(content) if kind == "f" else 0
            about.linkname = name * 9 if form != tarfile.USTAR_FORMAT else "x"
            tar.addfile(about, io.BytesIO(content))
    with tarfile.open(path) as tar:
        expected = [
            (one.name, one.offset_data, one.size, not one.isreg())
            for one in tar.getmembers()
            if not one.isdir()
        ]
    with opened(path) as descriptor:
        found = list(members(descriptor, path))
    # tarfile drops a slash at the end of some names and not of others.
    found = [(one.name.rstrip("/"), *one[1:]) for one in found]
    assert found == [(name.rstrip("/"), *rest) for name, *rest in expected]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["jpg", "txt", "json"]))))
def test_samples_are_what_grouping_by_hand_gives(tmp_path, order):
    files = [(f"{key}.{kind}", b'{"t": 1}' if kind == "json" else b"x") for key, kind in order]
    found = list(tar_shards([write_tar(tmp_path / "a.tar", files)]).records(Reading()))
    runs = []  # by hand: members of one key that follow each other
    for key, kind in order:
        if runs and runs[-1][0] == key:
            runs[-1][1].append(kind)
        else:
            runs.append((key, [kind]))
    expected = []
    for place, (key, kinds) in enumerate(runs):
        bad = len(set(kinds)) < len(kinds) or key in [one for one, _ in runs[:place]]
        whole = "json" in kinds if "txt" not in kinds else "jpg" in kinds
        expected += [(key, bad)] if bad or whole else []
    assert [(o.rpartition(" ")[2], isinstance(r, ValueError)) for o, r in found] == expected


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(st.integers(0, 3000), st.binary(min_size=1, max_size=20))
def test_damage_is_a_message_or_nothing(tmp_path, place, damage):
    files = [("a.jpg", picture(1)), ("a.txt", b"a"), ("n" * 200 + ".txt", b"b")]
    path = write_tar(tmp_path / "a.tar", files, format=tarfile.PAX_FORMAT)
    content = bytearray(path.read_bytes())
    content[place : place + len(damage)] = damage
    path.write_bytes(content)
    try:
        for _, record in tar_shards([path]).records(Reading()):
            with_bytes(record)
    except UserError as error:
        assert "a.tar" in str(error)


def test_names_that_are_not_utf_8_can_be_written(tmp_path):
    name = b"\xff".decode("utf-8", "surrogateescape")
    files = [(f"{name}.jpg", picture(1)), (f"{name}.txt", b"a")]
    path = write_tar(tmp_path / "a.tar", files, format=tarfile.GNU_FORMAT)
    ((origin, record),) = tar_shards([path]).records(Reading())
    assert origin.encode().endswith(b"udcff") and record["id"] == "\\udcff"
    assert record["image"].read() == picture(1)


def test_a_header_may_have_signed_sums(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("ä.jpg", picture(1)), ("ä.txt", b"a")])
    content = bytearray(path.read_bytes())
    header = content[:512]
    header[148:156] = b" " * 8
    signed = sum(byte - 256 * (byte > 127) for byte in header)
    content[148:156] = f"{signed:06o}\0 ".encode()
    path.write_bytes(content)
    assert len(read(path)) == 1
    assert tar_members._number(b"\x80" + bytes(10) + b"\x07") == 7


def test_a_member_that_claims_more_than_a_picture_has_is_not_read(tmp_path):
    # A tar with a hole: it takes no room on the disk.
    file, size = tmp_path / "a.tar", 2**34
    about = tarfile.TarInfo("a.jpg")
    about.size = size
    with file.open("wb") as opened:
        opened.write(about.tobuf(tarfile.GNU_FORMAT))
        opened.truncate(512 + size)
    write_tar(tmp_path / "rest.tar", [("a.txt", b"red")])
    with file.open("ab") as opened:
        opened.write((tmp_path / "rest.tar").read_bytes())
    with pytest.raises(DataError, match=r"a.tar: a.jpg is larger than 512 MiB"):
        read_samples(file)
