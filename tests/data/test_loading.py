import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from tuninglab.data.batches import image_pixels
from tuninglab.data.loading import make_loader, picture_batches, step_batches
from tuninglab.data.sampler import StepSampler
from tuninglab.errors import UserError


class Numbers(torch.utils.data.Dataset):
    """Rows 0, 1, 2, ...; row 13 cannot be read."""

    def __getitem__(self, index):
        if index == 13:
            raise UserError("my.json, record 14: picture gone")
        return int(index)


def taken(sampler: StepSampler, steps: int) -> list[list[list[int]]]:
    """Batches of `steps` optimizer steps, the sampler moved on after each."""
    batches = []
    for step in step_batches(make_loader(Numbers(), list, sampler), steps):
        batches.append(step)
        sampler.advance()
    return batches


def test_steps_go_on_across_epochs():
    sampler = StepSampler(5, 2, accumulation=2, shuffle=False)
    first, rest = [[0, 1], [2, 3]], [[4]]
    assert taken(sampler, 5) == [first, rest, first, rest, first]
    assert (sampler.epoch, sampler.step) == (2, 1)


def test_a_moved_sampler_starts_there():
    sampler = StepSampler(5, 2, shuffle=False)
    sampler.advance()
    assert taken(sampler, 3) == [[[2, 3]], [[4]], [[0, 1]]]


def test_no_steps_no_batches():
    assert taken(StepSampler(5, 2), 0) == []


def test_starting_an_epoch_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    taken(StepSampler(5, 2), 6)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_lost_picture_is_one_message(workers):
    loader = make_loader(Numbers(), list, StepSampler(20, 20, shuffle=False), workers)
    with pytest.raises(UserError) as caught:
        list(step_batches(loader, 1))
    assert str(caught.value) == "my.json, record 14: picture gone"


@pytest.mark.parametrize("workers", [0, 1])
def test_pictures_come_in_order_and_a_bad_one_is_named(workers):
    size = {"height": 8, "width": 8}
    processor = CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size=size)
    pictures = [Image.new("RGB", (9, 12), (40 * k, 0, 0)) for k in range(5)]
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    batches = list(picture_batches(pictures, processor, 2, workers))
    assert torch.equal(torch.rand(3), expected)
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert torch.equal(torch.cat(batches), image_pixels(pictures, processor))
    with pytest.raises(UserError) as told:
        list(picture_batches([*pictures, b"no picture"], processor, 2, workers))
    assert str(told.value).startswith("the picture given as bytes is not a picture")
