"""One way of scoring the prepared rows; `score.py` runs this as a process of its own for every peer.

Every peer sums the negative log-likelihood of each row's supervised tokens, in the same number format. Loading the
model is not timed, nor are some rows that are scored before the clock starts.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docstrings import TRAIN, read, read_base
from setting import busy, peak_rss

if TYPE_CHECKING:
    from loragate.rendering import Example

IGNORED, WARMUP_ROWS, PADDED = -100, 16, 16


@dataclass(frozen=True, slots=True)
class Job:
    """What one process is to do: a peer's name, the prepared folder, a number format, the file for the outcome."""

    peer: str
    folder: str
    dtype: str
    out: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """Rows scored.

    Attributes:
        nats: The sum of each row.
        tokens: Tokens of all rows, padding not counted, beginnings that rows share counted in each.
        processor: Processor seconds of this process meanwhile.
        others: How many cores other programs kept busy meanwhile.
        rss: The most that the process had resident, from its start to its end, in bytes.
        cuda: The most that its tensors took on the accelerator, in bytes; 0 without one.
        reserved: The most that was set aside for them there, pools of captured graphs among it.
    """

    nats: tuple[float, ...]
    tokens: int
    seconds: float
    processor: float
    others: float
    rss: int
    cuda: int
    reserved: int

    @property
    def rate(self) -> float:
        """Real tokens a second."""
        return self.tokens / self.seconds


def main() -> None:
    """Do the job that is given as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("job")
    job = Job(**json.loads(parser.parse_args().job))
    Path(job.out).write_text(json.dumps(dataclasses.asdict(scored(job))), encoding="utf-8")


def scored(job: Job) -> Outcome:
    """Load the model, score some rows, then all of them against the clock."""
    import torch

    from loragate.engines.language_model import load_weights
    from loragate.work import Model

    score, examples = PEERS[job.peer], read(Path(job.folder) / TRAIN)
    fields: Any = {"dtype": job.dtype}
    model = load_weights(Model(read_base(Path(job.folder)), **fields))
    with torch.inference_mode():
        score(model, examples[:WARMUP_ROWS])
        wall, processor, before = time.perf_counter(), time.process_time(), busy()
        nats = score(model, examples)
        seconds, own = time.perf_counter() - wall, time.process_time() - processor
        others = max(0.0, (busy() - before - own) / seconds)
    cuda = torch.cuda.is_available()
    peaks = (torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()) if cuda else (0, 0)
    return Outcome(tuple(nats), sum(len(row.ids) for row in examples), seconds, own, others, peak_rss(), *peaks)


def read_outcome(path: Path) -> Outcome:
    """Read back what `main` has written."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    return Outcome(**fields | {"nats": tuple(fields["nats"])})


def one_by_one(model: Any, examples: "Sequence[Example]") -> list[float]:
    """Give transformers one row after the other with labels: the loss is a mean, times its tokens the sum."""
    import torch

    sums = []
    for row in examples:
        ids_BT = torch.tensor([row.ids], device=model.device)
        mask_BT = torch.tensor([row.mask], device=model.device)
        labels_BT = torch.where(mask_BT, ids_BT, IGNORED)
        loss = model(input_ids=ids_BT, labels=labels_BT, use_cache=False).loss
        sums.append(loss.item() * int(mask_BT[:, 1:].sum()))
    return sums


def padded(model: Any, examples: "Sequence[Example]") -> list[float]:
    """Pad sixteen rows at a time, in the order of the data, and take the logits of all positions in float32."""
    import torch

    sums: list[float] = []
    for start in range(0, len(examples), PADDED):
        batch = examples[start : start + PADDED]
        tensors = [[torch.tensor(values) for values in zip(row.ids, row.mask, strict=True)] for row in batch]
        pairs_BT2 = torch.nn.utils.rnn.pad_sequence([torch.stack(row) for row in tensors], batch_first=True)
        ids_BT, mask_BT = pairs_BT2.to(model.device).unbind(-1)
        lengths_B = torch.tensor([len(row.ids) for row in batch], device=model.device)
        attention_BT = torch.arange(ids_BT.shape[1], device=model.device) < lengths_B[:, None]
        logits_BTV = model(input_ids=ids_BT, attention_mask=attention_BT.long(), use_cache=False).logits.float()
        next_BT = ids_BT[:, 1:]
        nats = torch.nn.functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), next_BT.flatten(), reduction="none")
        sums += (nats.view_as(next_BT).double() * mask_BT[:, 1:]).sum(1).tolist()
    return sums


def ours(model: Any, examples: "Sequence[Example]") -> list[float]:
    """Score with loragate's engine at its default size of a forward pass."""
    from loragate.child import ignore
    from loragate.config import Train
    from loragate.engines.fused import quicken
    from loragate.engines.scoring import score

    quicken(model)
    return [row.nats for row in score(model, examples, Train().most_tokens, ignore)]


PEERS: dict[str, Callable[[Any, "Sequence[Example]"], list[float]]] = {
    "one-by-one": one_by_one,
    "padded-16": padded,
    "ours": ours,
}


if __name__ == "__main__":
    main()
