"""Tiny models of the real structure, random: what the fixtures of all folders are built from."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    CLIPVisionConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    T5Config,
)

from tuninglab.models import FlamingoConfig
from tuninglab.models.build import add_flamingo_tokens
from tuninglab.models.text_to_text import TextToText

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
    # What savers must leave alone: rows of a table times sqrt(width), a feed-forward's multipliers.
    "gemma3_text": {**WIDTH, "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8},
    "falcon_h1": {
        **WIDTH,
        "intermediate_size": 48,
        "num_key_value_heads": 2,
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_n_groups": 1,
        "mamba_chunk_size": 16,
        "mlp_multipliers": [0.5, 0.25],
    },
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


def t5(**config) -> TextToText:
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_heads": 4}
    settings = {"feed_forward_proj": "gated-gelu", "dropout_rate": 0.0, "vocab_size": 160}
    settings |= {"decoder_start_token_id": 0, "pad_token_id": 0, "use_cache": False} | config
    return TextToText(T5Config(**sizes, **settings)).requires_grad_(False)


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


SIDE = 16


def byte_tokenizer() -> PreTrainedTokenizerFast:
    # One token a byte: any text can be asked.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<s>", "</s>", *alphabet]
    core = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")
    add_flamingo_tokens(fast)
    return fast
