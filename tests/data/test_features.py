"""A cache of features on disk: what counts as written, who may write, what it refuses."""

import json
import multiprocessing
import os
import signal
import time
from collections import namedtuple

import pytest
import torch
from PIL import Image

from tuninglab.data import features, looking
from tuninglab.data.features import filling, open_cache
from tuninglab.data.looking import content_digest, look_at
from tuninglab.errors import UserError, WorkError

SHAPE = (5, 3)
FORM = ("image_features", SHAPE, torch.bfloat16)
IDENTITY = {"level": "image_features", "dtype": "bfloat16", "tower": "a" * 64}


def picture(number: int) -> bytes:
    return b"picture %d" % number


def digests(*numbers: int) -> list[bytes]:
    return [content_digest(picture(number)) for number in numbers]


def values(*numbers: int, dtype=torch.bfloat16) -> torch.Tensor:
    """What stands for the features of pictures; no two rows are alike."""
    return torch.stack([torch.arange(15.0).view(SHAPE) + 100 * n for n in numbers]).to(dtype)


def reopened(folder, form=FORM):
    cache = open_cache(folder, IDENTITY, *form)
    cache.refresh()
    return cache


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_written_is_read_bit_by_bit(tmp_path, dtype):
    form = ("image_features", SHAPE, dtype)
    cache = open_cache(tmp_path / "new" / "folder", IDENTITY, *form)
    numbers = cache.free_rows(3)
    assert numbers == [0, 1, 2] and cache.row_bytes == 15 * dtype.itemsize
    odd = values(4, 5, 6, dtype=dtype)
    odd[0, 0] = torch.tensor([-0.0, float("inf"), 1e-7], dtype=dtype)
    cache.write(numbers, digests(4, 5, 6), odd)
    cache = reopened(cache.folder, form)
    found = cache.read([picture(6), picture(4)])
    assert found.dtype == dtype
    assert torch.equal(found.view(torch.uint8), odd[[2, 0]].view(torch.uint8))
    # The file is nothing but the rows.
    assert (cache.folder / "features.bin").read_bytes() == odd.view(torch.uint8).numpy().tobytes()
    assert torch.equal(cache.read([]), torch.zeros(1, *SHAPE, dtype=dtype))
    with pytest.raises(UserError, match="has no features"):
        cache.read([picture(7)])


def test_rows_of_other_processes_stay_between_ours(tmp_path):
    """Two shares of one filling, in any order of time."""
    first, second = (open_cache(tmp_path / "kept", IDENTITY, *FORM) for _ in range(2))
    numbers = first.free_rows(5)
    second.write(numbers[1::2], digests(1, 3), values(1, 3))
    # The first has written nothing yet, and may never: its rows are free.
    cache = reopened(tmp_path / "kept")
    assert sorted(cache.rows) == sorted(digests(1, 3)) and cache.free_rows(4) == [0, 2, 4, 5]
    first.write(numbers[0::2], digests(0, 2, 4), values(0, 2, 4))
    cache = reopened(tmp_path / "kept")
    assert torch.equal(cache.read([picture(n) for n in range(5)]), values(*range(5)))
    assert cache.free_rows(2) == [5, 6]


@pytest.mark.parametrize("name", ["features.bin", "index.bin"])
@pytest.mark.parametrize("missing", [1, 30, 45])
def test_what_was_cut_off_is_free_again(tmp_path, name, missing):
    cache = open_cache(tmp_path / "kept", IDENTITY, *FORM)
    cache.write([0, 1, 2], digests(0, 1, 2), values(0, 1, 2))
    file = tmp_path / "kept" / name
    row = 30 if name == "features.bin" else 36
    os.truncate(file, file.stat().st_size - missing)
    left = (3 * row - missing) // row
    cache = reopened(tmp_path / "kept")
    assert sorted(cache.rows) == sorted(digests(*range(left)))
    assert cache.free_rows(2) == [left, left + 1]
    cache.write([left], digests(9), values(9))
    cache = reopened(tmp_path / "kept")
    assert torch.equal(cache.read([picture(0), picture(9)]), values(0, 9))


@pytest.mark.parametrize("row", [0, 1, 2])
def test_a_row_that_is_no_longer_what_was_written_is_told(tmp_path, row):
    cache = open_cache(tmp_path / "kept", IDENTITY, *FORM)
    cache.write([0, 1, 2], digests(0, 1, 2), values(0, 1, 2))
    file = tmp_path / "kept" / "features.bin"
    content = bytearray(file.read_bytes())
    content[30 * row + 7] ^= 1
    file.write_bytes(content)
    cache = reopened(tmp_path / "kept")
    others = [n for n in range(3) if n != row]
    assert torch.equal(cache.read([picture(n) for n in others]), values(*others))
    wanted = rf"features.bin: row {row} \(from byte {30 * row}\) is not .* Delete .*kept and start"
    with pytest.raises(UserError, match=wanted) as told:
        cache.read([picture(row)])
    assert told.value.exit_code == 2


