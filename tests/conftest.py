"""Tiny base models, runs and data, shared by all tests; tests/tiny.py builds them."""

import copy
import json
import os
import shutil
import tempfile

# Before torch is imported, and for all processes that tests start: tiny models gain nothing by a
# second thread, and on a busy machine lose much (a resumed run of a tiny int8 T5: 58 s, alone 1).
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What is read of the tests' data is kept apart from the user's own, and goes with them.
os.environ["TUNINGLAB_DATA_CACHE"] = tempfile.mkdtemp(prefix="tuninglab-tests-")

import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
)

from tests.tiny import (
    COLOURS,
    EOC,
    IMAGE,
    PAD,
    byte_tokenizer,
    colour_flamingo,
    flamingo,
    flamingo_config,
    processor_of,
    speaking,
    tiny_tokenizer,
)
from tuninglab.adapters.lora import tune
from tuninglab.adapters.saving import save_adapter
from tuninglab.config import FinetuneConfig
from tuninglab.config.yaml_file import config_yaml
from tuninglab.console import answer_main_process
from tuninglab.kernels import compiled
from tuninglab.models.build import load_flamingo
from tuninglab.recipes import common

# A clock says nothing beside another process of tests: no example is too slow.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


def pytest_sessionfinish():
    """Delete what was kept of the tests' data."""
    shutil.rmtree(os.environ["TUNINGLAB_DATA_CACHE"], ignore_errors=True)


@pytest.fixture(autouse=True)
def one_process():
    """Forget what accelerate said of the process in the test before."""
    answer_main_process(None)


@pytest.fixture(autouse=True)
def planned(request, monkeypatch):
    """Runs plan nothing, which is half of a tiny run's time, but where plans are tested."""
    if "plan" not in request.module.__name__:
        monkeypatch.setattr(common, "plan_training", lambda *args: None)


@pytest.fixture
def second_process(monkeypatch):
    """This process as torchrun starts the second of two."""
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def tiny_bases(tmp_path_factory):
    """Saved tiny Flamingos with open gates: directories by name, `plain` and `tied`."""
    tokenizer, folders = tiny_tokenizer(), {}
    for name in ("plain", "tied"):
        folders[name] = tmp_path_factory.mktemp(name)
        colour_flamingo(tokenizer, tied=name == "tied").save_pretrained(folders[name])
        processor_of(tokenizer).save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="session")
def loaded_bases(tiny_bases):
    """Tiny Flamingos by name, loaded once; not to be changed."""
    return {name: load_flamingo(folder)[0] for name, folder in tiny_bases.items()}


@pytest.fixture
def tiny_flamingo(loaded_bases):
    """A function (name of a tiny base, `plain` or `tied`) -> a model of its own."""
    return lambda name="plain": copy.deepcopy(loaded_bases[name])


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """A messages JSONL file: 12 one-colour pictures and their colour, the last row text only."""
    folder = tmp_path_factory.mktemp("data")
    lines = []
    for number in range(12):
        name = list(COLOURS)[number % 3]
        picture = Image.new("RGB", (16, 16), COLOURS[name])
        # No two are equal, or --val_split would hold them together.
        picture.putpixel((number, 0), (0, 0, 0))
        picture.save(folder / f"{number}.png")
        pictures = [f"{number}.png"] if number < 11 else []
        question = "<image>colour?" if pictures else "colour?"
        turns = [("user", question), ("assistant", name)]
        messages = [{"role": role, "content": text} for role, text in turns]
        lines.append(json.dumps({"messages": messages, "images": pictures}))
    path = folder / "colours.jsonl"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="session")
def take_apart():
    """A function (Flamingo, folder, rows) -> saves its language model, cut to rows, and tower."""

    def save(model, folder, rows=None):
        text = copy.deepcopy(model.config.text_config)
        lang = AutoModelForCausalLM.from_config(text)
        state = model.lang_encoder.state_dict()
        plain = {n.replace(".decoder_layer", ""): t for n, t in state.items() if "gated" not in n}
        lang.load_state_dict(plain)
        if rows is not None:
            lang.resize_token_embeddings(rows, mean_resizing=False)
            # The pad token is one of those cut off.
            lang.config.pad_token_id = None
        lang.save_pretrained(folder / "lang")
        model.vision_encoder.save_pretrained(folder / "clip")
        return folder / "lang", folder / "clip"

    return save


@pytest.fixture(params=["C", "torch"])
def kernels(request, monkeypatch):
    """Tests of passes over rows run with the C kernels and without."""
    if request.param == "torch":
        monkeypatch.setattr(compiled, "library", lambda: None)
    elif compiled.library() is None:
        pytest.skip("no C compiler here")
    return request.param


@pytest.fixture
def make_flamingo():
    """A function (family, gate, **configuration) -> random model whose gates are open by `gate`."""

    def make(family: str = "llama", gate: float = 0.7, **options):
        return flamingo(flamingo_config(family, **options), gate, 0.5 * gate, scale=4)

    return make


@pytest.fixture
def make_batch():
    """A function (rows of mark positions, length) -> left-padded batch; rows differ in length."""

    def make(marks: list[list[int]], length: int = 10, images: int | None = None):
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(3, EOC, (len(marks), length), generator=generator)
        mask = torch.ones_like(ids)
        for row, positions in enumerate(marks):
            ids[row, positions] = IMAGE
            ids[row, :row], mask[row, :row] = PAD, 0
        count = max(map(len, marks)) if images is None else images
        pixels = torch.randn(len(marks), count, 1, 3, 16, 16, generator=generator)
        return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}

    return make


@pytest.fixture
def make_tokenizer():
    """A function (**special tokens) -> tokenizer of seven words, padding on the left."""

    def make(**special):
        words = ["<unk>", "<s>", "</s>", "a", "cat", "dog", "and"]
        table = {word: number for number, word in enumerate(words)}
        core = Tokenizer(models.WordLevel(table, unk_token="<unk>"))
        core.pre_tokenizer = pre_tokenizers.Whitespace()
        names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
        return PreTrainedTokenizerFast(
            tokenizer_object=core, padding_side="left", **names, **special
        )

    return make


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory):
    """A random Flamingo with open gates, which reads 200 tokens."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    words = byte_tokenizer()
    ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    text, tokens = speaking(words, num_hidden_layers=2, max_position_embeddings=200, **ends)
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    bridge = {"cross_attn_every_n_layers": 1, "perceiver_depth": 1, "perceiver_latents": 4}
    bridge |= {"perceiver_heads": 8, "perceiver_dim_head": 64}
    bridge |= {"cross_attn_heads": 8, "cross_attn_dim_head": 64}
    flamingo(flamingo_config("llama", text, vision, **bridge, **tokens), 1.0).save_pretrained(path)
    processor_of(words).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def run_folder(model_directory, tmp_path_factory):
    """A run folder whose adapter changes the tiny model's answers."""
    run = tmp_path_factory.mktemp("runs") / "tuned"
    run.mkdir()
    model, _ = load_flamingo(model_directory)
    config = FinetuneConfig(model=str(model_directory))
    tuned = tune(model, config.tuning_config)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    save_adapter(tuned, run / "adapter")
    (run / "config.yaml").write_text(config_yaml(config))
    return run
