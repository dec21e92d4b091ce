"""Ranking answers by their log-probability: each prompt is read once, for all its candidates."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor

from tuninglab.data.batches import padded
from tuninglab.data.prompt import IGNORED
from tuninglab.evaluation.answers import evaluation_mode
from tuninglab.models.conditioning import count_positions


class Ranking(NamedTuple):
    """The best of C candidates for each of B prompts, and how all of them scored."""

    answers: list[str]
    probabilities: Tensor  # (B, C), among the candidates alone: a row sums to 1
    log_probs: Tensor  # (B, C), as `candidate_log_probs` has them


def classify(
    model: Any,
    processor: Any,
    prompts: Sequence[str],
    images: Sequence[Sequence[Image]],
    candidates: Sequence[str],
    normalise: bool = False,
    batch_size: int = 64,
) -> Ranking:
    """Which candidate is the likeliest continuation of each prompt.

    Candidates are tokenized apart from the prompt, as in OpenFlamingo's rank classification. A
    tokenizer that keeps blanks in its tokens (GPT-2, GPT-NeoX, OPT) needs the blank where the text
    has one: " red" after "It is". Where one candidate begins another ("red", "red star"), end both
    with `<|endofchunk|>`, or the shorter never scores lower.

    Args:
        model: a Flamingo, or one wrapped by PEFT; its mode (train or eval) is left as it was.
        processor: its processor.
        prompts: B texts with `<image>` marks, few-shot examples included.
        images: the pictures of each prompt, in the order of its marks; `[]` for none.
        candidates: C texts, the same for all prompts.
        normalise: compare the mean log-probability of a token and not the sum, as OpenFlamingo
            does for ImageNet and Hateful Memes: else long answers lose by their length alone.
        batch_size: prompts, and then candidates, computed together.

    Raises:
        ValueError: no prompt or candidate, one without tokens, or images that do not fit.
    """
    if isinstance(prompts, str) or not prompts:
        raise ValueError(f"prompts is {prompts!r}; give a list of one text or more")
    if len(images) != len(prompts):
        raise ValueError(
            f"{len(prompts)} prompts but {len(images)} lists of images; give one a prompt"
        )
    ids = processor.tokenizer(list(candidates), add_special_tokens=False)["input_ids"]
    device = next(model.parameters()).device
    scores, options = [], {"normalise": normalise, "batch_size": batch_size}
    for start in range(0, len(prompts), batch_size):
        batch = slice(start, start + batch_size)
        inputs = processor(text=list(prompts[batch]), images=list(images[batch])).to(device)
        given = {name: inputs.get(name) for name in processor.model_input_names}
        scores.append(candidate_log_probs(model, candidates=ids, **given, **options))
    log_probs = torch.cat(scores)
    answers = [candidates[int(best)] for best in log_probs.argmax(-1)]
    return Ranking(answers, log_probs.softmax(-1), log_probs)


@torch.no_grad()
def candidate_log_probs(
    model: Any,
    input_ids: Tensor,
    candidates: Sequence[Sequence[int]],
    attention_mask: Tensor | None = None,
    pixel_values: Tensor | None = None,
    image_features: Tensor | None = None,
    normalise: bool = False,
    batch_size: int = 64,
) -> Tensor:
    """Log-probability of each candidate as the continuation of each prompt, (B, C) in float32.

    Prompts, with their images, are computed once; what a candidate costs is its own tokens, and
    one of a single token costs nothing more.

    Args:
        model: a Flamingo, or one wrapped by PEFT; its mode (train or eval) is left as it was.
        input_ids: (B, T) prompts, padded on either side.
        candidates: C token id lists of any lengths, without `<image>`.
        attention_mask: (B, T), 0 at padding; None: there is none.
        pixel_values: (B, M, F, 3, H, W) or (B, M, 3, H, W), as for the model.
        image_features: (B, M, L, D) from `encode_images`, instead of pixel_values.
        normalise: divide each sum by the candidate's number of tokens.
        batch_size: pairs of a prompt and a candidate computed together.

    Raises:
        ValueError: no candidate, one that is empty or holds `<image>`, a prompt without tokens,
            or a prompt with more marks than images.
    """
    pictures = {"pixel_values": pixel_values, "image_features": image_features}
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, **pictures}
    each = [candidates] * len(input_ids)
    return torch.stack(own_log_probs(model, inputs, each, normalise, batch_size))


@torch.no_grad()
def own_log_probs(
    model: Any,
    inputs: Mapping[str, Any],
    candidates: Sequence[Sequence[Sequence[int]]],
    normalise: bool = False,
    batch_size: int = 64,
) -> list[Tensor]:
    """As `candidate_log_probs`, where each of B prompts has candidates of its own.

    Args:
        model: a Flamingo, or one wrapped by PEFT; its mode (train or eval) is left as it was.
        inputs: `input_ids` (B, T), and as far as there are any `attention_mask` (B, T) and one of
            `pixel_values`, `image_features`, `patch_features`, as for `generate`.
        candidates: for each prompt, C token id lists of any lengths; C may differ.
        normalise: divide each sum by the candidate's number of tokens.
        batch_size: pairs of a prompt and a candidate computed together.

    Returns:
        For each prompt (C,) in float32.

    Raises:
        ValueError: as `candidate_log_probs`, or the numbers of prompts and of lists differ.
    """
    if len(candidates) != len(inputs["input_ids"]):
        given = f"{len(inputs['input_ids'])} prompts but {len(candidates)} lists of candidates"
        raise ValueError(f"{given}; give one a prompt")
    # Prompts may share one list of a thousand.
    for some in {id(some): some for some in candidates}.values():
        _check(some, model.config.image_token_id, batch_size)
    counts = [len(some) for some in candidates]
    flat = [(row, candidate) for row, some in enumerate(candidates) for candidate in some]
    # Candidates of similar length together, so that a batch has little padding.
    further = sorted(
        (number for number, (_, candidate) in enumerate(flat) if len(candidate) > 1),
        key=lambda number: len(flat[number][1]),
    )
    with evaluation_mode(model):
        # Not even the prompt's cache is kept where single tokens are compared.
        prompts = _Prompts(model, inputs, use_cache=bool(further))
        rows, firsts = [row for row, _ in flat], [candidate[0] for _, candidate in flat]
        log_probs = prompts.next_log_probs[rows, firsts]
        for start in range(0, len(further), batch_size):
            chosen = further[start : start + batch_size]
            pairs = [flat[number] for number in chosen]
            rest = prompts.further_log_probs([row for row, _ in pairs], [c for _, c in pairs])
            log_probs[chosen] += rest.to(log_probs.device)
    lengths = torch.tensor([len(candidate) for _, candidate in flat], device=log_probs.device)
    return list((log_probs / lengths if normalise else log_probs).split(counts))


def _check(candidates: Sequence[Sequence[int]], image_token_id: int, batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; give a whole number >= 1")
    if not candidates:
        raise ValueError("candidates is empty; give the answers to choose from")
    for number, candidate in enumerate(candidates):
        if not len(candidate) or image_token_id in candidate:
            what = "holds <image>" if len(candidate) else "has no tokens"
            raise ValueError(f"candidate {number} {what}; candidates are the text of an answer")


class _Prompts:
    """B prompts computed in one forward, their images encoded once; ready to be continued."""

    def __init__(self, model: Any, inputs: Mapping[str, Any], use_cache: bool):
        input_ids, attention_mask = inputs["input_ids"], inputs.get("attention_mask")
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
        if not mask.any(-1).all():
            raise ValueError("a prompt is empty: its attention_mask is 0 everywhere")
        # Padding moves to the left: every prompt then ends, and is continued, in one column, and
        # MPT's distances, which are counted in columns, are right.
        order = mask.argsort(dim=-1, stable=True)
        self.model = model
        self.input_ids, self.mask = input_ids.gather(1, order), mask.gather(1, order)  # (B, T)
        # (B, G, M, L, 2 * width), or None
        forms = ("pixel_values", "image_features", "patch_features")
        self.media = model.key_values_of(self.input_ids, *map(inputs.get, forms))
        outputs = model(
            input_ids=self.input_ids,
            attention_mask=self.mask,
            position_ids=count_positions(self.mask),
            text_time=model.text_time(self.input_ids),
            media_key_values=self.media,
            use_cache=use_cache,
            logits_to_keep=1,
        )
        self.cache = outputs.past_key_values
        self.next_log_probs = outputs.logits[:, -1].float().log_softmax(-1)  # (B, V)

    def further_log_probs(self, rows: Sequence[int], candidates: Sequence[Sequence[int]]) -> Tensor:
        """Sum over the tokens after the first of N candidates, each after its prompt: (N,)."""
        device, length = self.input_ids.device, self.input_ids.shape[1]
        which = torch.tensor(rows, device=device)
        # An end token as padding, because the mark of an image would count as one.
        new_ids = padded([c[:-1] for c in candidates], self.model.config.eoc_token_id).to(device)
        targets = padded([c[1:] for c in candidates], IGNORED).to(device)
        ids = torch.cat([self.input_ids[which], new_ids], dim=1)
        # Causal attention alone would hide the padding; but masked, its positions stay within
        # what a table of learned positions has.
        mask = torch.cat([self.mask[which], (targets != IGNORED).long()], dim=1)
        cache = _rows_of(self.cache, which)
        logits = self.model(
            input_ids=new_ids,
            attention_mask=mask,
            position_ids=count_positions(mask)[:, length:],
            # From the whole text, where the marks are.
            text_time=self.model.text_time(ids)[:, length:],
            media_key_values=None if self.media is None else self.media[rows],
            past_key_values=cache,
            use_cache=True,
        ).logits
        losses = F.cross_entropy(
            logits.float().transpose(1, 2),
            targets.to(logits.device),
            ignore_index=IGNORED,
            reduction="none",
        )
        return -losses.sum(-1)


def _rows_of(cache: Any, which: Tensor) -> Any:
    """A cache of the rows `which` (N,) of another one, which stays as it is.

    The forward appends to the cache that it is given, so each call has one of its own.
    """
    given = [getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values")]
    # The copy shares them until rows are selected, which makes new ones: whole they are as large
    # as all prompts, and few of their rows may be wanted.
    chosen = copy.deepcopy(cache, {id(tensor): tensor for tensor in given if tensor is not None})
    chosen.reorder_cache(which)  # the only selection of rows that caches of all kinds have
    return chosen
