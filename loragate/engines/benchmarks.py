"""Benchmarks: a model sits task files of lm-evaluation-harness, and scores, errors and documents come out.

The harness asks, reads answers and aggregates; the model is the one that every other step loads. Nothing is fetched:
data are local files, metrics are the harness's own, and the hub is shut for the process. Templates of a task file are
rendered in jinja's sandbox, so that they cannot reach Python.
"""

import math
import os
import random
import tempfile
from collections.abc import Mapping
from typing import Any

import datasets
import huggingface_hub
import jinja2.sandbox
import lm_eval
import lm_eval.utils
import numpy as np
import torch
from lm_eval.api.metrics import mean
from lm_eval.api.registry import METRIC_REGISTRY
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from transformers import GenerationConfig

from loragate.benchmark import Score
from loragate.child import Progress, Report
from loragate.engines.fused import load_settled
from loragate.engines.language_model import load_tokenizer
from loragate.errors import ConfigError, first_line
from loragate.refs import digest_json
from loragate.task_files import SitTasks, TaskFile

ASKED_AT_ONCE = 8


def sit(request: SitTasks, report: Report) -> tuple[Score, ...]:
    """Ask a model every task's documents; return a score a task. The same seed gives the same scores.

    Raises:
        ConfigError: A task file does not fit its data or the harness, or has no such metric.
    """
    _shut()
    random.seed(request.seed)
    np.random.seed(request.seed)  # the harness draws from it
    torch.manual_seed(request.seed)
    with tempfile.TemporaryDirectory() as cache:
        tasks = [_task(asked, cache, request.seed) for asked in request.tasks]
        model = _model(request)
        scores = []
        for asked, task in zip(request.tasks, tasks, strict=True):
            scores.append(_score(asked, task, model, request.draws))
            report(Progress(len(scores), len(tasks), "tasks"))
    return tuple(scores)


def _shut() -> None:
    """Keep this process from the hub, from Python in templates, and from starting processes of its own."""
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    datasets.config.HF_HUB_OFFLINE = True
    os.environ["DISABLE_MULTIPROC"] = "1"  # the harness's word for a bootstrap without a pool
    sandbox = jinja2.sandbox.ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    sandbox.filters["regex_replace"] = lm_eval.utils.regex_replace
    lm_eval.utils.env = sandbox


def _task(asked: TaskFile, cache: str, seed: int) -> Any:
    """Make the harness's task, its data read from local files by way of a folder that is thrown away."""
    config: dict[str, Any] = {
        **asked.config,
        "dataset_kwargs": {**_mapping(asked, "dataset_kwargs"), "cache_dir": cache},
    }
    config["metadata"] = {}
    for metric in config.get("metric_list") or ():
        if metric["metric"] not in METRIC_REGISTRY:
            raise _wrong(asked, f"metric {metric['metric']} is none of the harness's own")
    try:
        task = ConfigurableTask(config=config)
    except Exception as error:  # noqa: BLE001 - the harness checks little: data that do not fit end in any error
        raise _wrong(asked, f"{type(error).__name__}: {first_line(error)}") from None
    if task.config.num_fewshot is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=seed)
    return task


def _mapping(asked: TaskFile, key: str) -> Mapping[str, Any]:
    value = asked.config[key]
    assert isinstance(value, dict)
    return value


def _wrong(asked: TaskFile, what: str) -> ConfigError:
    return ConfigError(f"gates.quality.tasks: {asked.name}: {what}")


def _model(request: SitTasks) -> Any:
    """The model as every step loads it, in the harness's clothes: it ends answers where its own stop tokens do."""
    model = load_settled(request.model)
    tokenizer = load_tokenizer(request.model.base)
    stops = list(request.model.base.stop_ids)
    plain = GenerationConfig(eos_token_id=stops, pad_token_id=tokenizer.pad_token_id or stops[0])
    model.generation_config = plain  # models bring settings along that are not greedy
    return HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=ASKED_AT_ONCE)


def _score(asked: TaskFile, task: Any, model: Any, draws: int) -> Score:
    """Have the harness ask and aggregate; keep its value, its standard error and, of a mean, what is meant over."""
    found: Any = evaluate(
        lm=model,
        task_dict={"tasks": {asked.name: task}},
        limit=asked.limit or None,
        bootstrap_iters=draws,
        log_samples=True,
        apply_chat_template=asked.chat,
        fewshot_as_multiturn=asked.chat,
    )
    numbers, samples = found["results"][asked.name], found["samples"][asked.name]
    key = _chosen(asked, numbers)
    metric, _, filtered = key.partition(",")
    rows = sorted((row for row in samples if row["filter"] == filtered), key=lambda row: row["doc_id"])
    averaged = task.aggregation().get(metric, mean) is mean
    better = task.higher_is_better().get(metric)
    if better is None:
        raise _wrong(asked, f"say in metric_list whether a higher {metric} is better (higher_is_better)")
    return Score(
        metric=key,
        value=float(numbers[key]),
        standard_error=_number(numbers.get(f"{metric}_stderr,{filtered}")),
        documents=len(rows),
        higher_is_better=bool(better),
        asked=digest_json([[row["doc_hash"], row["target_hash"], row["prompt_hash"]] for row in rows]),
        scores=tuple(float(row[metric]) for row in rows) if averaged else (),
    )


def _chosen(asked: TaskFile, numbers: Mapping[str, Any]) -> str:
    """The metric that is asked for, in the harness's spelling; the first where none or no filter is named."""
    known = [key for key in numbers if "," in key and "_stderr," not in key]
    for key in known:
        if asked.metric in ("", key, key.partition(",")[0]):
            return key
    raise _wrong(asked, f"it has no metric {asked.metric}; it has {', '.join(known) or 'none'}")


def _number(value: object) -> float:
    """A number; NaN for the harness's "N/A"."""
    return float(value) if isinstance(value, int | float) else math.nan
