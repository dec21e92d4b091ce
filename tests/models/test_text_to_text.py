"""T5 checkpoints written key by key, against transformers' class with its head put in by hand."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import ByT5Tokenizer, LlamaConfig, T5Config, T5ForConditionalGeneration

from tuninglab.errors import UserError
from tuninglab.int8.linear import Int8Linear
from tuninglab.int8.quantiser import Int8Config
from tuninglab.models.text_to_text import TextToText, WideLinear, load_text_to_text

WIDTH, HEADS, HEAD_WIDTH, INNER, LAYERS, ROWS = 12, 2, 5, 20, 2, 264


def attention(generator, name):
    inner = HEADS * HEAD_WIDTH
    shapes = {"q": (inner, WIDTH), "k": (inner, WIDTH), "v": (inner, WIDTH), "o": (WIDTH, inner)}
    return {f"{name}.{key}.weight": random(generator, *shape) for key, shape in shapes.items()}


def random(generator, *shape):
    return torch.randn(*shape, generator=generator) * 0.3


def checkpoint(own_head: bool) -> dict[str, torch.Tensor]:
    """What a T5 v1.1 file holds, by the names of google/flan-t5-small."""
    g = torch.Generator().manual_seed(3)
    state = {"shared.weight": random(g, ROWS, WIDTH)}
    for stack in ("encoder", "decoder"):
        state[f"{stack}.final_layer_norm.weight"] = 1 + random(g, WIDTH)
        for number in range(LAYERS):
            layer = f"{stack}.block.{number}.layer"
            names = ["SelfAttention", *(["EncDecAttention"] if stack == "decoder" else [])]
            for place, name in enumerate(names):
                state |= attention(g, f"{layer}.{place}.{name}")
            for place in range(len(names) + 1):
                state[f"{layer}.{place}.layer_norm.weight"] = 1 + random(g, WIDTH)
            ff = f"{layer}.{len(names)}.DenseReluDense"
            state |= {f"{ff}.{wi}.weight": random(g, INNER, WIDTH) for wi in ("wi_0", "wi_1")}
            state[f"{ff}.wo.weight"] = random(g, WIDTH, INNER)
        bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        state[bias] = random(g, 32, HEADS)
    if own_head:
        state["lm_head.weight"] = random(g, ROWS, WIDTH)
    return state


def config(tied: bool) -> dict:
    """config.json as the hub has it: v1.1 and flan say that head and table are not tied."""
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        **{"d_model": WIDTH, "d_kv": HEAD_WIDTH, "d_ff": INNER, "vocab_size": ROWS},
        **{"num_layers": LAYERS, "num_decoder_layers": LAYERS, "num_heads": HEADS},
        **{"feed_forward_proj": "gated-gelu", "dropout_rate": 0.0, "tie_word_embeddings": tied},
        **{"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0},
    }


def write(folder, state, settings):
    folder.mkdir()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(settings))
    ByT5Tokenizer(extra_ids=0).save_pretrained(folder)
    return folder


def reference(state, settings) -> T5ForConditionalGeneration:
    """transformers' class, filled by hand; a head of its own is a layer that nothing is tied to."""
    model = T5ForConditionalGeneration(T5Config(**settings))
    body = {name: tensor for name, tensor in state.items() if name != "lm_head.weight"}
    model.load_state_dict(body, strict=False)
    if "lm_head.weight" in state:
        model.lm_head = nn.Linear(WIDTH, ROWS, bias=False)
        model.lm_head.weight.data = state["lm_head.weight"].clone()
    return model.eval()


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(5)
    ids, labels = (torch.randint(3, ROWS, (3, length), generator=g) for length in (9, 6))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    labels[0, 2:], labels[2, 5:] = -100, -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


# Whether the checkpoint has a head, and what its configuration says of tying.
KINDS = {
    "untied": (True, False),
    "tied": (False, True),
    "one table, said to be two": (False, False),
}
KINDS["two tables, said to be one"] = (True, True)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_checkpoint(kind, tmp_path, batch):
    own_head, tied = KINDS[kind]
    state, settings = checkpoint(own_head), config(tied)
    model, _ = load_text_to_text(write(tmp_path / "t5", state, settings))
    expected = reference(state, settings)
    with torch.no_grad():
        logits = model(**batch).logits
        assert torch.equal(logits, expected(**batch).logits)
    # Saving and loading again, resizing and copying change nothing about who is tied to whom.
    model.save_pretrained(tmp_path / "again")
    ByT5Tokenizer(extra_ids=0).save_pretrained(tmp_path / "again")
    assert ("lm_head.weight" in load_file(tmp_path / "again" / "model.safetensors")) == own_head
    saved = json.loads((tmp_path / "again" / "config.json").read_text())
    assert saved["architectures"] == ["T5ForConditionalGeneration"]
    assert saved["tie_word_embeddings"] == (not own_head)
    again, _ = load_text_to_text(tmp_path / "again")
    model.resize_token_embeddings(ROWS + 8, mean_resizing=False)
    for changed in (model, copy.deepcopy(model), again):
        assert (changed.lm_head.weight is not changed.shared.weight) == own_head
        assert changed.encoder.embed_tokens.weight is changed.shared.weight
        with torch.no_grad():
            assert torch.equal(changed(**batch).logits[..., :ROWS], logits)


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_of_its_own_can_be_int8_and_a_tied_one_stays(kind, tmp_path, batch):
    own_head, tied = KINDS[kind]
    folder = write(tmp_path / "t5", checkpoint(own_head), config(tied))
    model, _ = load_text_to_text(folder, quantization=Int8Config(head=True))
    assert isinstance(model.lm_head, Int8Linear) == (kind == "untied")
    assert (model.lm_head.weight is not model.shared.weight) == own_head
    with torch.no_grad():
        logits, expected = model(**batch).logits, load_text_to_text(folder)[0](**batch).logits
    # Rows of 12 numbers in int8: the logits are alike, not equal.
    assert F.cosine_similarity(logits.flatten(), expected.flatten(), dim=0) > 0.98


