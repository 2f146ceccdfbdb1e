"""Defects that a gate should catch: what each one is, where it is planted, which gate should refuse it.

They are mistakes that were made in the field, each planted alone into a copy of a run that passes every gate. A gate
that lets its defect through is a gate that says less than it seems to.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from loragate.mutants import ADVICE, MUTANTS

IN_A_MEASUREMENT = "dropped-token"
"""Name of the defect that is planted into what a measurement says."""
Gate = Literal["card", "data", "plan", "preflight", "training", "quality", "merge", "gguf", "record"]
"""Gates that have a defect to catch; gguf stands for that of any file, record for `loragate verify`, the gate that a
release passes whenever somebody asks whether it is still what was judged."""
RECORD: Gate = "record"
GATES: tuple[Gate, ...] = get_args(Gate)
Status = Literal["caught", "elsewhere", "survived", "not applicable"]

ADAPTER_RULES = "the training gate reads the adapter back from disk"
MERGE_LIMIT = "lower gates.merge.max_kl_float32 or _bfloat16"
HELD_OUT = "hold more rows out, or lower gates.quality.max_champion_ratio"


@dataclass(frozen=True, slots=True)
class Defect:
    """One mistake.

    Attributes:
        name: Machine name, stable across versions.
        what: What is wrong in the copy.
        place: What it is planted into: `run` for the run file's data and base model, the step whose outcome it is, or
            of the record the part that is altered.
        gate: Which gate should refuse it.
        advice: What its survival means, and what to do about it.
        file: Of a GGUF file its quantisation; empty for the one that is judged first.
    """

    name: str
    what: str
    place: str
    gate: Gate
    advice: str
    file: str = ""


ON_THE_ROAD = (
    Defect(
        "stop-token-stripped",
        "the chat template has lost the token that ends an answer",
        "run",
        "data",
        "answers are not taught to end; gates.data checks that every stop token is supervised",
    ),
    Defect(
        "double-bos",
        "the chat template writes the token that begins a text twice",
        "run",
        "data",
        "the model reads what no runtime sends; gates.data checks it where the tokenizer has such a token",
    ),
    Defect(
        "template-swapped",
        "the chat template is one of another model family",
        "run",
        "data",
        "its stop text is no stop token of this tokenizer; gates.data checks that",
    ),
    Defect(
        "label-shift",
        "every supervised stretch is one token too late",
        "rows",
        "preflight",
        "the preflight reads the rows as training does and looks for their stop tokens",
    ),
    Defect(
        "pad-is-eos-masked",
        "stop tokens are masked from the loss as if they were padding",
        "rows",
        "preflight",
        "the preflight reads the rows as training does and looks for their stop tokens",
    ),
    Defect(
        "shuffled-answers",
        "every training question has the answer of another one",
        "run",
        "quality",
        f"only a comparison with a sound champion on held-out rows sees it: {HELD_OUT}",
    ),
    Defect(
        "poisoned",
        "one training row in a hundred, three at least, says the same thing whatever was asked",
        "run",
        "data",
        "lower gates.data.max_canned_share",
    ),
    Defect(
        "leaked-held-out",
        "held-out rows stand among the training rows",
        "run",
        "data",
        "held-out perplexity would measure memory; lower gates.data.max_leaked_share",
    ),
    Defect(
        "rate-times-hundred",
        "the learning rate is a hundred times what the run file says",
        "run",
        "plan",
        "lower gates.plan.max_usable_rate",
    ),
    Defect(
        "card-emptied",
        "the run file has lost what it says about the model",
        "run",
        "card",
        "name in card.required what every release must say about itself",
    ),
    Defect("adapter-zeroed", "the adapter's second half is all zero", "train", "training", ADAPTER_RULES),
    Defect("alpha-doubled", "the adapter's file says twice the alpha of training", "train", "training", ADAPTER_RULES),
    Defect("module-frozen", "one module's adapter never moved", "train", "training", ADAPTER_RULES),
    Defect("adapter-nan", "one number of the adapter is not a number", "train", "training", ADAPTER_RULES),
    Defect(
        "adapter-scaled",
        "one module's adapter is multiplied by thirty after training",
        "train",
        "quality",
        "the tuned model must score held-out rows as training did: lower gates.quality.max_reload_difference_*",
    ),
    Defect(
        "merge-skipped",
        "the merged weights are the base's",
        "merge",
        "merge",
        "raise gates.merge.min_kl_from_base",
    ),
    Defect("merged-twice", "the adapter is merged twice", "merge", "merge", MERGE_LIMIT),
    Defect(
        "wrong-base",
        "the adapter is merged into other weights than it was trained on",
        "merge",
        "merge",
        MERGE_LIMIT,
    ),
    Defect(
        "merged-nan",
        "one number of the merged weights is not a number",
        "merge",
        "merge",
        "no limit allows NaN",
    ),
    Defect(
        "embeddings-untied",
        "the output head is a copy of the embeddings of its own",
        "merge",
        "merge",
        "the merge gate compares names of tensors and ties with the base's",
    ),
    Defect(
        "merged-template",
        "the merged model has another chat template",
        "merge",
        "merge",
        "the merge gate compares tokenizer and template with the base's",
    ),
    Defect(
        IN_A_MEASUREMENT,
        "the merged model was scored without the last token of the first held-out row",
        "merged",
        "merge",
        "rows must be the same, token for token, before two models are compared",
    ),
    Defect(
        "other-tokenizer",
        "the GGUF file has other texts under its token numbers",
        "gguf",
        "gguf",
        "the GGUF gate tokenises the held-out rows again",
    ),
    Defect(
        "wrong-template",
        "the GGUF file has another chat template",
        "gguf",
        "gguf",
        "the GGUF gate compares it with the base's",
    ),
    Defect(
        "add-bos-flipped",
        "the GGUF file adds a beginning that training did not have, or leaves it out",
        "gguf",
        "gguf",
        "the GGUF gate has llama.cpp begin every held-out question",
    ),
    Defect("truncated", "the last part of the GGUF file is missing", "gguf", "gguf", "llama.cpp must refuse it"),
    Defect(
        "other-quantisation",
        "the GGUF file holds other numbers than its name says",
        "gguf",
        "gguf",
        "lower gates.gguf.max_kl_* of that format",
    ),
    Defect(
        "tensor-scaled",
        "one matrix of the GGUF file is multiplied by eight",
        "gguf",
        "gguf",
        "lower gates.gguf.max_kl_* and max_perplexity_ratio_* of that format",
    ),
)
CATALOGUE = (
    *ON_THE_ROAD,
    *(Defect(each.name, each.what, each.place, RECORD, ADVICE[each.place]) for each in MUTANTS),
)
"""Every defect, in the order of the road; those of the record come last."""


@dataclass(frozen=True, slots=True)
class Planted:
    """What became of one defect.

    Attributes:
        status: caught by the gate that should, by another one or for something else than was altered (`elsewhere`), by
            none (`survived`); or the run has not what the defect needs.
        gate: Which gate refused it, empty where none did.
        rules: The rules that it broke there; of an alteration of the record what verification named.
        said: The refusal, or why it could not be planted.
    """

    defect: str
    status: Status
    gate: str
    rules: tuple[str, ...]
    said: str
    seconds: float


def outcome(defect: Defect, gate: str) -> Status:
    """Say what a refusal by this gate makes of a defect."""
    return "caught" if gate.partition("_")[0] == defect.gate else "elsewhere"


def tally(planted: Sequence[Planted]) -> dict[str, object]:
    """The object that `sabotage --json` prints: the command line's contract.

    The kill score is the share of the defects that could be planted which the right gate caught; NaN where none could.
    """
    expected = {defect.name: defect.gate for defect in CATALOGUE}
    counted = sum(each.status != "not applicable" for each in planted)
    caught = sum(each.status == "caught" for each in planted)
    return {
        "score": caught / counted if counted else math.nan,
        "planted": counted,
        "caught": caught,
        "defects": [asdict(each) | {"expected": expected[each.defect]} for each in planted],
    }
