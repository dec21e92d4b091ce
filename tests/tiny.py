"""Tiny models of the real structure, random: what the fixtures of all folders are built from."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModel,
    CLIPImageProcessorPil,
    PreTrainedTokenizerFast,
    T5Config,
)

from tuninglab.data.reading.splits import read_splits
from tuninglab.evaluation.by_type import scored_by_type
from tuninglab.evaluation.metrics.metric import Scored
from tuninglab.evaluation.task import Task
from tuninglab.models import FlamingoConfig, FlamingoForConditionalGeneration
from tuninglab.models.build import add_flamingo_tokens
from tuninglab.models.processing import FlamingoProcessor
from tuninglab.models.text_to_text import TextToText

VOCABULARY, EOC, IMAGE, PAD = 64, 60, 61, 62
SIDE = 16  # of pictures, in pixels

# Each architecture by its own names, also of a shape that shares its model type (llama3).
WIDTH = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
GQA = {**WIDTH, "intermediate_size": 48, "num_key_value_heads": 2}
TIED = {"tie_word_embeddings": True}
SCALED_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.75,
    "factor": 4.0,
    "short_factor": [1.0, 1.0, 1.0],
    "long_factor": [1.0, 2.0, 4.0],
}
FAMILIES = {
    "llama": {**WIDTH, "intermediate_size": 48},
    "llama3": {"model_type": "llama", **GQA, **TIED, "rope_parameters": SCALED_ROPE},
    "mistral": {**GQA, "sliding_window": 4},
    "qwen2": {**GQA, **TIED},
    "qwen3": {**GQA, **TIED, "head_dim": 16},
    "gemma": {**GQA, "num_key_value_heads": 1, "head_dim": 16},
    "gemma2": {**GQA, "head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8},
    "phi": {**WIDTH, "intermediate_size": 48},
    "phi3": {**WIDTH, "intermediate_size": 48, "sliding_window": 4},
    "phi4-mini": {
        "model_type": "phi3",
        **GQA,
        **TIED,
        "max_position_embeddings": 64,
        "original_max_position_embeddings": 16,
        "rope_parameters": LONG_ROPE,
    },
    "opt": {**WIDTH, "ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 64},
    "gpt_neox": {**WIDTH, "intermediate_size": 48},
    "mpt": {"d_model": 32, "n_layers": 4, "n_heads": 4, "max_seq_len": 64},
    "gptj": {"n_embd": 32, "n_layer": 4, "n_head": 4, "rotary_dim": 4, "n_positions": 64},
    "gpt2": {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64},
    # What savers must leave alone: rows of a table times sqrt(width), a feed-forward's multipliers.
    "gemma3_text": {**GQA, "head_dim": 8},
    "falcon_h1": {
        **GQA,
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_n_groups": 1,
        "mamba_chunk_size": 16,
        "mlp_multipliers": [0.5, 0.25],
    },
}


# Kinds of vision tower, likewise.
TOWERS = {
    "clip_vision_model": {"intermediate_size": 32},
    "siglip_vision_model": {"intermediate_size": 32},
    "dinov2": {"mlp_ratio": 2},
    "dinov2_with_registers": {"mlp_ratio": 2, "num_register_tokens": 3},
    # Its rotary positions want widths of heads that 4 divides.
    "dinov3_vit": {"intermediate_size": 32, "num_attention_heads": 3, "num_register_tokens": 3},
}


def text_config(family: str = "llama", **sizes):
    usual = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": PAD}
    return AutoConfig.for_model(**{"model_type": family, **usual, **FAMILIES[family], **sizes})


def vision_config(kind: str = "clip_vision_model", **sizes):
    usual = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    usual |= {"image_size": SIDE, "patch_size": 8}
    return AutoConfig.for_model(kind, **{**usual, **TOWERS[kind], **sizes})


def t5(**config) -> TextToText:
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_heads": 4}
    settings = {"feed_forward_proj": "gated-gelu", "dropout_rate": 0.0, "vocab_size": 160}
    settings |= {"decoder_start_token_id": 0, "pad_token_id": 0, "use_cache": False} | config
    return TextToText(T5Config(**sizes, **settings)).requires_grad_(False)


def save_tower(folder, kind, **sizes):
    """A random tower in a folder, without an image processor."""
    torch.manual_seed(0)
    tower = AutoModel.from_config(vision_config(kind, **sizes)).eval()
    for parameter in tower.parameters():
        # Registers and class tokens are alike at the start.
        torch.nn.init.normal_(parameter, std=0.3)
    tower.save_pretrained(folder)
    return tower


def flamingo_config(
    family: str = "llama",
    text: dict | None = None,
    vision: dict | None = None,
    tower: str = "clip_vision_model",
    **options,
) -> FlamingoConfig:
    """Sizes by the names of each configuration, where they shall be others than the usual."""
    bridge = {"perceiver_depth": 2, "perceiver_latents": 5, "perceiver_heads": 2}
    bridge |= {"perceiver_dim_head": 8, "cross_attn_heads": 2, "cross_attn_dim_head": 8}
    usual = {"cross_attn_every_n_layers": 2, "image_token_id": IMAGE, "eoc_token_id": EOC}
    return FlamingoConfig(
        text_config=text_config(family, **(text or {})),
        vision_config=vision_config(tower, **(vision or {})),
        **{**bridge, **usual, **options},
    )


def flamingo(config: FlamingoConfig, attn_gate: float, ff_gate: float = 0.0, scale: float = 1.0):
    """A random model in evaluation mode whose gates are open by so much.

    `scale` multiplies the language model's matrices: the families initialise with 0.02, at which
    every token looks the same.
    """
    torch.manual_seed(0)
    model = FlamingoForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.lang_encoder.named_parameters():
            if parameter.ndim == 2 and "gated" not in name:
                parameter.mul_(scale)
    for block in model.gated_blocks:
        block.attn_gate.data.fill_(attn_gate)
        block.ff_gate.data.fill_(ff_gate)
    return model


def speaking(tokenizer: PreTrainedTokenizerFast, **text) -> tuple[dict, dict]:
    """What a configuration needs to know of a tokenizer: (for its text part, for the whole)."""
    ids = [tokenizer.convert_tokens_to_ids(token) for token in ("<image>", "<|endofchunk|>")]
    text |= {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    return text, {"image_token_id": ids[0], "eoc_token_id": ids[1]}


def processor_of(tokenizer: PreTrainedTokenizerFast) -> FlamingoProcessor:
    size = {"height": SIDE, "width": SIDE}
    pictures = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=size)
    return FlamingoProcessor(pictures, tokenizer)


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


def colour_flamingo(tokenizer: PreTrainedTokenizerFast, tied: bool = False):
    """Two layers that read the words of the colours, with gates half open."""
    sizes = {"num_hidden_layers": 2, "max_position_embeddings": 256, "tie_word_embeddings": tied}
    text, tokens = speaking(tokenizer, **sizes)
    # What a frozen tower's dropout would do shows at such a rate.
    vision = {"num_attention_heads": 2, "attention_dropout": 0.5}
    bridge = {"perceiver_depth": 1, "perceiver_latents": 4}
    return flamingo(flamingo_config("llama", text, vision, **bridge, **tokens), 0.6, 0.3)


class Colours(Task):
    """A task on a file of questions for a colour: its answers, and how many name the true one."""

    def __init__(self, data: str):
        super().__init__(read_splits(data))

    def before(self, answer):
        answers = answer(self.splits.train, 4)
        truths = [s.messages[-1]["content"][0]["text"] for s in self.splits.train]
        scored = [Scored(*pair) for pair in zip(answers, ([t] for t in truths), strict=True)]
        return {"answers": answers, **scored_by_type(scored, ["colour"] * len(scored))}

    def after(self, answer):
        return {"after": self.before(answer)}

    def write_cards(self, run_dir):
        return []


def byte_tokenizer() -> PreTrainedTokenizerFast:
    # One token a byte: any text can be asked.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<s>", "</s>", *alphabet]
    core = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")
    add_flamingo_tokens(fast)
    return fast
