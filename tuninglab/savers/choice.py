"""Puts the memory savers into a model, by name."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tuninglab.int8.embedding import Int8Embedding
from tuninglab.int8.linear import Int8Linear
from tuninglab.kernels.shapes import Shapes, tensors_in, without_numbers
from tuninglab.savers import attention
from tuninglab.savers.glu import SavingActivation, activation_of, gated_names, saving_glu_of
from tuninglab.savers.norm import SavingRMSNorm, is_rms_norm

# Tokens whose logits exist at a time: 128 x 32128 numbers of float32 are 16 MiB.
LOSS_CHUNK_TOKENS = 128


def add_savers(model: Any, names: Collection[str]) -> dict[str, str]:
    """Put memory savers into a frozen model, in place, before LoRA is added.

    Args:
        model: a Flamingo or a T5, its base frozen.
        names: of
            norm: RMS norms keep their input alone.
            norm_rows: of these, those that int8 layers read keep what the layers keep: int8 rows.
            glu: gated feed-forwards, and the gated blocks' GELU, keep int8 rows.
            attention: attention with a position bias (T5) computes its scores again.
            loss: logits exist for 128 tokens at a time, never for all.
            embedding: the token table is int8; a head tied to it becomes an int8 layer.

    Returns:
        What was changed, a phrase for each: choices are said with it.
    """
    text = getattr(model, "lang_encoder", model)
    done: dict[str, str] = {}
    if "norm" in names:
        norms = {n: SavingRMSNorm(m) for n, m in text.named_modules() if is_rms_norm(m)}
        done["norm"] = f"{_replace(text, norms)} RMS norms"
    if "norm_rows" in names:
        done["norm_rows"] = _keep_rows(text)
    if "glu" in names:
        done["glu"] = _save_feed_forwards(text)
    if "attention" in names:
        biased = text.config.model_type == "t5"
        if biased:
            model.set_attn_implementation(attention.NAME)
        done["attention"] = "T5's" if biased else "none with a bias; sdpa keeps no scores"
    if "loss" in names:
        plain = text is model or _has_plain_head(text)
        model.loss_chunk_tokens = LOSS_CHUNK_TOKENS if plain else None
        said = f"{LOSS_CHUNK_TOKENS} tokens at a time" if plain else "all at once"
        done["loss"] = said if plain else f"{said}: this model changes what comes out of its head"
    if "embedding" in names:
        done["embedding"] = _shrink_embedding(text)
    return done


def _replace(model: nn.Module, modules: Mapping[str, nn.Module]) -> int:
    for name, module in modules.items():
        model.set_submodule(name, module.train(model.training))
    return len(modules)


@torch.no_grad()
def _keep_rows(model: Any) -> str:
    """Find the norms whose output is what an int8 layer reads, by reading a token."""
    norms = [module for module in model.modules() if isinstance(module, SavingRMSNorm)]
    layers = [module for module in model.modules() if isinstance(module, Int8Linear)]
    given, read = {}, []
    hooks = [
        norm.register_forward_hook(lambda *call: given.update({call[0]: call[2]})) for norm in norms
    ]
    hooks += [layer.register_forward_pre_hook(lambda _, x: read.extend(x)) for layer in layers]
    with _runnable(model) as device:
        token = torch.zeros(1, 1, dtype=torch.long, device=device)
        both = {"decoder_input_ids": token} if model.config.is_encoder_decoder else {}
        model(input_ids=token, use_cache=False, **both)
    for hook in hooks:
        hook.remove()
    for norm in norms:
        norm.keeps_rows = norm.allows_rows() and any(x is given.get(norm) for x in read)
    return (
        f"{sum(norm.keeps_rows for norm in norms)} of {len(norms)} RMS norms, read by int8 layers"
    )


def _save_feed_forwards(model: nn.Module) -> str:
    found: dict[str, nn.Module] = {}
    others = set()
    for name, module in model.named_modules():
        if gated_names(module):
            saving = saving_glu_of(module)
            found |= {name: saving} if saving else {}
            others |= set() if saving else {type(module).__name__}
        # The gated blocks of a Flamingo have torch's own GELU between their linear layers.
        elif type(module) is nn.GELU and (activation := activation_of(module)) is not None:
            found[name] = SavingActivation(activation)
    said = f"{_replace(model, found)} feed-forwards"
    return said + (f"; left as they are: {', '.join(sorted(others))}" if others else "")


@torch.no_grad()
def _has_plain_head(model: Any) -> bool:
    """Whether logits are what the head makes of the last states; some models scale or cap them."""
    # A cap at 30 (Gemma 2) hides from the comparison below where logits are small.
    if getattr(model.config.get_text_config(decoder=True), "final_logit_softcapping", None):
        return False
    if model.device.type == "meta":
        return _ends_in_head(model)
    token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    logits = model(input_ids=token, use_cache=False).logits
    states = model.base_model(input_ids=token, use_cache=False).last_hidden_state
    return torch.allclose(model.get_output_embeddings()(states).float(), logits.float(), atol=1e-3)


@contextmanager
def _runnable(model: nn.Module) -> Iterator[torch.device]:
    """Within the block a model without weights can be run, by shapes alone; gives the device."""
    device = next(model.parameters()).device
    if device.type != "meta":
        yield device
        return
    with Shapes() as shapes, without_numbers(model, shapes):
        yield shapes.device


def _ends_in_head(model: Any) -> bool:
    """Whether a model without weights calculates nothing after its head, nor before it."""
    whole, parts = _Calculations(), _Calculations()
    with _runnable(model) as device:
        token = torch.zeros(1, 1, dtype=torch.long, device=device)
        with whole:
            model(input_ids=token, use_cache=False)
        with parts:
            states = model.base_model(input_ids=token, use_cache=False).last_hidden_state
            model.get_output_embeddings()(states)
    return whole.found == parts.found


class _Calculations(TorchDispatchMode):
    """Notes which operations on tensors run inside that are not mere views."""

    def __init__(self):
        super().__init__()
        self.found: Counter[Any] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # `prim` asks for devices, and scratch memory is made once.
        self.found[func] += bool(tensors_in(args)) and func.namespace != "prim" and not func.is_view
        return func(*args, **(kwargs or {}))


def _shrink_embedding(model: Any) -> str:
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and head.weight is table.weight
    # Subclasses do more than look up: Gemma 3's and XGLM's multiply rows by sqrt(width).
    if type(table) is not nn.Embedding or table.max_norm or table.weight.requires_grad:
        return f"left as it is: {type(table).__name__} does more than look up, or trains"
    if tied and (type(head) is not nn.Linear or head.bias is not None):
        return f"left as it is: its head is a {type(head).__name__} of another kind"
    small = Int8Embedding(table)
    if tied:
        layer = Int8Linear(table.embedding_dim, table.num_embeddings, device="meta")
        layer.weight, layer.weight_scale = small.weight, small.weight_scale
        model.set_output_embeddings(layer)
    model.set_input_embeddings(small)
    return f"{table.num_embeddings} rows of {table.embedding_dim}"
