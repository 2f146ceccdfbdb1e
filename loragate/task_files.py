"""Task files of lm-evaluation-harness: found, read and refused before anything is run.

A task file is data here. What would run code (Python by `!function`, classes, code graders), read another file than it
names or fetch something is refused: a run that may be rebuilt must not depend on it, and whoever sends a task file
should not be able to run a program. The engine renders its templates in a sandbox.
"""

import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import JsonValue as Json
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from loragate.config import RunFile
from loragate.errors import ConfigError
from loragate.limits import TaskLimits
from loragate.refs import digest_file, digest_text
from loragate.work import Model

LIBRARY = "lm_eval"
FORMATS = ("json", "csv", "parquet")
"""Values of dataset_path: readers of local files."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
READER_KEYS = frozenset({"data_files", "field", "delimiter", "sep"})
"""Keys of dataset_kwargs: which files, and how they are written."""
KINDS = ("multiple_choice", "generate_until", "loglikelihood", "loglikelihood_rolling")
KNOWN: Final = frozenset(
    {
        *(
            "task",
            "task_alias",
            "tag",
            "dataset_path",
            "dataset_name",
            "dataset_kwargs",
            "training_split",
            "doc_to_text",
        ),
        *("validation_split", "test_split", "fewshot_split", "doc_to_target", "doc_to_choice", "description"),
        *("target_delimiter", "fewshot_delimiter", "fewshot_config", "num_fewshot", "metric_list", "output_type"),
        *("generation_kwargs", "repeats", "filter_list", "gen_prefix", "metadata", "should_decontaminate"),
        "doc_to_decontamination_query",
    }
)
"""Keys of a task file that are neither code nor names of other files."""


@dataclass(frozen=True, slots=True)
class TaskFile:
    """A task as the run file asks for it.

    Attributes:
        name: What the file calls it; unique in a run file.
        config: The file's content, paths of data absolute.
        metric: Metric, with a filter or without; empty for the task's first.
        limit: First documents that are asked; 0: all.
        chat: Whether documents go through the chat template.
        digest: Of everything that decides what is asked: content without paths, bytes of the data files, the keys here.
    """

    name: str
    config: dict[str, Json]
    metric: str
    limit: int
    chat: bool
    digest: str


@dataclass(frozen=True, slots=True)
class SitTasks:
    """Have a model sit tasks.

    Attributes:
        draws: How often documents are drawn anew for the error of a metric that is no mean.
        seed: Seed of few-shot examples, and of whatever a task draws.
    """

    model: Model
    tasks: tuple[TaskFile, ...]
    draws: int
    seed: int


def task_files(run: RunFile) -> tuple[TaskFile, ...]:
    """Read the task files that a run file names, in its order.

    Raises:
        ConfigError: The harness is not installed, or a file is missing, wrong, or asks for code or for a hub.
    """
    asked = run.config.gates.quality.tasks
    if asked and importlib.util.find_spec(LIBRARY) is None:
        raise ConfigError(f"{run.path}: gates.quality.tasks needs lm-eval: pip install 'loragate[eval]'")
    found = tuple(_read(run, each) for each in asked)
    names = [each.name for each in found]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{run.path}: gates.quality.tasks: two are called {name}; give their files other names")
    return found


def _read(run: RunFile, asked: TaskLimits) -> TaskFile:
    path, where = run.resolve(asked.file), f"{run.path}: gates.quality.tasks: {asked.file}"
    config = _parsed(path, where)
    if faults := list(_faults(config)):
        raise ConfigError("\n".join(f"{where}: {fault}" for fault in faults))
    files = _data_files(config, path.parent, where)
    metric, limit, chat = asked.metric or "", asked.limit or 0, asked.chat_template
    data = {split: [digest_file(Path(name)) for name in names] for split, names in files.items()}
    content = [_with_data(config, None), data, metric, limit, chat]
    placed = _with_data(config, {split: [*names] for split, names in files.items()})
    digest = digest_text(json.dumps(content, sort_keys=True))
    return TaskFile(str(config["task"]), placed, metric, limit, chat, digest)


def _with_data(config: Mapping[str, Json], files: Json) -> dict[str, Json]:
    return {**config, "dataset_kwargs": {**_reader(config), "data_files": files}}


def _parsed(path: Path, where: str) -> dict[str, Json]:
    """A task file's content as JSON values, read as the harness reads it: YAML 1.1, where `no` is false."""
    reader = YAML(typ="safe", pure=True)
    reader.version = (1, 1)
    try:
        tree = reader.load(path.read_text(encoding="utf-8"))
        content = json.loads(json.dumps(tree, allow_nan=False))
    except MarkedYAMLError as error:
        at = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        if "!function" in str(error.problem):
            raise ConfigError(f"{where}{at}: !function runs Python, which a task file may not") from None
        raise ConfigError(f"{where}{at}: not YAML: {error.problem}") from None
    except YAMLError as error:
        raise ConfigError(f"{where}: not YAML: {str(error).splitlines()[0]}") from None
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read: {error.strerror} (looked for {path})") from None
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: not UTF-8 text of plain values: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: a task file is a mapping of keys to values")
    return content


