"""`--cache_features`: what is frozen is computed once for each picture, and read from a folder."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tuninglab.config import TrainingConfig
from tuninglab.console import Choices, say
from tuninglab.data.features import FeatureCache, filling, open_cache
from tuninglab.data.loading import picture_batches
from tuninglab.data.looking import Seen, look_at
from tuninglab.data.sample import ImageSource
from tuninglab.errors import UserError
from tuninglab.models.identity import digest_of, pictures_identity, said_of
from tuninglab.progress import working
from tuninglab.recipes.recipe import Base
from tuninglab.training.parallel import shared_out

# Encoded together and then written: what a killed run loses.
AT_A_TIME = 64
# Of the files of a cache: one higher where they come to be read otherwise.
FORM = 2


class Place(NamedTuple):
    """Where a picture is: in which of the sequences of samples, in which sample, which of it."""

    part: int
    sample: int
    picture: int


@dataclass(frozen=True)
class Level:
    """How far the features of a picture are computed ahead.

    Args:
        name: of the features, as the model's forward calls them.
        why: is said.
        parts: of the model that compute them.
    """

    name: str
    why: str
    parts: tuple[str, ...]


LATENTS = Level("image_features", "the Perceiver is frozen", ("vision_encoder", "perceiver"))
PATCHES = Level("patch_features", "the Perceiver trains, the tower does not", ("vision_encoder",))


def level_of(trained: Sequence[str]) -> Level:
    """As far as nothing trains, by the names of the modules that train in full.

    Raises:
        UserError: the tower trains.
    """
    parts = {name.split(".")[0] for name in trained}
    if "vision_encoder" in parts:
        raise UserError(
            "--cache_features keeps what a frozen vision tower computes, but the tower trains "
            "(--train vision, train or modules_to_save in tuning_config). Leave one of them out."
        )
    return PATCHES if "perceiver" in parts else LATENTS


def read_features(
    config: TrainingConfig,
    base: Base,
    trained: Sequence[str],
    samples: Sequence[Sequence[Any]],
    accelerator: Accelerator,
    choices: Choices,
) -> Base:
    """The base, whose rows and answers read features from the cache, which is filled here.

    Args:
        config: says where the cache is, if there shall be one.
        base: its model stands on the device of the run.
        trained: names of the modules that train in full.
        samples: all that the run shows, each picture once or several times.
        accelerator: precision and processes; each process computes a share.
        choices: where what was done is said and kept.

    Raises:
        UserError: the tower trains, the folder is another one's, or the disk lacks room.
        WorkError: the disk is full.
    """
    if config.cache_features is None:
        return base
    level, model, pictures = level_of(trained), base.model.eval(), base.processor.image_processor
    encode = encoder(model, level, accelerator)
    side = base.processor.image_size
    to_batches = partial(
        picture_batches, image_processor=pictures, size=AT_A_TIME, workers=config.workers
    )
    blank = encode(torch.zeros(1, 1, 3, side, side))
    identity = identity_of(model, level, pictures, blank)
    folder = Path(config.cache_features)
    if config.cache_features == "auto":
        name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
        folder = Path(config.output_dir) / "features" / name
    cache_form = (identity, level.name, tuple(blank.shape[1:]), blank.dtype)
    main = accelerator.is_main_process
    with filling(folder) if main else nullcontext():
        cache = open_cache(folder, *cache_form) if main else None
        # The others find it begun.
        accelerator.wait_for_everyone()
        cache = cache or open_cache(folder, *cache_form)
        cache.refresh()
        places = find_pictures(cache, samples, model, accelerator)
        missing = {digest: place for digest, place in places.items() if digest not in cache.rows}
        fill(cache, missing, samples, to_batches, encode, accelerator)
        accelerator.wait_for_everyone()
        cache.refresh()
    done = f"cached, {len(missing):,} new of {len(places):,} pictures"
    choices.add("features", done, f"{level.name} in {folder}: {level.why}")
    return replace(
        base, rows=partial(base.rows, features=cache), answer=partial(base.answer, features=cache)
    )


def leave_out_tower(model: Any, config: TrainingConfig) -> None:
    """Let the tower go where features are read: they are there for every picture of the run."""
    if config.cache_features is not None:
        model.vision_encoder = nn.Identity()


def encoder(model: Any, level: Level, accelerator: Accelerator) -> Callable[[Tensor], Tensor]:
    """From pixels (N, F, 3, H, W) to features (N, *shape), as training computes them."""
    to_features = model.encode_images if level is LATENTS else model.encode_patches

    @torch.no_grad()
    def encode(pixels: Tensor) -> Tensor:
        with accelerator.autocast():
            return to_features(pixels.unsqueeze(1).to(accelerator.device)).squeeze(1)

    return encode


def identity_of(model: Any, level: Level, image_processor: Any, blank: Tensor) -> dict[str, Any]:
    """All that features depend on beside the picture; `blank` (1, *shape) are those of one."""
    return {
        "form": FORM,
        "level": level.name,
        "dtype": str(blank.dtype).removeprefix("torch."),
        "shape": list(blank.shape[1:]),
        **{part: digest_of(getattr(model, part)) for part in level.parts},
        "vision_config": said_of(model.config.vision_config),
        # Not to be seen from the tensors.
        "perceiver_heads": model.config.perceiver_heads if level is LATENTS else None,
        **pictures_identity(image_processor),
    }


def find_pictures(
    cache: FeatureCache,
    samples: Sequence[Sequence[Any]],
    model: nn.Module,
    accelerator: Accelerator,
) -> dict[bytes, Place]:
    """Where each picture stands first, by its sha256; the cache learns which file has which.

    Raises:
        UserError: a picture cannot be read.
        WorkError: the disk is full.
    """
    known = cache.stamps()
    numbers = [(part, number) for part, of in enumerate(samples) for number in range(len(of))]

    def look(share: Sequence[tuple[int, int]]) -> list[list[Seen]]:
        found = []
        with working("looking for pictures that have features", len(share)) as note:
            for part, number in share:
                found.append([look_at(image, known) for image in samples[part][number].images])
                note(len(found))
        return found

    rows = shared_out(look, model, accelerator)(numbers)
    places: dict[bytes, Place] = {}
    for (part, number), pictures in zip(numbers, rows, strict=True):
        for k, seen in enumerate(pictures):
            places.setdefault(seen.digest, Place(part, number, k))
    files = [seen for pictures in rows for seen in pictures if seen.file is not None]
    cache.files = {str(seen.file): seen.digest for seen in files}
    if accelerator.is_main_process:
        cache.remember({str(seen.file): [*seen.stamp, seen.digest.hex()] for seen in files})
    return places


class _Pictures(Sequence[ImageSource]):
    """The pictures at some places, each made when it is asked for."""

    def __init__(self, samples: Sequence[Sequence[Any]], places: Sequence[Place]):
        self.samples, self.places = samples, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> ImageSource:  # type: ignore[override]
        place = self.places[index]
        return self.samples[place.part][place.sample].images[place.picture]


def fill(
    cache: FeatureCache,
    missing: Mapping[bytes, Place],
    samples: Sequence[Sequence[Any]],
    to_batches: Callable[[Sequence[ImageSource]], Iterator[Tensor]],
    encode: Callable[[Tensor], Tensor],
    accelerator: Accelerator,
) -> None:
    """Compute and write the features of the pictures that the cache lacks, this process's share.

    Args:
        cache: as all processes read it before any writes.
        missing: where these pictures are, by their sha256; the same on all processes.
        samples: what the places are in.
        to_batches: pictures -> pixels of AT_A_TIME (N, F, 3, H, W), one batch after another.
        encode: pixels -> features (N, *shape).
        accelerator: knows the processes.

    Raises:
        UserError: a picture cannot be read, or the disk lacks room for all.
        WorkError: the disk is full.
    """
    if not missing:
        return
    say(f"{cache.check_space(len(missing))} in {cache.folder}")
    numbers = cache.free_rows(len(missing))
    # No process may look for free rows once another one writes.
    accelerator.wait_for_everyone()
    mine = slice(accelerator.process_index, None, accelerator.num_processes)
    digests, numbers = list(missing)[mine], numbers[mine]
    pictures = _Pictures(samples, [missing[digest] for digest in digests])
    done = 0
    with working("computing features of pictures", len(pictures)) as note:
        for pixels in to_batches(pictures):
            now = slice(done, done + len(pixels))
            cache.write(numbers[now], digests[now], encode(pixels))
            done += len(pixels)
            note(done)
