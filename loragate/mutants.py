"""Alterations of a sealed release's record that verification should find: what each one is and where it is made.

Each is an attack or an accident: somebody makes a refused model look released, puts an older file in the place of a
newer one, or a disk loses a bit. Each is made alone, in a copy of a home that is as it was sealed. No gate of the road
looks at what lies there once it is released: `loragate verify` does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Place = Literal["bundle", "chain", "journal", "promotions", "approvals", "mlflow"]

ADVICE: Mapping[Place, str] = {
    "bundle": "a bundle no longer proves what was judged; hold releases against copies of manifest.json kept elsewhere",
    "chain": "the chain no longer proves what happened; hold its head against those in the bundles and in MLflow",
    "journal": "`loragate show` and the report may say what was never found; go by the bundle's record.json",
    "promotions": "the champion may be another one than was promoted; go by the chain's events",
    "approvals": "an approval may be gone or changed; go by the chain's events",
    "mlflow": "whoever loads the model from MLflow may get another one; load the bundle instead",
}
"""What the survival of an alteration means, and what to do about it, by its place."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One alteration.

    Attributes:
        name: Machine name, stable across versions.
        what: What is wrong in the copy.
        place: What is altered; of `mlflow` it is asked whether `loragate verify --mlflow` finds it.
    """

    name: str
    what: str
    place: Place


MUTANTS = (
    Mutant("bit-flipped", "one bit of the adapter's weights is another", "bundle"),
    Mutant("metric-edited", "record.json says a lower perplexity than was measured", "bundle"),
    Mutant("verdict-edited", "the verdict of a gate in gates.json is the opposite", "bundle"),
    Mutant("finding-edited", "a finding in gates.json has half of its value", "bundle"),
    Mutant("limit-loosened", "a limit in gates.json is ten times what was judged by", "bundle"),
    Mutant("row-score-edited", "the tuned model's score of one held-out row is half of what it was", "bundle"),
    Mutant("manifest-recomputed", "a limit is loosened, and manifest.json says the new digest", "bundle"),
    Mutant("signed-by-another", "a limit is loosened, and the bundle is signed anew with a key of somebody", "bundle"),
    Mutant(
        "key-slipped-in",
        "a limit is loosened, and the bundle signed anew with a key slipped in among the home's",
        "bundle",
    ),
    Mutant("adapter-swapped", "the adapter's weights are those of an older release", "bundle"),
    Mutant("bundle-swapped", "a whole older bundle lies under the newer one's name", "bundle"),
    Mutant("signature-deleted", "the bundle has no signature any more", "bundle"),
    Mutant("code-added", "a Python file lies beside the weights and may be run by who loads them", "bundle"),
    Mutant("event-edited", "an event of the chain says another verdict", "chain"),
    Mutant("event-dropped", "an event of the chain is gone", "chain"),
    Mutant("events-swapped", "two events of the chain have changed places", "chain"),
    Mutant("chain-cut-short", "the last event of the chain is gone", "chain"),
    Mutant("chain-signed-anew", "an event is edited, and the whole chain linked and signed with another key", "chain"),
    Mutant("older-chain", "the chain is the one from before the release, with the head of then", "chain"),
    Mutant("chain-deleted", "there is no chain any more", "chain"),
    Mutant("journal-edited", "the attempt's journal says a lower perplexity than was measured", "journal"),
    Mutant(
        "champion-edited", "the log of promotions has lost the last one: an older release is champion", "promotions"
    ),
    Mutant("champion-invented", "the log has a promotion that never was: an older release is champion", "promotions"),
    Mutant("approval-deleted", "the approval that let the release go is gone", "approvals"),
    Mutant("approval-prolonged", "an approval counts longer than its signer said", "approvals"),
    Mutant("mlflow-file", "a file of the version in MLflow has other bytes", "mlflow"),
    Mutant("mlflow-code-added", "the version in MLflow has a Python file more", "mlflow"),
    Mutant("mlflow-tag", "the version's tag in MLflow says another manifest", "mlflow"),
    Mutant("mlflow-alias", "the alias champion in MLflow points to an older version", "mlflow"),
    Mutant(
        "history-rewritten",
        "a limit is loosened, and bundle and chain are made and signed anew with the home's own key",
        "mlflow",
    ),
)
