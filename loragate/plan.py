"""What a training will take, known before it begins: parameters, steps, tokens and memory.

A plan is made of facts; what they mean is judged elsewhere. Memory is in bytes, estimated at the largest forward pass.
"""

from dataclasses import dataclass, replace
from typing import Literal

GIGABYTE = 1e9


@dataclass(frozen=True, slots=True)
class RowFacts:
    """The training rows of an epoch.

    Attributes:
        rows: Number of rows, each as often as an epoch takes it.
        tokens: Sum of their lengths.
        supervised: Tokens of them that are taught.
        longest: Length of the longest.
        max_tokens: Length at which rows are cut.
    """

    rows: int
    tokens: int
    supervised: int
    longest: int
    max_tokens: int


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What a training runs on.

    Attributes:
        memory: Its memory; on a CPU what this process may take.
        fast_dtype: The number format that it multiplies fast.
    """

    name: str
    memory: int
    fast_dtype: str


@dataclass(frozen=True, slots=True)
class Memory:
    """What stands in memory at the peak of a training step.

    Attributes:
        weights: The base, quantised where it is; and the one matrix that is de-quantised at a time.
        adapter: The adapter's weights, their gradient and the optimiser's two moments in float32, and copies of the
            weights in other formats.
        activations: What the backward pass needs of the largest forward pass; None where that cannot be counted.
        logits: Logits, their probabilities and their gradient, of as many positions as are held at once; and the hidden
            states behind all supervised positions, with their gradient.
        runtime: The libraries themselves.
        checkpointed: `activations` with gradient checkpointing: each layer's input, and all that one layer needs.
        backward: What one layer's backward pass makes and lets go: gradients of its widest tensors.
    """

    weights: int
    adapter: int
    activations: int | None
    logits: int
    runtime: int
    checkpointed: int | None = None
    backward: int = 0

    @property
    def total(self) -> int:
        """All of it, as far as it is known."""
        return self.weights + self.adapter + (self.activations or 0) + self.backward + self.logits + self.runtime

    @property
    def recomputing(self) -> "Memory":
        """The same with gradient checkpointing."""
        return replace(self, activations=self.checkpointed)

    def fits(self, device: float, max_share: float) -> bool:
        """Whether it is known whole, and no more than a share of a device's memory."""
        return self.activations is not None and self.total <= max_share * device


def checkpoints(asked: Literal["auto", "on", "off"], memory: Memory, device: int, max_share: float) -> bool:
    """Choose whether to recompute activations: as asked, or (auto) where training does not fit the device otherwise.

    Args:
        memory: What training takes without gradient checkpointing.
        device: The device's memory, of which training may take `max_share`.
    """
    return asked == "on" or (asked == "auto" and memory.total > max_share * device)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The base model and its adapter.

    Attributes:
        trainable: Trainable parameters, counted on the adapter itself.
        modules: Adapted modules.
        kinds: Names of their layers, each once: q_proj, v_proj and so on.
        rank: The largest rank.
        narrowest: The smallest width, in or out, of an adapted module of that rank.
        positions: Longest text that the model was made for, in tokens; 0 where it does not say.
        dtype: Number format of weights and arithmetic.
        compute_dtype: Number format that a 4-bit base is multiplied in; empty where the base is not 4-bit.
        memory: What training takes without gradient checkpointing.
        forward_tokens: Most token slots in one forward pass, as asked or chosen.
    """

    parameters: int
    trainable: int
    modules: int
    kinds: tuple[str, ...]
    rank: int
    narrowest: int
    positions: int
    dtype: str
    compute_dtype: str
    memory: Memory
    forward_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """A training that has not begun.

    Attributes:
        steps: Optimizer steps in all epochs.
        seconds: How long it may take by the rate of earlier trainings; None where there was none like it.
        checkpointing: Whether the backward pass computes each layer's activations again.
    """

    rows: RowFacts
    model: ModelFacts
    device: DeviceFacts
    steps: int
    epochs: int
    seconds: float | None = None
    checkpointing: bool = False

    @property
    def memory(self) -> Memory:
        """What stands in memory as it will be trained."""
        return self.model.memory.recomputing if self.checkpointing else self.model.memory

    @property
    def step_tokens(self) -> float:
        """Row tokens of an optimizer step, on average."""
        return self.epochs * self.rows.tokens / max(1, self.steps)

    def as_told(self) -> dict[str, object]:
        """The plan in the words and units of the command line's contract."""
        told: dict[str, object] = {
            "trainable_parameters": self.model.trainable,
            "parameters": self.model.parameters,
            "adapted_modules": self.model.modules,
            "optimizer_steps": self.steps,
            "rows": self.rows.rows,
            "tokens_per_epoch": self.rows.tokens,
            "supervised_tokens_per_epoch": self.rows.supervised,
            "forward_tokens": self.model.forward_tokens,
            "gradient_checkpointing": self.checkpointing,
            "memory_gb": round(self.memory.total / GIGABYTE, 3),
            "device": self.device.name,
            "device_memory_gb": round(self.device.memory / GIGABYTE, 3),
        }
        return told | ({} if self.seconds is None else {"seconds": round(self.seconds, 1)})
