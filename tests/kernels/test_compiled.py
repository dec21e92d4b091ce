"""The C kernels: built once, for this CPU, and done without where they cannot be built."""

import os
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch

from tuninglab.kernels import cache
from tuninglab.kernels import compiled as library
from tuninglab.kernels.dispatch import in_c
from tuninglab.savers.glu import _GATED as GATED

tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """As on a machine that has built nothing yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library._loaded.cache_clear()
    yield tmp_path / "tuninglab"
    library._loaded.cache_clear()


def test_they_are_built_once_and_kept(fresh, monkeypatch):
    if library.library() is None:
        pytest.skip(library.kernels_here()[1])
    (built,) = fresh.iterdir()
    monkeypatch.setattr(library, "_run", lambda *_: pytest.fail("built again"))
    library._loaded.cache_clear()
    assert library.library() is not None
    assert list(fresh.iterdir()) == [built]


@pytest.mark.parametrize("reason", ["TUNINGLAB_NATIVE=0", "no C compiler", "failed"])
def test_without_them_torch_does_the_work_and_the_reason_is_told(fresh, monkeypatch, reason):
    monkeypatch.delenv("CC", raising=False)
    if reason == "TUNINGLAB_NATIVE=0":
        monkeypatch.setenv("TUNINGLAB_NATIVE", "0")
    elif reason == "failed":
        monkeypatch.setenv("CC", "false")
    else:
        monkeypatch.setattr(library.shutil, "which", lambda name: None)
    assert library.library() is None
    assert not in_c(torch.zeros(3))
    value, why = library.kernels_here()
    assert "torch" in value and reason in why


def test_a_place_that_cannot_be_written_to_is_not_needed(fresh, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    if library.library() is None:
        assert "failed" not in library.kernels_here()[1]


def in_a_process(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.slow
def test_no_folder_is_left_behind_where_none_can_be_kept(tmp_path):
    if library.library() is None:
        pytest.skip(library.kernels_here()[1])
    (tmp_path / "file").write_text("")
    (tmp_path / "tmp").mkdir()
    places = {"XDG_CACHE_HOME": str(tmp_path / "file"), "TMPDIR": str(tmp_path / "tmp")}
    code = (
        "import torch; from tuninglab.kernels import compiled; from tuninglab.int8 import rows;"
        "print(compiled.kernels_here(), rows.quantise_rows(torch.ones(2, 3))[0].sum())"
    )
    said = in_a_process(code, **places)
    assert "C, compiled" in said and "for this process" in said and "tensor(762)" in said
    assert not list((tmp_path / "tmp").iterdir())


SAY = "from tuninglab.kernels import compiled; print(compiled.kernels_here())"
RECORDS = """#!/bin/sh
echo built >> "$COUNT"
exec cc "$@"
"""


@pytest.fixture
def counting(fresh, tmp_path, monkeypatch):
    """A function () -> how often the compiler was called, whose building takes no time."""
    if library.c_compiler() is None:
        pytest.skip("no C compiler here")
    (tmp_path / "tiny.c").write_text("int tiny(void) { return 7; }")
    sources = tmp_path / "sources"
    sources.mkdir()
    (tmp_path / "tiny.c").rename(sources / "kernels.c")
    monkeypatch.setattr(library, "SOURCES", sources)
    (tmp_path / "counted").write_text(RECORDS)
    (tmp_path / "counted").chmod(0o700)
    monkeypatch.setenv("CC", str(tmp_path / "counted"))
    monkeypatch.setenv("COUNT", str(tmp_path / "count"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    (tmp_path / "tmp").mkdir()

    def calls() -> int:
        library._loaded.cache_clear()
        found = library.library()
        assert found is not None and found.tiny() == 7, library.kernels_here()
        assert not list((tmp_path / "tmp").iterdir())
        count = tmp_path / "count"
        return len(count.read_text().splitlines()) if count.exists() else 0

    return calls


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_folder_and_library_are_ours_alone_whatever_the_umask(counting, fresh, mask):
    before = os.umask(mask)
    try:
        assert counting() == 2
    finally:
        os.umask(before)
    (built,) = fresh.iterdir()
    assert mode(fresh) == mode(built) == 0o700
    assert counting() == 2
    # As an earlier version left it.
    fresh.chmod(0o777)
    assert counting() == 2 and mode(fresh) == 0o700
    built.chmod(0o777)
    assert counting() == 4 and mode(built) == 0o700


@pytest.mark.parametrize("damage", ["empty", "cut off", "one bit", "foreign", "a link", "text"])
def test_a_damaged_or_foreign_library_is_built_again(counting, fresh, tmp_path, damage):
    assert counting() == 2
    (built,) = fresh.iterdir()
    whole = built.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    torch_cpu = Path(torch.__file__).parent / "lib" / "libtorch_global_deps.so"
    content = {
        "empty": b"",
        # In its second half it lacks nothing until it is run.
        "cut off": whole[: len(whole) * 3 // 4],
        "one bit": bytes(flipped),
        "foreign": torch_cpu.read_bytes() if torch_cpu.exists() else b"another",
        "text": b"hello",
    }
    if damage == "a link":
        (tmp_path / "elsewhere.so").write_bytes(whole)
        built.unlink()
        built.symlink_to(tmp_path / "elsewhere.so")
    else:
        # Beside it: what this process has loaded is mapped, and must not change.
        (tmp_path / "new").write_bytes(content[damage])
        (tmp_path / "new").chmod(0o700)
        (tmp_path / "new").replace(built)
    assert counting() == 4
    assert [path.read_bytes() for path in fresh.iterdir()] == [whole]


def test_nothing_is_loaded_from_a_folder_that_is_not_ours(counting, fresh, tmp_path, monkeypatch):
    assert counting() == 2
    another = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: another)
    assert counting() == 4
    assert "is another user's" in library.kernels_here()[1]


def test_a_link_as_folder_or_a_place_open_to_all_is_not_used(counting, fresh, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    fresh.symlink_to(tmp_path / "elsewhere")
    assert counting() == 2 and not list((tmp_path / "elsewhere").iterdir())
    assert "for this process" in library.kernels_here()[1]
    fresh.unlink()
    tmp_path.chmod(0o777)
    try:
        assert counting() == 4 and not list(fresh.iterdir())
        assert "can be written by everybody" in library.kernels_here()[1]
        # As /tmp is: only owners rename there.
        tmp_path.chmod(0o1777)
        assert counting() == 6 and len(list(fresh.iterdir())) == 1
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.slow
def test_a_compiler_that_hangs_is_given_up_with_all_it_started(fresh, tmp_path, monkeypatch):
    # The shell is what would be killed; what it started would hold its output open.
    (tmp_path / "hangs").write_text(f"#!/bin/sh\n(sleep 4; touch {tmp_path}/lives) &\nwait\n")
    (tmp_path / "hangs").chmod(0o700)
    monkeypatch.setenv("CC", str(tmp_path / "hangs"))
    monkeypatch.setattr(library, "LONGEST_S", 1.0)
    started = time.monotonic()
    assert library.library() is None
    assert library.kernels_here()[1].endswith("failed: it did not end within 1 s")
    assert not list(fresh.iterdir())
    time.sleep(max(0.0, started + 5 - time.monotonic()))
    assert not (tmp_path / "lives").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "for one process"])
def test_what_a_killed_process_left_goes_with_the_next_one(counting, fresh, tmp_path, kept):
    if not kept:
        fresh.write_text("a file in its place")
    (tmp_path / "waits").write_text(f"#!/bin/sh\ntouch {tmp_path}/begun\nexec sleep 20\n")
    (tmp_path / "waits").chmod(0o700)
    places = os.environ | {"PYTHONPATH": str(ROOT), "CC": str(tmp_path / "waits")}
    killed = subprocess.Popen([sys.executable, "-c", SAY], env=places)
    while not (tmp_path / "begun").exists():
        time.sleep(0.05)
        assert killed.poll() is None
    where = fresh if kept else tmp_path / "tmp"
    time.sleep(1.1)
    (left,) = where.iterdir()
    # While it lives its folder stays.
    with cache.workshop(where):
        assert left.exists()
    killed.kill()
    killed.wait()
    assert left.exists()
    assert counting() == 2
    assert not left.exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_openmp_of_torch_is_taken_whatever_was_imported_first():
    pytest.importorskip("sklearn")
    code = "print(__import__('tuninglab.kernels.compiled', fromlist='x')._openmp_of_torch())"
    first = in_a_process(f"import sklearn.utils, torch; {code}")
    assert first == in_a_process(f"import torch, sklearn.utils; {code}") == in_a_process(code)
    both = "print(sum('libgomp' in line for line in open('/proc/self/maps')))"
    # The test would say nothing if scikit-learn brought no runtime of its own.
    assert int(in_a_process(f"import torch, sklearn.utils; {both}")) > int(
        in_a_process(f"import torch; {both}")
    )
    # What the loader of the system says libtorch is linked with.
    torch_cpu = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    linked = subprocess.run(["ldd", str(torch_cpu)], capture_output=True, text=True).stdout
    assert str(Path(first).resolve()) in {
        str(Path(line.split()[2]).resolve()) for line in linked.splitlines() if "=>" in line
    }


def test_the_sources_are_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["tuninglab"]
    package = ROOT / "tuninglab"
    shipped = {path for pattern in patterns for path in package.glob(pattern)}
    assert shipped >= {*library.SOURCES.glob("*.c"), *library.SOURCES.glob("*.h")}


@pytest.mark.slow
def test_they_compile_without_a_warning(tmp_path):
    compiler = library.shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here")
    command = [compiler, *library.FLAGS, "-Wall", "-Wextra", "-Werror", "-c"]
    target = tmp_path / "kernels.o"
    done = subprocess.run(
        [*command, str(library.SOURCES / "kernels.c"), "-o", str(target)],
        capture_output=True,
        text=True,
    )
    # clang on macOS knows no -fopenmp; there the kernels are done without.
    if sys.platform == "linux":
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_exponentials_and_slopes_hold_over_their_whole_range():
    if library.library() is None:
        pytest.skip(library.kernels_here()[1])
    x = torch.linspace(-30, 30, 4001)[None].contiguous()
    functions = (torch.nn.functional.silu, None, torch.nn.functional.gelu)
    for number, function in enumerate(functions):
        y = GATED(number, x, None)
        exact = (
            function(x.double())
            if function
            else torch.nn.functional.gelu(x.double(), approximate="tanh")
        )
        torch.testing.assert_close(y.double(), exact, atol=2e-6, rtol=2e-6)
