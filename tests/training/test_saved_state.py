"""Checkpoints that anybody may have changed: noticed, named, and never used in part."""

import copy
import json
import os
import random
import resource
import zipfile

import pytest
import torch

from tests.training.test_checkpoint import advance, make_state, steps
from tuninglab.console import Choices
from tuninglab.errors import UserError
from tuninglab.training.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from tuninglab.training.hardware import make_accelerator
from tuninglab.training.saved_state import read_state


@pytest.fixture
def accelerator():
    return make_accelerator("fp32", Choices())


@pytest.fixture
def two(tmp_path, accelerator):
    """A folder of two checkpoints, of steps 2 and 3."""
    state = make_state(steps=2)
    save_checkpoint(tmp_path, state, accelerator, 2)
    advance(state)
    save_checkpoint(tmp_path, state, accelerator, 2)
    return tmp_path


def test_one_flipped_bit_is_noticed_and_the_one_before_taken(two, capsys):
    draw = random.Random(0)
    for name in ("state.pt", "trainable.safetensors", "manifest.json") * 8:
        path = two / "step-000003" / name
        whole = bytearray(path.read_bytes())
        changed = whole.copy()
        changed[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        # A bit of the manifest's blanks may say nothing.
        if newest_checkpoint(two).name == "step-000003":
            assert name == "manifest.json"
        else:
            assert "step-000003 is damaged" in capsys.readouterr().err
        path.write_bytes(whole)
    assert newest_checkpoint(two).name == "step-000003"


@pytest.mark.parametrize("name", ["state.pt", "trainable.safetensors"])
@pytest.mark.parametrize("how", ["gone", "pipe", "cut", "folder"])
def test_files_that_are_missing_or_none_are_named(two, name, how, capsys):
    path = two / "step-000003" / name
    content = path.read_bytes()
    path.unlink()
    if how == "pipe":
        os.mkfifo(path)
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
    if how == "folder":
        path.mkdir()
    assert newest_checkpoint(two).name == "step-000002"
    assert "step-000003 is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    "manifest", ["", "[]", "{}", '{"sha256": {}}', '{"sha256": 3}', '{"sha256": {"a\\u0000": "b"}}']
)
def test_a_damaged_manifest_is_damage(two, manifest):
    (two / "step-000003" / "manifest.json").write_text(manifest)
    assert newest_checkpoint(two).name == "step-000002"


def test_where_all_are_damaged_nothing_goes_on(two):
    for step in ("step-000002", "step-000003"):
        (two / step / "state.pt").write_bytes(b"x")
    with pytest.raises(UserError, match="no checkpoint in .* whole.*--overwrite"):
        newest_checkpoint(two)


def test_a_checkpoint_of_an_earlier_version_goes_on(two, accelerator, capsys):
    (two / "step-000003" / "manifest.json").unlink()
    load_checkpoint(newest_checkpoint(two), make_state(), accelerator)
    assert "step-000003 has no manifest.json" in capsys.readouterr().err


def test_a_damaged_later_one_takes_no_place_of_what_comes_after(two, accelerator):
    (two / "step-000003" / "state.pt").write_bytes(b"x")
    state = make_state()
    load_checkpoint(newest_checkpoint(two), state, accelerator)
    state.progress.step = 2
    for _ in range(2):
        save_checkpoint(two, state, accelerator, 1)
        assert newest_checkpoint(two).name == f"step-{state.progress.step:06d}"
        advance(state)
    assert steps(two) == ["step-000003"]
    load_checkpoint(newest_checkpoint(two), make_state(), accelerator)


def without(*names):
    def change(saved):
        part = saved
        for name in names[:-1]:
            part = part[name]
        del part[names[-1]]

    return change


def changed(value, *names):
    def change(saved):
        part = saved
        for name in names[:-1]:
            part = part[name]
        part[names[-1]] = value

    return change


