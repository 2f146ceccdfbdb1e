"""MLflow: where every attempt's parameters, curves, artifacts and verdict are shown and served.

MLflow is not the record: that is the journal. What is here can be made again from it.
"""

import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path, PurePath

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from loragate.attempt import Attempt
from loragate.child import Progress, Report, ignore
from loragate.config import plain
from loragate.engines import logged_models
from loragate.made_models import baseline_numbers, made_models
from loragate.narration import tell
from loragate.notes import PROJECT, base_name, model_description, run_note, version_description
from loragate.promotion import VERSION_FOLDER
from loragate.record import EXPECTATIONS, AttemptRecord, Outcome, Tracked, now
from loragate.row_sets import RowSet
from loragate.verification import DIGEST_TAG
from loragate.waivers import SIGNATURE

MAX_PARAM_CHARS = 6000  # MLflow's own limit; what is longer is in the run file, which is an artifact
MAX_TAG_CHARS = 8000
MAX_BATCH = 1000  # metrics in one request
MAX_FILES = 400  # of a data set that are named with their digests: MLflow's field holds 65,535 characters
DIGEST_CHARS = 32  # MLflow's field holds 36
FILE_KINDS = ("data", "data_set", "task")
"""What the names of inputs that are files or data sets begin with."""
STATUS: Mapping[Outcome, str] = {"released": "FINISHED", "refused": "FAILED", "failed": "FAILED"}
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Has MLflow's pages show what belongs to the training of models, not to agents."""
WAIVERS = "loragate.waivers"
"""Tag of runs and versions that needed a waiver: which rules were waived, by whom, until when and why."""


def open_run(attempt: Attempt) -> Tracked:
    """Open the attempt's MLflow run, or return the one it has.

    An attempt that was closed while MLflow did not answer has none in its journal, to which nothing is added any more;
    its run is then found by its name.
    """
    record = attempt.journal.read()
    if record.tracked is not None:
        return record.tracked
    client = MlflowClient(attempt.tracking_uri)
    experiment = _experiment(client, attempt)
    found = client.search_runs([experiment], f"tags.\"mlflow.runName\" = '{attempt.id}'")
    if found:
        return _tracked(attempt, record, found[0].info.run_id)
    _end_killed_runs(client, attempt, experiment)
    tags = {
        "mlflow.runName": attempt.id,
        "mlflow.source.name": attempt.run.path.name,
        "mlflow.source.type": "LOCAL",
        "loragate.home": str(attempt.home.root),
        "loragate.verdict": "running",
    }
    run = client.create_run(experiment, tags=tags)
    client.log_batch(run.info.run_id, params=[Param(name, text) for name, text in _parameters(attempt)])
    return _tracked(attempt, record, run.info.run_id)


def _tracked(attempt: Attempt, record: AttemptRecord, run_id: str) -> Tracked:
    tracked = Tracked(run_id, attempt.tracking_uri)
    if record.closed is None:
        attempt.note("tracked", "", tracked)
    return tracked


def _experiment(client: MlflowClient, attempt: Attempt) -> str:
    found = client.get_experiment_by_name(attempt.config.model)
    if found is not None:
        return str(found.experiment_id)
    embedded = attempt.tracking_uri == attempt.home.tracking_uri
    where = attempt.home.artifacts.as_uri() + f"/{attempt.config.model}" if embedded else None
    return str(client.create_experiment(attempt.config.model, artifact_location=where, tags=EXPERIMENT_TAGS))


def _end_killed_runs(client: MlflowClient, attempt: Attempt, experiment: str) -> None:
    """Mark runs of this home that are still RUNNING as killed: we hold the lock, so none of them can be alive."""
    wanted = f"attributes.status = 'RUNNING' and tags.\"loragate.home\" = '{attempt.home.root}'"
    for run in client.search_runs([experiment], wanted):
        client.set_tag(run.info.run_id, "loragate.verdict", "killed")
        client.set_terminated(run.info.run_id, "KILLED")


def _parameters(attempt: Attempt) -> Iterator[tuple[str, str]]:
    for section, value in plain(attempt.config).items():
        values = value if isinstance(value, dict) else {"": value}
        for name, content in values.items():
            yield f"{section}.{name}".rstrip("."), str(content)[:MAX_PARAM_CHARS]


def live_metrics(attempt: Attempt) -> Report:
    """Return a callback that sends a step's numbers to MLflow as they come; of sabotage and replay it hears nothing."""
    if attempt.kind in ("sabotage", "replay"):
        return ignore
    client = MlflowClient(attempt.tracking_uri)

    def report(progress: Progress) -> None:
        if progress.numbers:
            with outage_told():
                metrics = _step_metrics(progress.done, progress.numbers)
                client.log_batch(open_run(attempt).run_id, metrics=metrics)

    return report


