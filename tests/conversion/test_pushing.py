"""Pushing to the hub, with a stand-in for its interface: no test asks a network."""

import re

import pytest
from huggingface_hub import constants

from tuninglab.cli import main
from tuninglab.conversion import export, pushing


class Hub:
    """What `HfApi` does, noted instead of done."""

    done: list = []
    taken = False
    error: Exception | None = None

    def repo_exists(self, name):
        return self.taken

    def create_repo(self, name, private, exist_ok):
        assert not exist_ok
        self.done.append(("create", name, private))

    def upload_folder(self, repo_id, folder_path):
        if self.error is not None:
            raise self.error
        files = sorted(path.name for path in folder_path.iterdir())
        self.done.append(("upload", repo_id, files))


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(pushing, "HfApi", Hub)
    monkeypatch.setattr(pushing, "get_token", lambda: "hf_token")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(Hub, "done", [])
    return Hub


def push(run, out, *flags):
    return main(["export", str(run), "--out", str(out), "--push_to_hub", *flags])


@pytest.mark.parametrize("private", [True, False])
def test_a_folder_is_uploaded_into_a_new_repository(private, hub, run_folder, tmp_path):
    flags = ["--private"] if private else []
    assert push(run_folder, tmp_path / "out", "me/mine", *flags) == 0
    create, (what, name, files) = hub.done
    assert create == ("create", "me/mine", private)
    assert (what, name) == ("upload", "me/mine")
    assert files == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert "hf download me/mine --local-dir out" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("mine", {}, "owner/name"),
        ("me/my name", {}, "push_to_hub me/my name"),
        ("me/a--b", {}, "me/a--b"),
        ("me/mine", {"token": None}, "hf auth login"),
        ("me/mine", {"offline": True}, "HF_HUB_OFFLINE"),
        ("me/mine", {"taken": True}, "exists.*hf upload me/mine"),
    ],
)
def test_what_cannot_be_pushed_is_told_before_any_work(
    name, change, said, hub, run_folder, tmp_path, monkeypatch, capsys
):
    if "token" in change:
        monkeypatch.setattr(pushing, "get_token", lambda: None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", change.get("offline", False))
    monkeypatch.setattr(hub, "taken", change.get("taken", False))
    monkeypatch.setattr(export, "tuned_model", lambda *_: pytest.fail("a model was loaded"))
    assert push(run_folder, tmp_path / "out", name) == 2
    error = capsys.readouterr().err
    assert re.search(said, error), error
    assert hub.done == [] and not (tmp_path / "out").exists()


def test_a_failed_upload_leaves_the_folder_and_says_how_to_go_on(
    hub, run_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(hub, "error", ConnectionError("cut off\nmore"))
    assert push(run_folder, tmp_path / "out", "me/mine", "--private") == 1
    out = tmp_path / "out"
    assert f"cut off. The folder is whole; go on with: hf upload me/mine {out} --private" in (
        capsys.readouterr().err
    )
    assert (out / "README.md").is_file()
