"""A small model and rows that it can learn, for tests that need a CUDA device."""

import random
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from loragate.rendering import Example, rendered_line
from loragate.rows import Conversation
from loragate.work import Base

VOCABULARY = 512
WORDS = 16
STOP = 1
"""What ends an answer."""
HEADING = "| shape and method | tokens a step | tokens/s | estimated GB | measured GB | estimate / measured |"
TABLE = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def table(pytestconfig: pytest.Config) -> list[str]:
    """Lines of the table that is printed at the end."""
    return pytestconfig.stash.setdefault(TABLE, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table."""
    if lines := config.stash.get(TABLE, []):
        versions = f"{torch.cuda.get_device_name()}, torch {torch.__version__}, transformers {transformers.__version__}"
        terminalreporter.write_line("\n".join(["", HEADING, "|---" * 6 + "|", *lines, "", versions]))


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A random Llama of four layers with a word-level tokenizer."""
    assert torch.cuda.is_available(), "these tests need a CUDA device; `make test` is for machines without one"
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))  # noqa: S106
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token=f"w{STOP}").save_pretrained(folder)
    return Base(str(folder), "", False, (STOP,), STOP, False, "", VOCABULARY, 0)


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows that use few of the words: easy to learn, impossible to know beforehand."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = []
    for number in range(64):
        length = random.Random(number).randint(16, 48)
        ids = [*((number + 7 * position) % WORDS for position in range(length - 1)), STOP]
        example = Example(tuple(ids), ((4, length),), turns=1, stopped_turns=1, rendered_tokens=length)
        lines.append(rendered_line(example, Conversation(()), f"rows:{number}"))
    path.write_bytes(b"".join(lines))
    return path
