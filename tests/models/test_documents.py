"""Documents packed into a row: each comes out as it does alone, which is the reference here."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from transformers import AttentionInterface, DynamicCache

from tests.tiny import FAMILIES, IMAGE, SIDE
from tuninglab.models import attention
from tuninglab.models.attention import NAME
from tuninglab.models.conditioning import count_text_time, restarting_positions
from tuninglab.models.packed_trial import packing_problem

LENGTHS = (5, 4, 7, 1, 3)
MARKS = ((1,), (), (0, 4), (), (2,))  # where each document has its marks
NUMBERS = torch.tensor([[n for n, length in enumerate(LENGTHS) for _ in range(length)]])


def documents(seed=0):
    """Ids of each document, and its pictures (M, F=1, 3, H, W)."""
    drawn = torch.Generator().manual_seed(seed)
    made = []
    for length, places in zip(LENGTHS, MARKS, strict=True):
        ids = torch.randint(3, 50, (1, length), generator=drawn)
        ids[0, list(places)] = IMAGE
        made.append((ids, torch.randn(len(places), 1, 3, SIDE, SIDE, generator=drawn)))
    return made


def packed(made, padding=3):
    """One row of all, and a second one of the last two in turn, which ends in padding."""
    rows = [list(range(5)), [4, 2]]
    length = sum(LENGTHS) + padding
    ids, numbers = torch.zeros(2, length, dtype=torch.long), torch.full((2, length), -1)
    pixels = torch.zeros(2, 4, 1, 3, SIDE, SIDE)
    for row, chosen in enumerate(rows):
        at = seen = 0
        for number in chosen:
            text, pictures = made[number]
            ids[row, at : at + text.shape[1]] = text
            numbers[row, at : at + text.shape[1]] = number
            pixels[row, seen : seen + len(pictures)] = pictures
            at, seen = at + text.shape[1], seen + len(pictures)
    return rows, {"input_ids": ids, "documents": numbers, "pixel_values": pixels}


@torch.no_grad()
def worst(model, rows, inputs, made):
    """Largest difference of a document's logits in the pack and alone."""
    logits, differences = model(**inputs).logits, []
    for row, chosen in enumerate(rows):
        at = 0
        for number in chosen:
            ids, pictures = made[number]
            # A document without pictures gets a blank one that it has no mark for.
            pixels = pictures if len(pictures) else torch.zeros(1, 1, 3, SIDE, SIDE)
            alone = model(input_ids=ids, pixel_values=pixels[None], use_cache=False).logits[0]
            differences.append((logits[row, at : at + len(alone)] - alone).abs().max())
            at += len(alone)
    return float(max(differences))


# No positions to tell documents by, a mask made without them, a state that runs on.
UNABLE = {"mpt", "opt", "falcon_h1"}


ABLE = sorted(FAMILIES.keys() - UNABLE)
# The mode is decided before the language model: two of these will do.
PAIRS = [*((family, "previous") for family in ABLE), ("llama", "next-v1"), ("gpt2", "next-v1")]


@pytest.mark.parametrize(("family", "mode"), PAIRS)
def test_each_document_of_a_pack_comes_out_as_alone(make_flamingo, family, mode):
    model = make_flamingo(family, media_mode=mode).eval()
    made = documents()
    with torch.no_grad():
        rows, inputs = packed(made)
        assert worst(model, rows, inputs, made) < 2e-5
        # The test sees what it should: without documents, neighbours are seen.
        inputs["documents"] = torch.zeros_like(inputs["documents"])
        assert worst(model, rows, inputs, made) > 1e-2


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_model_that_cannot_is_found_by_a_trial(make_flamingo, family):
    model = make_flamingo(family).eval()
    problem = packing_problem(model)
    assert (problem is None) == (family not in UNABLE)
    assert problem is None or f"a {model.config.text_config.model_type}" in problem


def test_attention_functions_without_masks_are_found(make_flamingo):
    model = make_flamingo("llama").eval()

    def plain(module, query, key, value, mask, scaling=None, **_):
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
        return out.transpose(1, 2), None

    AttentionInterface.register("tests_plain", plain)
    model.lang_encoder.set_attn_implementation("tests_plain")
    assert "(tests_plain)" in packing_problem(model)


@pytest.mark.parametrize("name", [NAME, "eager"])
def test_other_attention_functions_keep_documents_apart(make_flamingo, name, monkeypatch):
    # As on a CPU with bf16 products, in float32.
    monkeypatch.setattr(attention, "takes_products", lambda *_: True)
    model = make_flamingo("llama")
    model.lang_encoder.set_attn_implementation(name)
    assert packing_problem(model) is None
    made = documents()
    rows, inputs = packed(made)
    assert worst(model, rows, inputs, made) < 2e-5


def test_what_does_not_go_with_documents_is_refused_by_name(make_flamingo):
    model, (_, inputs) = make_flamingo("llama"), packed(documents())
    ids = inputs["input_ids"]
    for name, value in {"attention_mask": torch.ones_like(ids), "position_ids": ids}.items():
        with pytest.raises(ValueError, match=f"documents and {name} are both given"):
            model(**inputs, **{name: value})
    with pytest.raises(ValueError, match="documents and past_key_values are both given"):
        model(**inputs, past_key_values=DynamicCache(), text_time=torch.zeros_like(ids))
    with pytest.raises(ValueError, match="a mpt takes no positions"):
        make_flamingo("mpt")(**inputs)
    assert model(**inputs, use_cache=True).past_key_values is None


ROWS = st.lists(
    st.lists(st.sampled_from([5, 6, IMAGE]), min_size=1, max_size=5), min_size=1, max_size=6
)


@given(rows=ROWS, mode=st.sampled_from(["previous", "next-v1"]))
def test_images_and_positions_of_a_document_are_those_of_it_alone(rows, mode):
    ids = torch.tensor([[token for row in rows for token in row]])
    numbers = torch.tensor([[7 * n % 5 for n, row in enumerate(rows) for _ in row]])
    expected, seen = [], 0
    for row in rows:
        alone = count_text_time(torch.tensor([row]), IMAGE, mode)[0].tolist()
        # Images of the documents before come first.
        expected += [time + seen if time else 0 for time in alone]
        seen += row.count(IMAGE)
    assert count_text_time(ids, IMAGE, mode, numbers)[0].tolist() == expected
    places = [place for row in rows for place in range(len(row))]
    assert restarting_positions(numbers)[0].tolist() == places
