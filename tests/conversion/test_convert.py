"""`tuninglab convert` as a user meets it: files in, directories out, bad files refused."""

import json
import os
import pickle
import re
import zipfile

import pytest
import torch

from tests.conversion.test_building import released, save_tokenizer, with_aliases
from tuninglab.cli import main
from tuninglab.models.build import load_flamingo


@pytest.fixture
def make_release(tiny_flamingo, take_apart, tmp_path):
    """A function (aliases) -> a Flamingo, its checkpoint.pt, and the flags that name its parts."""

    def make(aliases=False, wrap=lambda state: state):
        model = tiny_flamingo()
        state = with_aliases(model, "llama") if aliases else released(model)
        torch.save(wrap(state), tmp_path / "checkpoint.pt")
        lang, clip = take_apart(model, tmp_path)
        words = model.config.eoc_token_id
        save_tokenizer(lang, words)
        flags = ["--lang_encoder", str(lang), "--vision_encoder", str(clip)]
        return model, tmp_path / "checkpoint.pt", flags

    return make


def run(*words):
    return main(["convert", *map(str, words)])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {
            "epoch": 3,
            "model_state_dict": {f"module.{k}": v for k, v in state.items()},
        },
    ],
    ids=["flat", "training"],
)
def test_a_release_becomes_a_directory(wrap, make_release, tmp_path, capsys):
    model, checkpoint, flags = make_release(aliases=True, wrap=wrap)
    out = tmp_path / "out"
    arguments = ["--from", "open_flamingo", "--checkpoint", checkpoint, *flags, "--out", out]
    assert run(*arguments, "--media_mode", "previous", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert not [key for key in report["keys"] if key["fate"] in ("missing", "unexpected")]
    assert json.loads((out / "conversion.json").read_text())["keys"] == report["keys"]
    loaded, _ = load_flamingo(out)
    theirs = model.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in loaded.state_dict().items())
    # A folder that is there is not replaced unasked, and nothing of it is touched.
    before = (out / "config.json").read_bytes()
    assert run(*arguments) == 2
    assert (out / "config.json").read_bytes() == before
    assert "--overwrite" in capsys.readouterr().err


def contents(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_overwrite_replaces_a_conversion_whole(make_release, tmp_path):
    _, checkpoint, flags = make_release()
    out = tmp_path / "out"
    # An empty folder is free without it.
    out.mkdir()
    arguments = ["--checkpoint", checkpoint, *flags, "--out", out, "--overwrite"]
    assert run(*arguments[:-1], "--media_mode", "next-v1") == 0
    (out / "stray.txt").write_text("of the conversion before")
    assert run(*arguments, "--media_mode", "previous") == 0
    assert not (out / "stray.txt").exists()
    assert json.loads((out / "config.json").read_text())["media_mode"] == "previous"
    assert {path.name for path in tmp_path.iterdir()} == {"out", "checkpoint.pt", "lang", "clip"}


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_overwrite_keeps_what_is_no_model(make_release, tmp_path, capsys, kind):
    _, checkpoint, flags = make_release()
    out = tmp_path / "thesis"
    if kind == "folder":
        out.mkdir()
    (out / "chapter.tex" if kind == "folder" else out).write_text("years of work")
    before = contents(tmp_path)
    assert run("--checkpoint", checkpoint, *flags, "--out", out, "--overwrite") == 2
    assert "is no model or adapter" in capsys.readouterr().err
    assert contents(tmp_path) == before


@pytest.mark.parametrize("held", ["checkpoint", "lang_encoder", "vision_encoder", "itself"])
def test_overwrite_keeps_what_is_being_read(make_release, tmp_path, capsys, monkeypatch, held):
    _, checkpoint, flags = make_release()
    out, parts = tmp_path / "out", {"--checkpoint": checkpoint, flags[0]: flags[1]}
    parts[flags[2]] = flags[3]
    out.mkdir()
    (out / "config.json").write_text("{}")
    if held == "itself":
        # The language model's own folder has a config.json, as what may be replaced has.
        out, held = tmp_path / "lang", "lang_encoder"
    else:
        inside = out / "parts" / "it"
        inside.parent.mkdir()
        os.rename(parts[f"--{held}"], inside)
        # A relative name, through another folder, is the same place.
        monkeypatch.chdir(tmp_path)
        parts[f"--{held}"] = "lang/../out/parts/it" if held != "lang_encoder" else "out/parts/it"
    before = contents(tmp_path)
    words = [word for pair in parts.items() for word in pair]
    assert run(*words, "--out", out, "--overwrite") == 2
    assert f"holds --{held}, which is read" in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_a_checkpoint_that_is_there_is_replaced_only_when_asked(make_release, tmp_path, capsys):
    _, checkpoint, flags = make_release()
    model, back = tmp_path / "model", tmp_path / "back.pt"
    assert run("--checkpoint", checkpoint, *flags, "--out", model) == 0
    back.write_bytes(b"somebody's")
    words = ["--to", "open_flamingo", "--model", model, "--out", back]
    assert run(*words) == 2
    assert f"--out {back} exists" in capsys.readouterr().err
    assert back.read_bytes() == b"somebody's"
    assert run(*words, "--overwrite") == 0
    assert any(name.startswith("perceiver.") for name in torch.load(back, weights_only=True))


def test_back_and_forth_through_the_command_line(make_release, tmp_path, capsys):
    _, checkpoint, flags = make_release(aliases=True)
    first, second = tmp_path / "first", tmp_path / "second"
    back = tmp_path / "back" / "checkpoint.pt"
    mode = ["--media_mode", "previous"]
    assert run("--checkpoint", checkpoint, *flags, "--out", first, *mode) == 0
    assert run("--to", "open_flamingo", "--model", first, "--out", back) == 0
    assert run("--checkpoint", back, *flags, "--out", second) == 0
    ours, theirs = (load_flamingo(folder)[0] for folder in (first, second))
    assert ours.config.media_mode == theirs.config.media_mode
    state = theirs.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in ours.state_dict().items())


