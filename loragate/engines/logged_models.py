"""MLflow's logged models: each model that an attempt made by itself, with its numbers and the data set they are of.

A logged model holds no files of its own: they lie in the attempt's run once, and tags of the model say where and with
which digest. A second copy of every GGUF file would double the store, and one more copy is one more to verify.

Promises: asked for twice, there is still one of each; it is pending until its files are in the run, then ready where a
release was made of it and failed where none was.
"""

from collections.abc import Iterator, Mapping, Sequence

from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Metric
from mlflow.tracking import MlflowClient

from loragate.files import Side
from loragate.made_models import MadeModel, Number
from loragate.promotion import VERSION_FOLDER

DataSets = Mapping[Side, tuple[str, str]]
"""Name and digest of the run's data sets, by side."""
VERSIONS = "mlflow.modelVersions"
"""Tag by which MLflow's pages lead from a logged model to the versions that it is in."""


def pending(client: MlflowClient, run_id: str, models: Sequence[MadeModel], tags: Mapping[str, str]) -> dict[str, str]:
    """Find or make the logged model of each model, and see that the run names it; return their ids by name."""
    if not models:
        return {}
    run = client.get_run(run_id)
    found = {model.name: model.model_id for model in _models(client, run.info.experiment_id, run_id)}
    for model in (model for model in models if model.name not in found):
        made = client.create_logged_model(
            run.info.experiment_id,
            model.name,
            run_id,
            tags={**tags, **_place(model, run_id)},
            params=model.params,
            model_type=model.kind,
        )
        found[model.name] = made.model_id
    known = {each.model_id for each in run.outputs.model_outputs} if run.outputs else set()
    outputs = [LoggedModelOutput(found[model.name], 0) for model in models if found[model.name] not in known]
    if outputs:
        client.log_outputs(run_id, outputs)
    return found


def _models(client: MlflowClient, experiment: str, run_id: str) -> list[LoggedModel]:
    return list(client.search_logged_models([experiment], f"source_run_id = '{run_id}'"))


def _place(model: MadeModel, run_id: str) -> dict[str, str]:
    where = (
        f"runs:/{run_id}/{VERSION_FOLDER}/{model.place}"
        if model.place
        else "not uploaded: base and adapter make them again"
    )
    return {"loragate.digest": model.digest, "loragate.files": where}


def measured(ids: Mapping[str, str], models: Sequence[MadeModel], sets: DataSets, at: int) -> Iterator[Metric]:
    """The numbers of each model, which are the run's as well."""
    for model in models:
        yield from (_metric(number, ids[model.name], sets.get(number.side), at) for number in model.numbers)


def _metric(number: Number, model_id: str, data_set: tuple[str, str] | None, at: int) -> Metric:
    name, digest = data_set or (None, None)
    return Metric(number.name, number.value, at, number.step, model_id, name, digest)


def settle(client: MlflowClient, ids: Mapping[str, str], *, released: bool) -> None:
    """End what is pending: its files are where they are to be."""
    for model_id in ids.values():
        if client.get_logged_model(model_id).status == LoggedModelStatus.PENDING:
            client.finalize_logged_model(model_id, LoggedModelStatus.READY if released else LoggedModelStatus.FAILED)


def name_version(client: MlflowClient, run_id: str, told: str) -> None:
    """Tell the logged models of a run which version they are in."""
    experiment = client.get_run(run_id).info.experiment_id
    for model in _models(client, experiment, run_id):
        if model.tags.get(VERSIONS) != told:
            client.set_logged_model_tags(model.model_id, {VERSIONS: told})
