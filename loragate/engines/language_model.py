"""Loading models and tokenizers: the shared ground of every engine that computes with torch.

Shapes in names: B rows, T positions, V vocabulary.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
    # Blocks that grow instead of blocks of all sizes: packs differ in length (own measurement on an H100: scoring took
    # 1.36 GB instead of 1.64 and half the time, a training 4.89 instead of 5.29).
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns at import of a faster kernel that is optional

import httpx2
import torch
import transformers
from huggingface_hub import HfApi, snapshot_download
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

from loragate.child import Progress, Report
from loragate.engines.heads import cross_entropy
from loragate.engines.noise import noise_scale, noisy
from loragate.errors import BaseModelError, first_line
from loragate.rendering import Example, read_rendered
from loragate.rows import TEXT, Message
from loragate.work import Base, FetchBase, Model

transformers.logging.set_verbosity_error()

GENERATION = re.compile(r"\{%-?\s*generation\b")
"""Where a chat template marks what the model itself says."""

AFTER_HEAD = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""Configuration keys of models that change the logits after the output head (Gemma 2, Cohere, Granite)."""


def fetch(request: FetchBase, report: Report) -> Base:
    """Bring a base model to this machine: download a hub id, de-quantise a .gguf file, take a folder as it is.

    Raises:
        BaseModelError: It cannot be found, is no causal language model, or has no chat template.
    """
    report(Progress(0, 1, "model"))
    source, commit = Path(request.source), ""
    try:
        if request.local and source.is_file():
            folder = _dequantise(source, Path(request.folder))
        elif request.local:
            folder = source
        else:
            folder, commit = _download(request)
        base = _describe(folder, commit, request.trust_remote_code)
    except (OSError, ValueError, KeyError, httpx2.HTTPError) as error:
        raise BaseModelError(
            f"base_model.source {request.source}: cannot be loaded as a chat model: {first_line(error)}. "
            "It must be a hub id (org/name) within reach, a folder that transformers loads, or a .gguf file"
        ) from None
    return base


def _download(request: FetchBase) -> tuple[Path, str]:
    """Download a hub model at one commit into the folder."""
    commit = str(HfApi().model_info(request.source, revision=request.revision).sha)
    wanted = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "README.md"]
    wanted += ["*.py"] if request.trust_remote_code else []
    folder = Path(request.folder)
    snapshot_download(request.source, revision=commit, allow_patterns=wanted, local_dir=folder)
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the downloader's notes, with times in them
    return folder, commit


def _dequantise(gguf: Path, folder: Path) -> Path:
    """Turn a GGUF file into a folder of plain 16- or 32-bit weights."""
    model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # The loader marks the model as quantised although its weights are plain again, and then refuses to save it.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
    return folder


def _describe(folder: Path, commit: str, trust_remote_code: bool) -> Base:
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    if not tokenizer.chat_template:
        raise ValueError("it has no chat template, so there is no agreed way to ask it")
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return Base(
        path=str(folder),
        commit=commit,
        trust_remote_code=trust_remote_code,
        stop_ids=_stop_ids(folder, tokenizer),
        end_id=_end_id(tokenizer),
        adds_start=_adds_start(tokenizer),
        template=tokenizer.chat_template,
        vocabulary=model.get_input_embeddings().num_embeddings,
        parameters=sum(p.numel() for p in model.parameters()),
    )


def _end_id(tokenizer: Any) -> int:
    if tokenizer.eos_token_id is None:
        raise ValueError("its tokenizer names no end token, so nothing could teach it to stop")
    return int(tokenizer.eos_token_id)


def _adds_start(tokenizer: Any) -> bool:
    bos = tokenizer.bos_token_id
    return bos is not None and list(tokenizer("a")["input_ids"][:1]) == [bos]


