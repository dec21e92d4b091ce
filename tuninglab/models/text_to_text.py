"""A T5 as it is tuned here: a head of its own where the checkpoint has one, and a summed loss."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration
from transformers.modeling_outputs import Seq2SeqLMOutput
from transformers.models.t5.modeling_t5 import T5Attention
from transformers.utils.generic import can_return_tuple

from tuninglab.errors import UserError
from tuninglab.kernels.few_rows import few_rows_in_c
from tuninglab.models.hub import resolve
from tuninglab.models.loss import chunked_loss, next_token_loss, trains
from tuninglab.models.parts import load_tokenizer, load_weights, read_config
from tuninglab.models.quantised import quantised
from tuninglab.models.weights import is_sharded

# As its config.json has it: 77 million parameters.
FLAN_T5_SMALL = {
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 1024,
    "num_layers": 8,
    "num_heads": 6,
    "feed_forward_proj": "gated-gelu",
    # Read by transformers 5 as: do not scale what goes into the head, as T5 v1.1 does.
    "tie_word_embeddings": False,
    "decoder_start_token_id": 0,
}
HEAD, TABLE = "lm_head.weight", "shared.weight"
CONFIG_HINT = "Fix config.json (d_model, number of layers, vocab_size), or use a complete save"


class TextToText(T5ForConditionalGeneration):
    """A T5 (Raffel et al. 2020; v1.1, flan): an encoder reads a source, a decoder writes a target.

    T5 v1.1 and flan have a head of their own (flan-t5-small: 77 M parameters instead of 60.5 M).
    transformers 5 ties head and token table whatever the configuration says; here a model that
    does not scale its decoder's output, which is how it knows v1.1, has its own head.

    What `forward` takes, besides the usual arguments of T5ForConditionalGeneration:
        input_ids, attention_mask (B, S): the source; 0 in the mask at padding.
        labels (B, T): the target, -100 where there is no loss. The decoder reads it shifted right,
            so that labels and logits stand at the same place.
        num_items_in_batch: divides the summed loss, instead of the count of labels in the batch.
        labels_only_logits: compute the head only where there is a label. The logits are then
            (N, vocabulary), a row a label, or None where the loss is made in chunks.
        loss_only: return no logits, which somebody would hold through the backward pass.
    """

    # Labels whose logits exist at a time in training; None: all of them.
    loss_chunk_tokens: int | None = None

    def __init__(self, config: T5Config):
        if not config.scale_decoder_outputs:
            self._leave_head_untied()
        super().__init__(config)

    def _leave_head_untied(self) -> None:
        tied = type(self)._tied_weights_keys
        self._tied_weights_keys = {name: table for name, table in tied.items() if name != HEAD}

    def tie_weights(
        self, missing_keys: set[str] | None = None, recompute_mapping: bool = True
    ) -> None:
        """Tie the token tables, and the head unless it is one of its own.

        Args:
            missing_keys: while a checkpoint is loaded, what it does not hold; the head is tied or
                not as the checkpoint has it, whatever its configuration says.
            recompute_mapping: see transformers.
        """
        if missing_keys is not None and HEAD in missing_keys:
            self._tied_weights_keys = type(self)._tied_weights_keys
            self.all_tied_weights_keys[HEAD] = TABLE
            if type(self.lm_head) is not nn.Linear:
                # Made ready for a quantised head, before the file turned out to hold none.
                rows, width = self.shared.weight.shape
                self.lm_head = nn.Linear(width, rows, bias=False, device="meta")
                missing_keys.intersection_update(self.state_dict())
        super().tie_weights(missing_keys, recompute_mapping)
        # transformers leaves two tables that differ apart now, but the next call would tie them.
        if missing_keys is not None and HEAD not in self.all_tied_weights_keys:
            self._leave_head_untied()

    def set_dropout(self, rate: float) -> None:
        """Set the dropout of all layers, also of attention; the configuration stays as it is."""
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = rate
            elif isinstance(module, T5Attention):
                module.dropout = rate

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """Save as a T5 like any other, whose config.json says whether head and table are tied."""
        super().save_pretrained(save_directory, **options)
        path = Path(save_directory) / "config.json"
        settings = json.loads(path.read_text("utf-8"))
        # transformers writes this class's name, and that they are tied, whatever is the case.
        settings["architectures"] = [T5ForConditionalGeneration.__name__]
        settings["tie_word_embeddings"] = HEAD in self._tied_weights_keys
        path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", "utf-8")

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: Any = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        num_items_in_batch: int | Tensor | None = None,
        labels_only_logits: bool = False,
        loss_only: bool = False,
        **kwargs: Any,
    ) -> Seq2SeqLMOutput:
        """Logits of the target's tokens, and the loss if labels are given; arguments: the class."""
        if encoder_outputs is None:
            encoder_outputs = self.encoder(
                input_ids=input_ids, attention_mask=attention_mask, **kwargs
            )
        if labels is not None and decoder_input_ids is None:
            decoder_input_ids = self._shift_right(labels)
        decoded = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            past_key_values=past_key_values,
            encoder_hidden_states=encoder_outputs[0],
            encoder_attention_mask=attention_mask,
            use_cache=use_cache,
            **kwargs,
        )
        loss, logits = self._head(
            decoded.last_hidden_state, labels, num_items_in_batch, labels_only_logits
        )
        return Seq2SeqLMOutput(
            loss=loss,
            logits=None if loss_only else logits,
            past_key_values=decoded.past_key_values,
            decoder_hidden_states=decoded.hidden_states,
            decoder_attentions=decoded.attentions,
            cross_attentions=decoded.cross_attentions,
            encoder_last_hidden_state=encoder_outputs[0],
            encoder_hidden_states=encoder_outputs.hidden_states,
            encoder_attentions=encoder_outputs.attentions,
        )

    @torch.no_grad()
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Targets (B, T), by transformers' `generate` and its options."""
        # As a Flamingo's: see there.
        kwargs.setdefault("synced_gpus", is_sharded(self))
        with few_rows_in_c(self):
            return super().generate(*args, **kwargs)  # pyright: ignore

    def _head(
        self,
        hidden: Tensor,
        labels: Tensor | None,
        num_items_in_batch: int | Tensor | None,
        labels_only: bool,
    ) -> tuple[Tensor | None, Tensor | None]:
        """The decoder's output (B, T, D) -> loss (None without labels) and logits (.., V)."""
        if self.config.scale_decoder_outputs:
            hidden = hidden * self.model_dim**-0.5
        if labels is not None and labels_only:
            labelled = labels != -100
            hidden, labels = hidden[labelled], labels[labelled]
            if self.loss_chunk_tokens and not trains(self.lm_head):
                chunk = self.loss_chunk_tokens
                return chunked_loss(hidden, self.lm_head, labels, chunk, num_items_in_batch), None
        logits = self.lm_head(hidden)
        if labels is None:
            return None, logits
        return next_token_loss(logits, labels, num_items_in_batch), logits


