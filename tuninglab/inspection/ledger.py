"""What a computation without numbers allocates, calculates and moves, by what it is for."""

import weakref
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop, sdpa_flop

from tuninglab.kernels.shapes import CPU, Shapes, tensors_in
from tuninglab.models.named_parts import GATED_BLOCK

aten = torch.ops.aten
FORMATS = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int8: "int8",
    torch.uint8: "nf4",
}


def _product(x: Tensor, *_: Any, out_val: Tensor, **__: Any) -> int:
    """Operations of x (M, K) times a weight (N, K), or a matrix (K, N): 2 M N K."""
    return 2 * out_val.numel() * x.shape[-1]


# Operations by those of torch's FlopCounterMode, which has none for what only CPUs have.
FORMULAS = {
    **flop_registry,
    aten._int_mm: _product,
    torch.ops.mkldnn._linear_pointwise: _product,
    aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: sdpa_backward_flop,
}
WEIGHTS = "weights"  # and whatever else was there before anything was labelled
# What a module is, by the words in its name, the first that fits.
KINDS = (
    ("vision tower", ("vision_encoder",)),
    ("Perceiver", ("perceiver",)),
    ("gated cross-attention", (GATED_BLOCK,)),
    ("norms", ("norm", "ln_")),
    ("attention", ("attn", "attention")),
    ("feed-forward", ("mlp", "ffn", "ff", "feed_forward", "dense", "fc")),
    ("logits and loss", ("lm_head", "embed_out")),
    ("token table", ("embed", "shared", "wte", "wpe")),
)


def kind_of(name: str) -> str | None:
    """What a module of this name is for; None where its name does not tell."""
    parts = name.lower().split(".")
    for kind, words in KINDS:
        if any(part.startswith(words) or part.endswith(words) for part in parts):
            return kind
    return None


class Ledger(Shapes):
    """Keeps account of all storages that live, of products, and of bytes that are read and written.

    Attributes:
        live: bytes by label, at this moment.
        peak: the most bytes at a moment since `start_peak`.
        at_peak: bytes by label, at that moment.
        operations: of products, two for each multiply-add, by number format.
        moved: bytes that were read and written.
        large_at_peak: what of it are storages from `large` bytes on, without weights.
        streamed: of the bytes moved, those by kernels of ours, which pass over rows in one go.
        calls: operations, views among them.
        label: of what is allocated now.
    """

    def __init__(self, device: torch.device = CPU, large: int = 0):
        super().__init__(device)
        self._large = large
        self._live_large = self.large_at_peak = 0
        self.live: Counter[str] = Counter()
        self.operations: dict[str, float] = defaultdict(float)
        self.moved, self.streamed, self.calls = 0.0, 0.0, 0
        self.label = WEIGHTS
        self._labels: dict[int, list[Any]] = {}
        self._total = 0
        self.start_peak()

    def start_peak(self) -> None:
        """Count the peak, operations and bytes moved from here on."""
        self._note_peak()
        self.operations.clear()
        self.moved, self.streamed, self.calls = 0.0, 0.0, 0

    @contextmanager
    def labelled(self, label: str) -> Iterator[None]:
        """Within the block, what is allocated is called so."""
        before, self.label = self.label, label
        try:
            yield
        finally:
            self.label = before

    def relabel(self, tensor: Tensor, label: str) -> None:
        """Call the storage of a tensor otherwise."""
        entry = self._labels.get(_key(tensor))
        if entry is not None:
            self.live[entry[0]] -= entry[1]
            self.live[label] += entry[1]
            entry[0] = label

    def note(self, func: Any, args: Any, kwargs: Any, made: Any) -> None:
        """Enter what an operation made."""
        if func.namespace == "prim":
            return
        self.calls += 1
        results = tensors_in((made,))
        for tensor in results:
            self._enter(tensor)
        given = tensors_in((args, kwargs.values()))
        if func.is_view or not given:
            return
        # An operation in place reads and writes what it was given.
        self.moved += sum(t.numel() * t.itemsize for t in (*given, *results))
        if (formula := FORMULAS.get(func._overloadpacket)) is not None:
            count = formula(*args, **kwargs, out_val=made)
            # What is added to a product may be of another format, and so may a mask.
            smallest = min((t.dtype for t in given if t.dtype in FORMATS), key=lambda d: d.itemsize)
            self.operations[FORMATS[smallest]] += count

    def note_kernel(self, name: str, given: list[Tensor], made: list[Tensor]) -> None:
        """Enter what a kernel reads and writes; its outputs are entered where they are made."""
        self.calls += 1
        moved = sum(t.numel() * t.itemsize for t in (*given, *made) if t is not None)
        self.moved += moved
        self.streamed += moved

    def _enter(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._labels or not size:
            return
        entry = [self.label, size]
        self._labels[key] = entry
        weakref.finalize(storage, self._leave, key, entry)
        self.live[self.label] += size
        self._total += size
        self._live_large += self._large_part(entry)
        if self._total > self.peak:
            self._note_peak()

    def _note_peak(self) -> None:
        self.peak, self.at_peak = self._total, Counter(self.live)
        self.large_at_peak = self._live_large

    def _large_part(self, entry: list[Any]) -> int:
        return entry[1] if entry[1] >= self._large and entry[0] != WEIGHTS else 0

    def _leave(self, key: int, entry: list[Any]) -> None:
        self.live[entry[0]] -= entry[1]
        self._total -= entry[1]
        self._live_large -= self._large_part(entry)
        if self._labels.get(key) is entry:
            del self._labels[key]


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


@contextmanager
def by_module(model: nn.Module, ledger: Ledger, prefix: str = "activations: ") -> Iterator[None]:
    """Within the block, what a module allocates is called by what the module is for."""
    kinds = {id(module): kind_of(name) for name, module in model.named_modules()}
    before: list[str] = []

    def enter(module: nn.Module, _: Any) -> None:
        before.append(ledger.label)
        if kind := kinds.get(id(module)):
            ledger.label = prefix + kind

    def leave(module: nn.Module, *_: Any) -> None:
        ledger.label = before.pop()

    hooks = [nn.modules.module.register_module_forward_pre_hook(enter)]
    hooks.append(nn.modules.module.register_module_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
