"""The model card of what was exported: README.md with the hub's metadata, from the run's files."""

import re
import shlex
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tuninglab.config import ExportConfig
from tuninglab.errors import UserError
from tuninglab.run_folder import read_starts, versions
from tuninglab.run_folder.named_model import HUB_ID, NamedModel
from tuninglab.untrusted import MIB, read_json

README = "README.md"
LARGEST = 64 * MIB
MOST_EVALUATIONS, MOST_LETTERS, MOST_COMMAND = 20, 200, 4000
TASK = "image-text-to-text"
# The columns of the table: the base first, the result second, then who does not look.
COLUMNS = ("before", "after", "blank", "shuffled", "prior")
# What markdown, or HTML in it, takes for a mark, and what becomes a link by itself.
MARKS = re.compile(r"([\\`*_{}\[\]<>#|~&$!:@^=]|(?<=www)\.)", re.IGNORECASE)


class Exported(NamedTuple):
    """What a card is of.

    Attributes:
        config: the settings of the export.
        named: what was exported.
        folder: the name of the folder.
        dtype: number format of the weights.
        check: its figures.
    """

    config: ExportConfig
    named: NamedModel
    folder: str
    dtype: str
    check: Mapping[str, Any]


def write_card(folder: Path, exported: Exported) -> None:
    """Write README.md into a folder that holds an exported model.

    Raises:
        UserError: a file of the run is damaged.
    """
    figures = _figures(exported.named.run)
    evaluations = list(_evaluations(exported.named.run))
    data = _metadata(exported, figures, evaluations)
    body = _body(exported, figures, evaluations, folder)
    (folder / README).write_text(f"---\n{data.to_yaml()}\n---\n\n{body}\n", encoding="utf-8")
    # What cannot be read back is not handed on.
    ModelCard.load(folder / README)


def escaped(value: object) -> Markup:
    """A text of unknown origin as one line of markdown that shows it and does nothing else."""
    line = " ".join(str(value).split())
    line = line if len(line) <= MOST_LETTERS else f"{line[:MOST_LETTERS]}…"
    # Turned letters and half pairs of surrogates would change what stands around them.
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    return Markup(MARKS.sub(r"\\\1", line))


def fenced(text: str, language: str = "") -> Markup:
    """A text as a block of code, in a longer fence than any that is in it."""
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    plain = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
    return Markup(f"{fence}{language}\n{plain}\n{fence}")


def hub_id(name: str) -> str | None:
    """A base as the hub calls it; None for one that is a directory, or ships with tuninglab."""
    return name if HUB_ID.fullmatch(name) and not Path(name).expanduser().exists() else None


def _metadata(
    exported: Exported, figures: Mapping[str, Any], evaluations: list[dict[str, Any]]
) -> ModelCardData:
    base, adapter = hub_id(exported.named.base), not exported.config.merge
    relation = "adapter" if adapter else "finetune"
    tags = ["flamingo", "tuninglab", "lora"]
    # The hub refuses a card whose base is a path, as PEFT writes it.
    named: dict[str, Any] = {}
    if base is not None:
        named = {"base_model": base, "base_model_relation": relation}
        tags.append(f"base_model:{relation}:{base}")
    results = list(_results(figures, evaluations))
    return ModelCardData(
        library_name="peft" if adapter else "transformers",
        license=exported.config.license,
        pipeline_tag=TASK,
        tags=tags,
        model_name=exported.folder if results else None,
        eval_results=results or None,
        **named,
    )


def _results(figures: Mapping[str, Any], evaluations: list[dict[str, Any]]) -> Iterator[EvalResult]:
    """What was measured, as the hub's model-index takes it."""
    of_run = _object(_object(figures.get("evaluation")).get("after")).get("exact_match")
    scores = [(_text(figures.get("task")), "exact_match", of_run)]
    for one in evaluations:
        for name, metric in _object(one.get("metrics")).items():
            scores.append((_text(one.get("data")), name, _object(metric).get("value")))
    for data, name, value in scores:
        if type(value) in (int, float):
            # No data set of the hub, so it has no id there. Results of equal type and configuration
            # are joined under the name of the first.
            own: dict[str, Any] = {"dataset_config": data, "metric_name": name}
            yield EvalResult(TASK, "custom", data, name, value, **own)


def _body(
    exported: Exported,
    figures: Mapping[str, Any],
    evaluations: list[dict[str, Any]],
    folder: Path,
) -> str:
    config, named = exported.config, exported.named
    # Nothing is HTML here: what is not marked as done is escaped for markdown.
    jinja = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else escaped(value),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return jinja.get_template("card.md.jinja").render(
        title=exported.folder,
        kind="open_flamingo" if config.to == "open_flamingo" else "merged" * config.merge,
        base="the model that ships with tuninglab" if named.base == "embedded" else named.base,
        base_is_path=hub_id(named.base) is None and named.base != "embedded",
        dtype=exported.dtype,
        files=[path.name for path in sorted(folder.iterdir())],
        commands=[fenced(command, "bash") for command in _commands(named.run)],
        figures=figures,
        data=_object(figures.get("data")),
        train=_object(figures.get("train")),
        scores=_scores(_object(figures.get("evaluation"))),
        evaluations=[_row(one) for one in evaluations],
        check=exported.check,
        versions=", ".join(f"{name} {version}" for name, version in versions().items()),
        load=fenced(loading(exported), "python"),
        pushed=config.push_to_hub,
    )


