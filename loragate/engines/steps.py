"""One optimizer step: forward and backward passes over a batch, the gradient clipped, AdamW.

Work for the device and work for the host are apart: `prepare` makes a batch ready while the device is still busy with
the one before, `launch` starts the device, and reading its result waits for it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from loragate.config import Train
from loragate.engines.flat import Flat
from loragate.engines.packing import Pack, Passes
from loragate.rendering import Example


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of a step, made ready: packs, or groups that are padded; and how many tokens they supervise."""

    units: tuple[Pack | list[Example], ...]
    tokens: int


def prepare(examples: Sequence[Example], passes: Passes) -> Batch:
    """Make the rows of a step ready."""
    tokens = max(1, sum(len(example.predicted) for example in examples))
    groups = ([examples[i] for i in rows] for rows in passes.groups(examples))
    return Batch(tuple(passes.unit(group) for group in groups), tokens)


def accumulate(model: Any, batch: Batch, passes: Passes, flat: Flat) -> torch.Tensor:
    """Add the gradient of a step's mean loss, over as many forward passes as it takes; return nats per token."""
    nats = torch.zeros((), device=flat.vector.device)
    for unit in batch.units:
        nats += one_pass(model, unit, batch.tokens, passes, flat)
    return nats


def one_pass(model: Any, unit: Pack | list[Example], tokens: int, passes: Passes, flat: Flat) -> torch.Tensor:
    """Add the gradient of one forward pass's share in the mean over a step's tokens; return that share."""
    flat.spread()
    loss = passes.unit_nats(model, unit).sum() / tokens
    loss.backward()
    flat.gather()
    return loss.detach()


@dataclass(frozen=True, slots=True)
class Launched:
    """A step that the device is busy with.

    Attributes:
        number: Counted from 1.
        nats, norm: Nats per token, and the gradient's norm before it was clipped; `.item()` waits for them.
    """

    number: int
    learning_rate: float
    nats: torch.Tensor
    norm: torch.Tensor


class Steps:
    """Optimizer steps, operation by operation.

    Attributes:
        flat: What is trained; its gradient stays there after a step, clipped.
        optimizer: AdamW over it.
    """

    def __init__(self, model: Any, passes: Passes, settings: Train) -> None:
        self.model, self.passes, self._settings = model, passes, settings
        self.flat = Flat(model)
        cuda = self.flat.vector.is_cuda
        rate = torch.tensor(settings.learning_rate, device=self.flat.vector.device) if cuda else settings.learning_rate
        kind: dict[str, Any] = {"fused": True, "capturable": True} if cuda else {}
        self.optimizer = torch.optim.AdamW([self.flat.vector], lr=rate, weight_decay=settings.weight_decay, **kind)

    @property
    def ways(self) -> tuple[str, ...]:
        """How rows go through the model, for the record."""
        kind = "packs" if self.passes.packed else "padded rows"
        kind += " that share beginnings" if self.passes.packed and self.passes.share else ""
        return (kind, "attention row by row") if self.passes.longest else (kind,)

    def launch(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Start a step; return its nats per token, and the gradient's norm before it was clipped."""
        self.flat.gradient.zero_()
        return accumulate(self.model, batch, self.passes, self.flat), self.update()

    def take(
        self, batches: Sequence[Sequence[Example]], first: int, rate: Callable[[int], float]
    ) -> Iterator[Launched]:
        """Launch one step after the other, each batch made ready while the device is busy with the one before.

        Args:
            first: Number of the first step to take, counted from 1.
            rate: Learning rate of a step of that number.
        """
        ready = prepare(batches[first - 1], self.passes) if first <= len(batches) else None
        number = first
        while ready is not None:
            self.set_rate(rate(number))
            launched = Launched(number, rate(number), *self.launch(ready))
            ready = prepare(batches[number], self.passes) if number < len(batches) else None
            yield launched
            number += 1

    def set_rate(self, learning_rate: float) -> None:
        """Set the learning rate of the steps to come."""
        group = self.optimizer.param_groups[0]
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(learning_rate)
        else:
            group["lr"] = learning_rate

    def update(self) -> torch.Tensor:
        """Clip the gradient and step down it; return its norm."""
        norm = torch.nn.utils.clip_grad_norm_([self.flat.vector], self._settings.max_grad_norm)
        self.optimizer.step()
        return norm

    def state(self) -> dict[str, Any]:
        """What decides the next step, for a checkpoint."""
        return {"weights": self.flat.vector.detach(), "optimizer": self.optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        rate = self.optimizer.param_groups[0]["lr"]
        self.flat.vector.detach().copy_(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.optimizer.param_groups[0]["lr"] = rate
