"""What a new base takes over from an earlier one: its layers, and rows of tokens by their text."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPVisionModel, LlamaForCausalLM, PreTrainedTokenizerFast


def earlier_state(folder: Path) -> dict[str, Tensor]:
    """The tensors of an earlier base, in float32."""
    return {name: t.float() for name, t in load_file(folder / "model.safetensors").items()}


def take_language(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    """Layers as they were; a token's rows become the mean of those its text was made of before."""
    state = earlier_state(folder)
    old = PreTrainedTokenizerFast.from_pretrained(folder)
    begin, plain = "lang_encoder.", {}
    for name, tensor in state.items():
        if name.startswith(begin) and "gated_cross_attn_layer" not in name:
            plain[name.removeprefix(begin).replace(".decoder_layer.", ".")] = tensor
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        rows = model.get_parameter(name).detach().clone()
        for token, number in tokenizer.get_vocab().items():
            # Byte-level text of a token: what the vocabulary spells, split by the earlier merges.
            ids = old.convert_tokens_to_ids([token])
            if ids[0] == old.unk_token_id and token != "<unk>":
                pieces = old.backend_tokenizer.model.tokenize(token)
                ids = [piece.id for piece in pieces]
            if ids:
                rows[number] = plain[name][ids].mean(0)
        plain[name] = rows
    model.load_state_dict(plain)


def take_tower(tower: CLIPVisionModel, folder: Path) -> None:
    """Layers as they were; those that are new begin by passing on what they get."""
    begin = "vision_encoder."
    state = earlier_state(folder)
    plain = {n.removeprefix(begin): t for n, t in state.items() if n.startswith(begin)}
    known = tower.load_state_dict(plain, strict=False)
    if known.unexpected_keys:
        raise ValueError(f"the earlier tower has {known.unexpected_keys[:3]}, this one has not")
    for name in known.missing_keys:
        if ".layers." not in name:
            raise ValueError(f"the earlier tower has no {name}")
        if "out_proj" in name or "fc2" in name:
            torch.nn.init.zeros_(tower.get_parameter(name))


def take_bridge(model: torch.nn.Module, folder: Path) -> None:
    """Perceiver and gated blocks as they were."""
    state = earlier_state(folder)
    names = [n for n, _ in model.named_parameters()]
    own = [n for n in names if n.startswith("perceiver.") or "gated_cross_attn_layer" in n]
    model.load_state_dict({name: state[name] for name in own}, strict=False)
