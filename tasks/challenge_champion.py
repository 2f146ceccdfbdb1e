"""Hold the challenger against the champion, on all held-out rows and on each slice; count the looks at them."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from prefect import task

from loragate.attempt import Attempt, FetchedBase, Measurement, Rows, recipe
from loragate.challenge import CHAMPION, Against, Challenge, Side, Sliced, champions, comparison_name, looks
from loragate.comparison import ComparePaired
from loragate.perplexity import Nll
from loragate.record import AttemptRecord
from loragate.refs import Ref
from loragate.rows import from_fields
from loragate.wear import Wear, look_at, mark, wear
from loragate.work import Alike, CompareTokenizers
from tasks.compare_models import ask, compare_each, compare_models
from tasks.measure_model import measure_model
from tasks.policies import STEP
from tasks.train_adapter import Adapter
from tasks.worst_rows import worst_rows


@dataclass(frozen=True, slots=True)
class Champion:
    """The champion that a challenger meets, and its losses on today's held-out rows; None where it has none."""

    against: Against
    measured: Measurement | None = None


@task(name="look at held-out rows", **STEP)
def look_at_rows(attempt: Attempt, rows: Rows, adapter: Adapter) -> Wear:
    """Put on record that these weights are judged on these rows, before anything is known about that."""
    alpha = attempt.config.gates.quality.alpha
    today = look_at(adapter.ref.digest, (mark(from_fields(fields)) for fields in _heldout(rows)))
    worn = wear(today, looks(attempt.home.records(), attempt.config.model), alpha)
    attempt.note("look", "heldout", replace(today, number=worn.number, alpha=worn.alpha))
    return worn


@task(name="measure champion", **STEP)
def measure_champion(attempt: Attempt, base: FetchedBase, rows: Rows, adapter: Adapter) -> Champion:
    """Find the champion by the promotion log and measure its merged weights on today's held-out rows.

    Where the MLflow store has none yet, it is the one that another store had. Who is champion now goes on record: it
    is what the release may replace.

    Weights that are the champion's own are held against the champion before it, as they were when they were released:
    an unchanged run is judged alike however often it runs.
    """
    store = attempt.home.store_name(attempt.tracking_uri)
    standings = attempt.home.standings(attempt.config.model)
    attempt.note("incumbent", "", standings.standing(store).get(CHAMPION, ""))
    found = standings.champions(store) or champions(standings.told, attempt.config.model)
    others = [record for record in found if record.artifacts["adapter"].digest != adapter.ref.digest]
    own = str(found[0].release) if found and found[0] not in others else ""
    if not others:
        return Champion(Against(own=own))
    record, against = others[0], Against(str(others[0].release), own)
    attempt.note("champion", "", against.release)
    weights = attempt.home.store.holds(record.artifacts["merged"])
    problem = _gone(record) if weights is None else _unlike(attempt, base, rows, record, weights)
    if problem or weights is None:
        return Champion(replace(against, problem=problem))
    return Champion(against, measure_model(attempt, CHAMPION, base, rows, weights=weights))


def _gone(record: AttemptRecord) -> str:
    place = record.artifacts["merged"].path
    return (
        f"the merged weights of the champion {record.release} are not in the run store any more, or not as they were "
        f"({place}), so that nothing can be compared with it; run its run file again, which makes them anew, or "
        "release this model under another name"
    )


def _unlike(attempt: Attempt, base: FetchedBase, rows: Rows, record: AttemptRecord, weights: Ref) -> str:
    """Say why the champion cannot be scored on today's rows; empty where it can."""
    if record.inputs.get("base_model") == attempt.journal.read().inputs.get("base_model"):
        return ""
    steps = recipe(
        "alike",
        {"base": base.digest, "weights": weights.digest, "rows": rows.digest},
        code=("loragate.engines.tokenizers_alike", "loragate.engines.language_model"),
        libraries=("transformers", "tokenizers"),
    )
    request = CompareTokenizers(base.base, weights.path, rows.file("probes.jsonl"))
    target = "loragate.engines.tokenizers_alike:compare"
    difference = attempt.build(steps, Alike, lambda _: attempt.call(target, request))[1].difference
    if not difference:
        return ""
    return (
        f"the champion {record.release} has another base model, which reads the held-out rows otherwise "
        f"({difference}), so that losses on them cannot be compared row by row; release this model under another name, "
        "where it becomes the first champion"
    )


@task(name="challenge champion", **STEP)
def challenge_champion(
    attempt: Attempt, rows: Rows, worn: Wear, baseline: Measurement, champion: Champion, tuned: Measurement
) -> Challenge:
    """Compare the tuned model with the champion, and on every slice with base and champion."""
    limits, against = attempt.config.gates.quality, champion.against
    sides: dict[Side, tuple[Nll, ...]] = {"baseline": baseline.rows}
    if champion.measured is not None:
        about = {"limit": limits.max_champion_ratio, "alpha": worn.alpha}
        against = replace(against, compared=compare_models(attempt, CHAMPION, champion.measured, tuned, **about))
        sides[CHAMPION] = champion.measured.rows
        attempt.note("worst_rows", CHAMPION, worst_rows(champion.measured, tuned, rows))
    slices = _slices(rows)
    attempt.note("slices", "", slices)
    asked: dict[tuple[str, Side], ComparePaired] = {}
    for name, numbers in slices.items() if len(slices) <= limits.max_slices else ():
        for side, scored in sides.items():
            before, after = (tuple(each[n] for n in numbers if n < len(each)) for each in (scored, tuned.rows))
            asked[name, side] = ask(attempt, before, after, (limits.max_slice_ratio, limits.alpha))
    named = {comparison_name(*key): request for key, request in asked.items()}
    found = compare_each(attempt, "paired_slices", named) if named else {}
    sliced = tuple(Sliced(*key, found[comparison_name(*key)]) for key in asked)
    return Challenge(against, len(slices), sliced, worn)


def _slices(rows: Rows) -> dict[str, list[int]]:
    """Numbers of the held-out rows of every slice, in the order of their names."""
    found: dict[str, list[int]] = {}
    for number, fields in enumerate(_heldout(rows)):
        if fields["slice"]:
            found.setdefault(str(fields["slice"]), []).append(number)
    return dict(sorted(found.items()))


def _heldout(rows: Rows) -> Iterator[Mapping[str, object]]:
    """The fields of every held-out row."""
    with Path(rows.file("heldout.jsonl")).open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)
