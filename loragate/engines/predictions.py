"""Predictions of two models held against each other, also where they run in different programs.

Whole predictions are too large to keep, so they are made coarser: the likeliest tokens of the model above one by one,
all others in groups by their numbers. Of every part both models say how likely they hold it, and

    KL(p || q) = sum over parts of p (ln p - ln q)

is at most the divergence over the whole vocabulary. Own measurement: 0.96 to 0.99 of it on a real model of 135 million
parameters (held against its base, another number format and a scaled tensor); far less on an untrained one, whose
predictions are all tail.

Shapes in names: N positions, K tokens kept one by one, G groups, P = K + G parts, V vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from loragate.ladder import NOT_COMPARED, Divergence

LIKELIEST = 512
"""Tokens of a prediction that are kept one by one."""
GROUPS = 512
"""Groups of the other tokens: token i is of group i modulo this."""
LEAST = 1e-30
"""Least probability of a group: none holds less, also where it has no token."""
FILE = "predictions.npz"

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Predictions:
    """Likeliest tokens of positions, likeliest first, and ln p of every part."""

    ids_NK: npt.NDArray[np.int32]
    log_p_NP: npt.NDArray[np.float32]

    def save(self, folder: Path) -> None:
        """Write them to a folder's file."""
        with (folder / FILE).open("wb") as file:
            np.savez(file, ids=self.ids_NK, log_p=self.log_p_NP)


def load(folder: str) -> Predictions:
    """Read what `save` wrote."""
    with np.load(Path(folder) / FILE, allow_pickle=False) as arrays:
        return Predictions(arrays["ids"], arrays["log_p"])


def likeliest(log_p_NV: Floats) -> Predictions:
    """Make whole predictions coarser."""
    kept = min(LIKELIEST, log_p_NV.shape[1])
    ids_NK = np.argpartition(-log_p_NV, kept - 1, axis=1)[:, :kept]
    order_NK = np.argsort(-np.take_along_axis(log_p_NV, ids_NK, axis=1), axis=1, kind="stable")
    ids_NK = np.take_along_axis(ids_NK, order_NK, axis=1)
    return Predictions(ids_NK.astype(np.int32), parts(log_p_NV, ids_NK).astype(np.float32))


def parts(log_p_NV: Floats, ids_NK: npt.NDArray[np.integer]) -> Floats:
    """Ln p of some tokens, and of the groups of all others; not a number where the vocabulary lacks a token."""
    positions, vocabulary = log_p_NV.shape
    if ids_NK.size and int(ids_NK.max()) >= vocabulary:
        return np.full((positions, ids_NK.shape[1] + GROUPS), np.nan)
    p_NV = np.pad(np.exp(log_p_NV), ((0, 0), (0, -vocabulary % GROUPS)))
    np.put_along_axis(p_NV, ids_NK, 0.0, axis=1)
    groups_NG = p_NV.reshape(positions, -1, GROUPS).sum(axis=1)
    kept_NK = np.take_along_axis(log_p_NV, ids_NK, axis=1)
    return np.concatenate([kept_NK, np.log(np.maximum(groups_NG, LEAST))], axis=1)


class Gathered:
    """Predictions of a model as it makes them, held against those of other models."""

    def __init__(self, folder: str, against: Mapping[str, str]) -> None:
        """Keep what is added in a folder, and hold it against what lies in others, by their models' names."""
        self.folder = Path(folder)
        self.above = {name: load(path) for name, path in against.items()}
        self.own: list[Predictions] = []
        self.below: dict[str, list[Floats]] = {name: [] for name in against}
        self.done = 0

    def add(self, own: Predictions, parts_of: Callable[[npt.NDArray[np.int64]], Floats]) -> None:
        """Add the next positions; `parts_of` gives ln p of the parts of other predictions, by their tokens [N, K]."""
        positions = slice(self.done, self.done + len(own.ids_NK))
        for name, above in self.above.items():
            self.below[name].append(parts_of(above.ids_NK[positions].astype(np.int64)))
        self.own.append(own)
        self.done = positions.stop

    def finish(self) -> dict[str, Divergence]:
        """Write the predictions, and say how far they are from the others'."""
        if not self.own:
            return dict.fromkeys(self.above, NOT_COMPARED)
        whole = Predictions(
            np.concatenate([part.ids_NK for part in self.own]), np.concatenate([part.log_p_NP for part in self.own])
        )
        whole.save(self.folder)
        first_N = whole.ids_NK[:, 0]
        return {name: diverge(above, np.concatenate(self.below[name]), first_N) for name, above in self.above.items()}


def diverge(above: Predictions, below_NP: Floats, first_N: npt.NDArray[np.integer]) -> Divergence:
    """Hold a model's ln p of the parts of the model above, and its own likeliest tokens, against the model above."""
    positions = len(above.ids_NK)
    if not positions == len(below_NP) == len(first_N):
        return NOT_COMPARED
    log_p_NP = above.log_p_NP.astype(np.float64)
    with np.errstate(all="ignore"):  # what is not a number stays that, and no gate lets it pass
        kl = float((np.exp(log_p_NP) * (log_p_NP - below_NP)).sum(axis=1).mean())
    return Divergence(kl, float((above.ids_NK[:, 0] == first_N).mean()), positions)
