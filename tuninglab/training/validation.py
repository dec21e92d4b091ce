"""The loss of a model on data that it is not trained on."""

from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from tuninglab.data.loading import loaded
from tuninglab.progress import working
from tuninglab.training.parallel import over_processes
from tuninglab.training.step import batch_loss


def validation_losses(
    model: nn.Module, loaders: Mapping[str, DataLoader], accelerator: Accelerator
) -> dict[str, float]:
    """Mean loss of the answer tokens, `val_loss`; of several sets `val_loss/NAME` of each too.

    Leaves the model in eval mode.
    """
    sums = {name: _loss_sum(model, loader, accelerator) for name, loader in loaders.items()}
    total, tokens = (sum(column) for column in zip(*sums.values(), strict=True))
    each = {f"val_loss/{name}": loss / max(1, count) for name, (loss, count) in sums.items()}
    return {"val_loss": total / max(1, tokens)} | (each if len(each) > 1 else {})


def validation_loss(model: nn.Module, loader: DataLoader, accelerator: Accelerator) -> float:
    """Mean loss of the answer tokens over a data set; leaves the model in eval mode."""
    return validation_losses(model, {"": loader}, accelerator)["val_loss"]


@torch.no_grad()
def _loss_sum(
    model: nn.Module, loader: DataLoader, accelerator: Accelerator
) -> tuple[float, float]:
    """The losses of all answer tokens of a data set summed up, and how many these are."""
    model.eval()
    # Apple's GPUs have no float64.
    exact = torch.float32 if accelerator.device.type == "mps" else torch.float64
    total, count = torch.zeros((), dtype=exact, device=accelerator.device), 0
    with working("validating", len(loader)) as note:
        for number, batch in enumerate(loaded(loader), 1):
            with accelerator.autocast():
                loss = batch_loss(model, batch, 1, accelerator)
            total += loss.to(total)
            count += batch.answer_tokens
            note(number)
    sums = torch.stack([total, total.new_tensor(count)])
    loss_sum, tokens = over_processes(sums, accelerator).tolist()
    return loss_sum, tokens
