"""CIDEr-D: how much a caption says what people say of this image and not of every image."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tuninglab.evaluation.metrics.metric import Metric, Scored
from tuninglab.evaluation.metrics.ngrams import LONGEST, ngrams

SIGMA_WORDS = 6.0  # how far two captions may differ in length
MOST = 10.0

Run = tuple[str, ...]


class _Weighed(NamedTuple):
    """A caption's runs of words by their weight, and the length of each such vector."""

    weights: list[dict[Run, float]]
    norms: list[float]
    bigrams: int


def _images_with(references: Sequence[Sequence[Sequence[Counter[Run]]]]) -> Counter[Run]:
    """Of how many images any reference has the run."""
    images: Counter[Run] = Counter()
    for of_image in references:
        images.update({run for counts in of_image for of_length in counts for run in of_length})
    return images


def _weigh(counts: list[Counter[Run]], images: Counter[Run], log_count: float) -> _Weighed:
    # A run that no reference has is as rare as one of a single image.
    weights = [
        {run: times * (log_count - math.log(images[run] or 1)) for run, times in of_length.items()}
        for of_length in counts
    ]
    norms = [math.sqrt(sum(weight * weight for weight in one.values())) for one in weights]
    return _Weighed(weights, norms, counts[1].total())


def _alike(caption: _Weighed, reference: _Weighed) -> float:
    """Clipped cosines, their mean over the lengths of runs, less for another length."""
    total = 0.0
    for ours, theirs, *norms in zip(
        caption.weights, reference.weights, caption.norms, reference.norms, strict=True
    ):
        if not all(norms):
            continue
        shared = sum(
            min(weight, theirs[run]) * theirs[run] for run, weight in ours.items() if run in theirs
        )
        total += shared / (norms[0] * norms[1])
    difference = caption.bigrams - reference.bigrams
    return total / LONGEST * math.exp(-(difference**2) / (2 * SIGMA_WORDS**2))


def _rows(questions: Sequence[Scored]) -> np.ndarray:
    """Each image's score, (N, 1).

    How rare a run is counts over all N images, once: samples are drawn from these scores. Of a
    single image every run is in all images, so that it scores 0.
    """
    references = [[ngrams(answer) for answer in one.answers] for one in questions]
    images = _images_with(references)
    log_count = math.log(max(1, len(questions)))
    scores = []
    for one, of_image in zip(questions, references, strict=True):
        caption = _weigh(ngrams(one.prediction), images, log_count)
        alike = [_alike(caption, _weigh(each, images, log_count)) for each in of_image]
        scores.append([MOST * sum(alike) / len(alike)])
    return np.array(scores, np.float64).reshape(-1, 1)


CIDER = Metric(
    "cider",
    "CIDEr-D",
    _rows,
    most=MOST,
    source="Vedantam, Zitnick, Parikh: CIDEr (CVPR 2015); figures as pycocoevalcap's",
)
