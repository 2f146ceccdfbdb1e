"""Merging: the merged weights are base + (alpha / r) B A and nothing else, and the gate refuses whatever is not."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from merges import judge_merge
from prepared import Adapter, describe, pairs, render, train
from safetensors.torch import load_file, save_file

from loragate.artifact_work import MergeAdapter
from loragate.child import ignore
from loragate.config import Train
from loragate.engines.merging import merge
from loragate.limits import MergeLimits
from loragate.verdicts import Verdict
from loragate.work import Base, Model

Tensors = dict[str, torch.Tensor]
SETTINGS = Train(r=4, alpha=12, learning_rate=5e-3, epochs=2, batch_size=4, dtype="float32")
ROWS = 4


@dataclass(frozen=True, slots=True)
class Merged:
    """A base, an adapter on it, both merged, and the held-out rows."""

    base: Base
    adapter: Adapter
    folder: Path
    heldout: str

    @property
    def model(self) -> Model:
        return Model(self.base, str(self.adapter.folder), dtype="float32")

    def judged(self, folder: Path, scratch: Path) -> Verdict:
        """What the merge gate says of a folder put in the place of the merged weights."""
        return judge_merge(self.model, folder, Path(self.heldout), scratch, MergeLimits())


@pytest.fixture(scope="module")
def merged(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Merged:
    base, folder = describe(tiny_model), tmp_path_factory.mktemp("merged")
    rows = render(base, folder, pairs(16), pairs(ROWS, start=100))
    adapter = train(base, rows, folder, SETTINGS)
    model = Model(base, str(adapter.folder), dtype="float32")
    merge(MergeAdapter(model, str(folder / "merged")), ignore)
    return Merged(base, adapter, folder / "merged", str(rows / "heldout.jsonl"))


def tensors(folder: Path) -> Tensors:
    (path,) = folder.glob("*.safetensors")
    return dict(load_file(path))


def deltas(adapter: Path) -> Tensors:
    """(alpha / r) B A of every adapted module, under the name of the weight that it changes."""
    weights = tensors(adapter)
    names = {name.removesuffix(".lora_A.weight") for name in weights if name.endswith(".lora_A.weight")}
    assert len(names) == 8
    return {
        f"{name.removeprefix('base_model.model.')}.weight": 12
        / 4
        * weights[f"{name}.lora_B.weight"]
        @ weights[f"{name}.lora_A.weight"]
        for name in names
    }


def test_merged_minus_base_is_the_scaled_product_of_the_adapter(merged: Merged) -> None:
    before, after = tensors(Path(merged.base.path)), tensors(merged.folder)
    for name, delta_OI in deltas(merged.adapter.folder).items():
        assert delta_OI.abs().max() > 1e-3
        assert torch.allclose(after[name] - before[name], delta_OI, rtol=0, atol=1e-6)


def test_only_adapted_tensors_change(merged: Merged) -> None:
    before, after = tensors(Path(merged.base.path)), tensors(merged.folder)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == deltas(merged.adapter.folder).keys()


def test_the_merged_folder_has_the_base_s_tokenizer_template_and_stop_tokens(merged: Merged) -> None:
    again = describe(merged.folder)
    assert (again.stop_ids, again.template) == (merged.base.stop_ids, merged.base.template)
    base, ours = Path(merged.base.path), merged.folder
    assert (ours / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


def test_the_merged_model_passes_its_gate(merged: Merged, tmp_path: Path) -> None:
    verdict = merged.judged(merged.folder, tmp_path)
    assert verdict.status == "pass", verdict.sentence
    found = {finding.rule: finding.value for finding in verdict.findings}
    assert found["top1_agreement"] == 1.0
    assert found["perplexity_ratio"] == pytest.approx(1, abs=1e-5)


def refused(verdict: Verdict) -> set[str]:
    return {finding.rule for finding in verdict.findings if not finding.passed}


def test_an_unmerged_base_passed_off_as_merged_is_refused(merged: Merged, tmp_path: Path) -> None:
    verdict = merged.judged(Path(merged.base.path), tmp_path)
    assert {"kl", "merged_is_not_base", "adapted_weights_changed"} <= refused(verdict)
    assert "8 adapted weights equal the base's, the first is model.layers.0.self_attn.k_proj.weight" in verdict.sentence


def shift_a_norm(weights: Tensors, config: dict[str, object]) -> None:
    weights["model.norm.weight"][0] += 1e-3


def shift_an_embedding(weights: Tensors, config: dict[str, object]) -> None:
    weights["model.embed_tokens.weight"][49_000] += 1  # of a token that no row has


def shift_an_adapted_weight(weights: Tensors, config: dict[str, object]) -> None:
    weights["model.layers.0.self_attn.v_proj.weight"] += 0.5


def untie(weights: Tensors, config: dict[str, object]) -> None:
    config["tie_word_embeddings"] = False
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()


def poison(weights: Tensors, config: dict[str, object]) -> None:
    weights["model.layers.1.self_attn.q_proj.weight"][0, 0] = torch.nan


FORGERIES: dict[str, tuple[Callable[[Tensors, dict[str, object]], None], set[str]]] = {
    "a norm altered": (shift_a_norm, {"other_weights_kept"}),
    "an embedding altered": (shift_an_embedding, {"other_weights_kept"}),
    "an adapted weight altered": (shift_an_adapted_weight, {"kl", "top1_agreement", "perplexity_ratio"}),
    "embeddings untied": (untie, {"same_tensors", "same_ties"}),
    "a NaN": (poison, {"kl", "merged_is_not_base", "top1_agreement", "perplexity_ratio"}),
}


@pytest.mark.parametrize(("forge", "rules"), FORGERIES.values(), ids=FORGERIES)
def test_an_altered_merge_is_refused(
    merged: Merged, tmp_path: Path, forge: Callable[[Tensors, dict[str, object]], None], rules: set[str]
) -> None:
    copy = Path(shutil.copytree(merged.folder, tmp_path / "copy"))
    weights, config = tensors(copy), json.loads((copy / "config.json").read_text(encoding="utf-8"))
    forge(weights, config)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    (copy / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert refused(merged.judged(copy, tmp_path)) == rules


def test_a_merge_with_half_the_scale_is_refused(merged: Merged, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(merged.folder, tmp_path / "copy"))
    weights = tensors(copy)
    for name, delta_OI in deltas(merged.adapter.folder).items():
        weights[name] -= delta_OI / 2
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert refused(merged.judged(copy, tmp_path)) == {"kl", "top1_agreement", "perplexity_ratio"}
