"""The model class that lmms-eval opens and asks; only lmms-eval imports this module.

The interface is that of lmms-eval 0.7.3 (`lmms_eval/api/model.py`, `api/task.py`).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult  # pyright: ignore[reportMissingImports]
from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]

from tuninglab.data.sample import brief
from tuninglab.errors import UserError
from tuninglab.evaluation.encoded import EncodedPictures
from tuninglab.evaluation.lmms import Asked, Settings, user_turn
from tuninglab.evaluation.lmms_answers import answers_to, losses_of
from tuninglab.serving.open_model import open_model


class Chat(lmms):
    """A run, an adapter or a model that answers the dialogues of lmms-eval's tasks.

    Questions are shared over the processes of a launch by lmms-eval itself.

    Args:
        pretrained: as `open_model` takes it: a run folder, an adapter, a model directory, a hub
            id or `embedded`.
        batch_size: questions answered together.
        device: only to be checked: a model opens on the best device of the machine.
        max_batch_size: only to be refused.
        threads: that compute on a CPU.
        unknown: what else stands in the model arguments, to be refused by name.

    Raises:
        UserError: no model is named or it cannot be opened, or an argument cannot be honoured.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str | None = None,
        batch_size: int | str = 1,
        device: str | None = None,
        max_batch_size: int | None = None,
        threads: int | None = None,
        **unknown: Any,
    ):
        super().__init__()
        if unknown:
            raise UserError(
                f"lmms-eval, --model_args: {brief(next(iter(unknown)))} is unknown; known are "
                "pretrained, batch_size and threads"
            )
        if pretrained is None:
            raise UserError("lmms-eval: no model is named. Give --model_args pretrained=runs/mine")
        if max_batch_size is not None or not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise UserError(
                f"lmms-eval: the batch size is {brief(batch_size)}; expected a whole number >= 1 "
                "(it is not found automatically)"
            )
        self.batch_size = int(batch_size)
        # Before a model is opened: it sets which of several GPUs is this process's.
        self.accelerator = Accelerator()
        self.model, self.processor = open_model(str(pretrained), threads)
        if device is not None and torch.device(device).type != self.device.type:
            raise UserError(
                f"lmms-eval: --device {brief(device)}, but the model opened on "
                f"{self.device.type}, the best device of this machine. Leave --device out; "
                "CUDA_VISIBLE_DEVICES hides GPUs"
            )
        # Tasks ask several questions about a picture, and score several answers to a question.
        self.pictures = EncodedPictures()

    @property
    def device(self) -> torch.device:
        """Where the model is; lmms-eval gathers there."""
        return next(self.model.parameters()).device

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answers that are generated, in the order of the requests.

        Raises:
            UserError: a setting or a dialogue cannot be honoured.
        """
        return self._answers([self._asked(request) for request in requests])

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """Answers of all rounds of each request; what comes next, the task says after each round.

        Raises:
            UserError: as `generate_until`.
        """
        answers: list[list[str]] = [[] for _ in requests]
        asked = {number: self._asked(request) for number, request in enumerate(requests)}
        told: dict[int, Any] = {}
        while asked:
            texts = self._answers(list(asked.values()))
            for number, text in zip(asked, texts, strict=True):
                answers[number].append(text)
            following = {}
            for number, question in asked.items():
                _, doc_to_messages, _, doc_id, task, split = requests[number].args
                # (messages, whether it is over, outputs, what the task wants to be told again)
                said = doc_to_messages(
                    self.task_dict[task][split][doc_id],
                    round_idx=len(answers[number]),
                    previous_output=list(answers[number]),
                    previous_round_info=told.get(number),
                )
                if isinstance(said, tuple) and len(said) == 4 and not said[1]:
                    told[number] = said[3]
                    following[number] = question._replace(messages=partial(list, said[0]))
            asked = following
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """The loss of each continuation, and whether greedy generation would write it.

        A loss and no log-probability, whatever the name says: lmms-eval takes the choice with the
        lowest (`process_results` in api/task.py), because its own classes return losses.

        Raises:
            UserError: a question cannot be asked, or a continuation cannot be scored.
        """
        asked = []
        for request in requests:
            context, continuation, doc_to_visual, doc_id, task, split = _arguments(request)
            if callable(continuation):
                continuation = continuation(self.task_dict[task][split][doc_id])
            messages = partial(self._turn, context, doc_to_visual, doc_id, task, split)
            origin = f"task {task}, {split} {doc_id}"
            asked.append(Asked(messages, origin, continuation=str(continuation)))
        found = losses_of(self.model, self.processor, asked, self.batch_size, self.pictures)
        # Not the plain pairs of the interface: 0.7.3 makes a text of what is neither a text nor
        # this (`unwrap_generation_output`), and then fails on it.
        return [GenerationResult(text=pair) for pair in found]

    def _answers(self, asked: Sequence[Asked]) -> list[str]:
        return answers_to(self.model, self.processor, asked, self.batch_size, self.pictures)

    def _asked(self, request: Any) -> Asked:
        context, doc_to_messages, settings, doc_id, task, split = _arguments(request)
        origin = f"task {task}, {split} {doc_id}"

        def messages() -> Any:
            return doc_to_messages(self.task_dict[task][split][doc_id])

        return Asked(messages, origin, len(context), Settings.of(settings))

    def _turn(self, context: str, doc_to_visual: Any, doc_id: int, task: str, split: str) -> Any:
        return user_turn(doc_to_visual(self.task_dict[task][split][doc_id]), context)


class Simple(Chat):
    """The same for `--force_simple`, which tasks of multiple choice by probability need.

    A question is then one text, with the pictures before it.
    """

    is_simple = True

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """Not in this form.

        Raises:
            UserError: always.
        """
        raise UserError("lmms-eval: tasks of several rounds are asked without --force_simple")

    def _asked(self, request: Any) -> Asked:
        context, settings, doc_to_visual, doc_id, task, split = _arguments(request)
        messages = partial(self._turn, context, doc_to_visual, doc_id, task, split)
        origin = f"task {task}, {split} {doc_id}"
        return Asked(messages, origin, len(context), Settings.of(settings))


def _arguments(request: Any) -> tuple[Any, ...]:
    if len(request.args) != 6:
        raise UserError(
            f"lmms-eval: a request has {len(request.args)} arguments, expected 6 as in lmms-eval "
            "0.7.3; this task, or this version of lmms-eval, is not known here"
        )
    return request.args
