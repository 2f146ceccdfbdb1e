"""Merging a model of several files: the most memory that it takes, and whether the result is peft's.

    .venv/bin/python tests/bench/merge.py --layers 30

Makes a random Llama in bfloat16 in files of at most 1 GB and an adapter on all its linear layers; merges it, each time
in a process of its own: streamed, streamed through the de-quantised 4-bit base, and by peft in memory. Memory is the
most that the process had resident, imports included. Wanted: streamed at most 1.3 times the largest file + 1 GB, and
the result peft's within the rounding of bfloat16 (peft rounds the product before it adds it, and then the sum).
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from setting import busy, child, heading, judged, peak_rss, progress, quiet_libraries, table, told

PACKAGES = ("torch", "transformers", "peft", "safetensors", "bitsandbytes")
FACTOR, BEYOND = 1.3, 1e9
WAYS = ("streamed", "dequantised", "peft")
RANK, ALPHA = 16, 32
THREADS = 2


@dataclass(frozen=True, slots=True)
class Place:
    """Where base, adapter, merged models and results are."""

    root: Path

    @property
    def base(self) -> Path:
        return self.root / "base"

    @property
    def adapter(self) -> Path:
        return self.root / "adapter"

    def merged(self, way: str) -> Path:
        return self.root / way

    def result(self, way: str) -> Path:
        return self.root / f"{way}.json"


def main() -> None:
    """Measure, or do one of the children's jobs."""
    options = _options()
    if options.job:
        do(options.job, Place(options.workdir), options.layers)
        return
    told(*heading("Merging a model of several files", PACKAGES))
    with tempfile.TemporaryDirectory(dir=options.workdir, prefix="merge-") as folder:
        place = Place(Path(folder))
        run("make", place, options.layers)
        sizes = [path.stat().st_size for path in sorted(place.base.glob("*.safetensors"))]
        listed = ", ".join(f"{size / 1e9:.2f}" for size in sizes)
        told(f"{len(sizes)} files of {listed} GB; rank {RANK}, all linear layers, {THREADS} threads.")
        told(
            "", *table(("merge", "seconds", "others, cores", "peak, GB"), [measured(way, place, sizes) for way in WAYS])
        )
        told(*equal(place))


def _options() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=30, help="layers of 44 million parameters")
    parser.add_argument("--workdir", type=Path, help="where the temporary folder is made; four times the model's size")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    return parser.parse_args()


def run(job: str, place: Place, layers: int = 0) -> None:
    """Do a job in a process of its own."""
    progress(job)
    arguments = [__file__, "--job", job, "--workdir", str(place.root), "--layers", str(layers)]
    child(arguments, quiet_libraries(THREADS), place.root / f"{job}.log")


def measured(way: str, place: Place, sizes: list[int]) -> list[str]:
    """One line of the table."""
    before, start = busy(), time.perf_counter()
    run(way, place)
    whole = time.perf_counter() - start
    result = json.loads(place.result(way).read_text(encoding="utf-8"))
    limit = (FACTOR * max(sizes) + BEYOND) / 1e9
    peak = result["peak"] / 1e9
    shown = f"{peak:.3f}" if way == "peft" else judged(peak, peak <= limit, f"at most {limit:.2f}")
    return [way, f"{result['seconds']:.1f}", f"{(busy() - before - result['cpu']) / whole:.2f}", shown]


def do(job: str, place: Place, layers: int) -> None:
    """Make the model, or merge it in one way and write down what it took."""
    if job == "make":
        make(place, layers)
        return
    from loragate.artifact_work import MergeAdapter
    from loragate.child import ignore
    from loragate.engines.language_model import load_weights
    from loragate.engines.merging import merge, merged_by_peft
    from loragate.work import Base, Model

    start = time.perf_counter()
    base = Base(str(place.base), "", False, (), 2, False, "", 0, 0)
    model = Model(base, str(place.adapter), quantized=job == "dequantised", dtype="bfloat16")
    if job == "peft":
        merged_by_peft(load_weights(model), model).save_pretrained(place.merged(job), max_shard_size="1GB")
    else:
        assert merge(MergeAdapter(model, str(place.merged(job))), ignore).way == "streamed"
    seconds = time.perf_counter() - start
    result = {"seconds": seconds, "peak": peak_rss(), "cpu": time.process_time()}
    place.result(job).write_text(json.dumps(result), encoding="utf-8")


def make(place: Place, layers: int) -> None:
    """Make a random model and an adapter whose product is about a tenth of the weights."""
    import torch
    from peft import LoraConfig
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=4,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(place.base, max_shard_size="1GB")
    tensors = {}
    for name, layer in model.model.named_modules():
        if isinstance(layer, torch.nn.Linear):
            tensors[f"base_model.model.model.{name}.lora_A.weight"] = torch.randn(RANK, layer.in_features) * 0.02
            tensors[f"base_model.model.model.{name}.lora_B.weight"] = torch.randn(layer.out_features, RANK) * 0.01
    place.adapter.mkdir()
    save_file(tensors, place.adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    settings.save_pretrained(place.adapter)


def equal(place: Place) -> Iterator[str]:
    """Yield how the streamed merge differs from peft's, tensor by tensor."""
    import torch

    from loragate.engines.weight_files import stored_tensors

    ours, theirs, base = (
        stored_tensors(folder) for folder in (place.merged("streamed"), place.merged("peft"), place.base)
    )
    assert ours.keys() == theirs.keys() == base.keys()
    worst, unequal, changed = 0.0, 0, 0
    for name, tensor in ours.items():
        a, b, w = (each.read().float() for each in (tensor, theirs[name], base[name]))
        tolerance = 2.0**-7 * a.abs().maximum(b.abs()) + 2.0**-8 * (a - w).abs() + 1e-8
        worst = max(worst, float(((a - b).abs() / tolerance).max()))
        unequal += int((a != b).sum())
        changed += a.numel() if not torch.equal(a, w) else 0
    yield f"Of {changed:,} merged numbers {unequal:,} differ from peft's, the worst by"
    yield f"{judged(worst, worst <= 1, 'at most 1')} of the tolerance: 2^-7 of the number and 2^-8 of what was added."


if __name__ == "__main__":
    sys.exit(main())
