from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from tests.tiny import colour_flamingo, t5, tiny_tokenizer
from tests.worlds import all_well, in_world
from tuninglab.adapters.lora import tune
from tuninglab.config import FinetuneConfig
from tuninglab.config.tuning import TuningConfig
from tuninglab.console import Choices
from tuninglab.errors import UserError
from tuninglab.models.gated_cross_attention import FlamingoLayer
from tuninglab.models.perceiver import PerceiverResampler
from tuninglab.training.sharding import blocks_of, is_to_shard, place, shard


def of_ranks(count) -> Any:
    """Stands for an accelerator of so many processes."""
    return SimpleNamespace(num_processes=count)


def test_blocks_of_a_flamingo_are_its_layers_tower_and_perceiver(make_flamingo):
    model = make_flamingo()
    tune(model, TuningConfig())
    kinds = [type(block).__name__ for block in blocks_of(model)]
    layers, tower = model.lang_encoder.model.layers, model.vision_encoder
    assert kinds.count(FlamingoLayer.__name__) == len(layers)
    assert kinds.count(PerceiverResampler.__name__) == 1
    # The tower's layers, and what is left of it.
    assert kinds.count("CLIPEncoderLayer") == tower.config.num_hidden_layers
    assert tower in blocks_of(model)
    # A decoder layer and its gated block come together, not each by itself.
    held = [id(p) for block in blocks_of(model) for p in block.parameters()]
    outside = {id(p) for p in model.parameters()} - set(held)
    names = {name for name, p in model.named_parameters() if id(p) in outside}
    assert names == {
        "lang_encoder.model.embed_tokens.weight",
        "lang_encoder.model.norm.weight",
        "lang_encoder.lm_head.weight",
    }


def test_blocks_of_a_t5_are_those_of_its_two_stacks():
    model = t5()
    stacks = [*model.encoder.block, *model.decoder.block]
    assert [id(block) for block in blocks_of(model)] == [id(block) for block in stacks]


def test_a_tower_that_is_gone_is_no_block(make_flamingo):
    model = make_flamingo()
    model.vision_encoder = nn.Identity()
    assert model.vision_encoder not in blocks_of(model)


def test_one_process_shares_nothing_and_ddp_spreads_nothing():
    for parallel, ranks in (("fsdp2", 1), ("ddp", 2)):
        choices = Choices()
        assert not is_to_shard(FinetuneConfig(parallel=parallel), of_ranks(ranks), choices)
        assert choices.made
    assert is_to_shard(FinetuneConfig(parallel="fsdp2"), of_ranks(2), Choices())


def test_weights_of_bitsandbytes_are_not_spread():
    config = FinetuneConfig(parallel="fsdp2", quantization="bnb-nf4")
    with pytest.raises(UserError, match=r"bnb-nf4.*--quantization int8"):
        is_to_shard(config, of_ranks(2), Choices())


def test_what_is_to_be_sharded_stays_where_it_is_but_what_encodes(make_flamingo):
    model = make_flamingo()
    place(model, torch.device("meta"), sharded=True)
    devices = {name: p.device.type for name, p in model.named_parameters()}
    moved = {name.split(".")[0] for name, kind in devices.items() if kind == "meta"}
    assert moved == {"vision_encoder", "perceiver"}


@pytest.mark.slow
def test_an_overflow_in_one_share_skips_the_step_in_all(tmp_path):
    """As the scaler of fp16 sees it: each process looks at its own share of the gradients."""

    def work():
        rank = Accelerator(cpu=True).process_index
        model = tune(colour_flamingo(tiny_tokenizer()), TuningConfig())
        shard(model, torch.device("cpu"))
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer, scaler = torch.optim.AdamW(trained), torch.amp.GradScaler("cpu", 8.0)
        for overflows in (False, True):
            before = [parameter.full_tensor().clone() for parameter in trained]
            for parameter in trained:
                parameter.grad = torch.ones_like(parameter)
            shares = [p.grad.to_local() for p in trained if p.grad.to_local().numel()]
            if overflows and rank == 1:
                shares[-1].view(-1)[0] = torch.inf
            scaler.scale(torch.ones(()))
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            after = (parameter.full_tensor() for parameter in trained)
            same = all(torch.equal(*pair) for pair in zip(before, after, strict=True))
            assert same == overflows
            assert scaler.get_scale() == (4.0 if overflows else 8.0)

    all_well(in_world(2, work, tmp_path))
