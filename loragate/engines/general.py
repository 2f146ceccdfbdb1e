"""What the base model says to everyday questions, as rows that it and the tuned model are then scored on.

Answers are drawn from the base's own distribution: temperature 1, nothing cut off, no penalty. For such answers

    E[ln p_base(answer) - ln p_tuned(answer)] = KL(base || tuned),

so the log ratio of perplexities on them estimates that divergence per token. It is the forward KL of Shenfeld et al.
2025 (arXiv 2509.04259), who find that forgetting follows it; they take it on the new task's questions, here it is taken
on questions that have nothing to do with the task.

A row holds the very ids that were drawn, so nothing is tokenised twice; an answer that was cut ends without a stop.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from loragate.child import Progress, Report
from loragate.engines.fused import load_settled
from loragate.engines.language_model import load_tokenizer, template_of
from loragate.rendering import Example, rendered_line
from loragate.rows import Conversation, Message
from loragate.work import DrawAnswers

ANSWERS_AT_ONCE = 20
FILE = "general.jsonl"


def draw(request: DrawAnswers, report: Report) -> int:
    """Write a row for each question into the folder; return how many. The same seed gives the same rows."""
    model = load_settled(request.model)
    tokenizer = load_tokenizer(request.model.base)
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    torch.manual_seed(request.seed)
    asked, written = request.questions, 0
    with (Path(request.folder) / FILE).open("wb") as file:
        for start in range(0, len(asked), ANSWERS_AT_ONCE):
            for line in _lines(model, tokenizer, asked[start : start + ANSWERS_AT_ONCE], request):
                written += file.write(line) > 0
            report(Progress(written, len(asked), "answers"))
    return written


@torch.inference_mode()
def _lines(model: Any, tokenizer: Any, questions: tuple[str, ...], request: DrawAnswers) -> Iterator[bytes]:
    """Yield rendered rows: the prompts' ids and what was drawn behind each, up to its stop token."""
    turns = [(Message("user", question),) for question in questions]
    template = template_of(tokenizer)
    prompts = [template(messages, True) for messages in turns]
    encoded = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
    model.generation_config = GenerationConfig()  # models bring settings along that cut the distribution off
    output_BT = model.generate(
        **encoded,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=request.answer_tokens,
        eos_token_id=list(request.model.base.stop_ids),
        pad_token_id=tokenizer.pad_token_id,
    )
    width = encoded["input_ids"].shape[1]
    for messages, row, seen in zip(turns, output_BT.tolist(), encoded["attention_mask"].tolist(), strict=True):
        prompt = [token for token, there in zip(row, seen, strict=False) if there]
        drawn = _up_to_stop(row[width:], request.model.base.stop_ids)
        answer = Message("assistant", tokenizer.decode(drawn, skip_special_tokens=True))
        ids, stopped = (*prompt, *drawn), drawn[-1] in request.model.base.stop_ids
        example = Example(
            ids, ((len(prompt), len(ids)),), turns=1, stopped_turns=int(stopped), rendered_tokens=len(ids)
        )
        yield rendered_line(example, Conversation((*messages, answer)), f"question:{messages[0].content}")


def _up_to_stop(drawn: list[int], stop_ids: tuple[int, ...]) -> list[int]:
    """What was drawn up to the first stop token; behind it there is padding."""
    end = next((i for i, token in enumerate(drawn) if token in stop_ids), len(drawn) - 1)
    return drawn[: end + 1]
