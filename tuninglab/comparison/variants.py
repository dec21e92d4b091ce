"""The configurations that are compared, and how a model is built and trained in each."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tuninglab.adapters.base_format import left_in_float, quantization_config
from tuninglab.adapters.lora import tune
from tuninglab.adapters.products import choose_products, use_onednn
from tuninglab.comparison.workloads import Bench
from tuninglab.config import TrainingConfig
from tuninglab.config.training import Products
from tuninglab.console import Choices
from tuninglab.data.batches import Batch
from tuninglab.data.sampler import StepSampler
from tuninglab.errors import UserError
from tuninglab.models.attention import choose_attention
from tuninglab.models.parts import load_weights
from tuninglab.savers import add_savers, checkpoint_blocks
from tuninglab.training.hardware import DTYPES, accelerator_in
from tuninglab.training.loop import start
from tuninglab.training.step import batch_loss, count_step, optimizer_step

# At a constant rate, for as long as anybody measures.
SETTINGS = TrainingConfig(
    learning_rate=1e-3, lr_scheduler="constant", warmup_steps=0, weight_decay=0.0, max_steps=10**6
)
# The two rows of the source document, and the second without anything that runs choose here.
INT8, PLAIN = "enable_int8 = True", "enable_int8 = False"
AS_IT_IS = "transformers as it is"


@dataclass(frozen=True)
class Variant:
    """One row of a comparison: numbers, format of the frozen base, and memory savers.

    Args:
        config: what the row is called.
        precision: fp32, bf16 or fp16: of the frozen base and of the computation.
        quantization: none, int8 (ours), bnb-int8 or bnb-nf4: of the linear layers of the blocks.
        savers: names of the memory savers.
        checkpoint_every: activations of every n-th block are recomputed; None: of no block.
        products: in float32, as a run has them; `auto` until `with_products` decides.
        attention: whether the attention that is fast here is chosen, as a run does.
    """

    config: str
    precision: str
    quantization: str = "none"
    savers: tuple[str, ...] = ()
    checkpoint_every: int | None = None
    products: Products = "auto"
    attention: bool = True

    def build(self, bench: Bench, seed: int) -> "Training":
        """Load the saved base as the recipes do, with fresh LoRA of this seed.

        Raises:
            UserError: the variant needs a library that is not there.
        """
        dtype, workload, base = DTYPES[self.precision], bench.workload, str(bench.base)
        in_float = left_in_float(workload.tuning, fresh_bridge=False)
        quantised = quantization_config(self.quantization, dtype, in_float)
        options = {} if quantised is None else {"quantization_config": quantised}
        model = load_weights(workload.model_class, "model", base, True, dtype, **options)
        model.requires_grad_(False)
        add_savers(model, self.savers)
        model.to(bench.device)
        if self.attention and "attention" not in self.savers:
            choose_attention(model, dtype)
        torch.manual_seed(seed)
        tuned = tune(model, workload.tuning, scope=workload.scope).to(bench.device)
        if self.products == "onednn":
            use_onednn(tuned)
        if self.checkpoint_every:
            checkpoint_blocks(tuned, self.checkpoint_every)
        return Training(tuned, self.precision)


class Training:
    """A model as the training loop has it; `step` trains it once on a batch."""

    def __init__(self, model: nn.Module, precision: str):
        # One row of data: where in the data a step is makes no difference to what it costs.
        sampler, self.accelerator = StepSampler(1, 1), accelerator_in(precision)
        self.state = start(model, sampler, SETTINGS, self.accelerator)

    def loss(self, batch: Batch) -> Tensor:
        """The loss as the training loop has it: autocast, logits only where labelled."""
        return batch_loss(self.state.wrapped, batch, batch.answer_tokens, self.accelerator)

    def step(self, batch: Batch) -> float:
        """Train once; returns the loss when all of it is done."""
        counts, limit = count_step([batch], self.accelerator), SETTINGS.max_grad_norm
        return optimizer_step(self.state, [batch], counts, limit, self.accelerator).loss


def with_products(variants: Sequence[Variant], bench: Bench) -> list[Variant]:
    """The rows with their products in float32 decided: tried once for all of them, and said."""
    asked: set[Products] = {variant.products for variant in variants if variant.precision == "fp32"}
    found: dict[Products, Products] = {}
    if asked := asked - {"torch"}:
        kind, base = bench.workload.model_class, str(bench.base)
        model = load_weights(kind, "model", base, True, torch.float32).to(bench.device)
        found = {way: choose_products(way, model, torch.float32, Choices()) for way in asked}
    return [
        replace(v, products=found.get(v.products, "torch") if v.precision == "fp32" else "torch")
        for v in variants
    ]


def standard_rows(int8: Variant, plain: Variant, device: torch.device) -> list[Variant]:
    """The rows of the comparison: int8 and plain as a user gets them, and their rivals.

    Where plain is fp32 (a CPU without 16-bit arithmetic), so are the rivals.
    """
    number = "fp32" if plain.precision == "fp32" else "16-bit"
    rows = [int8, plain]
    if plain.precision != "fp32":
        rows.append(replace(plain, config="fp32", precision="fp32"))
    # On a CPU every fp16 operation is emulated: 13 to 24 GOP/s, where bf16 has 200.
    if device.type == "cuda" and plain.precision == "bf16":
        rows.append(replace(plain, config="fp16", precision="fp16"))
    rows.append(replace(int8, config=f"{number}, same tricks", quantization="none"))
    rows.append(replace(plain, config="bitsandbytes int8", quantization="bnb-int8"))
    nothing = {"savers": (), "checkpoint_every": None, "products": "torch", "attention": False}
    rows.append(replace(plain, config=AS_IT_IS, **nothing))
    return rows


def only_possible(variants: Sequence[Variant]) -> tuple[list[Variant], list[dict[str, str]]]:
    """The rows whose libraries are there, and `config` and `reason` of those left out."""
    kept, left = [], []
    for variant in variants:
        try:
            quantization_config(variant.quantization, torch.float32)
        except UserError as error:
            left.append({"config": variant.config, "reason": str(error)})
        else:
            kept.append(variant)
    return kept, left
