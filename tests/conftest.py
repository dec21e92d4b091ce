"""A tiny base model and data, shared by the tests that tune."""

import copy
import json

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from tuninglab.kernels import compiled
from tuninglab.models.build import add_flamingo_tokens, load_flamingo
from tuninglab.models.configuration import FlamingoConfig
from tuninglab.models.flamingo import FlamingoForConditionalGeneration
from tuninglab.models.processing import FlamingoProcessor

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 40), "blue": (40, 60, 200)}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    core.train_from_iterator(["### Instruction: colour? ### Response: red green blue"], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")
    add_flamingo_tokens(tokenizer)
    return tokenizer


def tiny_config(tokenizer: PreTrainedTokenizerFast, tied: bool = False) -> FlamingoConfig:
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        attention_dropout=0.5,
    )
    return FlamingoConfig(
        text_config=text,
        vision_config=vision,
        cross_attn_every_n_layers=2,
        perceiver_depth=1,
        perceiver_latents=4,
        perceiver_heads=2,
        perceiver_dim_head=8,
        cross_attn_heads=2,
        cross_attn_dim_head=8,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        eoc_token_id=tokenizer.convert_tokens_to_ids("<|endofchunk|>"),
    )


@pytest.fixture(scope="session")
def tiny_bases(tmp_path_factory):
    """Saved tiny Flamingos with open gates: directories by name, `plain` and `tied`."""
    tokenizer = tiny_tokenizer()
    size = {"height": 16, "width": 16}
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=size)
    folders = {}
    for name in ("plain", "tied"):
        torch.manual_seed(0)
        model = FlamingoForConditionalGeneration(tiny_config(tokenizer, tied=name == "tied"))
        for block in model.gated_blocks:
            block.attn_gate.data.fill_(0.6)
            block.ff_gate.data.fill_(0.3)
        folders[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(folders[name])
        FlamingoProcessor(pictures, tokenizer).save_pretrained(folders[name])
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
        Image.new("RGB", (16, 16), COLOURS[name]).save(folder / f"{number}.png")
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
