"""What tasks ask of engines and what engines answer: plain values that cross a process boundary.

Paths are absolute strings; a request says everything its engine needs, so an engine reads no configuration.
"""

from dataclasses import dataclass, field
from typing import Literal

from pydantic import JsonValue as Json

from loragate.config import Train
from loragate.ladder import Divergence
from loragate.perplexity import Nll
from loragate.plan import ModelFacts, RowFacts
from loragate.record import CurvePoint
from loragate.rows import Conversation

Method = Literal["lora", "qlora"]


@dataclass(frozen=True, slots=True)
class FetchBase:
    """Bring a base model to this machine.

    Attributes:
        source: Hub id, folder or .gguf file.
        local: Whether source is a path.
        folder: Where a hub id is downloaded to, or a .gguf file de-quantised.
    """

    source: str
    local: bool
    revision: str | None
    trust_remote_code: bool
    folder: str


@dataclass(frozen=True, slots=True)
class Base:
    """A base model on this machine.

    Attributes:
        path: Folder that transformers loads.
        commit: Hub commit, empty for local models.
        stop_ids: Ids that end an answer: the tokenizer's and the generation config's end tokens.
        end_id: The tokenizer's end token, which ends plain text.
        adds_start: Whether the tokenizer begins plain text with a token of its own.
        template: The chat template's source.
        vocabulary: Rows of the embedding.
        parameters: Number of parameters.
    """

    path: str
    commit: str
    trust_remote_code: bool
    stop_ids: tuple[int, ...]
    end_id: int
    adds_start: bool
    template: str
    vocabulary: int
    parameters: int


@dataclass(frozen=True, slots=True)
class Model:
    """Weights to load: a base or merged folder, and an adapter on top where there is one.

    Attributes:
        adapter: Folder of the adapter, None for the weights alone.
        quantized: Whether the base is loaded quantised.
        quantization: Number format of a quantised base.
        double_quantization: Whether the scales of a 4-bit base are quantised too.
    """

    base: Base
    adapter: str | None = None
    quantized: bool = False
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    quantization: Literal["nf4", "fp4", "int8"] = "nf4"
    double_quantization: bool = True


@dataclass(frozen=True, slots=True)
class MeasureModel:
    """Score a model on rendered rows and let it answer some of their questions.

    Attributes:
        examples: File of rendered rows to score.
        questions: Conversations to answer greedily; may be empty.
        answer_tokens: Longest answer in tokens.
        forward_tokens: Most token slots in one forward pass.
        folder: Where its predictions go.
        against: Folders with the predictions that its own are held against, by the names of their models.
        keeps: Whether it keeps predictions and holds them against others'; they take a pass of their own.
    """

    model: Model
    examples: str
    questions: tuple[Conversation, ...]
    answer_tokens: int
    forward_tokens: int
    folder: str = ""
    against: dict[str, str] = field(default_factory=dict)
    keeps: bool = True


@dataclass(frozen=True, slots=True)
class ScoreAgain:
    """Score some rows as they were scored among all of them.

    Attributes:
        examples, forward_tokens: As in `MeasureModel`.
        rows: How many rows at least, or all: whole forward passes are drawn, since what goes through a model together
            is rounded together.
        seed: Of the drawing.
    """

    model: Model
    examples: str
    forward_tokens: int
    rows: int
    seed: int


@dataclass(frozen=True, slots=True)
class RowScore:
    """Sums of one row; rows are numbered from 0."""

    number: int
    nll: Nll


@dataclass(frozen=True, slots=True)
class Answer:
    """A greedy answer and whether it ended with a stop token by itself."""

    text: str
    stopped: bool


@dataclass(frozen=True, slots=True)
class Measured:
    """Sums per row, in the rows' order, the answers, and how far predictions are from other models'."""

    rows: tuple[Nll, ...]
    answers: tuple[Answer, ...]
    divergences: dict[str, Divergence]


@dataclass(frozen=True, slots=True)
class CompareTokenizers:
    """Hold the tokenizer of other weights against a base's.

    Attributes:
        folder: Folder of the other weights and their tokenizer.
        probes: File of texts with the base's ids.
    """

    base: Base
    folder: str
    probes: str


@dataclass(frozen=True, slots=True)
class Alike:
    """In what two tokenizers differ; empty where in nothing."""

    difference: str


@dataclass(frozen=True, slots=True)
class DrawAnswers:
    """Let a model answer questions by sampling from its own distribution, and write them as rendered rows.

    Attributes:
        answer_tokens: Longest answer in tokens.
        folder: Gets general.jsonl.
    """

    model: Model
    questions: tuple[str, ...]
    answer_tokens: int
    seed: int
    folder: str


