import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import CLIPVisionModel, T5Config

from tuninglab.adapters.lora import tune
from tuninglab.config.tuning import DEFAULT_TARGET_MODULES, TuningConfig
from tuninglab.embedded import base_directory
from tuninglab.inspection.presets import PRESET_NAMES, build_preset, model_on_meta
from tuninglab.models import load_flamingo

PERCEIVER = 63_019_008
# Blocks, parameters of each, and perceiver + blocks + input embeddings: what OpenFlamingo trains.
RELEASED = {
    "openflamingo-9b": (8, 139_476_994, 1_309_919_248),
    "openflamingo-9b-vitl-mpt7b": (8, 139_476_994, 1_384_781_840),
    "openflamingo-4b-vitl-rpj3b": (16, 56_109_058, 1_089_480_736),
    "openflamingo-3b-vitl-mpt1b": (24, 36_708_354, 1_046_992_944),
}


def count(tensors):
    return sum(tensor.numel() for tensor in tensors)


@pytest.mark.parametrize("name", RELEASED)
def test_released_models_count_as_published(name):
    model = build_preset(name)
    blocks, each, trained = RELEASED[name]
    assert count(model.perceiver.parameters()) == PERCEIVER
    assert [count(block.parameters()) for block in model.gated_blocks] == [each] * blocks
    table = model.get_input_embeddings()
    assert PERCEIVER + blocks * each + count(table.parameters()) == trained
    # <|endofchunk|>, <image>, <PAD> are the last rows.
    config = model.config
    assert [config.eoc_token_id, config.image_token_id] == [
        table.num_embeddings - 3,
        table.num_embeddings - 2,
    ]


@pytest.mark.parametrize("name", PRESET_NAMES)
def test_presets_have_no_weights_and_one_number_format(name):
    model = build_preset(name)
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"meta"}
    assert {tensor.dtype for tensor in model.parameters()} == {model.config.dtype}


def test_totals():
    assert count(build_preset("openflamingo-9b").parameters()) == 8_220_454_928
    # LLaMA-7B's published 6,738,415,616 and three rows more in and out.
    assert count(build_preset("llama-7b").parameters()) == 6_738_415_616 + 2 * 3 * 4096
    assert build_preset("llama-7b").dtype == torch.float16


def test_flan_t5_small_has_a_head_of_its_own():
    model = build_preset("flan-t5-small")
    assert count(model.parameters()) == 76_961_152
    assert model.lm_head.weight is not model.shared.weight


def test_a_t5_of_the_first_version_keeps_its_tied_head():
    model = model_on_meta(T5Config(vocab_size=32, d_model=8, d_kv=4, d_ff=8, num_layers=1))
    assert model.lm_head.weight is model.shared.weight


def test_lora_on_the_nine_suffixes():
    model = build_preset("openflamingo-9b")
    with torch.device("meta"):
        lora = LoraConfig(r=16, target_modules=list(DEFAULT_TARGET_MODULES))
        alone = get_peft_model(model.lang_encoder, lora)
        # Tuning scopes the patterns itself: CLIP has a q_proj, the Perceiver a to_q.
        whole = tune(build_preset("openflamingo-9b"), TuningConfig(train_gates=False))
    for tuned in (alone, whole):
        trained = [tensor for tensor in tuned.parameters() if tensor.requires_grad]
        assert (len(trained), count(trained)) == (336, 23_461_888)
        assert {(tensor.device.type, tensor.dtype) for tensor in trained} == {
            ("meta", torch.float32)
        }


def test_the_embedded_preset_is_the_shipped_base():
    shapes = {name: p.shape for name, p in load_flamingo(base_directory())[0].named_parameters()}
    assert {name: p.shape for name, p in build_preset("embedded").named_parameters()} == shapes


def test_what_is_not_the_released_code_is_said(capsys):
    build_preset("openflamingo-3b-vitl-mpt1b")
    said = capsys.readouterr()
    assert "MosaicGPT" in said.err and "--trust_remote_code" in said.err and not said.out
    build_preset("openflamingo-9b-vitl-mpt7b")
    assert not capsys.readouterr().err


def test_a_configuration_gives_the_class_that_was_saved():
    config = build_preset("openflamingo-9b").config.vision_config
    config.architectures = ["CLIPVisionModel"]
    assert type(model_on_meta(config)) is CLIPVisionModel
    config.architectures = None
    assert type(model_on_meta(config)) is CLIPVisionModel
