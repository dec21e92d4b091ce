"""The house: what the project files say of each other, and the size of its rooms."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import metadata, packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "tuninglab").rglob("*.py"))
FILE_LINES = 300
FUNCTION_LINES = 60

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]


def constraints():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def test_environment_yml_installs_this_project_at_the_tested_versions():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert environment["name"] == PROJECT["name"]
    # What conda installs besides Python and pip would not follow pyproject.toml.
    (python,) = [entry for entry in conda if entry != "pip"]
    name, _, version = python.partition("=")
    assert name == "python"
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(version)
    assert pip == ["-c constraints.txt", "-e ."]


def test_the_oldest_python_is_the_same_everywhere():
    (oldest,) = Requirement(f"python{PROJECT['requires-python']}").specifier
    major, minor = oldest.version.split(".")
    assert PYPROJECT["tool"]["ruff"]["target-version"] == f"py{major}{minor}"
    assert PYPROJECT["tool"]["pyright"]["pythonVersion"] == oldest.version
    for name, said in {
        "README.md": f"Python >= {oldest.version} ",
        "Makefile": f'({major}, {minor}) and "Python {oldest.version} or newer',
        "environment.yml": f"python={oldest.version}",
    }.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        assert said in text, name
        # No other version is promised beside it.
        assert set(re.findall(r"Python (?:>= )?(3\.\d+)", text)) <= {oldest.version}, name
    assert not [pin for pin in constraints() if "python_version" in str(pin.marker or "")]


def test_python_and_transformers_fit_each_other():
    # The dependency needs this Python itself: a wider promise could not be installed.
    (oldest,) = Requirement(f"python{PROJECT['requires-python']}").specifier
    needed = SpecifierSet(metadata("transformers")["Requires-Python"])
    assert needed.contains(oldest.version)
    (wanted,) = [r for r in map(Requirement, PROJECT["dependencies"]) if r.name == "transformers"]
    assert "6.0" not in wanted.specifier and "5.23" in wanted.specifier


def test_every_dependency_is_pinned_within_its_range():
    pinned = {canonicalize_name(pin.name): pin for pin in constraints()}
    for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]:
        wanted = Requirement(text)
        (exact,) = pinned[canonicalize_name(wanted.name)].specifier
        assert exact.operator == "=="
        assert wanted.specifier.contains(exact.version), text


def test_the_version_is_the_same_everywhere():
    import tuninglab

    assert tuninglab.__version__ == PROJECT["version"]


def test_the_license_is_apache():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text and "Version 2.0" in text
    assert re.search(r"Copyright \d{4} tuninglab", text)


def test_no_module_shadows_another():
    # `cd tuninglab && python flamingo.py` would import it in the other's place.
    entries = {path.stem for path in (ROOT / "tuninglab").iterdir() if path.suffix in ("", ".py")}
    ours = {name for name in entries if not name.startswith("__")}
    assert ours & sys.stdlib_module_names == set()
    assert ours & packages_distributions().keys() == set()


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_readable(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= FUNCTION_LINES, node.name


def test_a_script_beside_the_clone_finds_the_package_and_not_the_folder(tmp_path):
    # With this setuptools writes a path, not a finder, for `pip install -e`.
    assert PYPROJECT["tool"]["setuptools"]["package-dir"] == {"": "."}
    # The folder of the script comes first on the path, the clone's last.
    (tmp_path / "tuninglab").symlink_to(ROOT)
    (tmp_path / "script.py").write_text("import tuninglab; print(tuninglab.__version__)")
    done = subprocess.run(
        [sys.executable, "script.py"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.strip() == PROJECT["version"], done.stderr


def test_a_wheel_holds_all_that_the_package_reads():
    package, shipped = ROOT / "tuninglab", set()
    for pattern in PYPROJECT["tool"]["setuptools"]["package-data"]["tuninglab"]:
        shipped |= set(package.glob(pattern))
    files = [p for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert [p for p in files if p.suffix != ".py" and p not in shipped] == []
