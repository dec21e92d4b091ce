import pytest
import torch
from torch import nn

from tuninglab.inspection.ledger import Ledger, by_module, kind_of


def test_the_peak_and_what_it_is_made_of():
    with Ledger(large=4000) as ledger:
        with ledger.labelled("kept"):
            kept = torch.zeros(100)
        ledger.start_peak()
        with ledger.labelled("passing"):
            first = torch.zeros(1000)
            view = first.view(10, 100)
            del first
            second = view + 1
            del view, second
            third = torch.zeros(50)
    assert ledger.peak == 400 + 2 * 4000
    assert dict(ledger.at_peak) == {"kept": 400, "passing": 8000}
    assert ledger.large_at_peak == 8000
    assert ledger.live == {"kept": 400, "passing": 200}
    assert kept.numel() + third.numel() == 150


def test_products_are_counted_by_their_format():
    with Ledger() as ledger:
        x, weight = torch.zeros(6, 32), torch.zeros(8, 32)
        ledger.start_peak()
        x @ weight.t()
        torch.addmm(torch.zeros(8).bfloat16(), x.bfloat16(), weight.bfloat16().t())
        torch._int_mm(torch.zeros(17, 32).to(torch.int8), weight.to(torch.int8).t())
    expected = {"fp32": 2 * 6 * 32 * 8, "bf16": 2 * 6 * 32 * 8, "int8": 2 * 17 * 32 * 8}
    assert ledger.operations == expected


def test_bytes_moved_are_those_read_and_written():
    with Ledger() as ledger:
        x = torch.zeros(1000)
        ledger.start_peak()
        x.view(10, 100) + 1
    assert ledger.moved == 2 * 4000


def test_what_a_module_makes_is_called_by_what_it_is_for():
    model = nn.ModuleDict({"self_attn": nn.Linear(8, 8), "mlp": nn.Linear(8, 8)})
    with Ledger() as ledger, by_module(model, ledger), ledger.labelled("rest"):
        x = torch.zeros(4, 8)
        ledger.start_peak()
        weights = [torch.zeros(8, 8), torch.zeros(8)]
        y = torch.func.functional_call(model["mlp"], {"weight": weights[0], "bias": weights[1]}, x)
    assert ledger.live["activations: feed-forward"] == y.numel() * 4
    assert not nn.modules.module._global_forward_hooks


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (
            "base_model.model.lang_encoder.layers.3.decoder_layer.self_attn.q_proj",
            "attention",
        ),
        ("lang_encoder.model.layers.1.gated_cross_attn_layer.attn.to_q", "gated cross-attention"),
        ("vision_encoder.encoder.layers.0.mlp.fc1", "vision tower"),
        ("decoder.block.0.layer.1.EncDecAttention.k", "attention"),
        ("decoder.block.0.layer.2.DenseReluDense.wo", "feed-forward"),
        ("encoder.block.0.layer.0.layer_norm", "norms"),
        ("lang_encoder.model.layers.0.decoder_layer.input_layernorm", "norms"),
        ("lang_encoder.lm_head", "logits and loss"),
        ("lang_encoder.model", None),
    ],
)
def test_names_tell_what_a_module_is_for(name, kind):
    assert kind_of(name) == kind
