"""What is drawn is what the record says, and what is held out stays out."""

import hashlib
import random
import sys

import numpy as np
import pytest

from tuninglab.embedded.digits import FORMS, sample_digits, scans
from tuninglab.embedded.scenes import CELL_PX, COLORS, HELD_OUT_PAIRS, sample_scene

DIGEST = "a9adc876d1a32f2646a833eed4d423631b239f32177cbbf795e39e8214531ca0"


def cell_pixels(picture, cell, margin=0):
    array = np.asarray(picture, int)
    y, x = CELL_PX * (cell // 3), CELL_PX * (cell % 3)
    inner = slice(y + margin, y + CELL_PX - margin), slice(x + margin, x + CELL_PX - margin)
    return array[inner].reshape(-1, 3)


@pytest.mark.parametrize("held_out", [False, True])
def test_held_out_pairs_are_in_every_test_scene_and_no_other(held_out):
    rng = random.Random(0)
    for _ in range(300):
        pairs = {(t.color, t.shape) for t in sample_scene(rng, held_out=held_out).things}
        assert bool(pairs & HELD_OUT_PAIRS) is held_out


def test_all_objects_counts_and_cells_occur():
    rng = random.Random(1)
    scenes = [sample_scene(rng) for _ in range(500)]
    things = [t for s in scenes for t in s.things]
    assert {len(s.things) for s in scenes} == {1, 2, 3}
    assert {t.cell for t in things} == set(range(9))
    assert len({(t.color, t.shape) for t in things}) == 35 - len(HELD_OUT_PAIRS)


def test_the_thing_lies_in_its_cell_with_its_color_and_other_cells_are_paper():
    rng = random.Random(2)
    for _ in range(60):
        scene = sample_scene(rng)
        picture = scene.draw()
        assert picture.size == (96, 96) and picture.mode == "RGB"
        cells = {t.cell: t.color for t in scene.things}
        for cell in range(9):
            if cell not in cells:  # pale paper; a large shape may touch its neighbour's rim
                assert cell_pixels(picture, cell, margin=3).min() > 190
                continue
            pixels = cell_pixels(picture, cell)
            distance = np.abs(pixels - np.array(COLORS[cells[cell]])).max(1)
            assert (distance <= 16).sum() > 40


def test_large_things_cover_more_than_small_ones():
    rng, covered = random.Random(3), {"small": [], "large": []}
    for _ in range(200):
        scene = sample_scene(rng, most=1)
        thing = scene.things[0]
        ink = (cell_pixels(scene.draw(), thing.cell).min(1) < 190).sum()
        covered[thing.size].append((thing.shape, ink))
    for shape in {s for s, _ in covered["small"]}:
        small = [n for s, n in covered["small"] if s == shape]
        large = [n for s, n in covered["large"] if s == shape]
        assert max(small) < min(large)


def test_a_picture_is_fixed_by_its_seed():
    for make in (lambda r: sample_scene(r), lambda r: sample_digits(r, "val")):
        a, b = make(random.Random(5)), make(random.Random(5))
        assert a == b
        assert np.array_equal(np.asarray(a.draw()), np.asarray(b.draw()))


def test_forms_are_whole_and_disjoint():
    """A form is one person's run of about 130 digits in a fixed order; splits cut between them."""
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    digits = "".join(map(str, load_digits().target))
    cuts = sorted({edge for split in FORMS.values() for edge in split})
    assert cuts[0] == 0 and cuts[-1] == len(digits)
    assert FORMS["train"][1] == FORMS["val"][0] and FORMS["val"][1] == FORMS["test"][0]
    for cut in cuts[:-1]:
        # every form starts by counting up twice; the count does not begin before the cut
        assert digits[cut : cut + 20] == "0123456789" * 2
        assert digits[max(cut - 10, 0) : cut] != "0123456789"


def test_the_scans_are_those_of_scikit_learn_bit_for_bit():
    sklearn = pytest.importorskip("sklearn.datasets")
    reference = sklearn.load_digits()
    for split, (start, end) in FORMS.items():
        images, by_digit = scans(split)
        expected = reference.images[start:end].astype(np.float32) / 16
        assert images.dtype == np.float32 and np.array_equal(images, expected)
        for digit, found in enumerate(by_digit):
            assert np.array_equal(found, np.flatnonzero(reference.target[start:end] == digit))


def test_no_picture_has_changed():
    """Their bytes, as scikit-learn's own copy of the scans gave them."""
    seen = hashlib.sha256()
    for split in ("train", "val", "test"):
        rng = random.Random(7)
        for _ in range(200):
            seen.update(np.asarray(sample_digits(rng, split).draw()).tobytes())
    assert seen.hexdigest() == DIGEST


def test_scans_need_no_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert len(scans.__wrapped__("val")[0]) == FORMS["val"][1] - FORMS["val"][0]


def test_digit_pictures_show_the_scan_of_their_split():
    rng = random.Random(6)
    for split in FORMS:
        images, by_digit = scans(split)
        assert sum(map(len, by_digit)) == len(images) == FORMS[split][1] - FORMS[split][0]
        for _ in range(30):
            scene = sample_digits(rng, split)
            picture = scene.draw()
            assert len({ink.color for ink in scene.inks}) == len(scene.inks) == len(scene.cells)
            assert len({cell // 3 for cell in scene.cells}) == 1
            assert scene.cells == sorted(scene.cells)
            for cell, ink in zip(scene.cells, scene.inks, strict=True):
                assert ink.scan in by_digit[ink.digit]
                darkest = cell_pixels(picture, cell)
                distance = np.abs(darkest - np.array(COLORS[ink.color])).max(1)
                assert distance.min() <= 30
