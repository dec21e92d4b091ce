"""Where a model that the user named lies: its base, and the adapter upon it if there is one."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tuninglab.config import FinetuneConfig
from tuninglab.config.yaml_file import read_recipe
from tuninglab.disk import finish_replacing
from tuninglab.errors import UserError
from tuninglab.run_folder.going_on import elsewhere, how_to_end
from tuninglab.untrusted import MIB, check_path, read_json, shown

EMBEDDED = Path(__file__).parents[1] / "embedded" / "base"
# A hub id is owner/name: a single word is a mistyped directory far more often than "gpt2".
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
ADAPTER_CONFIG = "adapter_config.json"
LARGEST_CONFIG = 4 * MIB


@dataclass(frozen=True)
class NamedModel:
    """A base as a directory, a hub id or `embedded`, with or without an adapter.

    Attributes:
        tuned: what the user named, in words, if that was the result of tuning and not the base.
        tuned_on: how a run held its base (`--quantization`).
        run: the folder of the run that it is of.
    """

    base: str
    adapter: Path | None = None
    tuned: str = ""
    tuned_on: str = "none"
    run: Path | None = None


@contextmanager
def base_told(named: NamedModel) -> Iterator[None]:
    """Where the user named the result of tuning, say in mistakes how base and result belong.

    Raises:
        UserError: as what is done inside.
    """
    try:
        yield
    except UserError as error:
        if named.adapter is None:
            raise
        raise UserError(f"The base of {named.tuned}: {error}") from error


def shipped(name: str | Path) -> str | Path:
    """The directory that `embedded` stands for, whatever lies here; another name as it is."""
    return EMBEDDED if name == "embedded" else name


def local_directory(path_or_id: str | Path, what: str) -> Path | None:
    """The directory that a name is; None: there is none, but it can be a hub id.

    Args:
        path_or_id: the name.
        what: it names, for messages.

    Raises:
        UserError: it is neither.
    """
    check_path(path_or_id, what)
    path = _expanded(path_or_id)
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{what}: {path} is a file; give the directory that holds config.json")
    # Under a folder that exists here, a missing name is a path too.
    looks_local = isinstance(path_or_id, Path) or path.parent.name and path.parent.is_dir()
    if looks_local or not HUB_ID.fullmatch(str(path_or_id)):
        raise UserError(
            f"{what}: there is no directory {shown(path_or_id)}; check the path (a hub id is "
            "owner/name)"
        )
    return None


def find_model(name: str) -> NamedModel:
    """Take a name apart; a name that is neither run nor adapter is its own base, unchecked.

    Args:
        name: a run folder, the adapter/ in it or one of its checkpoints, an adapter directory, or
            the name of a base.

    Raises:
        UserError: the run has not ended or lies elsewhere, or the adapter does not name its base.
    """
    check_path(name, "model")
    path = _expanded(name)
    if path.name:
        finish_replacing(path)
    # What tells them apart: a run folder holds config.yaml, an adapter adapter_config.json, a model
    # directory config.json.
    if (path / "config.yaml").is_file():
        return _run(path)
    if _is_checkpoint(path):
        return _checkpoint(path)
    # A directory with both is a model: merged ones are sometimes saved over their adapter.
    if (path / ADAPTER_CONFIG).is_file() and not (path / "config.json").is_file():
        whole = path.resolve()
        if whole.name == "adapter" and (whole.parent / "config.yaml").is_file():
            # The run knows its base better: it may keep one of its own.
            return _run(whole.parent)
        if whole.name == "adapter" and _is_checkpoint(whole.parent):
            return _checkpoint(whole.parent)
        what = f"adapter {path} (base_model_name_or_path in its {ADAPTER_CONFIG})"
        return NamedModel(_base_of_adapter(path), path, what)
    if not path.exists() and (hint := elsewhere(path)):
        raise UserError(f"There is no {name} here. {hint}")
    return NamedModel(name)


def _expanded(name: str | Path) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:
        # `~nobody`: no user of this name has a home.
        return Path(name)


def _run(run: Path) -> NamedModel:
    for name in ("adapter", "base"):
        finish_replacing(run / name)
    if not (run / "adapter").is_dir():
        talk = next(iter(sorted(run.glob("checkpoints/step-*/adapter"), reverse=True)), None)
        hint = f"\nWhat it has learned so far answers too: {talk.parent}" if talk else ""
        raise UserError(f"{run} has no adapter/: the run has not ended. {how_to_end(run)}{hint}")
    return _tuned(run, run / "adapter", f"run {run}")


def _is_checkpoint(path: Path) -> bool:
    run = path.resolve().parents[1:2]
    return bool(run) and (path / "state.pt").is_file() and (run[0] / "config.yaml").is_file()


def _checkpoint(path: Path) -> NamedModel:
    run = path.resolve().parents[1]
    if not (path / "adapter").is_dir():
        raise UserError(
            f"{path} holds no adapter/: it was written by an earlier version, only to go on from. "
            f"{how_to_end(run)}"
        )
    return _tuned(run, path / "adapter", f"checkpoint {path}")


def _tuned(run: Path, adapter: Path, what: str) -> NamedModel:
    settings = read_recipe(run / "config.yaml")
    if not isinstance(settings, FinetuneConfig):
        raise UserError(
            f"{run} is a run of {settings.recipe}: its model writes a text for a text and is "
            f"not opened by this verb. See what it wrote: {run / 'report.html'}"
        )
    # A run that started from a plain language model and a tower keeps the Flamingo they made.
    base = str(run / "base") if (run / "base").is_dir() else settings.model
    return NamedModel(base, adapter, what, settings.base_format, run)


def _base_of_adapter(adapter: Path) -> str:
    file = adapter / ADAPTER_CONFIG
    remedy = (
        "set base_model_name_or_path in it to the directory of the Flamingo that it was made for"
    )
    try:
        said = read_json(file, LARGEST_CONFIG, "adapter")
    except UserError as error:
        raise UserError(f"{error}. Or {remedy}") from error
    base = said.get("base_model_name_or_path") if isinstance(said, dict) else None
    if not base or not isinstance(base, str):
        raise UserError(f"{file} does not name the base of the adapter: {remedy}")
    check_path(base, f"{file}, base_model_name_or_path")
    # A pair may have been moved together: a relative path counts from the adapter first, whatever
    # of that name lies in the current directory.
    beside = adapter / base
    return str(beside) if beside.is_dir() else base
