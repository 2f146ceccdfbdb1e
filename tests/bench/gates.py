"""What every gate costs as a share of the training that it guards, on one real run.

    .venv/bin/python tests/bench/gates.py --rows 10000 > tests/bench/results/DATE-gates.md

One `loragate release` of SmolLM2-135M on made-up rows (`rows.py`), a tenth of them held out; the seconds of its steps
are those on the attempt's record. A gate's cost is everything that is done for it alone: measuring, sampling, judging,
probing. What training needs anyway (fetching the base, rendering rows, merging, exporting) is no gate's. All of it, and
training itself, grows with the rows, but for loading models and sampling a fixed number of answers: with more rows a
share becomes smaller, with fewer larger.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent))

from conftest import model_file  # noqa: E402

PARTS: Mapping[str, tuple[str, ...]] = {
    "data": ("near", "facts"),
    "plan": ("plan",),
    "preflight": ("preflight",),
    "training": ("adapter",),
    "quality": (
        *("baseline", "tuned", "paired", "champion", "paired_champion", "paired_slices"),
        *("general", "general_baseline", "general_tuned", "paired_general", "verbatim", "canaries"),
    ),
    "merge": ("merged", "compare", "paired_merged"),
}
"""Steps that are done for a gate alone."""
MOST_SHARE = 0.10
LONGEST = 1024
"""Tokens that every made-up row fits into; cut ones would be refused."""

ANY, NEVER_MET = 1e9, 1e-9
QUANTIZATIONS = ("f16", "q8_0", "q4_k_m")
LIMITS: Mapping[str, Mapping[str, object]] = {
    "preflight": {
        **{f"max_{what}_difference_{dtype}": ANY for what in ("row", "gradient") for dtype in ("float32", "bfloat16")},
        "max_start_difference": ANY,
    },
    "training": {"max_gradient_growth": ANY},
    "quality": {
        **dict.fromkeys(("max_perplexity_ratio", "max_champion_ratio", "max_slice_ratio", "max_general_ratio"), ANY),
        **{f"max_reload_difference_{dtype}": ANY for dtype in ("float32", "bfloat16")},
        "min_stop_share": 0.0,
        "max_loop_share": 1.0,
        "max_verbatim_share": 1.0,
    },
    "merge": {
        "max_perplexity_ratio": ANY,
        "max_candidate_perplexity_ratio": ANY,
        "min_kl_from_base": NEVER_MET,
        **{f"max_kl_{dtype}": ANY for dtype in ("float32", "bfloat16")},
        **{f"min_top1_agreement_{dtype}": 0.0 for dtype in ("float32", "bfloat16")},
    },
    "gguf": {
        **{f"max_perplexity_ratio_{name}": ANY for name in QUANTIZATIONS},
        **{f"max_kl_{name}": ANY for name in QUANTIZATIONS},
        **{f"min_top1_agreement_{name}": 0.0 for name in QUANTIZATIONS},
        "min_perplexity_ratio": NEVER_MET,
        "max_unequal_probe_share": 1.0,
        "min_stop_share": 0.0,
        "max_loop_share": 1.0,
    },
}
"""Limits that no model misses: made-up rows teach nothing, and a refusal would end the road before its last step."""


def parts(seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds of every gate."""
    found = {gate: sum(seconds.get(step, 0.0) for step in steps) for gate, steps in PARTS.items()}
    for step in seconds:
        if step.startswith("probe_"):
            name = step.removeprefix("probe_")
            found[f"gguf_{name}"] = seconds[step] + seconds.get(f"paired_gguf_{name}", 0.0)
    return found


def run(folder: Path, rows: int, epochs: int) -> Mapping[str, float]:
    """Release a model and return the seconds of its steps, whether a gate refused it or not.

    Raises:
        SystemExit: The release failed, or was refused before it was trained.
    """
    command = [sys.executable, str(HERE / "rows.py"), str(folder / "rows.jsonl"), "--rows", str(rows), "--seed", "1"]
    subprocess.run(command, check=True)
    content = {
        "model": "bench",
        "home": "home",
        "base_model": {"source": str(model_file())},
        "data": {"train": ["rows.jsonl"], "heldout": 0.1, "max_tokens": LONGEST},
        "train": {"epochs": epochs},
        "gates": LIMITS,
    }
    (folder / "run.yaml").write_text(json.dumps(content), encoding="utf-8")
    program = Path(sys.executable).parent / "loragate"
    done = subprocess.run(
        [program, "release", "run.yaml", "--json"], cwd=folder, stdout=subprocess.PIPE, text=True, check=False
    )
    if not done.stdout:
        raise SystemExit(f"the release ended with {done.returncode} and without a record; its reason stands above")
    outcome = json.loads(done.stdout)
    sys.stderr.write(f"{outcome['verdict']}: {outcome['message']}\n")
    seconds: Mapping[str, float] = outcome["seconds"]
    if "train" not in seconds:
        raise SystemExit("there is no training to hold the gates against")
    return seconds


def main() -> None:
    """Measure, and write Markdown to stdout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000, help="rows of the data file")
    parser.add_argument("--epochs", type=int, default=3, help="passes over them")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        seconds = run(Path(name), options.rows, options.epochs)
    train = seconds["train"]
    lines = [
        *("# What the gates cost", "", f"Date: {datetime.now(UTC):%Y-%m-%d}."),
        f"Command: `tests/bench/gates.py --rows {options.rows} --epochs {options.epochs}`.",
        f"Machine: {platform.machine()}, Python {platform.python_version()}; training took {train:.0f} s.",
        *("", "| gate | seconds | share of training |", "| --- | --- | --- |"),
    ]
    for gate, spent in parts(seconds).items():
        mark = " **above**" if spent > MOST_SHARE * train else ""
        lines.append(f"| {gate} | {spent:.1f} | {spent / train:.1%}{mark} |")
    sys.stdout.write("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
