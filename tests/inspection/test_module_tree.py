import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tuninglab import cli
from tuninglab.inspection.module_tree import branches_below, coloured, plain, tree_lines

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

# The second tree, a piece of OpenFlamingo-9B's language model under LoRA of rank 16.
DOCUMENT_LORA = """\
        │   │       ├── gated_cross_attn_layer (GatedCrossAttentionBlock) attn_gate:[1] ff_gate:[1]
        │   │       │   ├── attn (MaskedCrossAttention)
        │   │       │   │   ├── norm (LayerNorm) weight:[4096] bias:[4096]
        │   │       │   │   ├── to_q (Linear) weight:[512, 4096]
        │   │       │   │   │   ├── lora_dropout (ModuleDict)
        │   │       │   │   │   ├── lora_A (ModuleDict)
        │   │       │   │   │   │   └── default (Linear) weight:[16, 4096]
        │   │       │   │   │   └── lora_B (ModuleDict)
        │   │       │   │   │       └── default (Linear) weight:[512, 16]
        │   │       │   │   ├── to_kv (Linear) weight:[1024, 1024]
        │   │       │   │   │   ├── lora_dropout (ModuleDict)
        │   │       │   │   │   ├── lora_A (ModuleDict)
        │   │       │   │   │   │   └── default (Linear) weight:[16, 1024]
        │   │       │   │   │   └── lora_B (ModuleDict)
        │   │       │   │   │       └── default (Linear) weight:[1024, 16]
        │   │       │   │   └── to_out (Linear) weight:[4096, 512]
        │   │       │   │       ├── lora_dropout (ModuleDict)
        │   │       │   │       ├── lora_A (ModuleDict)
        │   │       │   │       │   └── default (Linear) weight:[16, 512]
        │   │       │   │       └── lora_B (ModuleDict)
        │   │       │   │           └── default (Linear) weight:[4096, 16]
        │   │       │   └── ff (Sequential)
        │   │       │       ├── 0 (LayerNorm) weight:[4096] bias:[4096]
        │   │       │       ├── 1 (Linear) weight:[16384, 4096]
        │   │       │       │   ├── lora_dropout (ModuleDict)
        │   │       │       │   ├── lora_A (ModuleDict)
        │   │       │       │   │   └── default (Linear) weight:[16, 4096]
        │   │       │       │   └── lora_B (ModuleDict)
        │   │       │       │       └── default (Linear) weight:[16384, 16]
        │   │       │       └── 3 (Linear) weight:[4096, 16384]
        │   │       │           ├── lora_dropout (ModuleDict)
        │   │       │           ├── lora_A (ModuleDict)
        │   │       │           │   └── default (Linear) weight:[16, 16384]
        │   │       │           └── lora_B (ModuleDict)
        │   │       │               └── default (Linear) weight:[4096, 16]"""


# Guides, then a name and a class or merged names, then parameters: what a line of a tree may be.
TREE_LINE = re.compile(r"(?:│   |    )*[├└]── \S+ ?\(\w+\)(?: \w+:\[[\d, ]+\])*")


def test_the_first_tree_of_the_document_byte_for_byte(capsys):
    assert cli.main(["tree", "llama-7b"]) == 0
    assert capsys.readouterr() == (DOCUMENT_LLAMA + "\n", "")


@pytest.mark.slow
def test_the_second_tree_of_the_document_through_a_pipe():
    # Peak memory by the kernel's account of the process image, which `exec` sets back.
    code = (
        "import sys; from tuninglab.cli import main; code = main(sys.argv[1:]); "
        "linux = sys.platform == 'linux'; "
        "sys.stderr.write(open('/proc/self/status').read() if linux else ''); sys.exit(code)"
    )
    words = ["tree", "openflamingo-9b", "--lora", "--part", "lang_encoder"]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, encoding="utf-8", cwd=root
    )
    assert done.returncode == 0, done.stderr
    assert f"\n{DOCUMENT_LORA}\n" in done.stdout
    # As the document had it: PEFT around the language model alone.
    head = ["root", "└── base_model (LoraModel)", "    └── model (LlamaForCausalLM)"]
    first, *rest = done.stdout.splitlines()
    assert [first, *rest[:2]] == head and all(TREE_LINE.fullmatch(line) for line in rest)
    assert "lang_encoder alone" in done.stderr
    if sys.platform == "linux":
        peak = re.search(r"VmHWM:\s*(\d+) kB", done.stderr)
        assert peak and int(peak[1]) < 1.5 * 2**20


def render_tree(module):
    return "\n".join(["root", *(plain(line) for line, _ in tree_lines(branches_below(module)))])


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


def test_a_line_stands_for_the_modules_of_all_merged_parents():
    model = nn.ModuleList(
        nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)}) for _ in range(3)
    )
    (layers,) = branches_below(model)
    assert layers.modules == tuple(model)
    (pair,) = layers.children
    assert [name for name, _ in pair.members] == ["a", "b"]
    assert pair.modules == tuple(linear for layer in model for linear in layer.values())


def test_colours_tell_merged_names_classes_and_what_trains():
    model = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    model["c"] = nn.Linear(2, 3, bias=False).requires_grad_(False)
    merged, frozen = (coloured(line) for line, _ in tree_lines(branches_below(model)))
    assert merged == "├── \x1b[31ma,b\x1b[0m\x1b[32m(Linear)\x1b[0m\x1b[36m weight:[2, 2]\x1b[0m"
    assert frozen == "└── c\x1b[32m (Linear)\x1b[0m\x1b[2m weight:[3, 2]\x1b[0m"
