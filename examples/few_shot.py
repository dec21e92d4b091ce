"""Few-shot prompts with interleaved pictures: generated answers, and answers ranked.

    python examples/few_shot.py                  # the embedded model
    python examples/few_shot.py my_openflamingo  # a run folder, a model directory or a hub id

The pictures are drawn here, so nothing has to be downloaded. The embedded model knows captions and
short statements about such pictures; it was never trained to follow examples. What examples in a
prompt are worth is seen with a released OpenFlamingo.
"""

import sys

from PIL.Image import Image

from tuninglab.embedded.scenes import Scene, Thing
from tuninglab.evaluation.classification import classify
from tuninglab.serving.open_model import open_model

COLORS = ("red", "blue", "green", "yellow")
SHOWN = (("red", "circle"), ("blue", "star"), ("green", "square"))


def draw(color: str, shape: str) -> Image:
    """A picture of one large shape in the middle."""
    return Scene((Thing(color, shape, "large", cell=4),), seed=len(color)).draw()


def prompts_by_shots() -> tuple[list[str], list[list[Image]]]:
    """The last picture asked about after no, one and two examples, each with its own picture."""
    pictures = [draw(color, shape) for color, shape in SHOWN]
    examples = [f"<image>The {shape} is {color}.<|endofchunk|>" for color, shape in SHOWN]
    question = f"<image>The {SHOWN[-1][1]} is"
    starts = range(len(SHOWN) - 1, -1, -1)  # of the examples; the last picture is the question
    prompts = ["".join(examples[start:-1]) + question for start in starts]
    return prompts, [pictures[start:] for start in starts]


def main() -> None:
    """Print what the model says, and how likely it finds each colour, by number of examples."""
    model, processor = open_model(sys.argv[1] if len(sys.argv) > 1 else "embedded")
    prompts, images = prompts_by_shots()

    # One batch of rows with one, two and three pictures.
    inputs = processor(text=prompts, images=images).to(model.device)
    output = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    new = output[:, inputs["input_ids"].shape[1] :]
    answers = processor.batch_decode(new, skip_special_tokens=True)

    # Normalised, so that a colour of more tokens is not at a disadvantage.
    ranking = classify(model, processor, prompts, images, [f"{c}." for c in COLORS], normalise=True)

    for prompt, answer, row in zip(prompts, answers, ranking.probabilities.tolist(), strict=True):
        print(f"{prompt} ->{answer}")
        print("   " + "  ".join(f"{c} {p:.0%}" for c, p in zip(COLORS, row, strict=True)))


if __name__ == "__main__":
    main()