def test_inspect_reads_the_file_alone(make_release, capsys):
    _, checkpoint, _ = make_release(aliases=True)
    assert run("--inspect", "--checkpoint", checkpoint) == 0
    shown = capsys.readouterr().out
    assert "open_flamingo" in shown and "llama" in shown and "perceiver" in shown
    assert run("--inspect", "--checkpoint", checkpoint, "--json") == 0
    names = [key["name"] for key in json.loads(capsys.readouterr().out)["keys"]]
    state = torch.load(checkpoint, weights_only=True)
    assert set(names) == set(state)


class Malicious:
    """Unpickled the ordinary way, it runs a command."""

    def __init__(self, path):
        self.command = f"touch {path}"

    def __reduce__(self):
        return os.system, (self.command,)


def bad_files(folder, good):
    whole = good.read_bytes()
    torch.save(
        {"state_dict": {"a": torch.ones(2)}, "x": Malicious(folder / "ran")}, folder / "e.pt"
    )
    (folder / "raw.pt").write_bytes(pickle.dumps(Malicious(folder / "ran"), protocol=2))
    (folder / "empty.pt").write_bytes(b"")
    (folder / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (folder / "text.pt").write_text("weights will follow\n")
    (folder / "page.pt").write_text("<!DOCTYPE html><html>Sign in</html>")
    (folder / "pointer.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with zipfile.ZipFile(folder / "zip.pt", "w") as file:
        file.writestr("readme.txt", "hello")
    torch.save({"epoch": 3}, folder / "none.pt")
    torch.save({"weight": torch.ones(2)}, folder / "other.pt")
    torch.save([torch.ones(2)], folder / "list.pt")
    cut = {n: t for n, t in torch.load(good, weights_only=True).items() if "to_kv" not in n}
    torch.save(cut, folder / "missing.pt")
    (folder / "folder").mkdir()
    return {
        "e.pt": "system.*Nothing of it was executed",
        "raw.pt": "system.*Nothing of it was executed",
        "empty.pt": "is empty",
        "cut.pt": "cut off or damaged",
        "text.pt": "a text file",
        "page.pt": "a web page",
        "pointer.pt": "git-lfs pointer",
        "zip.pt": "cut off or damaged, or no checkpoint",
        "none.pt": "no tensors",
        "other.pt": "no checkpoint of OpenFlamingo",
        "list.pt": "not a dictionary",
        "missing.pt": "missing: .*to_kv",
        "folder": "holds no weights",
        "absent.pt": "There is no",
    }


def test_bad_files_are_refused_with_help(make_release, tmp_path, capsys):
    _, checkpoint, flags = make_release()
    for name, message in bad_files(tmp_path, checkpoint).items():
        arguments = ["--checkpoint", tmp_path / name, *flags, "--out", tmp_path / "out"]
        assert run(*arguments) == 2, name
        said = capsys.readouterr().err
        assert "Traceback" not in said and name in said, name
        assert re.search(message, said, re.DOTALL), (name, said)
        assert not (tmp_path / "out").exists() and not (tmp_path / "ran").exists(), name


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "--checkpoint"),
        (["--checkpoint", "x.pt"], "--out"),
        (["--to", "open_flamingo", "--out", "x.pt"], "--model"),
        (["--from", "flamingo"], "open_flamingo"),
    ],
)
def test_flags_that_do_not_go_together(flags, said, capsys):
    assert run(*flags) == 2
    streams = capsys.readouterr()
    assert said in streams.err + streams.out


def test_a_lora_becomes_an_adapter_of_the_embedded_base(tmp_path, capsys):
    from tuninglab.adapters.lora import tune
    from tuninglab.adapters.saving import adapter_state
    from tuninglab.config.tuning import TuningConfig
    from tuninglab.embedded import base_directory
    from tuninglab.serving.open_model import open_model

    model = tune(load_flamingo(base_directory())[0], TuningConfig(r=4, train_gates=False))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    old = {
        n.replace("base_model.model.lang_encoder.", "module.lang_encoder.base_model.model."): t
        for n, t in adapter_state(model).items()
    }
    torch.save({"model_state_dict": old}, tmp_path / "lora.pt")
    out = tmp_path / "adapter"
    flags = ["--checkpoint", tmp_path / "lora.pt", "--model", "embedded", "--out", out]
    assert run("--from", "multimodal_gpt", *flags) == 0
    opened, _ = open_model(str(out))
    assert opened.get_base_model().config.media_mode == "next-v1"
    state = opened.state_dict()
    for name, tensor in model.state_dict().items():
        if "lora_" in name:
            assert torch.equal(state[name], tensor), name
    # One layer of another width, and one that the base does not have.
    name = next(name for name in old if name.endswith("q_proj.lora_A.weight") and ".0." in name)
    other = name.replace("lora_A", "lora_B")
    wrong = {name: torch.ones(4, 7), other: old[other]}
    wrong |= {key.replace(".0.", ".99."): tensor for key, tensor in wrong.items()}
    torch.save({"model_state_dict": old | wrong}, tmp_path / "lora.pt")
    assert run("--from", "multimodal_gpt", *flags, "--overwrite") == 2
    said = capsys.readouterr().err
    assert "--model embedded is not the Flamingo of this LoRA" in said
    assert "is (4, 7), the model's (4, " in said and "the model has no " in said