def _faults(config: Mapping[str, Json]) -> Iterator[str]:
    """Yield what a task file says that it may not."""
    if not isinstance(name := config.get("task"), str) or not NAME.fullmatch(name):
        yield f"task: found {json.dumps(name)[:80]}, wanted one name of letters, digits, dot, dash and underscore"
    for key in sorted(config.keys() - KNOWN):
        yield f"{key}: unknown here, or runs code or reads other files, which a task file may not"
    if config.get("output_type", "generate_until") not in KINDS:
        yield f"output_type: found {json.dumps(config['output_type'])[:80]}, allowed: {', '.join(KINDS)}"
    if config.get("dataset_path") not in FORMATS:
        found = json.dumps(config.get("dataset_path"))[:80]
        yield f"dataset_path: found {found}; data must be local files, so one of {', '.join(FORMATS)}"
    if config.get("test_split") is None and config.get("validation_split") is None:
        yield "test_split: required, but missing (or validation_split): the part of the data that is asked"
    for key in sorted(_reader(config).keys() - READER_KEYS):
        yield f"dataset_kwargs.{key}: unknown here; allowed: {', '.join(sorted(READER_KEYS))}"
    metrics = config.get("metric_list")
    for metric in metrics if isinstance(metrics, list) else ():
        if not isinstance(metric, dict) or not isinstance(metric.get("metric"), str):
            yield "metric_list: each entry is a mapping with the name of a metric"
        elif metric.get("hf_evaluate"):
            yield f"metric_list: {metric['metric']}: hf_evaluate fetches code from a hub, which a task file may not"


def _reader(config: Mapping[str, Json]) -> Mapping[str, Json]:
    settings = config.get("dataset_kwargs")
    return settings if isinstance(settings, dict) else {}


def _data_files(config: Mapping[str, Json], folder: Path, where: str) -> dict[str, list[str]]:
    """Data files by split, absolute; files without a split are `train`, as the harness has it.

    Raises:
        ConfigError: None are named, or one is not a file here.
    """
    named = _reader(config).get("data_files")
    splits = named if isinstance(named, dict) else {"train": named}
    files: dict[str, list[str]] = {}
    for split, written in splits.items():
        for name in written if isinstance(written, list) else [written]:
            if not isinstance(name, str):
                raise ConfigError(f"{where}: dataset_kwargs.data_files: name local files, relative to the task file")
            path = (folder / name).absolute()
            if not path.is_file():
                raise ConfigError(f"{where}: dataset_kwargs.data_files: {name}: no such file (looked for {path})")
            files.setdefault(split, []).append(str(path))
    return files