@dataclass(frozen=True, slots=True)
class FindVerbatim:
    """Find what answers repeat word for word from training answers.

    Attributes:
        train: File of rendered training rows.
        given: For each answer the texts that it may repeat: the question's and the reference.
        words: Length of a passage.
    """

    train: str
    answers: tuple[str, ...]
    given: tuple[tuple[str, ...], ...]
    words: int


@dataclass(frozen=True, slots=True)
class PlanTraining:
    """Count what a training will take, without loading the base's weights.

    Attributes:
        rows: Folder of prepared rows.
        max_tokens: Length at which rows were cut.
        room: Bytes of the device's memory that training may take.
    """

    base: Base
    settings: Train
    rows: str
    max_tokens: int
    room: float


@dataclass(frozen=True, slots=True)
class Counted:
    """What was counted for a plan."""

    rows: RowFacts
    model: ModelFacts


@dataclass(frozen=True, slots=True)
class TrainAdapter:
    """Train an adapter.

    Attributes:
        folder: Where the released adapter goes.
        scratch: Where checkpoints are; it may hold those of an interrupted attempt.
        checkpointing: Whether the backward pass computes each layer's activations again, as the plan on record says.
    """

    base: Base
    settings: Train
    train: str
    heldout: str
    folder: str
    scratch: str
    checkpointing: bool = False


@dataclass(frozen=True, slots=True)
class Trained:
    """Evidence about a training.

    Attributes:
        curve: Every optimizer step.
        best_step: Step of the released adapter: the one with the lowest held-out loss.
        trainable: Trainable parameters as counted.
        predicted_trainable: r * (in + out) summed over the adapted modules, out more of each for DoRA.
        modules: Adapted modules.
        modules_without_gradient: Those whose lora_B never got a gradient other than zero.
        dtype: Number format of the base weights in training.
        resumed_from: Step of the checkpoint that this attempt went on from, 0 for none.
        ways: The fast ways of computing that fit model and device.
        fallback: Why steps were not captured as CUDA graphs although they should have been; empty where they were.
    """

    curve: tuple[CurvePoint, ...]
    best_step: int
    trainable: int
    predicted_trainable: int
    modules: int
    modules_without_gradient: tuple[str, ...]
    dtype: str
    resumed_from: int
    ways: tuple[str, ...] = ()
    fallback: str = ""


@dataclass(frozen=True, slots=True)
class Preflight:
    """Try out training's arithmetic on a few rows.

    Attributes:
        train: File of rendered training rows.
        rows: How many of them to try; that answers are taught to end is looked up in all of them.
    """

    base: Base
    settings: Train
    train: str
    rows: int


@dataclass(frozen=True, slots=True)
class PreflightEvidence:
    """What a trial found.

    Attributes:
        packed: Whether rows go through the model in packs; else they are padded.
        start_difference: Largest difference of a logit with the fresh adapter and without.
        dora: Whether the adapter is of DoRA, whose start equals the base but for rounding.
        row_difference: Largest difference of a row's loss, as training computes it, from the model's own, as a share.
        gradient_difference: Difference of the gradients of the rows together and one by one, as a share.
        unended: How many training rows have an answer whose last taught token does not end an answer although it did
            when the row was rendered.
        first_unended: Where the first of them stands, empty where there is none.
        modules, modules_without_gradient, trainable, predicted_trainable, dtype: As in `Trained`.
    """

    rows: int
    packed: bool
    start_difference: float
    dora: bool
    row_difference: float
    gradient_difference: float
    unended: int
    first_unended: str
    modules: int
    modules_without_gradient: tuple[str, ...]
    trainable: int
    predicted_trainable: int
    dtype: str


ADAPTER_SETTINGS = ("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern")
"""Settings in an adapter's file that decide by what its weights are multiplied."""


@dataclass(frozen=True, slots=True)
class AdapterEvidence:
    """What an adapter's file holds.

    Attributes:
        parameters: Number of weights.
        zero_modules: lora_B tensors that are all zero: modules where the adapter does nothing.
        not_finite: Tensors with a NaN or an infinity.
        settings: What its own settings say of `ADAPTER_SETTINGS`, as JSON values.
    """

    parameters: int
    zero_modules: tuple[str, ...]
    not_finite: tuple[str, ...]
    settings: dict[str, Json]


@dataclass(frozen=True, slots=True)
class PlantDefect:
    """Plant a defect into a copy of what a step has made; the original is linked to and must not be written to.

    Attributes:
        name: Of the defect.
        folder: The copy; for a chat template an empty folder that the base model is copied to.
        model: The base, and the adapter that was merged.
        rows: File of rendered training rows of the sound run.
        file: Of a GGUF file its quantisation; empty for the one that is judged first.
        seed: Decides what is hit where several things could be.
    """

    name: str
    folder: str
    model: Model
    rows: str
    file: str
    seed: int
