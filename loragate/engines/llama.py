"""GGUF files through llama.cpp: made by its own converter, quantised, loaded, scored and talked to.

The converter is the one of the very source that the installed llama-cpp-python was built from; set-up unpacks it into
the environment and pins its digest.
"""

import ctypes
import functools
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from loragate.artifact_work import ExportAdapter, ExportGguf, GgufEvidence, ProbeGguf
from loragate.child import Progress, Report, run_tool
from loragate.engines.predictions import Gathered, likeliest, parts
from loragate.errors import StepError
from loragate.ladder import F16, compared_rows, gguf_file
from loragate.perplexity import Nll
from loragate.rendering import Example, read_rendered
from loragate.rows import Conversation
from loragate.store import copy_linked, write_atomically
from loragate.work import Answer

CONVERTER = Path(sys.prefix) / "share" / "loragate" / "llama.cpp"
CONVERT_MODEL, CONVERT_ADAPTER = "convert_hf_to_gguf.py", "convert_lora_to_gguf.py"
ADAPTER_CONFIG = "adapter_config.json"
QUANTIZATIONS = {
    F16: llama_cpp.LLAMA_FTYPE_MOSTLY_F16,
    "q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "q4_k_m": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M,
}


def export(request: ExportGguf, report: Report) -> dict[str, str]:
    """Write one GGUF file a quantisation and return their names; f16 is the source of the others.

    Raises:
        StepError: The converter or the quantiser failed.
    """
    folder, names = Path(request.folder), {}
    f16 = folder / gguf_file(F16)
    _convert(request.merged, f16, CONVERT_MODEL, *([f"--model-name={request.name}"] if request.name else []))
    report(Progress(1, len(request.quantizations) + 1, "files"))
    for done, quantization in enumerate(request.quantizations, start=2):
        path = folder / gguf_file(quantization)
        if quantization != F16:
            quantise(f16, path, QUANTIZATIONS[quantization])
        names[quantization] = path.name
        report(Progress(done, len(request.quantizations) + 1, "files"))
    if F16 not in request.quantizations:
        f16.unlink()
    return names


