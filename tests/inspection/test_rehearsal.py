"""A rehearsed step against a real one, counted by hooks and modes of torch."""

import math
import weakref
from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from tests import tiny
from tuninglab.comparison.memory import saved_for_backward
from tuninglab.config import FinetuneConfig, FlanT5Config
from tuninglab.config.tuning import TuningConfig
from tuninglab.console import Choices
from tuninglab.inspection.cost import Shape
from tuninglab.inspection.ledger import Ledger
from tuninglab.inspection.planned_batch import batch_of
from tuninglab.inspection.rehearsal import RUN_BESIDES, process_held, step_cost, weights_held
from tuninglab.int8 import rows
from tuninglab.int8.linear import Int8Linear
from tuninglab.int8.quantiser import Int8Config
from tuninglab.kernels.shapes import current_shapes, without_numbers
from tuninglab.models.weights import bytes_held, storage_key
from tuninglab.recipes.common import wrap
from tuninglab.recipes.planned_model import PlannedBase
from tuninglab.training import hardware
from tuninglab.training.hardware import DTYPES
from tuninglab.training.loop import set_training_mode
from tuninglab.training.step import batch_loss

aten = torch.ops.aten
CPU: object = SimpleNamespace(device=torch.device("cpu"))
# Two products of (T, D) with (D, S) forward; backward one again, and four for the gradients.
ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, *_, **__: (
        4 * math.prod(q) * k[2]
    ),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, *_, **__: 10 * math.prod(q) * k[2]
    ),
    torch.ops.mkldnn._linear_pointwise: (
        lambda x, w, *_, **__: 2 * math.prod(x) * math.prod(w) // x[-1]
    ),
}
SHAPE = Shape(rows=3, tokens=24, answer_tokens=21, pictures=2)
# Rotary tables, ids, masks: torch makes some where the mode of the test does not see them.
SMALL = 4096