def _step_metrics(step: int, numbers: Mapping[str, float | None]) -> list[Metric]:
    at = _milliseconds()
    return [Metric(f"train/{name}", value, at, step) for name, value in numbers.items() if value is not None]


@contextmanager
def outage_told() -> Iterator[None]:
    """Say that MLflow cannot be reached, and go on: what it misses is in the journal."""
    try:
        yield
    except (MlflowException, OSError) as error:
        tell(f"MLflow does not answer: {error}; the attempt goes on, its journal and report have everything")


def _milliseconds(when: str | None = None) -> int:
    """A time of the record, or now."""
    return int((datetime.fromisoformat(when).timestamp() if when else time.time()) * 1000)


def upload(attempt: Attempt, record: AttemptRecord, sealed: Path | None = None) -> Tracked:
    """Bring numbers, verdicts, data sets, models and artifacts of an attempt into its run; it may be asked for twice.

    `sealed` is the bundle of a release, which is then what its version holds.
    """
    tracked = open_run(attempt)
    client, made = MlflowClient(tracked.uri), made_models(record)
    sets = {each.side: (each.side, each.digest[:DIGEST_CHARS]) for each in record.row_sets.values()}
    _log_inputs(client, tracked.run_id, record)
    about = {"loragate.attempt": attempt.id, "loragate.verdict": _verdict(record, released=sealed is not None)}
    models = logged_models.pending(client, tracked.run_id, made, about)
    at = _milliseconds(record.opened.started)  # not of now: what is brought twice is one point all the same
    metrics = [Metric(name, value, at, 0) for name, value in record.metrics.items()]
    metrics += [Metric(f"seconds/{name}", value, at, 0) for name, value in record.seconds.items()]
    metrics += [Metric(each.name, each.value, at, each.step) for each in baseline_numbers(record)]
    metrics += logged_models.measured(models, made, sets, at)
    client.log_batch(tracked.run_id, metrics=metrics, tags=list(_tags(record)))
    _log_missing_steps(client, tracked.run_id, record)
    _log_artifacts(client, tracked.run_id, attempt, record, with_files=sealed is None)
    if sealed is not None:
        client.log_artifacts(tracked.run_id, str(sealed), VERSION_FOLDER)
    logged_models.settle(client, models, released=sealed is not None)
    return tracked


def _tags(record: AttemptRecord) -> Iterator[RunTag]:
    yield from (RunTag(f"gate.{v.gate}", v.sentence[:MAX_TAG_CHARS]) for v in record.verdicts)
    digests = {name: ref.digest for name, ref in record.artifacts.items()}
    digests |= {name: digest for name, digest in record.inputs.items() if not name.startswith("data/")}
    yield from (RunTag(f"digest.{name}", digest) for name, digest in digests.items() if _may_be_key(name))
    yield from (RunTag(name, told) for name, told in _waivers(record).items())


def _may_be_key(name: str) -> bool:
    """Whether MLflow takes it into the name of a tag."""
    return bool(re.fullmatch(r"[\w./ -]{1,200}", name))


def _verdict(record: AttemptRecord, *, released: bool) -> str:
    refused = any(verdict.refuses for verdict in record.verdicts)
    return "released" if released else "refused" if refused else "failed"


def _log_missing_steps(client: MlflowClient, run_id: str, record: AttemptRecord) -> None:
    """Complete the curve with the steps that an earlier attempt took, or that MLflow missed."""
    known = {metric.step for metric in client.get_metric_history(run_id, "train/loss")}
    missing: list[Metric] = []
    for point in record.curve:
        numbers = asdict(point)
        step = numbers.pop("step")
        missing += [] if step in known else _step_metrics(step, numbers)
    for start in range(0, len(missing), MAX_BATCH):
        client.log_batch(run_id, metrics=missing[start : start + MAX_BATCH])


def _log_inputs(client: MlflowClient, run_id: str, record: AttemptRecord) -> None:
    """Name every data set and every data file; MLflow's own field holds 36 characters, so the whole digest is a tag."""
    inputs = [_row_set(each) for each in record.row_sets.values()]
    for name, digest in record.inputs.items():
        sort, _, file = name.partition("/")
        if sort in FILE_KINDS and file:
            contexts = {each.context for each in record.row_sets.values() if file in each.files}
            context = "training" if "training" in contexts or not contexts else min(contexts)
            source = {"uri": file, "sha256": digest}
            inputs.append(_input(file, digest, json.dumps(source), "evaluation" if sort == "task" else context))
    if inputs:
        client.log_inputs(run_id, inputs)


