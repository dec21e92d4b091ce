"""An exported folder goes to the hub, after a look whether it can, before any work."""

import shlex
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from tuninglab.console import say
from tuninglab.errors import UserError, WorkError
from tuninglab.run_folder.named_model import HUB_ID
from tuninglab.untrusted import shown


def check_push(name: str) -> None:
    """Pass if a folder can be pushed to a new repository of this name.

    Raises:
        UserError: the name is none of the hub's, no token is there, the hub may not be asked or
            does not answer, or it has such a repository.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"--push_to_hub {shown(name)}: {error}") from error
    if not HUB_ID.fullmatch(name):
        raise UserError(f"--push_to_hub is {shown(name)}; expected owner/name")
    if constants.HF_HUB_OFFLINE:
        raise UserError(
            "--push_to_hub: HF_HUB_OFFLINE forbids to ask the hub. Unset it, or leave the flag out"
        )
    if get_token() is None:
        raise UserError("--push_to_hub needs a token that may write: `hf auth login`, or HF_TOKEN")
    try:
        taken = HfApi().repo_exists(name)
    # Of many classes: no connection, a proxy, a token that has expired.
    except Exception as error:
        raise UserError(f"--push_to_hub {name}: the hub did not answer: {_said(error)}") from error
    if taken:
        raise UserError(
            f"--push_to_hub {name} exists. Nothing is written over: give another name; or export "
            f"without the flag and add it yourself: hf upload {shlex.quote(name)} DIR"
        )


def push(folder: Path, name: str, private: bool) -> None:
    """Make a repository on the hub and upload a folder into it.

    Raises:
        WorkError: the hub did not take it; the folder stays.
    """
    api = HfApi()
    try:
        # Made by somebody since: it must not be written into.
        api.create_repo(name, private=private, exist_ok=False)
        api.upload_folder(repo_id=name, folder_path=folder)
    except Exception as error:
        raise WorkError(
            f"The hub did not take {folder}: {_said(error)}. The folder is whole; go on with: "
            f"hf upload {shlex.quote(name)} {shlex.quote(str(folder))}{' --private' * private}"
        ) from error
    say(f"{folder} -> {constants.ENDPOINT}/{name}")


def _said(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