def loading(exported: Exported) -> str:
    """The program of a few lines that loads what was exported and asks it something."""
    config, place = exported.config, exported.folder
    if config.to == "open_flamingo":
        return (
            "# tuninglab convert --checkpoint checkpoint.pt --lang_encoder lang_encoder \\\n"
            "#     --vision_encoder vision_encoder --out converted\n"
            "from tuninglab import open_model\n"
            'model, processor = open_model("converted")'
        )
    if config.merge:
        place = config.push_to_hub or place
        load = (
            "from tuninglab import FlamingoForConditionalGeneration, FlamingoProcessor\n"
            f"model = FlamingoForConditionalGeneration.from_pretrained({place!r})\n"
            f"processor = FlamingoProcessor.from_pretrained({place!r})"
        )
    else:
        load = f"from tuninglab import open_model\nmodel, processor = open_model({place!r})"
    return (
        f'{load}\nparts = [{{"type": "image", "path": "picture.png"}}, '
        '{"type": "text", "text": "What is this?"}]\n'
        'asked = [{"role": "user", "content": parts}]\n'
        "inputs = processor.apply_chat_template(\n"
        "    asked, add_generation_prompt=True, tokenize=True, return_dict=True)\n"
        "print(processor.decode(model.generate(**inputs.to(model.device), max_new_tokens=32)[0]))"
    )


def _commands(run: Path | None) -> list[str]:
    """How the run was started, and gone on with."""
    commands = []
    for start in [] if run is None else read_starts(run):
        words = start.get("command")
        if isinstance(words, list) and words and all(isinstance(word, str) for word in words):
            script = Path(words[0]).name
            first = f"python {script}" if script.endswith(".py") else script
            first = "tuninglab" if script == "__main__.py" else first
            command = " ".join([first, *map(shlex.quote, words[1:])])
            commands.append(command[:MOST_COMMAND])
    return commands


def _figures(run: Path | None) -> dict[str, Any]:
    """What report.json holds; a checkpoint of a run that goes on has none."""
    path = None if run is None else run / "report.json"
    return _object(read_json(path, LARGEST, "report of the run")) if path and path.exists() else {}


def _evaluations(run: Path | None) -> Iterator[dict[str, Any]]:
    """The figures of each `evaluate` of a run, by name; a damaged one is passed over."""
    found = [] if run is None else sorted(run.glob("evaluation/*/report.json"))
    for path in islice((p for p in found if not p.parent.name.startswith(".")), MOST_EVALUATIONS):
        try:
            yield {"name": path.parent.name, **_object(read_json(path, LARGEST, "evaluation"))}
        except UserError:
            continue


def _scores(evaluation: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """The rows of the table: what was scored, and the score of each column."""
    by_name = {**evaluation, **_object(evaluation.get("controls"))}
    scores = {name: _object(by_name.get(name)) for name in COLUMNS}
    count = scores["after"].get("count")
    rows = [(f"exact match, {count} questions", "exact_match"), ("validation loss", "val_loss")]
    found = []
    for label, key in rows:
        values = [_number(scores[name].get(key), key == "exact_match") for name in COLUMNS]
        if any(value != "–" for value in values):
            found.append((label, values))
    return found


def _row(one: Mapping[str, Any]) -> dict[str, Any]:
    """An evaluation as a row: its headline, between what the interval is, and the controls."""
    metrics = _object(one.get("metrics"))
    name = next(iter(metrics), "")
    metric, share = _object(metrics.get(name)), name not in ("cider",)
    unseen = {**_object(one.get("controls")), "prior": one.get("prior")}
    ends = [_number(metric.get(end), share) for end in ("low", "high")]
    return {
        "name": one["name"],
        "data": one.get("data"),
        "count": one.get("count"),
        "shots": one.get("shots"),
        "metric": name,
        "value": _number(metric.get("value"), share),
        "interval": "–" if "–" in ends else f"{ends[0]} to {ends[1]}",
        "controls": [
            _number(_value(_object(unseen.get(way)).get(name)), share)
            for way in ("blank", "shuffled", "prior")
        ],
    }


def _value(score: object) -> object:
    return score.get("value") if isinstance(score, dict) else score


def _number(value: object, share: bool) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–"
    return f"{100 * value:.1f} %" if share else f"{value:.4g}"


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    """A name for the metadata, which YAML quotes: printable, of one line."""
    line = " ".join(str(value or "own data").split())[:MOST_LETTERS]
    return "".join(c for c in line if c.isprintable())