def _stop_ids(folder: Path, tokenizer: Any) -> tuple[int, ...]:
    """Ids that end an answer, for the tokenizer and for generation."""
    ids = {tokenizer.eos_token_id}
    path = folder / "generation_config.json"
    if path.exists():
        eos = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
        ids.update(eos if isinstance(eos, list) else [eos])
    return tuple(sorted(i for i in ids if i is not None))


def device() -> torch.device:
    """The accelerator where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_dtype(wanted: str) -> torch.dtype:
    """The number format that the hardware multiplies fast.

    On a CPU without bfloat16 tiles (AMX), bfloat16 is emulated and many times slower than float32.
    """
    if wanted != "auto":
        return torch.float32 if wanted == "float32" else torch.bfloat16
    if torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.cpu._is_amx_tile_supported()  # noqa: SLF001 - torch has no public word for it
    return torch.bfloat16 if fast else torch.float32


def load_tokenizer(base: Base) -> Any:
    """Load the tokenizer of a base model."""
    return AutoTokenizer.from_pretrained(base.path, trust_remote_code=base.trust_remote_code)


def load_weights(model: Model, path: str | None = None) -> Any:
    """Load a causal language model, without adapter, from its base's path or another one; in evaluation mode."""
    dtype = choose_dtype(model.dtype)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        path or model.base.path,
        dtype=dtype,
        quantization_config=quantization_of(model, dtype) if model.quantized else None,
        trust_remote_code=model.base.trust_remote_code,
        device_map={"": device()} if model.quantized else None,
        attn_implementation="sdpa",
    )
    return (_one_layout(loaded) if model.quantized else loaded.to(device())).eval()


def quantization_of(model: Model, dtype: torch.dtype) -> BitsAndBytesConfig:
    """How bitsandbytes quantises a model's linear layers; arithmetic is in `dtype`."""
    if model.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=model.quantization,
        bnb_4bit_use_double_quant=model.double_quantization,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=torch.uint8,
    )


def _one_layout(model: Any) -> Any:
    """Keep 4-bit weights of a model on a CPU as they were quantised.

    On a CPU with AVX512-BF16, bitsandbytes 0.50 lays them out anew at the first forward pass in evaluation mode, for
    good: what is de-quantised afterwards is wrong, and no gradient passes in training any more.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def with_adapter(weights: Any, model: Model) -> Any:
    """Put a model's adapter on its weights; without one, return them as they are. In evaluation mode."""
    return PeftModel.from_pretrained(weights, model.adapter).eval() if model.adapter else weights


def template_of(tokenizer: Any, tools: str = "") -> Callable[[Sequence[Message], bool], str]:
    """The tokenizer's chat template, given tools as JSON, as a function of messages and generation prompt.

    The template is compiled once; the tokenizer's own function looks it up, and much else, for every conversation.
    """
    offered = json.loads(tools) if tools else None
    compiled = _compile_jinja_template(tokenizer.get_chat_template(tools=offered))
    compiled.globals = dict(compiled.globals)  # it is a chain of maps, slowly copied at every rendering
    given = {**tokenizer.special_tokens_map, "tools": offered, "documents": None}

    def apply(messages: Sequence[Message], prompt: bool) -> str:
        if messages[0].role == TEXT:
            return messages[0].content
        turns = [message.for_template() for message in messages]
        return str(compiled.render(messages=turns, add_generation_prompt=prompt, **given))

    return apply


def marked_answers(tokenizer: Any, messages: Sequence[Message], tools: str = "") -> list[str] | None:
    """What the chat template itself marks as generated, answer by answer; None where it marks nothing."""
    offered = json.loads(tools) if tools else None
    template = tokenizer.get_chat_template(tools=offered)
    if not GENERATION.search(template):
        return None
    rendered: Any = render_jinja_template(
        conversations=[[message.for_template() for message in messages]],
        tools=offered,
        chat_template=template,
        return_assistant_tokens_mask=True,
        **tokenizer.special_tokens_map,
    )
    (text,), (spans,) = rendered
    return [text[start:end] for start, end in spans]


