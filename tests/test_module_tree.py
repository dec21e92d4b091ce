import peft
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from tuninglab.module_tree import render_tree

# The first tree of the source document: LLaMA-7B with the three added tokens.
DOCUMENT_LLAMA = """\
root
├── model (LlamaModel)
│   ├── embed_tokens (Embedding) weight:[32003, 4096]
│   ├── layers (ModuleList)
│   │   └── 0-31(LlamaDecoderLayer)
│   │       ├── self_attn (LlamaAttention)
│   │       │   └── q_proj,k_proj,v_proj,o_proj(Linear) weight:[4096, 4096]
│   │       ├── mlp (LlamaMLP)
│   │       │   ├── gate_proj,up_proj(Linear) weight:[11008, 4096]
│   │       │   └── down_proj (Linear) weight:[4096, 11008]
│   │       └── input_layernorm,post_attention_layernorm(LlamaRMSNorm) weight:[4096]
│   └── norm (LlamaRMSNorm) weight:[4096]
└── lm_head (Linear) weight:[32003, 4096]"""

# A piece of its second tree: `to_q` under LoRA of rank 16.
DOCUMENT_LORA = """\
root
├── to_q (Linear) weight:[512, 4096]
│   ├── lora_dropout (ModuleDict)
│   ├── lora_A (ModuleDict)
│   │   └── default (Linear) weight:[16, 4096]
│   └── lora_B (ModuleDict)
│       └── default (Linear) weight:[512, 16]
└── to_kv (Linear) weight:[1024, 1024]
    ├── lora_dropout (ModuleDict)
    ├── lora_A (ModuleDict)
    │   └── default (Linear) weight:[16, 1024]
    └── lora_B (ModuleDict)
        └── default (Linear) weight:[1024, 16]"""


def test_llama_7b_as_in_the_document():
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(vocab_size=32003))
    assert render_tree(model) == DOCUMENT_LLAMA


def test_lora_as_in_the_document():
    with torch.device("meta"):
        attention = nn.ModuleDict(
            {"to_q": nn.Linear(4096, 512, bias=False), "to_kv": nn.Linear(1024, 1024, bias=False)}
        )
        # low_cpu_mem_usage keeps the adapter on the meta device too.
        config = peft.LoraConfig(r=16, lora_alpha=16, target_modules=["to_q", "to_kv"])
        peft.inject_adapter_in_model(config, attention, low_cpu_mem_usage=True)
    assert render_tree(attention) == DOCUMENT_LORA


def tree(**modules):
    return render_tree(nn.ModuleDict(modules)).splitlines()[1:]


def test_equal_siblings_merge_whatever_stands_between():
    lines = tree(a=nn.Linear(2, 3), b=nn.Linear(3, 2), c=nn.Linear(2, 3))
    assert lines == [
        "├── a,c(Linear) weight:[3, 2] bias:[3]",
        "└── b (Linear) weight:[2, 3] bias:[2]",
    ]


def test_frozen_and_trainable_never_merge():
    frozen = nn.Linear(2, 3).requires_grad_(False)
    assert len(tree(a=nn.Linear(2, 3), b=frozen)) == 2


def test_numbers_become_ranges_and_a_lone_one_too():
    layers = nn.ModuleList([nn.Linear(2, 2 if i % 4 != 3 else 5) for i in range(9)])
    assert render_tree(layers).splitlines()[1:] == [
        "├── 0-2,4-6,8-8(Linear) weight:[2, 2] bias:[2]",
        "└── 3-3,7-7(Linear) weight:[5, 2] bias:[5]",
    ]


def test_classes_that_differ_are_named_apart():
    assert tree(a=nn.LayerNorm(4), b=nn.BatchNorm1d(4, track_running_stats=False)) == [
        "└── a(LayerNorm),b(BatchNorm1d) weight:[4] bias:[4]"
    ]


def test_empty_modules_go_but_a_container_of_one_stays():
    lines = tree(
        act=nn.GELU(),
        empty=nn.ModuleDict(),
        drop=nn.ModuleDict({"default": nn.Dropout()}),
        norm=nn.LayerNorm(4),
    )
    assert lines == ["├── drop (ModuleDict)", "└── norm (LayerNorm) weight:[4] bias:[4]"]


def test_parameters_stand_behind_their_owner():
    block = nn.ModuleDict({"ff": nn.Linear(2, 2, bias=False)})
    block.register_parameter("attn_gate", nn.Parameter(torch.zeros(1)))
    block.register_buffer("unseen", torch.zeros(3))
    assert tree(block=block) == [
        "└── block (ModuleDict) attn_gate:[1]",
        "    └── ff (Linear) weight:[2, 2]",
    ]


@pytest.mark.parametrize("module", [nn.Linear(2, 2), nn.GELU()])
def test_the_root_shows_nothing_of_its_own(module):
    assert render_tree(module) == "root"
