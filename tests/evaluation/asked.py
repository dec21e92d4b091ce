"""Questions of many lengths for a tiny model, and how a test asks them one by one."""

from functools import lru_cache

import torch
from PIL import Image

from tests.tiny import colour_flamingo, processor_of, tiny_tokenizer
from tuninglab.data.sample import ImageSource, Sample
from tuninglab.evaluation.answerer import Answerer
from tuninglab.evaluation.asking import Dialogue
from tuninglab.evaluation.encoded import EncodedPictures
from tuninglab.evaluation.engine import answer_all
from tuninglab.evaluation.predictions import PredictionsFile
from tuninglab.evaluation.questions import question_of
from tuninglab.training.hardware import accelerator_in

TOKENS = 6
# Words of a question and its pictures; neither is in order, and lengths come more than once.
SHAPES = [(3, 1), (1, 0), (9, 2), (3, 1), (5, 1), (2, 2), (1, 1), (14, 1), (5, 0), (3, 1), (7, 2)]
CHOICES = ["red", "green and blue", "blue", "a", "green"]


def picture(number: int) -> ImageSource:
    made = Image.new("RGB", (16, 16), (23 * number % 256, 200 - 11 * number, 5 * number))
    made.putpixel((number % 16, 3), (255, 255, 255))
    return made


@lru_cache
def questions():
    made = []
    for number, (words, pictures) in enumerate(SHAPES):
        text = "<image>" * pictures + " ".join("colour? red green blue".split() * 4)[: 6 * words]
        turns = [("user", text), ("assistant", "red")]
        images = [picture(2 * number + k) for k in range(pictures)]
        messages = [{"role": role, "content": said} for role, said in turns]
        made.append(question_of(Sample(messages, images, f"record {number + 1}"), f"q{number}"))
    return tuple(made)


def conditions_of(asked):
    """As asked, grey, and with the pictures of the question after it that has as many."""
    sizes = [question.pictures for question in asked]
    grey = Image.new("RGB", (16, 16), (128, 128, 128))

    def other(k):
        ring = [j for j, size in enumerate(sizes) if size == sizes[k]]
        return asked[ring[(ring.index(k) + 1) % len(ring)]].sample.images

    return {
        "asked": lambda k: asked[k].sample.images,
        "blank": lambda k: [grey] * sizes[k],
        "shuffled": other,
    }


class Ranked(Dialogue):
    def candidates(self, question, texts):
        tokenizer = self.processor.tokenizer
        return [tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]


@lru_cache
def tiny():
    """A frozen tiny Flamingo and its processor, whose answers depend on pictures and prompts."""
    tokenizer = tiny_tokenizer()
    model = colour_flamingo(tokenizer).requires_grad_(False)
    with torch.no_grad():
        for name, parameter in model.lang_encoder.named_parameters():
            # At their usual scale all tokens look the same.
            if parameter.ndim == 2:
                parameter.mul_(3 if "gated" in name else 5)
    return model, processor_of(tokenizer)


def answer(folder, asked=None, conditions=None, candidates=None, size=3, **options):
    """What the engine answers, in one process."""
    model, processor = tiny()
    asked = questions() if asked is None else asked
    # Of its own precision, whatever a run before in this process had.
    accelerator = accelerator_in("fp32")
    options = {"batch_size": size, "max_new_tokens": TOKENS, **options}
    pictures = EncodedPictures.repeatable(accelerator.device, size)
    answerer = Answerer(model, processor, accelerator, pictures, **options)
    file = PredictionsFile(folder, accelerator.process_index)
    conditions = conditions_of(asked) if conditions is None else conditions
    return answer_all(answerer, asked, Ranked(processor), conditions, file, candidates)
