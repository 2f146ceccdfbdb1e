"""How many planted defects the data gate names, and how many sound rows it names by mistake.

    .venv/bin/python tests/bench/planted.py --data FOLDER --rates 0.001 0.01 0.1

For each source of real rows (see sources.py; made-up ones where --data is missing), each rate and each rule of the data
gate, that share of the rows (at least one) is spoilt by that rule's defect (see defects.py), no row by two, and
`loragate check` is run on the file; where the rates add up to more than a file holds, there are several. Compared, by
`rejects.jsonl`:

- recall: planted rows that the rule names, of all planted. Wanted: all.
- false alarms: other rows that the rule names, unless it names them in the unspoilt file, or rightly: a near copy by
  chance is compared exactly, and what a defect brings with it is no mistake. Wanted: none.

The unspoilt files must be refused by no rule.
"""

import argparse
import json
import random
import shutil
import subprocess
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from defects import (
    DEFECTS,
    MAX_ANSWER_CHARS,
    MAX_TOKENS,
    NEAR,
    NEAR_JACCARD,
    Defect,
    Pair,
    Side,
    Spot,
    jaccard,
    shingles,
)
from rows import line, pairs
from setting import JUDGED, LORAGATE, environment, heading, progress, table, told, write_run
from sources import Source, passages, sources

from loragate.home import Home
from loragate.orchestrator import prefect_server, prepare_environment

SIDES: tuple[Side, ...] = ("train", "heldout")
MOST_SPOILT = 0.6
"""Share of a file's rows that may be spoilt or copied from; where more is asked for, there are more files."""

COPIED_SHINGLES = 12
"""Rows that are copied from have at least these, so that a word more leaves the copy near."""

MAX_SHOWN = 20


@dataclass(frozen=True, slots=True, order=True)
class Named:
    """A row and a rule that names it."""

    rule: str
    side: str
    row: int


@dataclass(frozen=True, slots=True)
class Judged:
    """What the gate said: broken rules by severity, all rules, and the rows that each of them names, with why."""

    verdict: str
    broken: Mapping[str, str]
    rules: frozenset[str]
    named: Mapping[Named, str]


@dataclass(frozen=True, slots=True)
class Gate:
    """The data gate as a command, with a home and a server that all its runs share."""

    folder: Path
    home: Path
    api: str
    known: frozenset[str]

    def judge(self, name: str, source: Source, train: Sequence[str], heldout: Sequence[str]) -> Judged:
        """Run `loragate check` on rows.

        Raises:
            SystemExit: It came to no verdict.
        """
        folder = self.folder / name
        folder.mkdir()
        progress(f"loragate check on {name}")
        data = _write(folder, source, train, heldout)
        limits = {"max_answer_chars": MAX_ANSWER_CHARS}
        write_run(folder / "run.yaml", *({k: v for k, v in each.items() if k in self.known} for each in (data, limits)))
        command = [LORAGATE, "check", "run.yaml", "--json", "--home", str(self.home)]
        variables = environment(PREFECT_API_URL=self.api)
        done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
        if done.returncode not in JUDGED:
            raise SystemExit(f"{folder}: the check ended with {done.returncode}:\n{done.stderr[-4000:]}")
        return _judged(json.loads(done.stdout), self.home)


def _write(folder: Path, source: Source, train: Sequence[str], heldout: Sequence[str]) -> dict[str, object]:
    """Write the files of one run; return the section data of its run file."""
    (folder / "train.jsonl").write_text("".join(train), encoding="utf-8")
    (folder / "heldout.jsonl").write_text("".join(heldout), encoding="utf-8")
    (folder / "protected.jsonl").write_text("".join(line(*pair) for pair in source.protected), encoding="utf-8")
    data = {"train": ["train.jsonl"], "heldout": ["heldout.jsonl"], "max_tokens": MAX_TOKENS}
    protected = {"holdout_against": ["protected.jsonl"]}
    return data | protected | ({"language": source.language} if source.language else {})


def _judged(outcome: Mapping[str, Any], home: Path) -> Judged:
    """Read what the gate said, and the rows that it names, out of its evidence."""
    journal = home / "checks" / outcome["attempt"] / "journal.jsonl"
    events = [json.loads(each) for each in journal.read_text(encoding="utf-8").splitlines()]
    path = next(e["value"]["path"] for e in events if (e["event"], e["name"]) == ("artifact", "great_expectations"))
    named = {}
    for each in (Path(path) / "rejects.jsonl").read_text(encoding="utf-8").splitlines():
        reject = json.loads(each)
        row = int(reject["place"].rpartition(":")[2])
        named[Named(reject["rule"], reject["side"], row)] = str(reject["reason"])
    findings = [finding for gate in outcome["gates"] for finding in gate["findings"]]
    broken = {f["rule"]: f"{f['severity']}: {f['detail']}" for f in findings if not f["passed"]}
    rules = frozenset(finding["rule"].rpartition(".")[2] for finding in findings)
    return Judged(outcome["verdict"], broken, rules, named)