class Living(TorchDispatchMode):
    """Counts the storages that live, of those made inside."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        given = tree_leaves((args, kwargs))
        before = {t.untyped_storage()._cdata for t in given if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self.enter(tensor.untyped_storage(), before)
        return made

    def enter(self, storage, before):
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known | before:
            self.known.add(key)
            weakref.finalize(storage, self.leave, key, size)
            self.now += size
            self.peak = max(self.peak, self.now)

    def leave(self, key, size):
        self.now -= size
        self.known.discard(key)


class NoModules:
    parents = ("Global",)

    def __enter__(self):
        return self

    def __exit__(self, *raised):
        pass


def tuned(family, precision="fp32", int8=False, **settings):
    """A tiny model with numbers as a run has it."""
    kind = FlanT5Config if family == "t5" else FinetuneConfig
    config = kind(precision=precision, enable_int8=int8, **settings).resolved()
    if family not in ("llama", "gemma2", "t5"):
        tuning = TuningConfig(lora_target_modules=["all-linear"])
        config = replace(config, tuning_config=tuning)
    if family == "t5":
        model = tiny.t5(tie_word_embeddings=False)
    else:
        model = tiny.flamingo(tiny.flamingo_config(family), 0.5)
    model = model.to(DTYPES[precision]).requires_grad_(False)
    skip = ["vision_encoder", "perceiver"]
    for name in Int8Config(skip, head=True).layers(model) if int8 else ():
        model.set_submodule(name, Int8Linear.of(model.get_submodule(name)))
    base = PlannedBase(model, config.tuning_config)
    scope = "" if family == "t5" else "lang_encoder"
    return wrap(base, "tiny", config, scope, Choices(), ())


def autocast(precision):
    return torch.autocast("cpu", DTYPES[precision], enabled=precision != "fp32")


def real_batch(model):
    batch = batch_of(model.get_base_model(), SHAPE)
    for value in batch.inputs.values():
        if value.is_floating_point():
            value.zero_()
    return batch


def saved_bytes(model, batch, precision):
    known = {storage_key(t) for t in [*model.parameters(), *model.buffers()]}
    with autocast(precision), saved_for_backward(known) as saved:
        loss = batch_loss(model, batch, 1, CPU)
    del loss
    return sum(tensor.bytes for tensor in saved.values())


CASES = {
    "fp32": ("llama", "fp32", {"memory_savers": []}),
    "exact savers": ("llama", "bf16", {}),
    "int8": ("llama", "bf16", {"int8": True}),
    "checkpointing": ("llama", "fp32", {"checkpoint_every": 1}),
    "oneDNN": ("llama", "fp32", {"products": "onednn"}),
    "mpt": ("mpt", "fp32", {}),
    "gemma2": ("gemma2", "bf16", {"int8": True}),
    "t5": ("t5", "fp32", {"int8": False}),
    "t5 int8": ("t5", "bf16", {"int8": True}),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """A model in training mode, its precision and a real batch."""
    torch.manual_seed(0)
    family, precision, settings = CASES[request.param]
    model = tuned(family, precision, **settings)
    set_training_mode(model)
    return model, precision, real_batch(model)


def test_what_is_saved_for_backward_is_rehearsed_byte_for_byte(case):
    model, precision, batch = case
    expected = saved_bytes(model, batch, precision)
    with ExitStack() as stack:
        ledger = stack.enter_context(Ledger())
        stack.enter_context(without_numbers(model, ledger))
        batch = batch_of(model.get_base_model(), SHAPE)
        found = saved_bytes(model, batch, precision)
    assert found == pytest.approx(expected, abs=SMALL)
    assert found > 10 * SMALL
    assert current_shapes() is None


def test_peak_and_operations_are_those_of_a_real_step(case):
    model, precision, batch = case
    cost = step_cost(model, SHAPE, precision, process_bytes=0)
    # The memory of int32 sums is kept from one product to the next.
    vars(rows._memory).clear()
    living, flops = Living(), FlopCounterMode(display=False, custom_mapping=ATTENTION)
    # It would hang hooks on all modules, which hold tensors of their own.
    flops.mod_tracker = NoModules()
    for counted in (living, flops):
        with counted:
            with autocast(precision):
                loss = batch_loss(model, batch, 1, CPU)
            loss.backward()
        model.zero_grad()
    tensors = {name: size for name, size in cost.step.items() if name != "kept by the heap"}
    given = sum(value.numel() * value.itemsize for value in batch.inputs.values())
    assert sum(tensors.values()) - given == pytest.approx(living.peak, rel=0.02, abs=SMALL)
    floats = sum(count for name, count in cost.operations.items() if name != "int8")
    if not any(isinstance(module, Int8Linear) for module in model.modules()):
        assert floats == pytest.approx(flops.get_total_flops(), rel=1e-6)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_weights_are_those_of_the_model(case):
    model, *_ = case
    held = weights_held(model)
    assert sum(held.values()) == bytes_held([*model.parameters(), *model.buffers()])
    trained = [p for p in model.parameters() if p.requires_grad]
    assert held["LoRA"] + held.get("trained in full", 0) == bytes_held(trained)


@pytest.fixture(scope="module")
def small():
    """A Flamingo with a real process, and what its step costs."""
    model = tuned("llama", "bf16")
    return model, step_cost(model, SHAPE, "bf16", process_bytes=0)


def sizes(cost):
    return sum(size for name, size in cost.step.items() if name != "kept by the heap")


def test_a_validation_batch_keeps_nothing_for_a_backward_pass(small):
    model, trained = small
    validated = step_cost(model, SHAPE, "bf16", backward=False, process_bytes=0)
    assert sizes(validated) < 0.7 * sizes(trained)
    assert "gradients" not in validated.step
    products = sum(validated.operations.values())
    assert 0.2 < products / sum(trained.operations.values()) < 0.5


def test_accumulation_holds_gradients_all_along_and_works_as_often(small):
    model, once = small
    twice = step_cost(model, SHAPE, "bf16", accumulation=2, process_bytes=0)
    gradients = bytes_held(p for p in model.parameters() if p.requires_grad)
    assert twice.step["gradients"] == gradients
    assert sizes(twice) >= sizes(once)
    assert twice.operations["bf16"] == 2 * once.operations["bf16"]


def test_on_a_gpu_there_is_no_process_and_no_heap(small):
    model, _ = small
    cost = step_cost(model, SHAPE, "bf16", device="cuda")
    assert "process" not in cost.held and "workspace" in cost.held
    assert "kept by the heap" not in cost.step


def test_rows_without_pictures_and_packed_rows_are_rehearsed(small):
    model, plain = small
    without = step_cost(model, SHAPE._replace(pictures=0), "bf16", process_bytes=0)
    packed = step_cost(model, SHAPE._replace(documents=3), "bf16", process_bytes=0)
    assert sizes(without) < sizes(plain)
    assert packed.operations["bf16"] > 0


def test_more_of_everything_costs_more(small):
    model, plain = small
    for larger in ({"rows": 6}, {"tokens": 48}, {"frames": 2}):
        cost = step_cost(model, SHAPE._replace(**larger), "bf16", process_bytes=0)
        assert sum(cost.operations.values()) > sum(plain.operations.values())


def test_features_of_a_cache_spare_the_tower(small):
    model, plain = small
    base = model.get_base_model()
    tower, base.vision_encoder = base.vision_encoder, torch.nn.Identity()
    try:
        cost = step_cost(model, SHAPE, "bf16", process_bytes=0)
    finally:
        base.vision_encoder = tower
    assert cost.operations["bf16"] < plain.operations["bf16"]
    assert not any("vision" in name for name in [*cost.held, *cost.step])


def test_a_process_holds_what_the_system_says_in_pages_of_any_size(tmp_path, monkeypatch):
    (tmp_path / "status").write_text("VmHWM:\t  9000 kB\nVmRSS:\t  5000 kB\n")
    monkeypatch.setattr(hardware, "PROCESS", tmp_path)
    loaded, planned = torch.nn.Linear(256, 999), torch.nn.Linear(256, 999, device="meta")
    assert process_held(loaded) == 5000 * 2**10 - (256 * 999 + 999) * 4
    assert process_held(planned) == 5000 * 2**10 + RUN_BESIDES[False]
