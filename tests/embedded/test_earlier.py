"""What a new base takes over from an earlier one computes what it did there."""

import torch
from transformers import PreTrainedTokenizerFast

from tools.embedded_base.earlier import take_bridge, take_language, take_tower
from tools.embedded_base.language import new_language_model
from tools.embedded_base.tower import new_tower
from tuninglab.embedded import base_directory
from tuninglab.models.build import load_flamingo


def test_layers_and_rows_are_those_of_before():
    base, processor = load_flamingo(base_directory(), torch.float32)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base_directory())
    lm, tower = new_language_model(tokenizer), new_tower()
    take_language(lm, tokenizer, base_directory())
    take_tower(tower, base_directory())
    ids = tokenizer("The star is blue.", return_tensors="pt").input_ids
    with torch.no_grad():
        # Its feed-forwards work without a picture, too; the language model has none of them.
        for block in base.gated_blocks:
            block.attn_gate.zero_(), block.ff_gate.zero_()
        torch.testing.assert_close(lm(ids).logits, base(input_ids=ids).logits)
        pixels = torch.randn(2, 3, 96, 96)
        theirs = base.encode_patches(pixels[:, None, None])[:, 0, 0]
        ours = tower(pixel_values=pixels).last_hidden_state[:, 1:]
    torch.testing.assert_close(ours, theirs)


def test_a_new_layer_passes_on_what_it_gets():
    base, _ = load_flamingo(base_directory(), torch.float32)
    config = new_tower().config
    config.num_hidden_layers += 1
    tower = type(new_tower())(config)
    take_tower(tower, base_directory())
    pixels = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        ours = tower(pixel_values=pixels).last_hidden_state[:, 1:]
        torch.testing.assert_close(ours, base.encode_patches(pixels[:, None, None])[:, 0, 0])


def test_a_new_token_starts_as_the_mean_of_its_pieces():
    base, _ = load_flamingo(base_directory(), torch.float32)
    old = PreTrainedTokenizerFast.from_pretrained(base_directory())
    new = PreTrainedTokenizerFast.from_pretrained(base_directory())
    new.add_tokens(["Ġzq"])
    model = new_language_model(new)
    take_language(model, new, base_directory())
    pieces = [piece.id for piece in old.backend_tokenizer.model.tokenize("Ġzq")]
    assert len(pieces) > 1
    rows = base.get_input_embeddings().weight[pieces]
    row = model.get_input_embeddings().weight[new.convert_tokens_to_ids("Ġzq")]
    torch.testing.assert_close(row, rows.mean(0))


def test_the_bridge_is_that_of_before():
    base, _ = load_flamingo(base_directory(), torch.float32)
    other, _ = load_flamingo(base_directory(), torch.float32)
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    take_bridge(other, base_directory())
    latents = torch.randn(1, 1, 1, 36, base.config.vision_config.hidden_size)
    with torch.no_grad():
        torch.testing.assert_close(other.perceiver(latents), base.perceiver(latents))
    gates = [(b.attn_gate.item(), b.ff_gate.item()) for b in base.gated_blocks]
    assert gates == [(b.attn_gate.item(), b.ff_gate.item()) for b in other.gated_blocks]
