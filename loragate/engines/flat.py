"""Everything trainable as one vector: one optimizer step is one pass over it."""

from typing import Any

import torch

from loragate.engines.adapters import ADAPTER, lora_modules
from loragate.engines.language_model import inner_model


class Flat:
    """All trainable weights in float32, end to end.

    Parameters and their gradients are views into it, so whoever reads them by name sees what is trained.

    Attributes:
        vector: The weights, with a gradient that is always there.
    """

    def __init__(self, model: Any) -> None:
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self.vector = torch.nn.Parameter(torch.cat([p.detach().flatten().float() for p in self._parameters]))
        self.vector.grad = torch.zeros_like(self.vector)
        self._sizes = [p.numel() for p in self._parameters]
        views = zip(self.vector.detach().split(self._sizes), self.vector.grad.split(self._sizes), strict=True)
        for parameter, (weights, gradient) in zip(self._parameters, views, strict=True):
            parameter.data, parameter.grad = weights.view_as(parameter), gradient.view_as(parameter)
        self._dtype = inner_model(model).dtype
        owners = {id(p): n for n, p in enumerate(self._parameters)}
        fused = [module for _, module in lora_modules(model) if hasattr(module, "fused_adapter")]
        self._fused = [
            (module, *(owners[id(side[ADAPTER].weight)] for side in (module.lora_A, module.lora_B)))
            for module in fused
            if all(side[ADAPTER].weight.requires_grad for side in (module.lora_A, module.lora_B))
        ]

    @property
    def gradient(self) -> torch.Tensor:
        """The gradient of all weights, in float32."""
        assert self.vector.grad is not None
        return self.vector.grad

    def spread(self) -> None:
        """Give the fused layers their parts of one cast of the vector, for one forward and backward pass."""
        if self._dtype == self.vector.dtype or len(self._fused) * 2 != len(self._parameters):
            return
        parts = self.vector.to(self._dtype).split(self._sizes)
        for module, a, b in self._fused:
            sides = ((parts[a], module.lora_A), (parts[b], module.lora_B))
            module.fused_adapter = tuple(part.view_as(side[ADAPTER].weight) for part, side in sides)

    def gather(self) -> None:
        """Take the parts back: from here on the layers compute with the weights themselves."""
        for module, _, __ in self._fused:
            module.fused_adapter = None
