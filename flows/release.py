"""The road from pairs to a gated release, in the order it is walked."""

from prefect import flow

from loragate.attempt import Attempt
from tasks.attempts import attempted
from tasks.card_gate import card_gate
from tasks.challenge_champion import challenge_champion, look_at_rows, measure_champion
from tasks.compare_models import compare_models
from tasks.examine_answers import examine_answers
from tasks.export_gguf import export_gguf, probe_gguf
from tasks.fetch_base import fetch_base
from tasks.gates import data_gate, gguf_gate, merge_gate, plan_gate, preflight_gate, quality_gate, training_gate
from tasks.measure_general import measure_general
from tasks.measure_model import measure_model
from tasks.merge_adapter import compare_merged, merge_adapter
from tasks.plan_training import plan_training
from tasks.prepare_rows import prepare_rows
from tasks.register_release import register_release
from tasks.train_adapter import preflight, train_adapter


@flow(name="release", persist_result=True, result_serializer="json", validate_parameters=False)
def release_model(config: str, home: str | None = None, overrides: list[str] | None = None) -> dict[str, object]:
    """Release the model that a run file describes, or be refused by the first gate that it does not pass.

    Steps that an earlier attempt has finished on the same inputs are reused; gates judge anew each time.
    """
    with attempted(config, home, overrides) as attempt:
        walk(attempt)
        return register_release(attempt)


def walk(attempt: Attempt) -> None:
    """Walk the road up to the last gate."""
    base = card_gate(attempt, fetch_base(attempt))
    rows = data_gate(attempt, prepare_rows(attempt, base))
    plan = plan_gate(attempt, plan_training(attempt, base, rows))

    baseline = measure_model(attempt, "baseline", base, rows)
    preflight_gate(attempt, preflight(attempt, base, rows))
    adapter = train_adapter(attempt, base, rows, plan)
    training_gate(attempt, adapter)

    worn = look_at_rows(attempt, rows, adapter)
    champion = measure_champion(attempt, base, rows, adapter)
    tuned = measure_model(attempt, "tuned", base, rows, weights=adapter.ref, against=[baseline])
    compared = compare_models(attempt, "tuned", baseline, tuned, alpha=worn.alpha)
    challenge = challenge_champion(attempt, rows, worn, baseline, champion, tuned)
    general = measure_general(attempt, base, rows, adapter.ref)
    answered = examine_answers(attempt, base, rows, adapter.ref, baseline, tuned)
    quality_gate(attempt, compared, general, answered, challenge, adapter)

    merged = merge_adapter(attempt, base, adapter, rows)
    remeasured = measure_model(attempt, "merged", base, rows, weights=merged.ref, against=[baseline, tuned])
    merge_gate(attempt, merged, compare_merged(attempt, base, adapter, merged), tuned, remeasured)

    ladder = {"tuned": tuned, "merged": remeasured}
    for name, gguf in export_gguf(attempt, base, rows, adapter.ref, merged.ref).items():
        ladder[name] = gguf_gate(attempt, probe_gguf(attempt, name, gguf, base, rows, ladder), base)
