"""The C kernels: built once, for this CPU, and done without where they cannot be built."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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
    monkeypatch.setattr(library, "_run", lambda command: pytest.fail("built again"))
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
def test_exponentials_and_slopes_hold_over_their_whole_range(fresh):
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
