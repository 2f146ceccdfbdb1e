"""GGUF files, really converted, quantised and run by llama.cpp: the right file passes its gate, no other does."""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from prepared import describe, pairs, render, train

from checks import gguf_file as gate
from loragate import child
from loragate.artifact_work import ExportAdapter, ExportGguf, GgufEvidence, ProbeGguf
from loragate.comparison import ComparePaired
from loragate.config import Train
from loragate.engines import paired
from loragate.engines.language_model import by_length, load_weights, read_examples, token_nats
from loragate.engines.scoring import measure
from loragate.errors import StepError
from loragate.ladder import Hop
from loragate.limits import GgufLimits
from loragate.perplexity import Nll, total
from loragate.rendering import read_rendered, rendered_line
from loragate.rows import Conversation, Message
from loragate.verdicts import Verdict
from loragate.work import Base, MeasureModel, Model

QUANTIZATIONS = ("f16", "q8_0", "q4_k_m")
QUESTIONS = tuple(
    Conversation((Message("user", question),)) for question in ("What is thing 3?", "What is thing 4 of the many?")
)
LIMITS = GgufLimits(min_stop_share=1.0)
HELDOUT = 48


@dataclass(frozen=True, slots=True)
class Taught:
    """A tiny model that has learnt to answer and to stop, and the rows it is judged by."""

    base: Base
    rows: Path
    sums: tuple[Nll, ...]
    folder: Path


def teach(model: Any, rows: Path) -> Iterator[float]:
    """Train every weight, so that the model is far from every other one; yield the losses."""
    examples = read_examples(f"{rows}/train.jsonl")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(100):
        (batch,) = by_length(examples, 100_000)
        loss = token_nats(model, [examples[i] for i in batch])[0].mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()