class Field:
    """One file of sound rows into which defects are planted, and what is planted where."""

    def __init__(self, source: Source, clean: Judged, rng: random.Random) -> None:
        """Take rows that no rule names and whose questions stand there once; the others stay as they are."""
        self.source, self.rng = source, rng
        self.rows: dict[Side, tuple[Pair, ...]] = {"train": source.train, "heldout": source.heldout}
        self.lines = {side: [line(*pair) for pair in self.rows[side]] for side in SIDES}
        self.planted: dict[Defect, list[tuple[Side, int]]] = defaultdict(list)
        self.right: set[Named] = set()
        self.near: list[float] = []
        asked = Counter(question for question, _ in source.train)
        named = {(each.side, each.row) for each in clean.named}
        self.free: dict[Side, list[int]] = {}
        for side in SIDES:
            count = range(len(self.rows[side]))
            free = [n for n in count if (side, n + 1) not in named and asked[self.rows[side][n][0]] <= 1]
            self.free[side] = rng.sample(free, len(free))

    def plant(self, defect: Defect, protected: Sequence[str], fillers: Sequence[str]) -> None:
        """Spoil one more row."""
        other, number = self._taken(defect)
        row, copied = self.rows[defect.side][number], self.source.train[other]
        spot = Spot(self.rng, row, copied, self.rng.choice(protected), self.rng.choice(fillers))
        spoilt = self.lines[defect.side][number] = defect.plant(spot)
        self.planted[defect].append((defect.side, number + 1))
        self.right |= {Named(rule, defect.side, number + 1) for rule in (*defect.rules, *defect.brings)}
        if defect.names_other:
            self.right |= {Named(rule, "train", other + 1) for rule in defect.rules}
        if set(defect.rules) & set(NEAR):
            self.near.append(jaccard(shingles(_pair(spoilt)), shingles(copied)))

    def _taken(self, defect: Defect) -> tuple[int, int]:
        """Numbers of a training row to copy from and of the row to spoil, which stands behind it."""
        if not defect.uses_other:
            return 0, self.free[defect.side].pop()
        free = self.free["train"]
        long = [n for n in free if len(shingles(self.source.train[n])) >= COPIED_SHINGLES]
        other, number = sorted(long[-2:])
        free.remove(other)
        if defect.side == "heldout":
            return other, self.free["heldout"].pop()
        free.remove(number)
        return other, number

    def is_near(self, named: Named) -> bool:
        """Whether a row that a rule about near copies names is one, exactly compared with what stands before it."""
        train = self.lines["train"]
        before = train if named.side == "heldout" else train[: named.row - 1]
        own = shingles(_pair(self.lines["heldout" if named.side == "heldout" else "train"][named.row - 1]))
        return any(jaccard(own, shingles(_pair(each))) >= NEAR_JACCARD for each in before)


def _pair(text: str) -> Pair:
    """What is said in a line, as far as it can be read."""
    row = json.loads(text)
    turns = row["messages"] if isinstance(row, dict) else []
    return " ".join(str(turn.get("content", "")) for turn in turns if isinstance(turn, dict)), ""


@dataclass(slots=True)
class Score:
    """What became of the defects of one source and rate, by rule."""

    planted: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    false: Counter[str] = field(default_factory=Counter)
    near: list[float] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def add(self, planted: Field, judged: Judged, clean: Judged, where: str) -> None:
        """Count one file."""
        for defect, places in planted.planted.items():
            for rule in defect.rules:
                missed = [(side, row) for side, row in places if Named(rule, side, row) not in judged.named]
                self.planted[rule] += len(places)
                self.found[rule] += len(places) - len(missed)
                self.told += [f"missed by {rule}, {where}: {planted.lines[side][n - 1][:200]!r}" for side, n in missed]
        for named in sorted(judged.named.keys() - planted.right - clean.named.keys()):
            if named.rule not in NEAR or not planted.is_near(named):
                self.false[named.rule] += 1
                self.told.append(f"false alarm, {where}, {named}: {judged.named[named][:200]}")
        self.near += planted.near


