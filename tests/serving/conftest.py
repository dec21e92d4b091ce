"""A tiny Flamingo on disk, and a run that tuned it."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from tuninglab.adapters.lora import tune
from tuninglab.adapters.saving import save_adapter
from tuninglab.config import FinetuneConfig
from tuninglab.config_file import config_yaml
from tuninglab.models import FlamingoConfig, FlamingoForConditionalGeneration
from tuninglab.models.build import add_flamingo_tokens, load_flamingo
from tuninglab.models.processing import FlamingoProcessor

SIDE = 16


def tokenizer() -> PreTrainedTokenizerFast:
    # One token a byte: any text can be asked.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<s>", "</s>", *alphabet]
    core = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")
    add_flamingo_tokens(fast)
    return fast


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory):
    """A random Flamingo with open gates, which reads 200 tokens."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    words = tokenizer()
    processor = FlamingoProcessor(
        CLIPImageProcessorPil(
            size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
        ),
        words,
    )
    width = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    config = FlamingoConfig(
        text_config=LlamaConfig(
            **width,
            num_hidden_layers=2,
            vocab_size=len(words),
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
            max_position_embeddings=200,
        ),
        vision_config=CLIPVisionConfig(**width, num_hidden_layers=1, image_size=SIDE, patch_size=8),
        cross_attn_every_n_layers=1,
        perceiver_depth=1,
        perceiver_latents=4,
        image_token_id=processor.image_token_id,
        eoc_token_id=processor.eoc_token_id,
    )
    model = FlamingoForConditionalGeneration(config)
    for block in model.gated_blocks:
        torch.nn.init.constant_(block.attn_gate, 1.0)
    model.save_pretrained(path)
    processor.save_pretrained(path)
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