def test_what_the_system_refuses_is_told_without_its_numbers(tmp_path, monkeypatch):
    cache = open_cache(tmp_path, IDENTITY, *FORM)
    cache.write([0], digests(0), values(0))
    cache = reopened(tmp_path)

    def refuse(*args, **more):
        raise PermissionError(13, "Permission denied", "somewhere")

    def told(message):
        return pytest.raises(UserError, match=rf"^(?!.*Errno){message}")

    with monkeypatch.context() as patch:
        patch.setattr(features.np, "fromfile", refuse)
        with told("/.*features.bin cannot be read: Permission denied. Allow"):
            cache.read([picture(0)])
        with told("/.*index.bin cannot be read: Permission denied. Allow"):
            cache.refresh()
    with monkeypatch.context() as patch:
        patch.setattr(features.fcntl, "flock", refuse)
        with told("--cache_features .* cannot be used: Permission denied. Name a folder"):
            with filling(tmp_path):
                pass
    (tmp_path / "file").write_text("")
    for use in (lambda f: open_cache(f, IDENTITY, *FORM), lambda f: filling(f).__enter__()):
        with told("--cache_features .* cannot be used: Not a directory. Name a folder"):
            use(tmp_path / "file" / "cache")


def _killed(folder, place):
    """A process that dies in the middle of a write: of a row, or between the row and its index."""
    cache = open_cache(folder, IDENTITY, *FORM)
    cache.write([0, 1], digests(0, 1), values(0, 1))
    put = features.FeatureCache._put

    def die(self, name, size, numbers, rows):
        if name == "features.bin" and place == "row":
            with open(self.folder / name, "r+b") as file:
                file.seek(numbers[0] * size)
                file.write(bytes(rows[0])[: size // 2])
        if name == "index.bin" or place == "row":
            os.kill(os.getpid(), signal.SIGKILL)
        put(self, name, size, numbers, rows)

    features.FeatureCache._put = die
    with filling(folder):
        cache.write([2, 3], digests(2, 3), values(2, 3))


@pytest.mark.slow
@pytest.mark.parametrize("place", ["row", "index"])
def test_a_killed_process_leaves_what_it_finished(tmp_path, place):
    process = multiprocessing.get_context("spawn").Process(
        target=_killed, args=(tmp_path / "kept", place)
    )
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    cache = reopened(tmp_path / "kept")
    assert sorted(cache.rows) == sorted(digests(0, 1))
    assert cache.free_rows(2) == [2, 3]
    # Nor does its lock keep anybody out.
    with filling(tmp_path / "kept"):
        cache.write([2, 3], digests(2, 3), values(2, 3))
    assert torch.equal(
        reopened(tmp_path / "kept").read(list(map(picture, range(4)))), values(0, 1, 2, 3)
    )


def _fill(folder, first, queue):
    """A run of its own: it writes what the cache lacks of six pictures, slowly."""
    with filling(folder):
        cache = reopened(folder)
        wanted = range(first, first + 6)
        missing = [
            n
            for n, digest in zip(wanted, digests(*wanted), strict=True)
            if digest not in cache.rows
        ]
        for number, row in zip(missing, cache.free_rows(len(missing)), strict=True):
            cache.write([row], digests(number), values(number))
            time.sleep(0.05)
        queue.put(len(missing))


@pytest.mark.slow
def test_two_runs_at_once_write_each_picture_once(tmp_path):
    """Pictures 0 to 5 and 3 to 8: whoever comes second writes three."""
    spawn = multiprocessing.get_context("spawn")
    queue = spawn.Queue()
    runs = [spawn.Process(target=_fill, args=(tmp_path / "kept", n, queue)) for n in (0, 3)]
    for run in runs:
        run.start()
    written = sorted(queue.get(timeout=60) for _ in runs)
    for run in runs:
        run.join(60)
    assert written == [3, 6] and [run.exitcode for run in runs] == [0, 0]
    cache = reopened(tmp_path / "kept")
    assert torch.equal(cache.read(list(map(picture, range(9)))), values(*range(9)))
    assert (tmp_path / "kept" / "features.bin").stat().st_size == 9 * 30


def test_a_cache_of_another_identity_is_refused(tmp_path):
    open_cache(tmp_path, IDENTITY, *FORM)
    for change, named in (
        ({"dtype": "float32"}, "dtype differ .dtype bfloat16 there, float32 here"),
        ({"tower": "b" * 64, "dtype": "float32"}, "dtype, tower differ"),
        ({"tower": "b" * 64}, "tower differ .tower aaaaaaaaaaaa... there, bbbbbbbbbbbb... here"),
        ({"more": [1]}, "more differ .more null there"),
    ):
        with pytest.raises(UserError, match=named):
            open_cache(tmp_path, IDENTITY | change, *FORM)
    with pytest.raises(UserError, match="tower differ"):
        open_cache(tmp_path, {k: v for k, v in IDENTITY.items() if k != "tower"}, *FORM)


@pytest.mark.parametrize(
    ("name", "text"),
    [("notes.txt", "mine"), ("features.bin", "mine"), ("cache.json", "{"), ("cache.json", "[1]")],
)
def test_a_folder_that_is_no_cache_is_left_alone(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match="is no feature cache"):
        open_cache(tmp_path, IDENTITY, *FORM)
    assert [(f.name, f.read_text()) for f in tmp_path.iterdir()] == [(name, text)]
    with pytest.raises(UserError, match="cannot be used: File exists. Name a folder"):
        open_cache(tmp_path / name, IDENTITY, *FORM)
    with (
        pytest.raises(UserError, match="cannot be used: File exists. Name a folder"),
        filling(tmp_path / name),
    ):
        pass


def test_a_cache_that_was_hardly_begun_is_begun_again(tmp_path):
    (tmp_path / ".cache.json.writing").write_text('{"lev')
    open_cache(tmp_path, IDENTITY, *FORM)
    assert json.loads((tmp_path / "cache.json").read_text()) == IDENTITY


def test_size_is_told_and_refused_where_the_disk_lacks_room(tmp_path, monkeypatch):
    cache = open_cache(tmp_path, IDENTITY, "image_features", (64, 256), torch.bfloat16)
    assert cache.check_space(2000) == "2,000 pictures x 32 KiB = 62.5 MiB"
    Usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(features.shutil, "disk_usage", lambda path: Usage(0, 0, 62 * 2**20))
    with pytest.raises(UserError, match="62.5 MiB, but .* has room for 62 MiB"):
        cache.check_space(2000)
    cache.check_space(1984)


def test_a_disk_that_fills_up_is_told(tmp_path, monkeypatch):
    cache = open_cache(tmp_path, IDENTITY, *FORM)
    cache.write([0], digests(0), values(0))

    def full(file):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(WorkError, match="No space left"):
        patch.setattr(features.os, "fsync", full)
        cache.write([1], digests(1), values(1))
    assert sorted(reopened(tmp_path).rows) == digests(0)


def test_a_file_is_hashed_once_until_it_changes(tmp_path, monkeypatch):
    cache = open_cache(tmp_path / "kept", IDENTITY, *FORM)
    file = tmp_path / "a.png"
    Image.new("RGB", (4, 4), "red").save(file)
    first = look_at(file, cache.stamps())
    cache.remember({str(first.file): [*first.stamp, first.digest.hex()]})
    hashed = []
    monkeypatch.setattr(looking, "picture_digest", lambda image: hashed.append(image) or "00" * 32)
    assert look_at(file, cache.stamps()) == first and hashed == []
    # Of the same size, but written later; and another one of another size at the same time.
    os.utime(file, ns=(first.stamp[1], first.stamp[1] + 1))
    assert look_at(file, cache.stamps()).digest == bytes(32) and hashed == [file]
    file.write_bytes(file.read_bytes() + b"\0")
    os.utime(file, ns=(first.stamp[1], first.stamp[1]))
    assert look_at(file, cache.stamps()).digest == bytes(32) and len(hashed) == 2
    # What it remembers is no promise.
    (tmp_path / "kept" / "files.json").write_text("{")
    assert cache.stamps() == {}
    with pytest.raises(UserError, match="does not exist"):
        look_at(tmp_path / "gone.png", {})


def test_a_picture_in_memory_is_known_by_its_colours():
    """Palettes: the numbers of the pixels are the same, what they show is not."""
    red, blue = (Image.new("P", (2, 2)) for _ in range(2))
    red.putpalette([255, 0, 0])
    blue.putpalette([0, 0, 255])
    assert red.tobytes() == blue.tobytes()
    assert content_digest(red) != content_digest(blue)
    assert content_digest(red) == content_digest(Image.new("RGB", (2, 2), (255, 0, 0)))
    assert content_digest(red) != content_digest(Image.new("RGB", (4, 1), (255, 0, 0)))