def main() -> None:
    """Plant, judge, count and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with alpaca_en_demo.json and wikisql/ (see sources.py)")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.001, 0.01, 0.1])
    parser.add_argument("--workdir", type=Path, help="folder for a temporary folder (default: the system's)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="keep the temporary folder, and say where it is")
    options = parser.parse_args()
    if options.workdir:
        options.workdir.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="loragate-planted-", dir=options.workdir))
    home = Home(folder / "home")
    prepare_environment(home, verbose=False)
    try:
        told(*heading("Planted defects: what the data gate names"))
        known = _known_keys(folder / "init")
        with prefect_server(home) as ready:
            measure(Gate(folder, home.root, ready(), known), sources(options.data), options.rates, options.seed)
    finally:
        if options.keep:
            progress(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _known_keys(folder: Path) -> frozenset[str]:
    """The keys that run files of this version may have in the sections data and gates.data."""
    subprocess.run([LORAGATE, "init", str(folder), "--json"], env=environment(), stdout=subprocess.DEVNULL, check=True)
    kinds = json.loads((folder / "run.schema.json").read_text(encoding="utf-8"))["$defs"]
    return frozenset(kinds["Data"]["properties"]) | frozenset(kinds["DataLimits"]["properties"])


def measure(gate: Gate, found: Sequence[Source], rates: Sequence[float], seed: int) -> None:
    """Judge each source's sound rows, then those with defects at each rate."""
    scores: dict[tuple[str, float], Score] = {}
    clean = {source.name: _clean(gate, source) for source in found}
    told(*_about_clean(found, clean))
    for source in found:
        for rate in rates:
            scores[source.name, rate] = _planted(gate, source, clean[source.name], rate, seed)
    told(*_report(scores, frozenset().union(*(each.rules for each in clean.values()))))


def _clean(gate: Gate, source: Source) -> Judged:
    lines = [[line(*pair) for pair in rows] for rows in (source.train, source.heldout)]
    return gate.judge(f"{source.name}-clean", source, *lines)


def _planted(gate: Gate, source: Source, clean: Judged, rate: float, seed: int) -> Score:
    score, found = Score(), list(passages(source.protected)) or [""]
    fillers = [" ".join(answer for _, answer in pairs(20, seed + n)) for n in range(4)]
    wanted = [d for d in DEFECTS if set(d.rules) <= clean.rules and (not d.needs or getattr(source, d.needs))]
    for number, batch in enumerate(_batches(wanted, rate)):
        name = f"{source.name}-{rate}-{number}"
        planted = Field(source, clean, random.Random(f"{seed}-{name}"))
        for defect in batch:
            for _ in range(max(1, round(rate * len(planted.rows[defect.side])))):
                planted.plant(defect, found, fillers)
        judged = gate.judge(name, source, planted.lines["train"], planted.lines["heldout"])
        score.add(planted, judged, clean, name)
    return score


def _batches(wanted: Sequence[Defect], rate: float) -> Iterator[list[Defect]]:
    """Share defects out so that one file holds as many as it can; a defect that copies a row takes up two."""
    batch: list[Defect] = []
    taken = 0.0
    for defect in wanted:
        share = rate * (1 + defect.uses_other)
        if batch and taken + share > MOST_SPOILT:
            yield batch
            batch, taken = [], 0.0
        batch.append(defect)
        taken += share
    yield batch


def _about_clean(found: Sequence[Source], clean: Mapping[str, Judged]) -> Iterator[str]:
    yield from ("## Unspoilt", "")
    for source in found:
        judged = clean[source.name]
        rows = (
            f"{len(source.train)} training, {len(source.heldout)} held-out and {len(source.protected)} protected rows"
        )
        yield f"{source.name}: {rows}; {judged.verdict}; {len(judged.broken)} rules broken (none may refuse)."
        yield from (f"- {rule}: {detail[:300]}" for rule, detail in judged.broken.items())
        named = Counter(each.rule for each in judged.named)
        yield f"- rows named: {', '.join(f'{rule} {count}' for rule, count in sorted(named.items())) or 'none'}"
    yield ""


def _report(scores: Mapping[tuple[str, float], Score], rules: frozenset[str]) -> Iterator[str]:
    """The table, then what was missed or named by mistake, then how near the near copies were."""
    planted = list(dict.fromkeys(rule for defect in DEFECTS for rule in defect.rules))
    others = sorted(rules - set(planted) | {rule for score in scores.values() for rule in score.false} - set(planted))
    lines = [[rule, *(_cell(score, rule, rules) for score in scores.values())] for rule in (*planted, *others)]
    yield from ("## Planted", "", "Each cell: found/planted, false alarms.", "")
    yield from table(["rule", *(f"{name} {rate:g}" for name, rate in scores)], lines)
    notes = [note for score in scores.values() for note in score.told]
    yield from (f"- {note}" for note in notes[:MAX_SHOWN])
    if len(notes) > MAX_SHOWN:
        yield f"- and {len(notes) - MAX_SHOWN} more"
    near = [value for score in scores.values() for value in score.near]
    if near:
        mean = sum(near) / len(near)
        yield f"Planted near copies and leaks: Jaccard {min(near):.3f} to {max(near):.3f}, mean {mean:.3f}."


def _cell(score: Score, rule: str, rules: frozenset[str]) -> str:
    if rule not in rules:
        return "no such rule"
    count = score.planted[rule]
    return f"{f'{score.found[rule]}/{count}' if count else 'not planted'}, {score.false[rule]}"


if __name__ == "__main__":
    main()
