import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, CLIPImageProcessorPil

from tuninglab.models import FlamingoProcessor
from tuninglab.models.build import add_flamingo_tokens


def picture(seed: int, size=(20, 16)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def processor(make_tokenizer):
    words = make_tokenizer()
    add_flamingo_tokens(words)
    images = CLIPImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    )
    return FlamingoProcessor(images, words)


def by_hand(image):
    """Centre crop of a picture whose shorter side is 16 already, with CLIP's mean and std."""
    left = (image.width - 16) // 2
    pixels = np.asarray(image)[:, left : left + 16].astype(np.float64) / 255
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    return torch.tensor((pixels - mean) / std).permute(2, 0, 1).float()


def test_tokens_are_added_in_openflamingos_order(make_tokenizer):
    words = make_tokenizer()
    before = len(words)
    add_flamingo_tokens(words)
    added = ["<|endofchunk|>", "<image>", "<PAD>"]
    assert words.convert_tokens_to_ids(added) == [before, before + 1, before + 2]
    assert words.pad_token == "<PAD>" and len(words) == before + 3
    add_flamingo_tokens(words)
    assert len(words) == before + 3
    padded = make_tokenizer(pad_token="</s>")
    add_flamingo_tokens(padded)
    assert len(padded) == before + 2 and padded.pad_token == "</s>"


def test_rows_with_different_numbers_of_images(processor):
    pictures = [picture(seed) for seed in range(3)]
    batch = processor(
        text=["<image> a cat", "a dog", "<image> <image> a cat and a dog"],
        images=[[pictures[0]], [], [pictures[1], pictures[2]]],
    )
    assert batch["pixel_values"].shape == (3, 2, 1, 3, 16, 16)
    pixels = batch["pixel_values"]
    for found, image in ((pixels[0, 0, 0], 0), (pixels[2, 0, 0], 1), (pixels[2, 1, 0], 2)):
        torch.testing.assert_close(found, by_hand(pictures[image]), atol=1e-5, rtol=1e-5)
    assert not pixels[0, 1].any() and not pixels[1].any()
    ids, pad, image = batch["input_ids"], processor.tokenizer.pad_token_id, processor.image_token_id
    assert ids.tolist() == [
        [*[pad] * 4, image, 3, 4],
        [*[pad] * 5, 3, 5],
        [image, image, 3, 4, 6, 3, 5],
    ]
    assert torch.equal(batch["attention_mask"], (ids != pad).long())


def test_texts_are_padded_on_the_left_whatever_the_tokenizers_side(processor):
    texts = ["a", "a cat and a dog"]
    expected = processor(text=texts)["input_ids"]
    processor.tokenizer.padding_side = "right"
    assert torch.equal(processor(text=texts)["input_ids"], expected)
    assert expected[0, -1] == 3 and expected[0, 0] == processor.tokenizer.pad_token_id
    assert processor(text=texts, padding_side="right")["input_ids"][0, 0] == 3


def test_flat_images_follow_the_marks(processor):
    pictures = [picture(seed) for seed in range(3)]
    texts = ["<image> a cat", "a dog", "<image> <image> a dog"]
    nested = processor(text=texts, images=[pictures[:1], [], pictures[1:]])
    assert torch.equal(
        processor(text=texts, images=pictures)["pixel_values"], nested["pixel_values"]
    )
    one = processor(text="<image> a cat", images=pictures[0])
    assert torch.equal(one["pixel_values"], nested["pixel_values"][:1, :1])
    surplus = processor(text="<image> a cat", images=pictures)
    assert surplus["pixel_values"].shape == (1, 3, 1, 3, 16, 16)


def test_text_only_has_no_pixels(processor):
    assert set(processor(text="a cat")) == {"input_ids", "attention_mask"}
    assert "pixel_values" not in processor(text=["a cat"], images=[[]])


def test_wrong_inputs_say_what_is_wrong(processor, make_tokenizer):
    images = [picture(0)]
    with pytest.raises(ValueError, match="text 1 has 2 <image> marks but 1 images"):
        processor(text=["a cat", "<image> <image>"], images=[[], images])
    with pytest.raises(ValueError, match="2 texts but 1 lists of images"):
        processor(text=["<image>", "a"], images=[images])
    with pytest.raises(ValueError, match="1 images in a flat list, but 2 <image> marks"):
        processor(text=["<image>", "<image>"], images=images)
    with pytest.raises(ValueError, match="no <image> token"):
        FlamingoProcessor(processor.image_processor, make_tokenizer())


def test_auto_processor_round_trip(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert type(again) is FlamingoProcessor
    assert type(again.image_processor) is CLIPImageProcessorPil
    assert (again.image_token_id, again.eoc_token_id) == (8, 7)
    call = {"text": ["<image> a cat", "a"], "images": [[picture(0)], []]}
    first, second = processor(**call), again(**call)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert again.batch_decode(first["input_ids"], skip_special_tokens=True) == ["a cat", "a"]
