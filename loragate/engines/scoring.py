"""Scoring rows and answering questions with a model: the numbers of the perplexity ladder.

Shapes in names: B rows, T positions, N supervised tokens.
"""

import random
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from loragate.child import Progress, Report
from loragate.engines.fused import load_settled
from loragate.engines.language_model import (
    device,
    load_tokenizer,
    log_probabilities,
    read_examples,
    template_of,
)
from loragate.engines.packing import Passes, passes_for
from loragate.engines.predictions import GROUPS, LEAST, LIKELIEST, Gathered, Predictions
from loragate.ladder import Divergence, compared_rows
from loragate.perplexity import Nll
from loragate.rendering import Example
from loragate.work import Answer, Measured, MeasureModel, RowScore, ScoreAgain

ANSWERS_AT_ONCE = 8
PREDICTED_TOKENS = 512
"""Most token slots of a pass whose whole predictions are kept for a moment."""
LEAST_CUDA_TOKENS = 8192
"""Tokens of a pass on a GPU, at least: nothing is kept for a backward pass, and small passes leave it waiting."""


def measure(request: MeasureModel, report: Report) -> Measured:
    """Score every row, keep the predictions of the first ones and hold them against other models', answer questions."""
    model = load_settled(request.model)
    examples = read_examples(request.examples)
    rows = score(model, examples, request.forward_tokens, report)
    divergences: dict[str, Divergence] = {}
    if request.keeps:
        compared = examples[: compared_rows(examples)]
        divergences = predict(model, compared, Gathered(request.folder, request.against))
    return Measured(rows, tuple(_answers(model, request, report)), divergences)


def score(model: Any, examples: Sequence[Example], forward_tokens: int, report: Report) -> tuple[Nll, ...]:
    """Sum negative log-likelihood over each row's supervised tokens.

    Rows go through the model in packs; the sums of a row do not depend on what it is packed with.
    """
    passes = _passes(model, examples, forward_tokens)
    found = _scored(model, examples, passes, list(passes.groups(examples)), report)
    return tuple(found.get(number, Nll(0.0, 0)) for number in range(len(examples)))


def score_again(request: ScoreAgain, report: Report) -> tuple[RowScore, ...]:
    """Score whole forward passes, drawn without replacement until they hold as many rows as are asked for."""
    model, examples = load_settled(request.model), read_examples(request.examples)
    passes = _passes(model, examples, request.forward_tokens)
    groups = list(passes.groups(examples))
    random.Random(request.seed).shuffle(groups)
    before = accumulate(map(len, groups), initial=0)
    taken = [group for group, rows in zip(groups, before, strict=False) if rows < request.rows]
    found = _scored(model, examples, passes, taken, report)
    return tuple(RowScore(number, found[number]) for number in sorted(found))


def _passes(model: Any, examples: Sequence[Example], forward_tokens: int) -> Passes:
    return passes_for(model, examples, max(forward_tokens, LEAST_CUDA_TOKENS if device().type == "cuda" else 0))


@torch.inference_mode()
def _scored(
    model: Any, examples: Sequence[Example], passes: Passes, groups: Sequence[list[int]], report: Report
) -> dict[int, Nll]:
    """Sums of the rows of some forward passes, by the rows' numbers."""
    rows: dict[int, Nll] = {}
    units = ((numbers, passes.unit([examples[i] for i in numbers])) for numbers in groups)
    ready = next(units, None)
    while ready is not None:
        numbers, unit = ready
        nats_N, row_N = passes.owned_nats(model, unit)
        sums_B = torch.zeros(len(numbers), dtype=torch.float64, device=nats_N.device)
        sums_B.index_add_(0, row_N, nats_N.double())
        counts_B = torch.bincount(row_N, minlength=len(numbers))
        ready = next(units, None)  # made ready while the device is busy
        for number, nats, tokens in zip(numbers, sums_B.tolist(), counts_B.tolist(), strict=True):
            rows[number] = Nll(nats, tokens)
        report(Progress(len(rows), sum(map(len, groups)), "rows"))
    return rows


@torch.inference_mode()
def predict(model: Any, examples: Sequence[Example], gathered: Gathered) -> dict[str, Divergence]:
    """Predict every supervised position, in order; keep that, and hold it against other models' predictions."""
    for batch in _in_order(examples):
        log_p_NV = log_probabilities(model, batch)
        ids_NK = log_p_NV.topk(min(LIKELIEST, log_p_NV.shape[1])).indices
        own = Predictions(ids_NK.int().cpu().numpy(), parts(log_p_NV, ids_NK))

        def parts_of(ids_NK: np.ndarray, log_p_NV: torch.Tensor = log_p_NV) -> np.ndarray:
            return parts(log_p_NV[: len(ids_NK)], torch.from_numpy(ids_NK).to(log_p_NV.device))

        gathered.add(own, parts_of)
    return gathered.finish()


def parts(log_p_NV: torch.Tensor, ids_NK: torch.Tensor) -> np.ndarray:
    """What `loragate.engines.predictions.parts` returns, on the model's device."""
    positions, vocabulary = log_p_NV.shape
    if ids_NK.numel() and int(ids_NK.max()) >= vocabulary:
        return np.full((positions, ids_NK.shape[1] + GROUPS), np.nan)
    p_NV = torch.nn.functional.pad(log_p_NV.exp().scatter(1, ids_NK, 0.0), (0, -vocabulary % GROUPS))
    groups_NG = p_NV.view(positions, -1, GROUPS).sum(dim=1).clamp_min(LEAST).log()
    return torch.cat([log_p_NV.gather(1, ids_NK), groups_NG], dim=1).cpu().numpy()


def _in_order(examples: Sequence[Example]) -> Iterator[Sequence[Example]]:
    """Consecutive rows whose padded size stays within `PREDICTED_TOKENS` slots."""
    start = 0
    for end in range(1, len(examples) + 1):
        longest = max(len(example.ids) for example in examples[start : end + 1])
        if end == len(examples) or (end + 1 - start) * longest > PREDICTED_TOKENS:
            yield examples[start:end]
            start = end


@torch.inference_mode()
def _answers(model: Any, request: MeasureModel, report: Report) -> Iterator[Answer]:
    """Answer greedily, a batch at a time, padded on the left so that answers start side by side."""
    tokenizer = load_tokenizer(request.model.base)
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    prompts = [template_of(tokenizer, asked.tools)(asked.messages, True) for asked in request.questions]
    for start in range(0, len(prompts), ANSWERS_AT_ONCE):
        yield from _answer_batch(model, tokenizer, prompts[start : start + ANSWERS_AT_ONCE], request)
        report(Progress(min(start + ANSWERS_AT_ONCE, len(prompts)), len(prompts), "answers"))


def _answer_batch(model: Any, tokenizer: Any, prompts: list[str], request: MeasureModel) -> Iterator[Answer]:
    stops = list(request.model.base.stop_ids)
    encoded = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
    output_BT = model.generate(
        **encoded,
        max_new_tokens=request.answer_tokens,
        do_sample=False,
        eos_token_id=stops,
        pad_token_id=tokenizer.pad_token_id,
    )
    for row in output_BT[:, encoded["input_ids"].shape[1] :].tolist():
        end = next((i for i, token in enumerate(row) if token in stops), None)
        yield Answer(tokenizer.decode(row[:end], skip_special_tokens=True).strip(), end is not None)
