"""RICES: the examples whose pictures are most similar to the question's, by the model's own tower.

Retrieval in-context example selection (Yang et al. 2022, An Empirical Study of GPT-3 for Few-Shot
Knowledge-Based VQA; Flamingo, appendix A.2). OpenFlamingo's code compares the projected vectors of
a CLIP of its own; here it is what the tower pools (`pooler_output`), which has other neighbours.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from tuninglab.data.features import FeatureCache, filling, open_cache
from tuninglab.data.loading import picture_batches
from tuninglab.data.looking import Seen, look_at
from tuninglab.data.sample import ImageSource
from tuninglab.errors import UserError
from tuninglab.evaluation.answers import evaluation_mode
from tuninglab.evaluation.questions import Question
from tuninglab.evaluation.shots import Examples, Pool, usable
from tuninglab.models.identity import digest_of, pictures_identity, said_of
from tuninglab.progress import working
from tuninglab.training.parallel import shared_out

# One higher where the same pictures come to have other vectors.
FORM = 1
# Pictures that the tower reads at once, always as many: how the vector of one is rounded does not
# depend on how many there are.
GROUP = 16
# Groups computed before they are written: what a killed process loses.
GROUPS_AT_A_TIME = 64
# Rows and questions multiplied at once: 2 x 50 MB in float64 at 768 numbers a vector.
ROWS_AT_A_TIME, QUESTIONS_AT_A_TIME = 8192, 64
# Of the similar ones, sorted first: more than are ever shown, and many that share a picture.
SORTED_FIRST = 256


class Similar(Examples):
    """Examples by the similarity of their pictures; of several, a record's last one is compared.

    All questions are compared when this is made, so that the vectors are read in large portions.

    Args:
        pool: all records of the shots data; those without a picture are never chosen.
        questions: all that will be asked.
        most: examples that will be asked for.
        vectors: of pictures.

    Raises:
        UserError: a question has no picture, or fewer than `most` records may stand before it; or a
            picture cannot be read.
    """

    def __init__(
        self, pool: Pool, questions: Sequence[Question], most: int, vectors: "PooledVectors"
    ):
        super().__init__(pool)
        for question in questions:
            if not question.sample.images:
                raise UserError(
                    f"{question.sample.origin} has no picture, and --select rices compares "
                    "pictures. Take --select random."
                )
        seen = [number for number in range(len(pool)) if pool[number].sample.images]
        matrix = vectors.of(_LastPictures(pool, seen))
        asked = vectors.of(_LastPictures(questions, range(len(questions))))
        self._nearest: dict[str, list[int]] = {}
        with working("comparing pictures", len(questions)) as note:
            for start in range(0, len(questions), QUESTIONS_AT_A_TIME):
                some = slice(start, start + QUESTIONS_AT_A_TIME)
                found = zip(questions[some], similarities(asked[some], matrix), strict=True)
                for question, row in found:
                    order = (seen[place] for place in best_first(row))
                    self._nearest[str(question.id)] = usable(pool, question, order, most)
                note(len(self._nearest))

    def rows(self, question: Question, count: int) -> list[int]:
        """See `Examples`."""
        return self._nearest[str(question.id)]


def similarities(asked: Tensor, matrix: Tensor) -> Tensor:
    """Cosines (Q, N) in float64 of unit vectors in float16: asked (Q, D) with a matrix (N, D).

    They are exact, so equal pictures are equally similar, and neither the order of the sum nor the
    machine matters: numbers of float16 up to 1 are multiples of 2^-24, their products of 2^-48, and
    no partial sum of unit vectors is beyond 2, which leaves 49 of the 53 bits of float64.
    """
    wanted = asked.double().T
    parts = [part.double() @ wanted for part in matrix.split(ROWS_AT_A_TIME)]
    return torch.cat(parts).T


def best_first(similarity: Tensor) -> Iterator[int]:
    """Places in (N,), the largest first, of equals the first; no more are sorted than taken."""
    size, told, total = SORTED_FIRST, 0, len(similarity)
    while told < total:
        least = similarity.topk(min(size, total)).values[-1]
        # All that are as large as the last of these: which of equals topk has is not said.
        places = (similarity >= least).nonzero().squeeze(1)
        order = similarity[places].argsort(descending=True, stable=True)
        yield from places[order][told:].tolist()
        told, size = len(places), size * 8


class _LastPictures(Sequence[ImageSource]):
    """The last picture of some questions, each found when it is asked for."""

    def __init__(self, questions: Sequence[Question], numbers: Sequence[int]):
        self.questions, self.numbers = questions, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> ImageSource:  # type: ignore[override]
        return self.questions[self.numbers[index]].sample.images[-1]


class PooledVectors:
    """What a tower pools of pictures, as unit vectors in float16, kept in a folder.

    The folder's name tells the weights of the tower and how pictures are made for it: of another
    tower all is computed anew, of this one only pictures that were not there.

    Args:
        model: a Flamingo, or one wrapped by PEFT, on its device.
        processor: its processor.
        place: the folder that holds such folders.
        accelerator: knows the processes, which share the work.
    """

    def __init__(self, model: Any, processor: Any, place: Path, accelerator: Accelerator):
        self.model, self.tower = model, model.vision_encoder
        self.image_processor, self.accelerator = processor.image_processor, accelerator
        with evaluation_mode(model):
            side = processor.image_size
            (blank,) = pooled(self.tower, torch.zeros(1, 3, side, side))
        self.identity = {
            "form": FORM,
            "vision_encoder": digest_of(self.tower),
            "vision_config": said_of(model.config.vision_config),
            **pictures_identity(self.image_processor),
        }
        name = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:12]
        self.folder, self.shape = place / f"pooled-{name}", tuple(blank.shape)

    def of(self, pictures: Sequence[ImageSource]) -> Tensor:
        """Unit vectors (N, D) of pictures in float16; those not known yet are computed and kept.

        All processes must ask for the same.

        Raises:
            UserError: a picture cannot be read, or the disk lacks room.
            WorkError: the disk is full.
        """
        if not len(pictures):
            return torch.zeros(0, *self.shape, dtype=torch.float16)
        main = self.accelerator.is_main_process
        with filling(self.folder) if main else nullcontext():
            cache = self._open() if main else None
            # The others find it begun.
            self.accelerator.wait_for_everyone()
            cache = cache or self._open()
            cache.refresh()
            digests = self._digests(pictures, cache)
            self._fill(cache, pictures, digests)
            self.accelerator.wait_for_everyone()
            cache.refresh()
        return torch.stack([cache.row(digest) for digest in digests])

    def _open(self) -> FeatureCache:
        return open_cache(self.folder, self.identity, "pooled", self.shape, torch.float16)

    def _digests(self, pictures: Sequence[ImageSource], cache: FeatureCache) -> list[bytes]:
        """The sha256 of each; of files that stayed as they were, without reading them again."""
        known = cache.stamps()

        def look(share: Sequence[ImageSource]) -> list[Seen]:
            found = []
            with working("looking for pictures that have vectors", len(share)) as note:
                for number in range(len(share)):
                    found.append(look_at(share[number], known))
                    note(len(found))
            return found

        seen = shared_out(look, self.model, self.accelerator)(pictures)
        if self.accelerator.is_main_process:
            stamps = {one.file: [*one.stamp, one.digest.hex()] for one in seen if one.file}
            cache.remember(stamps)
        return [one.digest for one in seen]

    def _fill(
        self, cache: FeatureCache, pictures: Sequence[ImageSource], digests: Sequence[bytes]
    ) -> None:
        """Compute and write what is missing, each picture once."""
        first = {digest: number for number, digest in reversed(list(enumerate(digests)))}
        missing = sorted(number for digest, number in first.items() if digest not in cache.rows)
        if not missing:
            return
        cache.check_space(len(missing))
        rows = cache.free_rows(len(missing))
        groups = [missing[start : start + GROUP] for start in range(0, len(missing), GROUP)]

        def compute(share: Sequence[Sequence[int]]) -> list[Tensor]:
            numbers = (share[place] for place in range(len(share)))
            wanted = [pictures[number] for group in numbers for number in group]
            batches = picture_batches(wanted, self.image_processor, GROUP)
            return [pooled(self.tower, pixels.squeeze(1)) for pixels in batches]

        shared = shared_out(compute, self.model, self.accelerator)
        done = 0
        told = working("computing vectors of pictures", len(missing))
        with told as note, evaluation_mode(self.model):
            for start in range(0, len(groups), GROUPS_AT_A_TIME):
                vectors = torch.cat(shared(groups[start : start + GROUPS_AT_A_TIME]))
                now = slice(done, done + len(vectors))
                if self.accelerator.is_main_process:
                    cache.write(rows[now], [digests[n] for n in missing[now]], vectors)
                done += len(vectors)
                note(done)


@torch.no_grad()
def pooled(tower: PreTrainedModel, pixels: Tensor) -> Tensor:
    """Pixels (N, 3, H, W) -> what the tower pools of each, as unit vectors (N, D) in float16.

    Raises:
        UserError: the tower pools nothing.
    """
    vectors = []
    for group in pixels.split(GROUP):
        full = F.pad(group, (0, 0, 0, 0, 0, 0, 0, GROUP - len(group)))
        found = tower(pixel_values=full.to(tower.device, tower.dtype)).pooler_output
        if found is None:
            raise UserError(
                "--select rices compares what the vision tower pools of a picture, and this one "
                "pools nothing (SigLIP without its head). Take --select random."
            )
        vectors.append(F.normalize(found[: len(group)].float(), dim=-1).half().cpu())
    return torch.cat(vectors)
