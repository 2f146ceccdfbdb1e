"""Count what a training will take, before it begins."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace

from prefect import task

from loragate.attempt import Attempt, FetchedBase, Rows, recipe, section
from loragate.config import Train, plain
from loragate.plan import DeviceFacts, Plan, checkpoints
from loragate.record import AttemptRecord, read_as
from loragate.work import Counted, PlanTraining
from tasks.policies import STEP

SHORTEST_SECONDS = 1.0
"""A training that took less was found done."""


@task(name="plan training", **STEP)
def plan_training(attempt: Attempt, base: FetchedBase, rows: Rows) -> Plan:
    """Return the plan of a training; nothing of the base but its shape is loaded."""
    train, max_tokens = attempt.config.train, attempt.config.data.max_tokens
    found = attempt.call("loragate.engines.planning:describe_device", None)
    device = read_as(DeviceFacts, found)
    most_share = attempt.config.gates.plan.max_memory_share
    room = device.memory * most_share
    steps = recipe(
        "plan",
        {"base": base.digest, "rows": rows.digest},
        code=(
            "loragate.engines.activations",
            "loragate.engines.adapters",
            "loragate.engines.heads",
            "loragate.engines.language_model",
            "loragate.engines.packing",
            "loragate.engines.planning",
            "loragate.plan",
            "loragate.presets",
            "loragate.rendering",
        ),
        libraries=("torch", "transformers", "peft", "pyarrow"),
        settings=section(attempt.config, "train") | {"max_tokens": max_tokens, "device": asdict(device), "room": room},
    )
    request = PlanTraining(base.base, train, rows.folder, max_tokens, room)
    target = "loragate.engines.planning:count"
    _, counted = attempt.build(steps, Counted, lambda _: attempt.call(target, request))
    plan = planned(counted, device, train, most_share)
    if (rate := slowest_rate(attempt.home.records(), plan, plain(train))) is not None:
        plan = replace(plan, seconds=train.epochs * counted.rows.tokens / rate)
    attempt.note("plan", "", plan)
    return plan


def planned(counted: Counted, device: DeviceFacts, train: Train, max_memory_share: float) -> Plan:
    """Make the plan of what was counted, and choose whether activations are recomputed."""
    return Plan(
        counted.rows,
        counted.model,
        device,
        steps=train.epochs * math.ceil(counted.rows.rows / train.batch_size),
        epochs=train.epochs,
        checkpointing=checkpoints(train.gradient_checkpointing, counted.model.memory, device.memory, max_memory_share),
    )


def slowest_rate(records: Iterable[AttemptRecord], plan: Plan, train: Mapping[str, object]) -> float | None:
    """Row tokens a second of the slowest earlier training of this kind on this device; None where there was none.

    One that was found done has next to no time on record, and one that went on from a checkpoint too little: the
    slowest is the one that was timed whole.
    """
    rates = []
    for record in records:
        seconds, earlier = record.seconds.get("train", 0.0), record.plan
        if (
            earlier is None
            or seconds < SHORTEST_SECONDS
            or _kind(earlier, record.opened.config["train"]) != _kind(plan, train)
        ):
            continue
        rates.append(earlier.epochs * earlier.rows.tokens / seconds)
    return min(rates, default=None)


def _kind(plan: Plan, train: object) -> tuple[object, ...]:
    settings = train if isinstance(train, Mapping) else {}
    model = plan.model
    how = (settings.get("method"), settings.get("dora"), plan.checkpointing)
    return (plan.device, model.parameters, model.dtype, *how)