def _row_set(rows: RowSet) -> DatasetInput:
    named = dict(list(rows.files.items())[:MAX_FILES])
    source = {"files": named, "more_files": len(rows.files) - len(named), "heldout_share": rows.heldout_share}
    counted = {"num_rows": rows.rows, "num_tokens": rows.tokens} if rows.rows else {}
    profile = json.dumps(counted | {"num_files": len(rows.files)})
    return _input(rows.side, rows.digest, json.dumps(source), rows.context, profile)


def _input(name: str, digest: str, source: str, context: str, profile: str | None = None) -> DatasetInput:
    data_set = Dataset(name, digest[:DIGEST_CHARS], "local", source, profile=profile)
    return DatasetInput(data_set, tags=[InputTag("sha256", digest), InputTag("mlflow.data.context", context)])


def _log_artifacts(
    client: MlflowClient, run_id: str, attempt: Attempt, record: AttemptRecord, *, with_files: bool
) -> None:
    for name, ref in record.artifacts.items():
        if name.startswith("gguf_") and with_files:
            client.log_artifact(run_id, ref.path, f"{VERSION_FOLDER}/gguf")
        elif name == "adapter" and with_files:
            client.log_artifacts(run_id, ref.path, f"{VERSION_FOLDER}/adapter")
        elif name == EXPECTATIONS:
            client.log_artifacts(run_id, ref.path, "data_gate")
    for file in (file for review in record.waivers.values() for file in review.honoured):
        name = f"waivers/{PurePath(file.file).name}"
        client.log_text(run_id, file.text, name)
        client.log_text(run_id, file.signature, name + SIGNATURE)
    if attempt.run.path.is_file():  # it may have gone by the time that a reconciliation brings the rest
        client.log_text(run_id, attempt.run.path.read_text(encoding="utf-8"), "run.yaml")
    client.log_dict(run_id, dict(plain(attempt.config)), "config.json")
    client.log_dict(run_id, record.opened.environment, "environment.json")


def _waivers(record: AttemptRecord) -> dict[str, str]:
    """The tag about what was waived; none where nothing was."""
    told = "; ".join(f"{verdict.gate}/{each}" for verdict in record.verdicts for each in verdict.waived)
    return {WAIVERS: told[:MAX_TAG_CHARS]} if told else {}


def close_run(attempt: Attempt, record: AttemptRecord) -> None:
    """End the run with the verdict, the journal and the report."""
    tracked = open_run(attempt)
    client = MlflowClient(tracked.uri)
    for path in (attempt.journal.path, attempt.home.report(attempt.id)):
        client.log_artifact(tracked.run_id, str(path))
    client.set_tag(tracked.run_id, "loragate.verdict", record.outcome)
    client.set_tag(tracked.run_id, "mlflow.note.content", run_note(record)[:MAX_TAG_CHARS])
    client.set_terminated(tracked.run_id, STATUS[record.outcome])


def register(attempt: Attempt, digest: str, seal: Mapping[str, str] | None = None) -> str:
    """Register the attempt's run as a model version, without an alias; return the version.

    A version of the same digest that an interrupted attempt registered is used again. `seal` is told by its tags.
    """
    tracked, record = open_run(attempt), attempt.journal.read()
    client, name = MlflowClient(tracked.uri), attempt.config.model
    try:
        about = {"loragate.base_model": base_name(record), "project": PROJECT}
        client.create_registered_model(name, about, model_description(record))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    known = [v for v in client.search_model_versions(f"name = '{name}'") if v.tags.get(DIGEST_TAG) == digest]
    if known:
        version = known[0]
    else:
        source = client.get_run(tracked.run_id).info.artifact_uri + f"/{VERSION_FOLDER}"
        tags = {DIGEST_TAG: digest, "loragate.attempt": attempt.id, "loragate.registered": now()}
        tags |= {"loragate.verdict": _verdict(record, released=True), "loragate.base_model": base_name(record)}
        tags |= {f"gate.{verdict.gate}": verdict.status for verdict in record.verdicts}
        tags |= {**(seal or {}), **_waivers(record)}
        text = version_description(record, digest)
        version = client.create_model_version(name, source, tracked.run_id, tags=tags, description=text)
    if version.run_id == tracked.run_id:
        told = json.dumps([{"name": name, "version": int(version.version)}])
        logged_models.name_version(client, tracked.run_id, told)
    return str(version.version)
