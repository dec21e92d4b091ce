"""OpenFlamingo's benchmarks: what each asks and how it is scored, and its code's way to ask.

The rules are those of open_flamingo 2.0.1 (eval/evaluate.py, eval/eval_model.py); Awadalla et al.
2023, OpenFlamingo: An Open-Source Framework for Training Large Autoregressive Vision-Language
Models.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tuninglab.data.sample import ImageSource, plain_text
from tuninglab.data.special_tokens import EOC_TOKEN, IMAGE_TOKEN
from tuninglab.data.tokens import special_id
from tuninglab.errors import UserError
from tuninglab.evaluation.asking import Asking
from tuninglab.evaluation.questions import Question
from tuninglab.evaluation.shots import Examples
from tuninglab.evaluation.stemming import okvqa_stemmer

# Flamingo's rule for 0 shots, which OpenFlamingo follows: so many examples without their pictures.
TEXT_ONLY = 2


@dataclass(frozen=True)
class Benchmark:
    """A benchmark as OpenFlamingo runs it.

    Args:
        name: what --task calls it.
        title: for people.
        prompt: of ours (--prompt) that is nearest to its text.
        opening: stands between a picture and its question.
        response: stands before an answer.
        between: follows each example.
        asks: whether there is a question beside the picture.
        max_new_tokens: longest answer; of ranked candidates none is generated.
        metrics: that it is scored by.
        compat_metrics: those of OpenFlamingo's code, where they differ.
        ranked: whether candidates are ranked, by the mean log-probability of their tokens.
        choices: these candidates, the positive one first; () where the data's classes are.
        cut: a generated answer ends before the first of these words...
        dropped: ... and without these characters.
    """

    name: str
    title: str
    prompt: str = "openflamingo-vqa"
    opening: str = "Question:"
    response: str = " Short answer:"
    between: str = "\n"
    asks: bool = True
    max_new_tokens: int = 5
    metrics: tuple[str, ...] = ("vqa_accuracy",)
    compat_metrics: tuple[str, ...] = ("vqa_accuracy",)
    ranked: bool = False
    choices: tuple[str, ...] = ()
    cut: str = "Question|Answer|Short|, "
    dropped: str = ""

    def candidates(self, questions: Sequence[Question]) -> tuple[str, ...]:
        """What is ranked: the fixed answers, or the classes that the questions have.

        Raises:
            UserError: there are less than two.
        """
        names = self.choices or tuple(sorted({question.answers[0] for question in questions}))
        if len(names) < 2:
            raise UserError(
                f"--task {self.name} ranks the names of classes, and all questions have the same. "
                "Name the others: --candidates"
            )
        return names


_CAPTION = Benchmark(
    "caption",
    "captions of COCO, Karpathy's test split",
    prompt="openflamingo-caption",
    opening="",
    response="Output:",
    asks=False,
    max_new_tokens=20,
    metrics=("cider",),
    compat_metrics=("cider",),
    cut="Output",
    dropped='"',
)
_CLASSES = ("exact_match",)
BENCHMARKS = (
    _CAPTION,
    replace(_CAPTION, name="flickr30k", title="captions of Flickr30k, Karpathy's test split"),
    Benchmark("vqa", "VQAv2"),
    Benchmark("okvqa", "OK-VQA"),
    # Its answers have no ids there: equal ones leave together.
    Benchmark("vizwiz", "VizWiz", compat_metrics=("vqa_accuracy_openflamingo",)),
    Benchmark("textvqa", "TextVQA", max_new_tokens=10),
    Benchmark(
        "hateful_memes",
        "Hateful Memes",
        opening="",
        response=" Answer:",
        between="",
        metrics=("roc_auc", *_CLASSES),
        compat_metrics=("roc_auc", *_CLASSES),
        ranked=True,
        choices=("yes", "no"),
    ),
    replace(
        _CAPTION,
        name="imagenet",
        title="ImageNet, by the names of its folders",
        between="",
        metrics=_CLASSES,
        compat_metrics=_CLASSES,
        ranked=True,
    ),
)


def benchmark_named(name: str) -> Benchmark:
    """The benchmark of --task."""
    return next(one for one in BENCHMARKS if one.name == name)


class OpenFlamingo(Asking):
    """As OpenFlamingo's evaluation asks: one text, tokenized whole, and its clipping of answers.

    With 0 shots two examples stand before the question without their pictures. Examples are drawn
    by `examples` and not from OpenFlamingo's running stream, which no other order of questions, and
    no other number of processes, could repeat. Nothing is cut to 2,000 tokens as it does from the
    end, where the question stands.

    Args:
        processor: of the model.
        benchmark: that is run.
        examples: from its training data.
        shots: how many stand before a question.

    Raises:
        UserError: there are no examples.
    """

    beams = 3
    length_penalty = 0.0

    def __init__(self, processor: Any, benchmark: Benchmark, examples: Examples | None, shots: int):
        if examples is None:
            raise UserError(
                "--compat openflamingo shows two examples without their pictures where --shots is "
                "0. Name where they come from: --shots_data, training data."
            )
        self.tokenizer, self.benchmark = processor.tokenizer, benchmark
        self.examples, self.shots = examples, shots
        # As in OpenFlamingo, whose OK-VQA compares stems; None: not here, so whole words.
        self.stem = okvqa_stemmer() if benchmark.name == "okvqa" else None

    def text(self, question: Question) -> str:
        """The prompt, with a mark for each picture.

        Raises:
            UserError: the question, or an example, is none of this benchmark.
        """
        mark = IMAGE_TOKEN if self.shots else ""
        examples = self.examples.of(question, self.shots or TEXT_ONLY)
        told = [
            f"{mark}{self._asked(one)}{self._answer(one)}{EOC_TOKEN}{self.benchmark.between}"
            for one in examples
        ]
        return f"{''.join(told)}{IMAGE_TOKEN}{self._asked(question)}"

    def ids(self, question: Question) -> list[int]:
        """See `Asking`; the tokenizer adds what it adds to any text.

        Raises:
            UserError: as `text`, or a mark or an end stands in what the data says.
        """
        ids = self.tokenizer(self.text(question), verbose=False)["input_ids"]
        wanted = {IMAGE_TOKEN: self.shots + 1, EOC_TOKEN: self.shots or TEXT_ONLY}
        for token, count in wanted.items():
            # Tokenized whole, they would become tokens.
            if ids.count(special_id(token, self.tokenizer)) != count:
                raise UserError(
                    f"{question.sample.origin}: {token} stands in its text or in that of an "
                    "example, and --compat openflamingo cannot tell it from its own. Take it out, "
                    "or leave out --compat."
                )
        return ids

    def images(self, question: Question, own: Sequence[ImageSource]) -> list[ImageSource]:
        """See `Asking`; with 0 shots those of examples are not shown."""
        examples = self.examples.of(question, self.shots)
        return [*(image for one in examples for image in one.sample.images), *own]

    def said(self, text: str) -> str:
        """See `Asking`: what was written until another example would begin."""
        if self.benchmark.ranked:
            return text
        answer = re.split(self.benchmark.cut, text, maxsplit=1)[0]
        for character in self.benchmark.dropped:
            answer = answer.replace(character, "")
        return self.stem(answer.strip()) if self.stem else answer.strip()

    def candidates(self, question: Question, texts: Sequence[str]) -> list[list[int]]:
        """See `Asking`; OpenFlamingo ranks them without an end."""
        return self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]

    def _asked(self, question: Question) -> str:
        """What stands behind a picture, up to the answer."""
        turns = question.sample.messages
        if len(turns) != 2 or question.pictures != 1:
            raise UserError(
                f"{question.sample.origin}: {len(turns)} messages, {question.pictures} pictures; "
                "--compat openflamingo asks one question about one picture. Leave out --compat."
            )
        # Unlike `question.text` with the blanks that the data has.
        said = plain_text(turns[0])
        if bool(said.strip()) != self.benchmark.asks:
            what = "a question" if self.benchmark.asks else "a picture alone"
            raise UserError(
                f"{question.sample.origin}: --task {self.benchmark.name} expects {what}, and the "
                f"record has {'none' if self.benchmark.asks else 'a question'}. Is it another "
                "benchmark's?"
            )
        asked = said if self.benchmark.asks else ""
        return f"{self.benchmark.opening}{asked}{self.benchmark.response}"

    def _answer(self, example: Question) -> str:
        """The first right answer, of several that people gave; captions without blanks around."""
        answer = example.answers[0]
        return answer if self.benchmark.asks else answer.strip()