PARTS = ("optimizer", "schedule", "sampler", "progress", "generators", "scaler")
CHANGES = {
    **{f"without {part}": without(part) for part in PARTS},
    **{f"{part} a number": changed(3, part) for part in PARTS[:-1]},
    **{f"{part} empty": changed({}, part) for part in PARTS[:-2]},
    "sampler beyond the data": changed(99, "sampler", "step"),
    "sampler before the data": changed(-1, "sampler", "step"),
    "sampler of texts": changed("1", "sampler", "epoch"),
    "length 0": changed(0, "sampler", "length"),
    "moments of another shape": changed(torch.zeros(1), "optimizer", "state", 0, "exp_avg"),
    "no moments": without("optimizer", "state", 0, "exp_avg"),
    "moments of a strange parameter": changed({}, "optimizer", "state", 99),
    "moments by text": changed({}, "optimizer", "state", "a"),
    "fewer parameters": changed([0], "optimizer", "param_groups", 0, "params"),
    "no groups": changed([], "optimizer", "param_groups"),
    "step of text": changed("4", "progress", "step"),
    "step below 0": changed(-1, "progress", "step"),
    "loss a list": changed([1], "progress", "last_loss"),
    "schedule a text": changed("a", "schedule", "last_epoch"),
    "generator cut": changed(torch.zeros(3, dtype=torch.uint8), "generators", 0, "torch"),
    "generator of no numbers": changed((3, (-1,) * 625, None), "generators", 0, "python"),
    "numpy's generator cut": changed(("MT19937", [1], 1, 0, 0.0), "generators", 0, "numpy"),
    "no generators": changed([{}], "generators"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_state_of_another_form_is_refused_by_name(two, accelerator, what):
    """Without a manifest, as an earlier version wrote it, or as somebody made it."""
    path = two / "step-000003" / "state.pt"
    saved = torch.load(path, weights_only=True)
    CHANGES[what](saved)
    torch.save(saved, path)
    state = make_state()
    before = copy.deepcopy(state.model.state_dict())
    with pytest.raises(UserError, match="step-000003"):
        load_checkpoint(two / "step-000003", state, accelerator)
    if "generator" not in what:
        assert all(torch.equal(before[n], w) for n, w in state.model.state_dict().items())


def test_bytes_that_are_changed_anywhere_are_refused_or_harmless(two, accelerator):
    draw = random.Random(1)
    path = two / "step-000003" / "state.pt"
    whole = path.read_bytes()
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(draw.choice([1, 3, 30])):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(damaged[: draw.choice([len(damaged), draw.randrange(len(damaged))])])
        try:
            load_checkpoint(two / "step-000003", make_state(), accelerator)
        except UserError as error:
            assert "step-000003" in str(error)


def test_a_packed_state_is_not_unpacked(two, accelerator):
    path = two / "step-000003" / "state.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10**6)
    with pytest.raises(UserError, match="step-000003.*was compressed"):
        load_checkpoint(two / "step-000003", make_state(), accelerator)


class Evil:
    def __reduce__(self):
        return (os.system, ("touch canary",))


def shared_lists() -> list:
    """10^12 texts, when written out."""
    inner: list = ["x"]
    for _ in range(12):
        inner = [inner] * 10
    return inner


def nested(depth: int) -> list:
    inner: list = []
    for _ in range(depth):
        inner = [inner]
    return inner


STRANGE = {
    "a program": (Evil, "it asks for posix.system"),
    "shared lists": (shared_lists, "holds more, or deeper"),
    "deep lists": (lambda: nested(60), "holds more, or deeper"),
    # Of 1 MiB, 2,000 times.
    "shared tensors": (lambda: [torch.ones(2**18)] * 2000, "holds more, or deeper"),
    "strides of 0": (lambda: torch.ones(1).expand(2**30), "beyond the size of the file"),
    "sparse": (lambda: torch.eye(3).to_sparse(), "no dense tensor"),
}


@pytest.mark.parametrize("what", STRANGE)
def test_what_torch_would_have_taken_or_run_is_refused_by_name(
    two, accelerator, what, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    path = two / "step-000003" / "state.pt"
    make, said = STRANGE[what]
    torch.save(torch.load(path, weights_only=True) | {"more": make()}, path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=f"step-000003.*{said}") as error:
        load_checkpoint(two / "step-000003", make_state(), accelerator)
    # What another program wrote is not called damaged, nor to be deleted.
    assert ("damaged" in str(error.value)) == (what != "a program")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024
    assert not (tmp_path / "canary").exists()


def test_the_state_is_what_torch_reads_and_outlives_its_file(two):
    path = two / "step-000003" / "state.pt"
    expected = torch.load(path, weights_only=True)
    read = read_state(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert_same(read, expected)


def assert_same(read, expected):
    if isinstance(expected, torch.Tensor):
        assert read.dtype == expected.dtype and torch.equal(read, expected)
        return
    assert type(read) is type(expected)
    if isinstance(expected, dict):
        assert list(read) == list(expected)
        for key, value in expected.items():
            assert_same(read[key], value)
    elif isinstance(expected, (list, tuple)):
        assert len(read) == len(expected)
        for pair in zip(read, expected, strict=True):
            assert_same(*pair)
    else:
        assert read == expected


def test_the_manifest_names_every_file(two):
    sums = json.loads((two / "step-000003" / "manifest.json").read_text())["sha256"]
    assert set(sums) == {"state.pt", "trainable.safetensors"}
