"""The Flamingo: a vision tower, a Perceiver, and a language model whose layers see images."""

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from tuninglab.models.conditioning import (
    Conditioning,
    conditioned_on,
    count_positions,
    restarting_positions,
)
from tuninglab.models.configuration import FlamingoConfig
from tuninglab.models.decoding import Decoder
from tuninglab.models.encoding import ImageEncodingMixin
from tuninglab.models.gated_cross_attention import FlamingoLayer, GatedCrossAttentionBlock
from tuninglab.models.generation import FlamingoGenerationMixin, first_given, last_positions
from tuninglab.models.loss import chunked_loss, next_token_loss, trains
from tuninglab.models.perceiver import PerceiverResampler
from tuninglab.models.pretrained import FlamingoPreTrainedModel, find_decoder_layers


class FlamingoForConditionalGeneration(
    FlamingoPreTrainedModel, ImageEncodingMixin, FlamingoGenerationMixin
):
    """A language model whose layers cross-attend to images (Alayrac et al. 2022, OpenFlamingo).

    The vision tower is frozen (`requires_grad` False) as in OpenFlamingo; unfreeze it to train it.

    What `forward` takes, besides the usual arguments of a causal language model:
        input_ids (B, T): with an `<image>` token where each image stands.
        attention_mask (B, T): 0 at padding, on either side. Without position_ids, and without a
            cache, positions are counted from it.
        pixel_values (B, M, F, 3, H, W) or (B, M, 3, H, W): the k-th image of a row belongs to its
            k-th mark; images beyond its marks are padding and are ignored.
        patch_features (B, M, F, P, D): from `encode_patches`, instead of pixel_values.
        image_features (B, M, L, D): from `encode_images`, instead of pixel_values.
        media_key_values (B, G, M, L, 2 * width): from `encode_key_values`, instead of either.
        text_time (B, T): the number from 1 of the image each token sees, 0 for none. Needed only
            with a filled cache, when the marks are no longer in input_ids.
        documents (B, T): the number of the document that each token is of, several packed into a
            row: attention, positions and images stay within each. Then there is no attention_mask
            (padding is a document of its own), no position_ids and no cache. Whether a language
            model can: `packing_problem`.
        labels (B, T): -100 where there is no loss, and first in each document; they are shifted
            here.
        num_items_in_batch: divides the summed loss, instead of the count of labels in the batch.
        labels_only_logits: compute the head only where there is a label. The logits are then
            (N, vocabulary), a row a label; it saves the most where prompts are long. None where
            `loss_chunk_tokens` is set: the loss is then made in chunks of so many labels.
        loss_only: return no logits, which somebody would hold through the backward pass.
        decoder: `generate`'s, which computes a step of one token a row where it can.

    Args:
        config: the configuration; alone, it gives random weights.
        lang_encoder: a ready language model for `config.text_config`; it is wrapped in place.
        vision_encoder: a ready vision tower for `config.vision_config`.

    Raises:
        ValueError: the decoder layers of the language model were not found.
    """

    loss_chunk_tokens: int | None = None

    def __init__(
        self,
        config: FlamingoConfig,
        lang_encoder: PreTrainedModel | None = None,
        vision_encoder: PreTrainedModel | None = None,
    ):
        super().__init__(config)
        for part in (lang_encoder, vision_encoder):
            if part is not None:
                # transformers' mark: post_init leaves such modules alone.
                part.apply(lambda module: setattr(module, "_is_hf_initialized", True))
        self.vision_encoder: PreTrainedModel = (
            vision_encoder or AutoModel.from_config(config.vision_config)
        ).requires_grad_(False)
        media_width = config.vision_config.hidden_size
        self.perceiver = PerceiverResampler(
            media_width,
            config.perceiver_depth,
            config.perceiver_latents,
            config.perceiver_heads,
            config.perceiver_dim_head,
            config.ff_mult,
        )
        self.lang_encoder: PreTrainedModel = lang_encoder or AutoModelForCausalLM.from_config(
            config.text_config
        )
        self._lang_arguments = frozenset(inspect.signature(self.lang_encoder.forward).parameters)
        self._wrap_decoder_layers(media_width)
        self.post_init()
        self.set_generation_defaults()

    def _wrap_decoder_layers(self, media_width: int) -> None:
        config = self.config
        width = config.text_config.get_text_config(decoder=True).hidden_size
        layers = find_decoder_layers(self.lang_encoder)
        for i, layer in enumerate(layers):
            number, rest = divmod(i + 1, config.cross_attn_every_n_layers)
            block = None
            if rest == 0:
                block = GatedCrossAttentionBlock(
                    width,
                    media_width,
                    config.cross_attn_dim_head,
                    config.cross_attn_heads,
                    config.ff_mult,
                )
            # In place: caches find their layer by a number inside its attention, masks by the
            # configuration, so the language model notices nothing.
            layers[i] = FlamingoLayer(block, layer, number - 1)

    @property
    def gated_blocks(self) -> list[GatedCrossAttentionBlock]:
        """The gated blocks, from the first layer to the last."""
        return [m for m in self.lang_encoder.modules() if isinstance(m, GatedCrossAttentionBlock)]

    def encode_key_values(self, image_features: Tensor) -> Tensor:
        """Latents (B, M, L, D) -> keys and values of the G gated blocks, (B, G, M, L, 2 * width).

        Batch comes first, so that `generate` repeats them for beams and returned sequences.
        """
        media = image_features.to(self.lang_encoder.dtype)
        layers = (m for m in self.lang_encoder.modules() if isinstance(m, FlamingoLayer))
        gated = (layer for layer in layers if layer.gated_cross_attn_layer is not None)
        return torch.stack([layer.key_values(media) for layer in gated], dim=1)

    def check_marks(self, input_ids: Tensor, images: Tensor | None) -> None:
        """Refuse rows of input_ids (B, T) with more marks than images (B, M, ...) has.

        Raises:
            ValueError: a row has too many marks, or the numbers of rows differ.
        """
        rows, image_count = (len(input_ids), 0) if images is None else images.shape[:2]
        if rows != len(input_ids):
            raise ValueError(f"input_ids has {len(input_ids)} rows, but the images have {rows}")
        marks = (input_ids == self.config.image_token_id).sum(-1)
        wrong = (marks > image_count).nonzero().flatten().tolist()
        if wrong:
            raise ValueError(
                f"row {wrong[0]} has {int(marks[wrong[0]])} <image> marks but {image_count} "
                "images; give an image for each mark, in their order, or remove marks"
            )

    def _condition(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None,
        patch_features: Tensor | None,
        image_features: Tensor | None,
        media_key_values: Tensor | None,
        text_time: Tensor | None,
        past_key_values: Any,
        documents: Tensor | None,
    ) -> Conditioning | None:
        """What the gated blocks attend to, from whichever form the images were given in."""
        encoded = image_features if media_key_values is None else media_key_values[:, 0]
        images = first_given(encoded, patch_features, pixel_values)
        if text_time is None:
            cached = 0 if past_key_values is None else past_key_values.get_seq_length()
            if images is not None and cached:
                raise ValueError(
                    "images and a filled cache were given without text_time: which image a token "
                    "sees cannot be read from new input_ids alone; give text_time (rows, tokens)"
                )
            # Reading the counts would break a compiled graph.
            if not torch.compiler.is_compiling():
                self.check_marks(input_ids, images)
            text_time = self.text_time(input_ids, documents)
        # A batch without images may come as (B, 0, F, 3, H, W).
        if encoded is None and images is not None and images.shape[1]:
            image_features = self.encode_seen(text_time, pixel_values, patch_features)
        return Conditioning.of(text_time, image_features, media_key_values)

    def _positions(
        self,
        position_ids: Tensor | None,
        attention_mask: Tensor | None,
        past_key_values: Any,
        documents: Tensor | None,
    ) -> Tensor | None:
        """Positions (B, T) to give to the language model; None: it counts them itself."""
        if documents is None:
            masked = attention_mask is not None and attention_mask.ndim == 2
            if position_ids is not None or past_key_values is not None or not masked:
                return position_ids
            return count_positions(attention_mask)  # pyright: ignore[reportArgumentType]
        # transformers looks for documents, by positions that restart, only without mask and cache.
        beside = {"attention_mask": attention_mask, "position_ids": position_ids}
        beside["past_key_values"] = past_key_values
        wrong = [name for name, value in beside.items() if value is not None]
        if wrong:
            raise ValueError(f"documents and {wrong[0]} are both given; leave {wrong[0]} out")
        if "position_ids" not in self._lang_arguments:
            kind = self.config.text_config.model_type
            raise ValueError(
                f"documents are given, but a {kind} takes no positions to tell them by"
            )
        return restarting_positions(documents)

    def _targets(
        self, labels: Tensor, only: bool, logits_to_keep: int | Tensor
    ) -> tuple[Tensor, int | Tensor, bool]:
        """Next tokens (B, T) and logits_to_keep; (N,) and the mask of the N labels with `only`.

        And whether their loss can be made in chunks.
        """
        # With a frozen head, because a chunk makes the gradient of what goes into it alone.
        can_chunk = bool(self.loss_chunk_tokens) and not trains(self.get_output_embeddings())
        chunked = only and can_chunk
        targets = F.pad(labels[:, 1:], (0, 1), value=-100)
        # transformers applies a (B, T) bool mask before the head, and so before whatever scaling
        # or capping a head has. An architecture that cannot computes all logits.
        if not only or not (chunked or "logits_to_keep" in self._lang_arguments):
            return targets, logits_to_keep, chunked
        labelled = targets != -100
        return targets[labelled], labelled, chunked

    def _loss(
        self, outputs: Any, targets: Any, keep: Any, chunked: bool, count: Any
    ) -> tuple[Tensor | None, Tensor | None]:
        """Loss and logits of what the language model gave; chunks of a loss leave no logits."""
        if not chunked:
            loss = None if targets is None else next_token_loss(outputs.logits, targets, count)
            return loss, outputs.logits
        head: Any = self.get_output_embeddings()
        hidden, chunk = outputs.last_hidden_state[keep], self.loss_chunk_tokens or 1
        return chunked_loss(hidden, head, targets, chunk, count), None

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        image_features: Tensor | None = None,
        media_key_values: Tensor | None = None,
        text_time: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: int | Tensor | None = None,
        labels_only_logits: bool = False,
        loss_only: bool = False,
        patch_features: Tensor | None = None,
        decoder: Decoder | None = None,
        documents: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of the next tokens, and the loss if labels are given; arguments: see the class.

        Raises:
            ValueError: a row has more marks than images, or arguments do not fit together.
        """
        if decoder is not None:
            seen = (past_key_values, media_key_values, text_time)
            if done := decoder(input_ids, attention_mask, position_ids, *seen, kwargs):
                return done
        images = (pixel_values, patch_features, image_features, media_key_values)
        conditioning = self._condition(input_ids, *images, text_time, past_key_values, documents)
        position_ids = self._positions(position_ids, attention_mask, past_key_values, documents)
        targets, chunked = None, False
        if labels is not None:
            use_cache = bool(use_cache)  # a cache nobody asked for would only hold memory
            targets, logits_to_keep, chunked = self._targets(
                labels, labels_only_logits, logits_to_keep
            )
        runner: Any = self.lang_encoder.base_model if chunked else self.lang_encoder
        kept = {} if chunked else {"logits_to_keep": last_positions(logits_to_keep, input_ids)}
        optional = {"position_ids": position_ids, **kept}
        with conditioned_on(conditioning):
            outputs = runner(
                input_ids=input_ids,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                use_cache=use_cache if documents is None else False,
                # MPT and BLOOM have no positions to give.
                **{k: v for k, v in optional.items() if k in self._lang_arguments},
                **kwargs,
            )
        loss, logits = self._loss(outputs, targets, logits_to_keep, chunked, num_items_in_batch)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=None if loss_only else logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