def test_a_fresh_v1_1_has_a_head_of_its_own():
    untied, tied = (TextToText(T5Config(**config(kind))) for kind in (False, True))
    assert untied.num_parameters() - tied.num_parameters() == ROWS * WIDTH
    # 77 M parameters of flan-t5-small instead of 60.5 M.
    small = T5Config(
        **{"d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 8, "num_heads": 6},
        **{"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "vocab_size": 32128},
    )
    with torch.device("meta"):
        assert TextToText(small).num_parameters() == 76_961_152


@pytest.fixture
def model(tmp_path):
    return load_text_to_text(write(tmp_path / "t5", checkpoint(True), config(False)))[0]


def test_the_loss_is_a_sum_over_labels_that_are_not_shifted(model, batch):
    labels = batch["labels"]
    ids, mask = batch["input_ids"], batch["attention_mask"]
    read = torch.full_like(labels, 0)
    read[:, 1:] = labels[:, :-1].masked_fill(labels[:, :-1] == -100, 0)
    logits = model(input_ids=ids, attention_mask=mask, decoder_input_ids=read).logits
    log_p = F.log_softmax(logits.double(), -1)
    picked = [-log_p[b, t, labels[b, t]] for b, t in (labels != -100).nonzero().tolist()]
    total = torch.stack(picked).sum().item()
    assert model(**batch).loss.item() == pytest.approx(total / len(picked), rel=1e-5)
    assert model(**batch, num_items_in_batch=40).loss.item() == pytest.approx(total / 40, rel=1e-5)
    few = model(**batch, labels_only_logits=True, num_items_in_batch=40)
    assert few.logits.shape == (len(picked), ROWS)
    assert torch.allclose(few.logits, logits[labels != -100], atol=1e-6)
    assert few.loss.item() == pytest.approx(total / 40, rel=1e-5)


def test_a_chunked_loss_has_the_same_gradient(model, batch):
    model.lm_head.requires_grad_(False)
    gradients = []
    for chunk in (None, 4):
        model.loss_chunk_tokens = chunk
        model.zero_grad()
        outputs = model(**batch, labels_only_logits=True)
        outputs.loss.backward()
        gradients.append(model.shared.weight.grad.clone())
    assert outputs.logits is None
    assert torch.allclose(*gradients, atol=1e-6) and gradients[0].abs().max() > 0


def test_a_batch_without_labels_adds_nothing(model, batch):
    batch["labels"] = torch.full_like(batch["labels"], -100)
    for only in (False, True):
        assert model(**batch, num_items_in_batch=7, labels_only_logits=only).loss == 0


def test_it_generates_what_transformers_generates(model, batch):
    del batch["labels"]
    expected = reference(checkpoint(True), config(False))
    for options in ({}, {"num_beams": 3}):
        options |= {"max_new_tokens": 7, "do_sample": False}
        assert torch.equal(
            model.generate(**batch, **options), expected.generate(**batch, **options)
        )


def test_in_fp16_the_layers_that_overflow_stay_in_fp32(tmp_path):
    folder = write(tmp_path / "t5", checkpoint(True), config(False))
    model, _ = load_text_to_text(folder, "fp16")
    wide = [m for m in model.modules() if isinstance(m, WideLinear)]
    assert len(wide) == 2 * LAYERS and all(m.weight.dtype == torch.float32 for m in wide)
    assert model.shared.weight.dtype == torch.float16
    huge = torch.full((1, INNER), 60000.0, dtype=torch.float16)
    with torch.autocast("cpu", torch.float16):
        assert wide[0](huge).abs().max() > 65504 and wide[0](huge).isfinite().all()
    model, _ = load_text_to_text(folder, "bf16")
    assert not any(isinstance(module, WideLinear) for module in model.modules())
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_what_is_no_t5_or_incomplete_is_a_user_error(tmp_path):
    state = checkpoint(True)
    folder = write(tmp_path / "short", state, config(False))
    del state["encoder.final_layer_norm.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 missing: encoder.final_layer_norm.weight.*d_model"):
        load_text_to_text(folder)
    small = write(tmp_path / "small", checkpoint(True), config(False))
    ByT5Tokenizer(extra_ids=50).save_pretrained(small)
    with pytest.raises(UserError, match="309 tokens, the model's table 264 rows"):
        load_text_to_text(small)
    LlamaConfig().save_pretrained(tmp_path / "llama")
    with pytest.raises(UserError, match="'llama' model; expected a T5"):
        load_text_to_text(tmp_path / "llama")
    with pytest.raises(UserError, match="there is no directory"):
        load_text_to_text(tmp_path / "nowhere")


def test_dropout_is_set_everywhere():
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_heads": 4}
    model = TextToText(
        T5Config(vocab_size=50, decoder_start_token_id=0, dropout_rate=0.5, **sizes)
    ).train()
    batch = {"input_ids": torch.arange(2, 12)[None], "labels": torch.arange(2, 8)[None]}
    assert not torch.equal(model(**batch).logits, model(**batch).logits)
    model.set_dropout(0.0)
    assert torch.equal(model(**batch).logits, model(**batch).logits)
