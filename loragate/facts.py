"""What the documents of a release are filled from: its record, its run file and its files, and nothing else.

Paths, addresses and keys of the machine are no facts about a release: what a property here gives has none of them.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from pydantic import JsonValue

from loragate.card import stated
from loragate.comparison import Comparison
from loragate.config import Config, plain
from loragate.record import GENERAL, AttemptRecord
from loragate.verdicts import Finding

HELD_OUT, GENERAL_ROWS = "held-out rows", "general rows"
TRAINED_BY = ("accelerate", "bitsandbytes", "llama-cpp-python", "peft", "tokenizers", "torch", "transformers")
"""Packages whose version decides about the weights or about how they are judged."""
MEASURES = ("perplexity_ratio", "general_ratio", "champion_ratio", "kl", "top1_agreement")
"""Rules whose value says how good the model is; that of others counts what is wrong, and reads badly as a result."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One number that was measured of the model.

    Attributes:
        name: Of what it is about: a rung of the ladder, a comparison, a task, or a gate and its rule.
        kind: perplexity, perplexity_ratio, a task's metric, or the rule.
        dataset: The rows or the task that it was measured on; of what a gate judged, the gate.
        low, high: Interval that it lies in, where there is one that is finite.
    """

    name: str
    kind: str
    value: float
    dataset: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a release.

    Attributes:
        release: Its digest.
        rollback: Release that was champion when this one was made; empty where there was none.
        files: Digests of the files that ship, by their names in the bundle.
    """

    record: AttemptRecord
    config: Config
    release: str
    rollback: str
    files: Mapping[str, str]

    @property
    def said(self) -> dict[str, str]:
        """Every item that a person can state; empty where nothing is known."""
        data, base = self.config.data, self.config.base_model
        return stated(self.config.card, self.record.base_card, base.source, data.language)

    @property
    def not_stated(self) -> tuple[str, ...]:
        """Items that nobody has stated, by the run file's keys."""
        return tuple(f"card.{item}" for item, value in self.said.items() if not value)

    @property
    def inputs(self) -> dict[str, str]:
        """Digests of what went in, by names without folders of this machine."""
        return {_public(name): digest for name, digest in sorted(self.record.inputs.items())}

    @property
    def data_sets(self) -> tuple[str, ...]:
        """Data sets of a hub that rows were taken from, by their ids."""
        named = (name.removeprefix("data_set/") for name in self.inputs if name.startswith("data_set/"))
        return tuple(dict.fromkeys(re.split(r"[@:\[]", name, maxsplit=1)[0] for name in named))

    @property
    def versions(self) -> dict[str, str]:
        """Versions of Python and of what trained and judged."""
        found = {name.replace("_", "-"): version for name, version in self.record.opened.environment.items()}
        named = {"python": found.get("python", "")} | {name: found.get(f"package/{name}", "") for name in TRAINED_BY}
        return {name: version for name, version in named.items() if version}

    @property
    def settings(self) -> dict[str, JsonValue]:
        """How the adapter was trained, by the run file's keys."""
        found = plain(self.config.train)
        quantised = ("quantization", "double_quantization")
        return {
            name: value for name, value in found.items() if self.config.train.method == "qlora" or name not in quantised
        }

    @property
    def waivers(self) -> tuple[str, ...]:
        """What was waived, by whom, until when and why."""
        return tuple(f"{verdict.gate}/{told}" for verdict in self.record.verdicts for told in verdict.waived)

    @property
    def warnings(self) -> dict[str, str]:
        """What does not hold and lets the release go, as gate/rule, with what was found."""
        judged = ((verdict.gate, finding) for verdict in self.record.verdicts for finding in verdict.findings)
        warned = ((gate, finding) for gate, finding in judged if finding.status == "warn")
        return {f"{gate}/{finding.rule}": without_folders(finding.statement) for gate, finding in warned}

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Every finite number that was measured of the model: perplexities, ratios, divergences, tasks."""
        return tuple(metric for metric in self._measured() if math.isfinite(metric.value))

    def _measured(self) -> Iterator[Metric]:
        for rung in (*self.record.ladder, *self.record.general):
            rows = GENERAL_ROWS if rung.name.startswith(GENERAL) else HELD_OUT
            yield Metric(rung.name, "perplexity", rung.nll.perplexity, rows)
        for name, found in self.record.comparisons.items():
            yield Metric(name, "perplexity_ratio", found.ratio, compared_on(name), *_ends(found))
        for name, task in self.record.benchmarks.items():
            yield Metric("baseline", task.unit, task.base, name)
            yield Metric("tuned", task.unit, task.tuned, name)
        for verdict in self.record.verdicts:
            for finding in verdict.findings:
                if finding.value is not None and finding.rule in MEASURES:
                    where, name = f"{verdict.gate} gate", f"{verdict.gate}/{finding.rule}"
                    yield Metric(name, finding.rule, finding.value, where, *_ends(finding))


def compared_on(name: str) -> str:
    """The rows that a comparison of this name is about."""
    if name == "general":
        return GENERAL_ROWS
    return f"{HELD_OUT}, slice {name.partition('slice/')[2]}" if "slice/" in name else HELD_OUT


def finite(value: float | None) -> float | None:
    """A number that JSON and a reader can take; None where there is none."""
    return value if value is not None and math.isfinite(value) else None


def _ends(found: Comparison | Finding) -> tuple[float | None, float | None]:
    return finite(found.low), finite(found.high)


def without_folders(text: str) -> str:
    """A text in which absolute paths are cut down to their last part; addresses stay as they are."""
    return re.sub(r"(?<![\w:/.~])~?/(?:[^\s/,;:()'\"]+/)+", "", text)


def _public(name: str) -> str:
    """A name of an input without folders, where it has an absolute path in it."""
    kind, separator, rest = name.partition("/")
    return f"{kind}{separator}{PurePosixPath(rest).name}" if rest.startswith("/") else name
