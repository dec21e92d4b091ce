"""A model that is planned is the one that a run would load, but for its numbers."""

from dataclasses import replace

import pytest
import torch

from tuninglab.config import FinetuneConfig, FlanT5Config
from tuninglab.config.tuning import TuningConfig
from tuninglab.console import Choices
from tuninglab.errors import UserError
from tuninglab.recipes.common import wrap
from tuninglab.recipes.flamingo import FLAMINGO
from tuninglab.recipes.flan_t5 import FLAN_T5
from tuninglab.recipes.planned_model import planned_model
from tuninglab.run_folder import RunFolder

WITHOUT_WORDS = TuningConfig(train_answer_tokens="false")


def loaded(config, recipe, folder):
    """As the driver makes it."""
    choices = Choices()
    base = recipe.load(config, RunFolder(folder), choices)
    return wrap(base, "base", config, recipe.scope, choices, ())


def described(model):
    """All that counts of a model's modules and tensors, but numbers."""
    modules = {name: type(module).__name__ for name, module in model.named_modules()}
    named = [*model.named_parameters(), *model.named_buffers()]
    tensors = {n: (tuple(t.shape), t.dtype, t.requires_grad) for n, t in named}
    norms = {n: m.keeps_rows for n, m in model.named_modules() if hasattr(m, "keeps_rows")}
    chunks = getattr(model.get_base_model(), "loss_chunk_tokens", None)
    return modules, tensors, norms, chunks


@pytest.mark.parametrize(
    "settings",
    [
        {"precision": "fp32", "memory_savers": []},
        {"precision": "bf16", "checkpoint_every": 2},
        {"precision": "bf16", "enable_int8": True},
        {"precision": "fp32", "products": "onednn"},
    ],
    ids=["fp32", "bf16", "int8", "onednn"],
)
@pytest.mark.parametrize("name", ["plain", "tied", "embedded"])
def test_a_planned_flamingo_is_the_loaded_one(settings, name, tiny_bases, tmp_path):
    model = "embedded" if name == "embedded" else str(tiny_bases[name])
    config = FinetuneConfig(model=model, tuning_config=WITHOUT_WORDS, **settings).resolved()
    planned = planned_model(config)
    assert {p.device.type for p in planned.parameters()} == {"meta"}
    assert described(planned) == described(loaded(config, FLAMINGO, tmp_path))


def test_a_planned_flamingo_of_parts_is_the_loaded_one(tiny_flamingo, take_apart, tmp_path):
    lang, tower = take_apart(tiny_flamingo(), tmp_path)
    from tests.tiny import processor_of, tiny_tokenizer

    tiny_tokenizer().save_pretrained(lang)
    processor_of(tiny_tokenizer()).image_processor.save_pretrained(tower)
    config = FinetuneConfig(
        lang_encoder=str(lang),
        vision_encoder=str(tower),
        cross_attn_every_n_layers=2,
        precision="bf16",
        tuning_config=WITHOUT_WORDS,
    ).resolved()
    assert described(planned_model(config)) == described(loaded(config, FLAMINGO, tmp_path))


@pytest.mark.parametrize("int8", [True, False])
def test_a_planned_t5_is_the_loaded_one(int8, tmp_path):
    config = FlanT5Config(precision="bf16", enable_int8=int8).resolved()
    assert described(planned_model(config)) == described(loaded(config, FLAN_T5, tmp_path))


def test_a_preset_is_planned_without_memory():
    config = FinetuneConfig(model="openflamingo-9b", precision="bf16", enable_int8=True)
    planned = planned_model(config.resolved())
    # 336 LoRA tensors, and 16 gates (the numbers of the released model).
    trained = [p for p in planned.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == 23_461_888 + 16
    assert all(p.is_meta for p in planned.parameters())
    int8 = sum(p.numel() for p in planned.parameters() if p.dtype == torch.int8)
    assert int8 > 7e9


def test_cached_features_leave_the_tower_out():
    config = FinetuneConfig(precision="bf16", cache_features="auto").resolved()
    planned = planned_model(config)
    assert not list(planned.get_base_model().vision_encoder.parameters())


def test_a_tuning_that_hits_nothing_is_refused():
    tuning = replace(WITHOUT_WORDS, lora_target_modules=["q_prj"])
    with pytest.raises(UserError, match="q_prj"):
        planned_model(FinetuneConfig(precision="bf16", tuning_config=tuning).resolved())