def encoder_of(tokenizer: Any) -> Callable[[Sequence[str]], list[list[int]]]:
    """The tokenizer as a function from texts to their ids that adds nothing and cuts nothing."""
    if not tokenizer.is_fast:
        return lambda texts: [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    fast = tokenizer.backend_tokenizer
    fast.no_truncation()
    fast.no_padding()
    return lambda texts: [encoding.ids for encoding in fast.encode_batch_fast(list(texts), add_special_tokens=False)]


def read_examples(path: str) -> list[Example]:
    """Read rendered rows, each as often as an epoch takes it."""
    with Path(path).open("rb") as file:
        examples = [read_rendered(line)[0] for line in file]
    return [example for example in examples for _ in range(example.copies)]


def by_length(examples: Sequence[Example], forward_tokens: int) -> Iterator[list[int]]:
    """Group row numbers into batches of like length whose padded size stays within `forward_tokens` slots."""
    order = sorted(range(len(examples)), key=lambda i: (len(examples[i].ids), i))
    batch: list[int] = []
    for row in order:
        if batch and (len(batch) + 1) * len(examples[row].ids) > forward_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def padded(examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pad rows on the right to their longest: (ids_BT, attention_BT, supervised_BT).

    `supervised_BT` marks positions whose token is to be predicted; position 0 never is.
    """
    width = max(len(example.ids) for example in examples)
    ids_BT = torch.zeros(len(examples), width, dtype=torch.long)
    attention_BT = torch.zeros_like(ids_BT)
    supervised_BT = torch.zeros(len(examples), width, dtype=torch.bool)
    for row, example in enumerate(examples):
        length = len(example.ids)
        ids_BT[row, :length] = torch.tensor(example.ids)
        attention_BT[row, :length] = 1
        supervised_BT[row, :length] = torch.tensor(example.mask)
    supervised_BT[:, 0] = False
    where = device()
    return ids_BT.to(where), attention_BT.to(where), supervised_BT.to(where)


def token_nats(model: Any, batch: Sequence[Example], noise: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log-likelihood of each supervised token: (nats_N, row_N), N supervised tokens of the batch.

    The output head is applied to the positions that predict a supervised token and to no other, in float32 softmax.

    Args:
        noise: NEFTune's alpha, while the model trains.
    """
    ids_BT, attention_BT, supervised_BT = padded(batch)
    logits_NV = supervised_logits(model, ids_BT, attention_BT, supervised_BT, noise)
    return cross_entropy(logits_NV, ids_BT[supervised_BT]), supervised_BT.nonzero()[:, 0]


def inner_model(model: Any) -> Any:
    """The model without what peft has put around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def supervised_logits(
    model: Any, ids_BT: torch.Tensor, attention_BT: torch.Tensor, supervised_BT: torch.Tensor, noise: float = 0.0
) -> torch.Tensor:
    """Logits at the positions before each supervised token: logits_NV."""
    inner = inner_model(model)
    predicts_BT = torch.roll(supervised_BT, -1, dims=1)
    asked = {"input_ids": ids_BT}
    if noise and model.training:
        lengths_BT = attention_BT.sum(dim=1, keepdim=True).expand_as(ids_BT)
        asked = {"inputs_embeds": noisy(inner, ids_BT, noise_scale(inner, lengths_BT, noise))}
    asked |= {"attention_mask": attention_BT}
    if any(getattr(inner.config, name, None) for name in AFTER_HEAD):
        whole_BTV = inner(**asked, use_cache=False).logits
        return whole_BTV[predicts_BT]
    hidden_BTD = inner.base_model(**asked, use_cache=False).last_hidden_state
    logits_NV: torch.Tensor = inner.get_output_embeddings()(hidden_BTD[predicts_BT])
    return logits_NV


def log_probabilities(model: Any, batch: Sequence[Example]) -> torch.Tensor:
    """Ln p over the vocabulary at each supervised position: [N, V], float32."""
    return torch.log_softmax(supervised_logits(model, *padded(batch)).float(), dim=-1)
