"""The house: imports point one way, no circle, and one word for one idea."""

import ast
import io
import re
import tokenize
from collections import defaultdict
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "tuninglab"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# From the doors down: a room may import from the floors below its own, from no other.
FLOORS = (
    {"__main__", "flamingo", "flan_t5"},
    {"cli"},
    {"recipes"},
    {"comparison", "conversion", "inspection", "reporting"},
    {"embedded"},
    {"evaluation"},
    {"serving"},
    {"training", "adapters"},
    {"models", "savers", "data.reading"},
    {"models.formats", "int8", "data"},
    {"kernels"},
    {"run_folder"},
    {"config", "disk", "evaluation.metrics", "progress", "threads"},
    {"untrusted"},
    {"console", "errors"},
)
MOST_ROOMS = 30


def room_of(path: Path) -> str:
    """A module at the top is a room, and so is a folder, whatever it holds."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0] if len(parts) == 1 else ".".join(parts[:-1])


def module_path(name: str) -> Path | None:
    """The file of a dotted name below tuninglab; None for the package itself."""
    parts = name.split(".")[1:]
    while parts:
        place = PACKAGE.joinpath(*parts)
        if place.with_suffix(".py").exists():
            return place.with_suffix(".py")
        if place.is_dir():
            return place / "__init__.py"
        parts.pop()
    return None


def arrows() -> dict[tuple[str, str], str]:
    """(from room, to room) -> where; also of imports inside functions."""
    found = {}
    for path in SOURCES:
        if path == PACKAGE / "__init__.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                target = module_path(name) if name.split(".")[0] == "tuninglab" else None
                if (
                    target
                    and target != PACKAGE / "__init__.py"
                    and room_of(target) != room_of(path)
                ):
                    place = f"{path.relative_to(PACKAGE)}:{node.lineno}"
                    found[room_of(path), room_of(target)] = place
    return found


def test_every_room_has_its_floor_and_there_are_few():
    rooms = {room_of(path) for path in SOURCES if path != PACKAGE / "__init__.py"}
    assert rooms == set().union(*FLOORS)
    assert len(rooms) <= MOST_ROOMS


def test_imports_point_down():
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    upward = {
        f"{pair[0]} -> {pair[1]}": place
        for pair, place in arrows().items()
        if floor[pair[1]] <= floor[pair[0]]
    }
    assert upward == {}


def test_a_circle_would_be_seen(tmp_path, monkeypatch):
    (tmp_path / "errors.py").write_text("def f():\n    from tuninglab.cli import main\n")
    (tmp_path / "cli.py").write_text("import tuninglab.errors\n")
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    monkeypatch.setitem(globals(), "SOURCES", sorted(tmp_path.rglob("*.py")))
    assert set(arrows()) == {("errors", "cli"), ("cli", "errors")}


def test_settings_load_neither_torch_nor_transformers():
    heavy = {"torch", "transformers", "peft", "accelerate"}
    for path in sorted((PACKAGE / "config").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                module = getattr(node, "module", None)
                names = [module] if module else [alias.name for alias in node.names]
                assert not heavy & {str(name).split(".")[0] for name in names}, path


# One idea, one word. Names that other libraries gave (quantization_config) stay theirs.
WORDS = {
    r"lean|pieces": "saver",
    r"quantisation|quantize|quantizer": "quantise, quantised, quantiser",
}
THEIRS = {
    *(
        "AutoHfQuantizer",
        "HfQuantizer",
        "register_quantizer",
        "hf_quantizer",
        "get_quantize_ops",
        "_dequantize",
    ),
    *("dequantize", "param_needs_quantization", "quantizers", "is_quantized", "pre_quantized"),
    "quantizers_utils",
}


@pytest.mark.parametrize("pattern", WORDS)
def test_one_idea_has_one_word(pattern):
    wrong = defaultdict(set)
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            named = token.type == tokenize.NAME and token.string not in THEIRS
            parts = re.split(r"_|(?<=[a-z])(?=[A-Z])", token.string) if named else []
            if any(re.fullmatch(pattern, part, re.IGNORECASE) for part in parts):
                wrong[f"{path.relative_to(PACKAGE)}: write {WORDS[pattern]}"].add(token.string)
        if any(re.fullmatch(pattern, part) for part in path.stem.split("_")):
            wrong[str(path)].add(path.stem)
    assert wrong == {}
