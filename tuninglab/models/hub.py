"""Where a model that is named lies: what ships with the package, a directory, or the hub.

The hub is asked for names that the user typed; one that stands in a file (an adapter's base, a
run's config.yaml) is looked for among earlier downloads.
"""

import os
import shlex
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.utils import get_session

from tuninglab.config.flags import typed
from tuninglab.errors import UserError
from tuninglab.models.folder_files import READ_WHOLE, check_folder
from tuninglab.run_folder.named_model import local_directory, shipped

TIMEOUT_S = 5.0
SETTINGS = [f"*{ending}" for ending in READ_WHOLE]
NOT_TYPED = (
    "the hub is asked only for names on the command line (--model, --lang_encoder, ...), where "
    "this one does not stand"
)

_reached = False


def resolve(path_or_id: str | Path, what: str) -> tuple[str, bool]:
    """Where a part is, and whether that is a local directory (else it is a hub id).

    Raises:
        UserError: it is neither, or on a hub that cannot or must not be asked; or the model has a
            file that no model has.
    """
    directory = local_directory(path_or_id, what)
    if directory is None:
        name = str(path_or_id)
        why = _out_of_reach() if typed(name) else NOT_TYPED
        if not why:
            check_folder(_settings_of(name, what), what)
            return name, False
        directory = _downloaded_before(
            name, f"{what}: there is no directory {name} here, and {why}"
        )
    check_folder(directory, what)
    return str(directory), True


def located(name: Any) -> Any:
    """What `from_pretrained` was given, with `embedded` and hub ids looked up first.

    Raises:
        OSError: as transformers raises it, but at once: it asks a hub that it cannot reach for
            half a minute.
    """
    # None stands for weights that are given otherwise; transformers also takes files.
    if name is None or os.path.exists(os.path.expanduser(name)) and name != "embedded":
        return name
    try:
        return resolve(shipped(name), "model")[0]
    except UserError as error:
        raise OSError(str(error)) from error


@cache
def _settings_of(name: str, what: str) -> Path:
    """A folder with all of a model on the hub but its weights, to be looked at before it is loaded.

    Raises:
        UserError: the hub does not give it.
    """
    try:
        return Path(snapshot_download(name, allow_patterns=SETTINGS, ignore_patterns="*/*"))
    # Of many classes: no such model, no permission, no connection, a full disk.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{what} {name}: {reason}\nThere is no such directory here, and the hub did not give "
            "it; check the name"
        ) from error


def _downloaded_before(name: str, why: str) -> Path:
    """The copy of a model that an earlier download left.

    Raises:
        UserError: there is none.
    """
    known = try_to_load_from_cache(name, "config.json")
    if isinstance(known, str):
        return Path(known).parent
    folder = shlex.quote(name.rpartition("/")[2])
    raise UserError(
        f"{why}. Where there is a network, `hf download {name} --local-dir {folder}` gets it; copy "
        "that folder here and give its path"
    )


def _out_of_reach() -> str:
    """Why the hub cannot be asked; empty if it can."""
    global _reached
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE forbids to ask the hub"
    try:
        # Through the hub's own session: it knows proxies and certificates. Any answer will do.
        if not _reached:
            get_session().head(constants.ENDPOINT, timeout=TIMEOUT_S)
        _reached = True
    except Exception as error:
        # Whatever the session's library calls it: requests, httpx, a hook of the user's.
        return f"the hub {constants.ENDPOINT} cannot be reached ({error or type(error).__name__})"
    return ""
