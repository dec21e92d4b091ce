"""Tiny random Flamingos for the tests of this folder."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, CLIPVisionConfig, PreTrainedTokenizerFast

from tuninglab.models import FlamingoConfig, FlamingoForConditionalGeneration

VOCABULARY, EOC, IMAGE, PAD = 64, 60, 61, 62

# Each architecture by its own names; gpt2, mpt and qwen2 with tied embeddings.
WIDTH = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
FAMILIES = {
    "llama": {**WIDTH, "intermediate_size": 48},
    "qwen2": {
        **WIDTH,
        "intermediate_size": 48,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "opt": {**WIDTH, "ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 64},
    "gpt_neox": {**WIDTH, "intermediate_size": 48},
    "mpt": {"d_model": 32, "n_layers": 4, "n_heads": 4, "max_seq_len": 64},
    "gptj": {"n_embd": 32, "n_layer": 4, "n_head": 4, "rotary_dim": 4, "n_positions": 64},
    "gpt2": {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64},
}


def text_config(family: str):
    return AutoConfig.for_model(
        family,
        vocab_size=VOCABULARY,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=PAD,
        **FAMILIES[family],
    )


def vision_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=16,
        patch_size=8,
    )


def flamingo_config(family: str = "llama", **options) -> FlamingoConfig:
    small = {
        "cross_attn_every_n_layers": 2,
        "perceiver_depth": 2,
        "perceiver_latents": 5,
        "perceiver_heads": 2,
        "perceiver_dim_head": 8,
        "cross_attn_heads": 2,
        "cross_attn_dim_head": 8,
        "image_token_id": IMAGE,
        "eoc_token_id": EOC,
    }
    return FlamingoConfig(
        text_config=text_config(family), vision_config=vision_config(), **{**small, **options}
    )


@pytest.fixture
def make_flamingo():
    """A function (family, gate, **configuration) -> random model whose gates are open by `gate`."""

    def make(family: str = "llama", gate: float = 0.7, **options):
        torch.manual_seed(0)
        model = FlamingoForConditionalGeneration(flamingo_config(family, **options)).eval()
        with torch.no_grad():
            # The families initialise with 0.02, at which every token looks the same.
            for name, parameter in model.lang_encoder.named_parameters():
                if parameter.ndim == 2 and "gated" not in name:
                    parameter.mul_(4)
        for block in model.gated_blocks:
            block.attn_gate.data.fill_(gate)
            block.ff_gate.data.fill_(0.5 * gate)
        return model

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
