import pytest
from transformers import AutoConfig, LlamaConfig

from tuninglab.models import FlamingoConfig

TINY = {"vocab_size": 40, "num_hidden_layers": 3, "hidden_size": 8, "num_attention_heads": 2}
ENDS = {"bos_token_id": 1, "eos_token_id": 2}


def test_defaults_are_openflamingo_9b():
    config = FlamingoConfig()
    assert (config.text_config.model_type, config.text_config.vocab_size) == ("llama", 32003)
    assert (config.text_config.hidden_size, config.text_config.num_hidden_layers) == (4096, 32)
    vision = config.vision_config
    assert (vision.hidden_size, vision.patch_size, vision.hidden_act) == (1024, 14, "quick_gelu")
    assert (config.eoc_token_id, config.image_token_id) == (32000, 32001)
    assert config.media_mode == "previous" and config.cross_attn_every_n_layers == 4


def test_dictionaries_become_configurations_and_round_trip(tmp_path):
    config = FlamingoConfig(
        text_config={"model_type": "gpt2", "vocab_size": 40, "n_layer": 3, **ENDS},
        media_mode="next-v1",
        cross_attn_every_n_layers=3,
        image_token_id=5,
        eoc_token_id=6,
    )
    assert config.tie_word_embeddings  # GPT-2's
    again = FlamingoConfig.from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict()
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    loaded._name_or_path = ""
    assert loaded.to_dict() == config.to_dict()
    text = LlamaConfig(**TINY)
    shared = FlamingoConfig(
        text_config=text, cross_attn_every_n_layers=1, image_token_id=5, eoc_token_id=6
    )
    assert shared.text_config is text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"media_mode": "next"}, "media_mode is 'next'; give one of"),
        ({"cross_attn_every_n_layers": 0}, "cross_attn_every_n_layers is 0; give a whole number"),
        ({"cross_attn_every_n_layers": 4}, "is 4, but the language model has 3 layers"),
        ({"perceiver_latents": -1}, "perceiver_latents is -1"),
        ({"image_token_id": 40}, "image_token_id is 40, but the vocabulary .* has 40 rows"),
        ({"eoc_token_id": -1}, "eoc_token_id is -1"),
    ],
)
def test_values_out_of_range(options, message):
    good = {"cross_attn_every_n_layers": 1, "image_token_id": 5, "eoc_token_id": 6}
    with pytest.raises(ValueError, match=message):
        FlamingoConfig(text_config=TINY, **{**good, **options})
