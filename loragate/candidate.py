"""The identity of what is released or refused, as digests that are the same whenever and wherever it is made again.

No time, no folder of this machine and nothing about who may waive or who seals goes into them: the same bytes judged by
the same limits are the same candidate.
"""

from collections.abc import Mapping

from pydantic import JsonValue

from loragate.config import Config, plain
from loragate.record import EXPECTATIONS, AttemptRecord
from loragate.refs import digest_json

JUDGED = ("model", "base_model", "data", "train", "gates", "export", "card")
"""Sections of a run file that decide what is made, how it is judged, and what is said about it."""


def candidate_digest(record: AttemptRecord, config: Config) -> str:
    """Digest a candidate as it stands before a gate: what went in, what has been made of it, and every setting.

    Any change of data, base model, training or limits makes it another one, and so does every artifact further along.
    """
    return digest_of(_digests(record), config)


def digest_of(digests: Mapping[str, str], config: Config) -> str:
    """Digest a candidate by the digests of what went in and has been made."""
    return digest_json({"digests": dict(digests), "settings": judged_settings(config)})


def release_digest(record: AttemptRecord, config: Config) -> str:
    """Digest a release: the candidate at the end of the road, what the gates said, and the waivers they honoured.

    Who has to approve goes into it where anybody has to: what is sealed about that cannot be changed, so other
    approvers make another release, out of the same artifacts.
    """
    honoured = sorted(file.digest for review in record.waivers.values() for file in review.honoured)
    return digest_json(
        {
            "digests": _digests(record),
            "verdicts": {verdict.gate: verdict.status for verdict in record.verdicts},
            "settings": judged_settings(config) | {"record": {"tracking_uri": config.record.tracking_uri}},
            "waivers": list(honoured),
            **({"approvals": record.approvals.digest} if record.approvals else {}),
        }
    )


def _digests(record: AttemptRecord) -> dict[str, str]:
    made = {name: ref.digest for name, ref in record.artifacts.items() if name != EXPECTATIONS}
    return made | dict(record.inputs)


def judged_settings(config: Config, sections: tuple[str, ...] = JUDGED) -> dict[str, JsonValue]:
    """The sections of a run file that a digest covers; without who may waive."""
    values = plain(config)
    chosen = {name: values[name] for name in sections}
    gates = values["gates"]
    assert isinstance(gates, dict)
    return chosen | {"gates": {name: limits for name, limits in gates.items() if name != "waivers"}}