@pytest.fixture(scope="module")
def taught(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Taught:
    folder = tmp_path_factory.mktemp("taught")
    yes = [pair | {"completion": "Yes, it is."} for pair in pairs(HELDOUT)]
    heldout = [pair | ({"completion": "Yes, it was."} if number % 6 == 5 else {}) for number, pair in enumerate(yes)]
    rows = render(describe(tiny_model), folder, yes[:6], heldout)
    model = load_weights(Model(describe(tiny_model), dtype="float32"))
    torch.manual_seed(0)
    assert any(loss < 0.05 for loss in teach(model.train(), rows))  # teaching ends with the first that is
    shutil.copytree(tiny_model, folder / "model")
    model.save_pretrained(folder / "model")
    base = describe(folder / "model")
    (folder / "measured").mkdir()
    asked = MeasureModel(
        Model(base, dtype="float32"), f"{rows}/heldout.jsonl", (), 1, 1000, str(folder / "measured"), {}
    )
    return Taught(base, rows, measure(asked, child.ignore).rows, folder / "measured")


def export(model: str, folder: Path, quantizations: tuple[str, ...] = QUANTIZATIONS) -> dict[str, Path]:
    folder.mkdir()
    request = ExportGguf(model, quantizations, str(folder), "my-model")
    names = child.call("loragate.engines.llama:export", request, log=folder / "export.log", fresh=True)
    assert isinstance(names, dict)
    return {quantization: folder / name for quantization, name in names.items()}


def probe(gguf: Path, taught: Taught, answer_tokens: int = 24, adapter: str = "") -> GgufEvidence:
    files = (str(taught.rows / "heldout.jsonl"), str(taught.rows / "probes.jsonl"))
    folder = Path(tempfile.mkdtemp(dir=gguf.parent))
    where = str(folder), {"merged": str(taught.folder)}
    request = ProbeGguf(str(gguf), *files, QUESTIONS, answer_tokens, taught.base.stop_ids, *where, adapter)
    evidence = child.call("loragate.engines.llama:probe", request, log=gguf.with_suffix(".log"), fresh=True)
    assert isinstance(evidence, GgufEvidence)
    return evidence


@pytest.fixture(scope="module")
def files(taught: Taught, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return export(taught.base.path, tmp_path_factory.mktemp("files") / "gguf")


@pytest.fixture(scope="module")
def evidence(taught: Taught, files: dict[str, Path]) -> dict[str, GgufEvidence]:
    return {name: probe(path, taught) for name, path in files.items()}


def judged(name: str, evidence: GgufEvidence, taught: Taught, limits: GgufLimits = LIMITS) -> Verdict:
    return judged_from(name, evidence, taught, taught.sums, limits)


def judged_from(
    name: str, evidence: GgufEvidence, taught: Taught, before: tuple[Nll, ...], limits: GgufLimits = LIMITS
) -> Verdict:
    """What the gate says of a file made from a model with these sums."""
    limit = getattr(limits, f"max_perplexity_ratio_{name}")
    compared = paired.compare(ComparePaired(before, evidence.rows, limit, 0.05, 1000, 0), child.ignore)
    hop = Hop("merged", f"gguf_{name}", compared, evidence.divergences["merged"])
    return gate.judge(name, evidence, hop, taught.base, limits, alpha=0.05)


def refused(verdict: Verdict) -> set[str]:
    return {finding.rule for finding in verdict.findings if not finding.passed}


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_files_are_called_what_the_model_is_called(files: dict[str, Path], quantization: str) -> None:
    assert GGUFReader(files[quantization]).fields["general.name"].contents() == "my-model"


def test_there_is_one_file_for_each_quantisation_and_nothing_else(files: dict[str, Path]) -> None:
    assert files.keys() == set(QUANTIZATIONS)
    folder = files["f16"].parent
    assert {path.name for path in folder.iterdir() if path.suffix != ".log"} == {path.name for path in files.values()}
    sizes = [files[name].stat().st_size for name in QUANTIZATIONS]
    assert sizes == sorted(sizes, reverse=True)
    assert all(path.read_bytes()[:4] == b"GGUF" for path in files.values())


def test_f16_is_left_out_where_it_is_not_asked_for(taught: Taught, tmp_path: Path) -> None:
    made = export(taught.base.path, tmp_path / "gguf", ("q8_0",))
    assert made.keys() == {"q8_0"}
    assert [path.name for path in (tmp_path / "gguf").glob("*.gguf")] == ["model-q8_0.gguf"]


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_the_right_file_passes_its_gate(taught: Taught, evidence: dict[str, GgufEvidence], name: str) -> None:
    verdict = judged(name, evidence[name], taught)
    assert verdict.status == "pass", verdict.sentence


@pytest.mark.parametrize("name", ["f16", "q8_0"])
def test_sums_of_each_row_are_those_of_transformers(
    taught: Taught, evidence: dict[str, GgufEvidence], name: str
) -> None:
    ours, theirs = evidence[name].rows, taught.sums
    assert [row.tokens for row in ours] == [row.tokens for row in theirs]
    assert total(ours).nats == pytest.approx(total(theirs).nats, rel=0.01)
    assert [row.nats for row in ours] == pytest.approx([row.nats for row in theirs], rel=0.05, abs=0.01)


def test_answers_end_with_the_stop_token_and_say_what_was_taught(evidence: dict[str, GgufEvidence]) -> None:
    first = evidence["f16"].answers[0]
    assert (first.text, first.stopped) == ("Yes, it is.", True)


def test_an_answer_cut_short_has_not_stopped(taught: Taught, files: dict[str, Path]) -> None:
    cut = probe(files["f16"], taught, answer_tokens=3)
    assert [answer.stopped for answer in cut.answers] == [False, False]
    assert refused(judged("f16", cut, taught)) == {"stop_share"}


def test_the_file_s_tokens_are_those_of_training(taught: Taught, evidence: dict[str, GgufEvidence]) -> None:
    found = evidence["f16"]
    assert (found.row_texts, found.probes) == (2 * HELDOUT, 16)
    assert (found.unequal_row_texts, found.unequal_prompts) == ((), 0)
    assert (found.vocabulary, found.stop_id) == (taught.base.vocabulary, taught.base.stop_ids[-1])


def test_a_file_of_a_different_model_put_in_place_is_refused(
    tiny_model: Path, taught: Taught, files: dict[str, Path], tmp_path: Path
) -> None:
    other = export(str(tiny_model), tmp_path / "other", ("f16",))["f16"]
    in_place = tmp_path / files["f16"].name
    shutil.copy(other, in_place)
    verdict = judged("f16", probe(in_place, taught), taught)
    assert refused(verdict) == {"perplexity_ratio", "kl", "top1_agreement", "stop_share"}


def test_a_file_better_than_the_merged_model_is_refused(taught: Taught, evidence: dict[str, GgufEvidence]) -> None:
    worse = tuple(Nll(2 * row.nats + 1e2, row.tokens) for row in taught.sums)
    verdict = judged_from("f16", evidence["f16"], taught, worse)
    assert refused(verdict) == {"not_another_model"}


def test_the_same_weights_with_another_chat_template_are_refused(taught: Taught, tmp_path: Path) -> None:
    shutil.copytree(taught.base.path, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(
        taught.base.template.replace("named SmolLM", "named Other"), encoding="utf-8"
    )
    other = export(str(tmp_path / "model"), tmp_path / "gguf", ("f16",))["f16"]
    found = probe(other, taught)
    assert {"template_equal", "prompts_equal"} <= refused(judged("f16", found, taught))
    assert found.unequal_prompts == HELDOUT
    assert total(found.rows).nats == pytest.approx(total(taught.sums).nats, rel=0.01)  # the weights are the same


def test_the_same_weights_with_another_stop_token_are_refused(
    taught: Taught, evidence: dict[str, GgufEvidence]
) -> None:
    elsewhere = replace(taught, base=replace(taught.base, stop_ids=(0,)))
    assert refused(judged("f16", evidence["f16"], elsewhere)) == {"stop_token_known"}


@pytest.mark.parametrize("keep", [0, 3, 1000, 2_000_000], ids=["empty", "magic cut", "header cut", "weights cut"])
def test_a_file_cut_short_is_a_sentence_and_no_crash(
    taught: Taught, files: dict[str, Path], tmp_path: Path, keep: int
) -> None:
    cut = tmp_path / "model-f16.gguf"
    cut.write_bytes(files["f16"].read_bytes()[:keep])
    with pytest.raises(StepError, match=r"^llama\.cpp cannot load .*model-f16\.gguf: [^\n]+$"):
        probe(cut, taught)


def test_a_folder_that_is_no_model_is_a_sentence_with_its_log(tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(StepError, match=r"ended with 1: .*config\.json.*its output is in .*model-f16\.log$"):
        export(str(tmp_path / "nothing"), tmp_path / "gguf", ("f16",))


def test_a_taught_stop_token_that_llama_cpp_does_not_end_at_is_refused(
    taught: Taught, files: dict[str, Path], tmp_path: Path
) -> None:
    rows = tmp_path / "rows"
    shutil.copytree(taught.rows, rows)
    lines = (taught.rows / "heldout.jsonl").read_bytes().splitlines()
    example, conversation, place = read_rendered(lines[0])
    ((start, end),) = example.spans
    shorter = replace(example, spans=((start, end - 1),))
    (rows / "heldout.jsonl").write_bytes(rendered_line(shorter, conversation, place))
    last = example.ids[end - 2]
    other = replace(taught, rows=rows, base=replace(taught.base, stop_ids=(*taught.base.stop_ids, last)))
    found = probe(files["f16"], other)
    assert (found.taught_stops, found.unknown_stops) == ((last,), (last,))
    assert "taught_stops_end_answers" in refused(judged("f16", found, other))
    assert probe(files["f16"], taught).unknown_stops == ()


@dataclass(frozen=True, slots=True)
class Adapted:
    """An adapter, base and adapter as transformers score them, and the two files that llama.cpp is to score."""

    sums: Taught
    base: Path
    own: Path


def export_adapter(adapter: Path, base: Path, to: Path) -> Path:
    to.mkdir()
    request = ExportAdapter(str(adapter), str(base), str(to / "adapter-f16.gguf"))
    name = child.call("loragate.engines.llama:export_adapter", request, log=to / "export.log", fresh=True)
    assert [path.name for path in to.iterdir() if path.suffix != ".log"] == [name]
    return to / str(name)


def scored(base: Base, rows: Path, adapter: Path, folder: Path) -> Taught:
    folder.mkdir()
    model = Model(base, str(adapter), dtype="float32")
    found = measure(MeasureModel(model, f"{rows}/heldout.jsonl", (), 1, 1000, str(folder), {}), child.ignore)
    return Taught(base, rows, found.rows, folder)


@pytest.fixture(scope="module", params=[{"rank_pattern": {"q_proj": 2}}, {"rslora": True}], ids=["ranks", "rslora"])
def adapted(
    taught: Taught, request: pytest.FixtureRequest, files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Adapted:
    """An adapter that llama.cpp has to scale by something else than its alpha / r; `files` are those of its base."""
    folder = tmp_path_factory.mktemp("adapted")
    moved = [pair | {"completion": "No, it never was."} for pair in pairs(16)]
    rows = render(taught.base, folder, moved, moved)
    settings = Train(r=8, alpha=16, learning_rate=1e-2, batch_size=4, dtype="float32", **request.param)
    adapter = train(taught.base, rows, folder, settings).folder
    own = export_adapter(adapter, Path(taught.base.path), folder / "gguf")
    return Adapted(scored(taught.base, rows, adapter, folder / "measured"), files["f16"], own)


def test_an_adapter_s_own_file_is_on_its_base_what_was_trained(adapted: Adapted) -> None:
    found = probe(adapted.base, adapted.sums, adapter=str(adapted.own))
    verdict = judged("adapter", found, adapted.sums)
    assert verdict.status == "pass", verdict.sentence
    assert found.size_bytes == adapted.own.stat().st_size < adapted.base.stat().st_size / 10
    assert total(found.rows).nats == pytest.approx(total(adapted.sums.sums).nats, rel=0.01)


def test_the_base_without_its_adapter_is_refused_in_its_place(adapted: Adapted) -> None:
    verdict = judged("adapter", probe(adapted.base, adapted.sums), adapted.sums)
    assert {"perplexity_ratio", "kl", "top1_agreement"} <= refused(verdict)


def test_an_adapter_that_is_no_adapter_is_a_sentence(taught: Taught, files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "adapter.gguf").write_bytes(b"GGUF")
    with pytest.raises(StepError, match=r"^llama\.cpp cannot load .*adapter\.gguf: [^\n]+$"):
        probe(files["q8_0"], taught, adapter=str(tmp_path / "adapter.gguf"))