def export_adapter(request: ExportAdapter, report: Report) -> str:
    """Write an adapter as an f16 GGUF file of its own and return the file's name.

    llama.cpp scales by the file's one alpha / r (src/llama-adapter.h, get_scale); for rsLoRA's alpha / sqrt(r) the file
    gets the alpha that makes the same of it.

    Raises:
        StepError: The converter failed; it takes no adapter of embeddings or of an output head that is tied to them.
    """
    to = Path(request.file)
    source = to.with_suffix(".adapter")
    copy_linked(request.adapter, source)
    settings = json.loads((source / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    if settings["use_rslora"]:
        settings["lora_alpha"] *= math.sqrt(settings["r"])
        write_atomically(source / ADAPTER_CONFIG, json.dumps(settings))
    _convert(str(source), to, CONVERT_ADAPTER, "--base", request.base)
    shutil.rmtree(source)
    report(Progress(1, 1, "files"))
    return to.name


def _convert(source: str, to: Path, program: str, *more: str) -> None:
    script = CONVERTER / program
    if not script.exists():
        raise StepError(f"the GGUF converter is not at {script}; `make setup` puts it there")
    log = to.with_suffix(".log")
    command = [sys.executable, str(script), source, "--outfile", str(to), "--outtype", "f16", *more]
    run_tool(command, log=log, environment={"PYTHONPATH": str(CONVERTER / "gguf-py")})
    log.unlink()


def quantise(source: Path, to: Path, kind: int, *, again: bool = False) -> None:
    """Write a file in another number format; `again` allows a source that is quantised itself.

    Raises:
        StepError: llama.cpp did not.
    """
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.allow_requantize = again
    settings.ftype = kind
    failed = llama_cpp.llama_model_quantize(str(source).encode(), str(to).encode(), ctypes.byref(settings))
    if failed or not to.exists():
        raise StepError(f"llama.cpp could not quantise {source.name} to {to.name} (code {failed})")


def probe(request: ProbeGguf, report: Report) -> GgufEvidence:
    """Load a GGUF file and gather what the gate judges.

    Raises:
        StepError: llama.cpp cannot load it.
    """
    with Path(request.examples).open("rb") as lines:
        rows = [read_rendered(line)[:2] for line in lines]
    examples = [example for example, _ in rows]
    longest = max([len(example.ids) for example in examples] + [256 + request.answer_tokens])
    started = time.monotonic()
    llm = _load(request.gguf, longest + 8, request.adapter)
    load_seconds = time.monotonic() - started
    gathered = Gathered(request.folder, request.against)
    sums = tuple(_score(llm, examples, gathered, report))
    answers, tokens_per_second = _answers(llm, request, report)
    probes = _read_lines(request.probes)
    unequal = [p for p in probes if _tokens(llm, p["text"]) != p["ids"]]
    template = llm.metadata.get("tokenizer.chat_template", "")
    formatter = functools.cache(functools.partial(_formatter, llm, template))
    prompts = [(_rendered(formatter, conversation), example) for example, conversation in rows]
    return GgufEvidence(
        rows=sums,
        row_texts=sum(p["of_a_row"] for p in probes),
        unequal_row_texts=tuple(p["text"] for p in unequal if p["of_a_row"]),
        probes=sum(not p["of_a_row"] for p in probes),
        unequal_probes=tuple(p["text"] for p in unequal if not p["of_a_row"]),
        template=template,
        unequal_prompts=sum(not _renders_equal(llm, *each) for each in prompts),
        taught_stops=tuple(sorted(taught := _taught_stops(examples, request.stop_ids))),
        unknown_stops=tuple(stop for stop in sorted(taught) if not _ends_generation(llm, stop)),
        vocabulary=llm.n_vocab(),
        stop_id=llm.token_eos(),
        adds_start=_adds_start(llm),
        unequal_begins=sum(not _begins_equal(llm, *each) for each in prompts),
        quantization=_quantization(llm),
        answers=answers,
        divergences=gathered.finish(),
        size_bytes=Path(request.adapter or request.gguf).stat().st_size,
        load_seconds=load_seconds,
        tokens_per_second=tokens_per_second,
    )


def _load(gguf: str, context: int, adapter: str = "") -> llama_cpp.Llama:
    try:
        llm = llama_cpp.Llama(gguf, n_ctx=context, n_batch=context, verbose=False, seed=0)
    except ValueError as error:
        raise StepError(f"llama.cpp cannot load {gguf}: {error}") from None
    if adapter:
        _put_adapter(llm, adapter)
    return llm


def _put_adapter(llm: llama_cpp.Llama, adapter: str) -> None:
    """Put an adapter on a model, which frees it with itself.

    The binding's own `lora_path` takes a file that cannot be read for an adapter: it looks for None where a null
    pointer comes back.
    """
    loaded = llama_cpp.llama_adapter_lora_init(llm.model, adapter.encode())
    one = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(loaded)
    if not loaded or llama_cpp.llama_set_adapters_lora(llm.ctx, one, 1, (ctypes.c_float * 1)(1.0)):
        raise StepError(f"llama.cpp cannot load {adapter}: it is no adapter of this model")


def _quantization(llm: llama_cpp.Llama) -> str:
    """The file's own account of its number format, empty where that is none that is exported here."""
    kind = llm.metadata.get("general.file_type", "")
    return next((name for name, number in QUANTIZATIONS.items() if str(number) == kind), "")


def _read_lines(path: str) -> list[dict[str, Any]]:
    with Path(path).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _tokens(llm: llama_cpp.Llama, text: str) -> list[int]:
    return llm.tokenize(text.encode(), add_bos=False, special=True)


def _taught_stops(examples: Sequence[Example], stop_ids: Sequence[int]) -> set[int]:
    """Tokens by which answers of these rows are taught to end."""
    return {e.ids[end - 1] for e in examples for _, end in e.spans if e.ids[end - 1] in stop_ids}


def _ends_generation(llm: llama_cpp.Llama, token: int) -> bool:
    vocabulary = llama_cpp.llama_model_get_vocab(llm.model)
    return bool(llama_cpp.llama_vocab_is_eog(vocabulary, token))


def _renders_equal(llm: llama_cpp.Llama, prompt: str, example: Example) -> bool:
    """Whether the file's own template and vocabulary turn a row's question into the ids that training used."""
    ids = _tokens(llm, prompt)
    return tuple(ids[: len(example.ids)]) == example.ids[: len(ids)]


def _begins_equal(llm: llama_cpp.Llama, prompt: str, example: Example) -> bool:
    """Whether a question begins as in training where the runtime adds what the file says: the token of a beginning.

    llama.cpp's own server takes that token off a rendered question before it adds it, so there is one of it or none.
    """
    if _adds_start(llm):
        prompt = prompt.removeprefix(llm.detokenize([llm.token_bos()], special=True).decode())
    return tuple(llm.tokenize(prompt.encode(), add_bos=True, special=True)[:1]) == example.ids[:1]


def _adds_start(llm: llama_cpp.Llama) -> bool:
    return bool(llama_cpp.llama_vocab_get_add_bos(llama_cpp.llama_model_get_vocab(llm.model)))


def _rendered(formatter: Callable[[], Jinja2ChatFormatter], conversation: Conversation) -> str:
    """A row's question by the file's own template; plain text as it is."""
    if conversation.text is not None:
        return conversation.text
    turns, tools = _asked(conversation.question)
    return str(formatter()(messages=turns, tools=tools).prompt)


def _formatter(llm: llama_cpp.Llama, template: str) -> Jinja2ChatFormatter:
    eos, bos = llm.token_eos(), llm.token_bos()
    text = llm.detokenize([eos], special=True).decode(), llm.detokenize([bos], special=True).decode()
    return Jinja2ChatFormatter(template=template, eos_token=text[0], bos_token=text[1], stop_token_ids=[eos])


def _score(llm: llama_cpp.Llama, examples: Sequence[Example], gathered: Gathered, report: Report) -> Iterator[Nll]:
    """Sum negative log-likelihood over each row's supervised tokens; what all rows begin with is decoded once.

    Predictions of the first rows are kept on the way.
    """
    shared, compared = _shared_prefix(examples), compared_rows(examples)
    memory = llama_cpp.llama_get_memory(llm.ctx)
    llama_cpp.llama_memory_clear(memory, True)
    if shared:
        _decode(llm, examples[0].ids[:shared], 0, ())
    for done, example in enumerate(examples, start=1):
        ids, mask = example.ids, example.mask
        asked = [position for position in range(shared, len(ids) - 1) if mask[position + 1]]
        llama_cpp.llama_memory_seq_rm(memory, 0, shared, -1)
        _decode(llm, ids[shared:], shared, asked)
        nats = 0.0
        for position in asked:
            log_p_V = _log_p(llm, position - shared)
            nats -= float(log_p_V[ids[position + 1]])
            if done <= compared:
                gathered.add(likeliest(log_p_V[None]), functools.partial(parts, log_p_V[None]))
        yield Nll(nats, len(asked))
        if done % 10 == 0 or done == len(examples):
            report(Progress(done, len(examples), "rows"))


def _shared_prefix(examples: Sequence[Example]) -> int:
    """Tokens that all rows begin with and none is asked about, one less so that each row has a token of its own."""
    shortest = min((len(example.ids) for example in examples), default=1)
    asked_first = min((example.spans[0][0] for example in examples if example.spans), default=shortest)
    for position in range(shortest - 1):
        if position >= asked_first or len({example.ids[position] for example in examples}) > 1:
            return max(0, position - 1)
    return max(0, shortest - 2)


def _decode(llm: llama_cpp.Llama, ids: Sequence[int], start: int, asked: Sequence[int]) -> None:
    """Decode tokens at positions from `start` on, keeping logits at the `asked` positions alone.

    Raises:
        StepError: llama.cpp refuses the batch.
    """
    wanted = set(asked)
    batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
    try:
        batch.n_tokens = len(ids)
        for offset, token in enumerate(ids):
            batch.token[offset], batch.pos[offset] = token, start + offset
            batch.n_seq_id[offset], batch.seq_id[offset][0] = 1, 0
            batch.logits[offset] = start + offset in wanted
        if llama_cpp.llama_decode(llm.ctx, batch):
            raise StepError("llama.cpp could not decode a row")
    finally:
        llama_cpp.llama_batch_free(batch)


def _log_p(llm: llama_cpp.Llama, position: int) -> np.ndarray:
    """The prediction of a position: ln p = logits - ln sum exp(logits), in float64."""
    pointer = llama_cpp.llama_get_logits_ith(llm.ctx, position)
    logits_V = np.ctypeslib.as_array(pointer, shape=(llm.n_vocab(),)).astype(np.float64)
    highest = logits_V.max()
    return logits_V - (highest + np.log(np.exp(logits_V - highest).sum()))


def _answers(llm: llama_cpp.Llama, request: ProbeGguf, report: Report) -> tuple[tuple[Answer, ...], float]:
    """Answer the questions, and say how many tokens a second that gave; NaN where nothing was answered."""
    answers: list[Answer] = []
    said, started = 0, time.monotonic()
    for question in request.questions:
        answer, tokens = _answer(llm, question, request.answer_tokens)
        answers.append(answer)
        said += tokens
        report(Progress(len(answers), len(request.questions), "answers"))
    seconds = time.monotonic() - started
    return tuple(answers), said / seconds if said and seconds else math.nan


def _asked(question: Conversation) -> tuple[Any, Any]:
    """Turns and tools as the chat template takes them."""
    turns = [message.for_template() for message in question.messages]
    return turns, json.loads(question.tools) if question.tools else None


def _answer(llm: llama_cpp.Llama, question: Conversation, answer_tokens: int) -> tuple[Answer, int]:
    """Ask through the file's own chat template, or go on with plain text; greedily. The answer's tokens come, too."""
    reply: Any
    if question.text is not None:
        reply = llm.create_completion(question.text, temperature=0.0, max_tokens=answer_tokens)
        said = reply["choices"][0]["text"]
    else:
        turns, tools = _asked(question)
        reply = llm.create_chat_completion(turns, tools=tools, temperature=0.0, max_tokens=answer_tokens)
        said = reply["choices"][0]["message"]["content"]
    answer = Answer((said or "").strip(), reply["choices"][0]["finish_reason"] == "stop")
    return answer, int(reply["usage"]["completion_tokens"])
