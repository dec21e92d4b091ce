"""Whether what was exported answers as what it was made of: the check of `export`."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tuninglab.data.batches import SampleDataset
from tuninglab.data.sample import Sample
from tuninglab.data.tokens import special_id
from tuninglab.embedded.task import EmbeddedSamples
from tuninglab.errors import WorkError
from tuninglab.evaluation.answers import prompt_inputs
from tuninglab.models.generation import ending_with
from tuninglab.untrusted import MIB, read_json

# Tokens of an answer, and positions of a prompt and its answer whose logits are compared.
ANSWER_TOKENS, LAST = 16, 128
# What two orders of summing 32-bit numbers make of logits is below 1e-4 at 9 B parameters.
MOST_FP32 = 1e-3
# Where weights or activations have 16 bits, each is off by up to eps / 2 of itself, and logits by a
# few eps of the largest, for independent errors add up as their root. Seen were 1.9 (the demo,
# merged into fp16) and 1.6 (bf16); deeper models get room, for there the answers decide.
EPSILONS = 8
# Two tokens whose logits are nearer than two roundings are one to a model of 16 bits: which comes
# first depends on the order of sums, and differs between machines too.
TIE = 2
LARGEST = 64 * MIB


@dataclass(frozen=True)
class Tried:
    """What a model made of some prompts.

    Attributes:
        prompts: their tokens.
        answers: the tokens of the greedy answer to each.
        logits: (T, V) of each, float32 on the CPU: of the last `LAST` positions, with the answer.
    """

    prompts: list[list[int]]
    answers: list[list[int]]
    logits: list[Tensor]


def prompts_of(run: Path | None, count: int) -> list[Sample]:
    """Questions to try: the run's own, then drawn ones; every fourth without its picture.

    Args:
        run: its folder, whose answers.json holds questions that it was scored by; None: no run.
        count: how many.
    """
    own = [] if run is None else list(islice(_own(run), count))
    drawn = EmbeddedSamples("test", count)
    samples = [*own, *(drawn[k] for k in range(count - len(own)))]
    return [_blind(s) if k % 4 == 3 else s for k, s in enumerate(samples)]


def _own(run: Path) -> Any:
    file = run / "answers.json"
    cards = read_json(file, LARGEST, "answers of the run") if file.is_file() else []
    for card in cards if isinstance(cards, list) else []:
        question = card.get("question") if isinstance(card, dict) else None
        picture = card.get("picture") if isinstance(card, dict) else None
        if not isinstance(question, str) or not question.strip():
            continue
        # Names in a run folder that was handed on lead nowhere else.
        place = run / str(picture)
        inside = place.resolve().is_relative_to(run.resolve()) and place.is_file()
        yield _sample(question, [str(place)] if picture and inside else [])


def _sample(question: str, images: list[Any]) -> Sample:
    parts = [{"type": "image"} for _ in images]
    asked = {"role": "user", "content": [*parts, {"type": "text", "text": question}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "-"}]}
    return Sample([asked, answer], images, "prompt of the check")


def _blind(sample: Sample) -> Sample:
    parts = sample.messages[0]["content"]
    text = " ".join(part["text"] for part in parts if part["type"] == "text").strip()
    return _sample(text or "What is this?", [])


@torch.inference_mode()
def tried(
    model: Any, processor: Any, samples: Sequence[Sample], reference: Tried | None = None
) -> Tried:
    """What a model answers to prompts, greedily, and its logits over prompt and answer.

    Args:
        model: a Flamingo, or one wrapped by PEFT, in evaluation mode.
        processor: its processor.
        samples: the prompts; each true answer is not looked at.
        reference: of another model: its answers are what the logits are computed over.

    Raises:
        UserError: the model's prompt has no place for a question.
    """
    rows = SampleDataset(samples, processor, prompts_only=True)
    ending = ending_with(model, special_id(processor.prompt.end, processor.tokenizer))
    text = model.config.get_text_config(decoder=True)
    room = getattr(text, "max_position_embeddings", None) or 10**9
    result = Tried([], [], [])
    for number in range(len(rows)):
        row = rows[number]
        prompt = row["input_ids"] = row["input_ids"][-(room - ANSWER_TOKENS) :]
        inputs = prompt_inputs(model, processor, [row])
        options = {"max_new_tokens": ANSWER_TOKENS, "do_sample": False, **ending}
        answer = model.generate(**inputs, **options)[0, len(prompt) :].tolist()
        shown = answer if reference is None else reference.answers[number]
        inputs["input_ids"] = torch.tensor([[*prompt, *shown]], device=inputs["input_ids"].device)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        logits = model(**inputs, use_cache=False).logits[0, -LAST:].float().cpu()
        result.prompts.append(prompt)
        result.answers.append(answer)
        result.logits.append(logits)
    return result


def compared(before: Tried, after: Tried, dtypes: Sequence[torch.dtype]) -> dict[str, Any]:
    """The figures of a check.

    Args:
        before: of the model that was exported.
        after: of what was written, read from disk again.
        dtypes: that the two compute in.

    Returns:
        `prompts`, `max_logit_difference` and the `bound` that it must keep, `answers_equal`;
        `ties`: answers that part at two tokens which the model of 16 bits cannot tell apart, nearer
        than `tie`; and `passed`: whether all is as it was.
    """
    largest = max(float(logits.abs().max()) for logits in before.logits)
    eps = max(torch.finfo(dtype).eps for dtype in dtypes)
    wide = eps < MOST_FP32 / 100
    bound, tie = (MOST_FP32, 0.0) if wide else (EPSILONS * eps * largest, TIE * eps * largest)
    same = before.prompts == after.prompts
    pairs = zip(before.logits, after.logits, strict=True)
    # Prompts of other lengths have no logits that could be compared.
    most = max(float((a - b).abs().max()) for a, b in pairs) if same else float("inf")
    margins = [_margin(before, number, answer) for number, answer in enumerate(after.answers)]
    equal = sum(margin is None for margin in margins)
    ties = sum(margin is not None and abs(margin) < tie for margin in margins)
    return {
        "prompts": len(before.prompts),
        "prompts_equal": same,
        "max_logit_difference": most,
        "bound": bound,
        "answers_equal": equal,
        "ties": ties,
        "tie": tie,
        # Written so that nan fails.
        "passed": same and equal + ties == len(margins) and most <= bound,
    }


def _margin(before: Tried, number: int, answer: list[int]) -> float | None:
    """How much nearer one model's answer was where another's first parts from it; None: nowhere."""
    own = before.answers[number]
    pairs = enumerate(zip_longest(own, answer))
    at = next((k for k, (a, b) in pairs if a != b), None)
    if at is None:
        return None
    if at >= min(len(own), len(answer)):
        # One ends where the other goes on, although it had the same tokens.
        return float("inf")
    # The row of logits that a token was chosen from is that of the one before it.
    row = before.logits[number][at - len(own) - 1]
    return float(row[own[at]] - row[answer[at]])


def told(check: dict[str, Any]) -> str:
    """The figures of a check in a line."""
    ties = f", {check['ties']} part at a tie (logits nearer than {check['tie']:.2g})"
    return (
        f"{check['prompts']} prompts before and after: max |Δ logit| "
        f"{check['max_logit_difference']:.2g} (at most {check['bound']:.2g}), greedy answers "
        f"equal: {check['answers_equal']} of {check['prompts']}{ties * bool(check['ties'])}"
    )


def refuse_change(check: dict[str, Any], out: Path, narrow: bool) -> None:
    """Stop where what was written does not answer as before.

    Args:
        check: of `compared`.
        out: where it should have been.
        narrow: it is in 16 bits.

    Raises:
        WorkError: with the figures.
    """
    if check["passed"]:
        return
    why = "the prompts come out otherwise" if not check["prompts_equal"] else told(check)
    hint = " In 16 bits a close call may tip over: try --dtype fp32." if narrow else ""
    raise WorkError(
        f"What was exported does not answer as the run does: {why}. Nothing was written to {out}."
        f"{hint}"
    )
