"""What tasks ask of the engines that merge and export, and what those answer; see `loragate.work`."""

from dataclasses import dataclass

from loragate.ladder import Divergence
from loragate.perplexity import Nll
from loragate.rows import Conversation
from loragate.work import Answer, Base, Model


@dataclass(frozen=True, slots=True)
class MergeAdapter:
    """Merge an adapter into its base's weights and save them as a model of its own."""

    model: Model
    folder: str


@dataclass(frozen=True, slots=True)
class MergeBoth:
    """Merge a QLoRA adapter into the de-quantised base and into the base as it is, and score both.

    Attributes:
        folder: Gets a folder for each, of the candidate's name.
        rows: How many of the rows in `examples` are scored.
    """

    model: Model
    folder: str
    examples: str
    rows: int


@dataclass(frozen=True, slots=True)
class CompareMerged:
    """Hold the tensors of merged weights against the base's."""

    model: Model
    merged: str


@dataclass(frozen=True, slots=True)
class MergeEvidence:
    """How merged weights relate to the base's.

    Attributes:
        unchanged: Adapted weight matrices that equal the base's.
        altered: Tensors outside the adapted (for QLoRA: quantised) matrices that differ from the base's.
        missing: Tensors of the base that merged lacks, or the other way round, or whose shape differs.
        same_ties: Whether input and output embeddings are tied as in the base.
        other_tokenizer: What of the tokenizer beside the merged weights is not the base's.
        dtype: Number format of the merged weights.
    """

    unchanged: tuple[str, ...]
    altered: tuple[str, ...]
    missing: tuple[str, ...]
    same_ties: bool
    other_tokenizer: tuple[str, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class ExportGguf:
    """Convert a merged model into GGUF files, one a quantisation.

    Attributes:
        name: What the files call the model (their general.name, which programs show); its folder's where empty.
    """

    merged: str
    quantizations: tuple[str, ...]
    folder: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class ExportAdapter:
    """Convert an adapter into a GGUF file of its own.

    Attributes:
        base: Folder of the base model, of which only the configuration is read.
        file: The file to write.
    """

    adapter: str
    base: str
    file: str


@dataclass(frozen=True, slots=True)
class DescribeChat:
    """Find out how a model is asked, for a runtime that does not render chat templates."""

    base: Base


@dataclass(frozen=True, slots=True)
class ProbeGguf:
    """Load a GGUF file with llama.cpp, tokenise, score and talk to it.

    Attributes:
        gguf: The file; of an adapter, the base's.
        probes: File of probe texts with the training tokenizer's ids.
        stop_ids: Ids that end an answer for the tokenizer and for generation.
        folder, against: As in `MeasureModel`.
        adapter: GGUF file of an adapter to put on top; empty where there is none.
    """

    gguf: str
    examples: str
    probes: str
    questions: tuple[Conversation, ...]
    answer_tokens: int
    stop_ids: tuple[int, ...]
    folder: str
    against: dict[str, str]
    adapter: str = ""


@dataclass(frozen=True, slots=True)
class GgufEvidence:
    """What llama.cpp makes of a GGUF file.

    Attributes:
        rows: Sums per row over the same ids and mask as the merged model's.
        row_texts: Texts of held-out rows tokenised.
        unequal_row_texts: Those whose ids differ from the training tokenizer's.
        probes: Texts tokenised on which tokenizers are known to disagree.
        unequal_probes: Those whose ids differ.
        template: Chat template in the file.
        unequal_prompts: Questions that the file's template renders differently.
        vocabulary: Number of tokens.
        stop_id: The end token of the file.
        taught_stops: Tokens by which answers of the rows are taught to end.
        unknown_stops: Those by which llama.cpp does not end an answer.
        adds_start: Whether the file has llama.cpp begin a text with the token of a beginning.
        unequal_begins: Questions that llama.cpp, left to itself, begins with other tokens than training did.
        quantization: Number format of most of its weights by its own account, e.g. q8_0; empty where it says none.
        divergences: As in `Measured`.
        size_bytes: Size of the file; of an adapter, that of its own.
        load_seconds: From the call to a model that answers.
        tokens_per_second: Tokens of greedy answers by the time that they took, questions read included, one at a time
            on the machine that judged; NaN where none was asked for.
    """

    rows: tuple[Nll, ...]
    row_texts: int
    unequal_row_texts: tuple[str, ...]
    probes: int
    unequal_probes: tuple[str, ...]
    template: str
    unequal_prompts: int
    vocabulary: int
    stop_id: int
    taught_stops: tuple[int, ...]
    unknown_stops: tuple[int, ...]
    adds_start: bool
    unequal_begins: int
    quantization: str
    answers: tuple[Answer, ...]
    divergences: dict[str, Divergence]
    size_bytes: int
    load_seconds: float
    tokens_per_second: float
