"""The sums of the perplexity ladder: the same however rows are batched, and those of the plain computation.

Shapes in names: T positions, V vocabulary.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from prepared import describe, pairs, render
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from loragate.child import ignore
from loragate.engines.language_model import by_length, load_weights, padded, read_examples, supervised_logits
from loragate.engines.scoring import measure, score
from loragate.perplexity import Nll
from loragate.rendering import Example
from loragate.rows import Conversation, Message
from loragate.work import Base, MeasureModel, Model

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> Base:
    return describe(tiny_model)


@pytest.fixture(scope="module")
def model(base: Base) -> Any:
    return load_weights(Model(base, dtype="float32"))


@pytest.fixture(scope="module")
def rows(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(base, tmp_path_factory.mktemp("rows"), pairs(2), pairs(13, start=100)) / "heldout.jsonl"


@torch.inference_mode()
def naive(model: Any, example: Example) -> Nll:
    """-sum of ln softmax(logits)[token], one row at a time over the whole vocabulary at every position."""
    ids_T = torch.tensor(example.ids)
    logits_TV = model(input_ids=ids_T[None]).logits[0].double()
    log_p_TV = torch.log_softmax(logits_TV, dim=-1)
    taught = [t for t in range(1, len(example.ids)) if example.mask[t]]
    return Nll(-sum(log_p_TV[t - 1, ids_T[t]].item() for t in taught), len(taught))


def assert_equal(ours: tuple[Nll, ...], theirs: tuple[Nll, ...]) -> None:
    assert [row.tokens for row in ours] == [row.tokens for row in theirs]
    assert [row.nats for row in ours] == pytest.approx([row.nats for row in theirs], rel=1e-5)


@pytest.mark.parametrize("forward_tokens", [1, 100, 200])
def test_sums_of_a_row_do_not_depend_on_batching(model: Any, rows: Path, forward_tokens: int) -> None:
    examples = read_examples(str(rows))
    assert len(list(by_length(examples, forward_tokens))) > len(list(by_length(examples, 100_000))) == 1
    assert_equal(score(model, examples, forward_tokens, ignore), score(model, examples, 100_000, ignore))


def test_sums_of_a_row_do_not_depend_on_the_order_of_rows(model: Any, rows: Path) -> None:
    examples = read_examples(str(rows))
    assert_equal(score(model, examples, 200, ignore)[::-1], score(model, examples[::-1], 200, ignore))


def test_sums_equal_the_plain_computation_over_all_logits(model: Any, rows: Path) -> None:
    examples = read_examples(str(rows))
    assert_equal(score(model, examples, 300, ignore), tuple(naive(model, example) for example in examples))


@torch.inference_mode()
def test_the_output_head_on_supervised_positions_gives_the_same_logits(model: Any, rows: Path) -> None:
    ids_BT, attention_BT, supervised_BT = padded(read_examples(str(rows)))
    some_NV = supervised_logits(model, ids_BT, attention_BT, supervised_BT)
    whole_BTV = model(input_ids=ids_BT, attention_mask=attention_BT).logits
    before_BT = torch.cat([supervised_BT[:, 1:], torch.zeros_like(supervised_BT[:, :1])], dim=1)
    assert torch.allclose(some_NV, whole_BTV[before_BT], rtol=1e-5, atol=1e-6)


def test_a_row_without_supervised_tokens_counts_nothing(model: Any) -> None:
    rows = (Example((5, 6, 7), (), 1, 0, 3), Example((5, 6, 7), ((2, 3),), 1, 1, 3))
    silent, taught = score(model, rows, 100, ignore)
    assert (silent, taught.tokens) == (Nll(0.0, 0), 1)


def test_the_first_token_is_never_counted(model: Any) -> None:
    (row,) = score(model, (Example((5, 6, 7), ((0, 3),), 1, 1, 3),), 100, ignore)
    assert row.tokens == 2


RANDOM = torch.Generator().manual_seed(0)
LENGTHS = (5, 9, 9, 17, 30)
EXAMPLES = tuple(
    Example(
        tuple(torch.randint(3, 97, (length,), generator=RANDOM).tolist()),
        ((length // 2, length),),
        1,
        1,
        length,
    )
    for length in LENGTHS
)
ARCHITECTURES = {
    "soft-capped (Gemma 2)": lambda: Gemma2ForCausalLM(
        Gemma2Config(final_logit_softcapping=0.5, sliding_window=64, **SIZES)
    ),
    "scaled (Cohere)": lambda: CohereForCausalLM(
        CohereConfig(logit_scale=7.0, **{k: v for k, v in SIZES.items() if k != "head_dim"})
    ),
    "divided (Granite)": lambda: GraniteForCausalLM(
        GraniteConfig(logits_scaling=0.1, **{k: v for k, v in SIZES.items() if k != "head_dim"})
    ),
    "untied (Llama)": lambda: LlamaForCausalLM(LlamaConfig(tie_word_embeddings=False, **SIZES)),
}


@pytest.mark.parametrize("make", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_sums_hold_for_models_that_change_their_logits_after_the_head(make: Any) -> None:
    torch.manual_seed(1)
    model = make().eval()
    assert_equal(score(model, EXAMPLES, 40, ignore), tuple(naive(model, example) for example in EXAMPLES))


def asked(base: Base, rows: Path, questions: tuple[str, ...], stop_ids: tuple[int, ...]) -> MeasureModel:
    conversations = tuple(Conversation((Message("user", question),)) for question in questions)
    model = Model(Base(**{f: getattr(base, f) for f in base.__slots__} | {"stop_ids": stop_ids}), dtype="float32")
    return MeasureModel(model, str(rows), conversations, 6, 1000, str(rows.parent), {})


QUESTIONS = ("a", "What is rain, and why does it fall on the sea?", "Who?", *"bcdefgh")


def test_answers_do_not_depend_on_what_is_asked_beside(base: Base, rows: Path) -> None:
    together = measure(asked(base, rows, QUESTIONS, base.stop_ids), ignore)
    alone = [measure(asked(base, rows, (question,), base.stop_ids), ignore).answers[0] for question in QUESTIONS[:3]]
    assert list(together.answers[:3]) == alone
    assert len(together.answers) == len(QUESTIONS)
    assert len(together.rows) == 13


def test_an_answer_says_whether_it_stopped_by_itself(base: Base, rows: Path) -> None:
    every_token = tuple(range(base.vocabulary))
    (stopped,) = measure(asked(base, rows, ("a",), every_token), ignore).answers
    assert (stopped.text, stopped.stopped) == ("", True)
    (endless,) = measure(asked(base, rows, ("a",), ()), ignore).answers
    assert not endless.stopped