class WideLinear(nn.Linear):
    """A linear layer with float32 weights that computes in float32 under autocast too.

    For T5's `wo`, whose output leaves the range of fp16; transformers keeps its weights in float32
    for that reason, but autocast would still multiply in fp16.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(..., K) -> (..., N), in float32."""
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float())


def load_text_to_text(
    path_or_id: str | Path,
    dtype: torch.dtype | str | None = None,
    quantization: Any = None,
) -> tuple[TextToText, Any]:
    """A saved T5, in evaluation mode, with its tokenizer.

    Args:
        path_or_id: a directory that `save_pretrained` wrote for both, or a hub id. The network is
            used only if no such directory exists and the name can be a hub id.
        dtype: of the weights; None keeps the one they were saved in. With fp16 the `wo` layers are
            float32.
        quantization: configuration of transformers for weights to quantise as they are read.

    Raises:
        UserError: there is no T5 there, or its files are damaged or do not fit together.
    """
    where, local = resolve(path_or_id, "model")
    config = read_config(where, local, "model")
    if config.model_type != "t5":
        raise UserError(
            f"{where} holds a {config.model_type!r} model; expected a T5 (model_type 't5', e.g. "
            "google/flan-t5-small)"
        )
    options = quantised(quantization, config, where)
    model = load_weights(TextToText, "model", where, local, dtype, hint=CONFIG_HINT, **options)
    tokenizer = load_tokenizer(path_or_id)
    rows = model.get_input_embeddings().num_embeddings
    if tokenizer.pad_token_id is None or tokenizer.eos_token_id is None:
        raise UserError(
            f"{where}: tokenizer_config.json names no pad_token or no eos_token; a T5's has both"
        )
    # The table is often padded beyond the tokenizer (flan-t5: 32,128 rows for 32,100 tokens).
    if len(tokenizer) > rows:
        raise UserError(
            f"{where}: the tokenizer has {len(tokenizer):,} tokens, the model's table {rows:,} "
            "rows. Model and tokenizer are not of the same save"
        )
    for module in model.modules():
        wo = getattr(module, "wo", None)
        if model.dtype == torch.float16 and type(wo) is nn.Linear:
            wo.__class__ = WideLinear
    return model.eval(), tokenizer
