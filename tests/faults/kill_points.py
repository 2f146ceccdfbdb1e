"""Kills a promotion at every point where it can be, one process a point; prints what it found as JSON.

The points are counted, not listed: after every line that is written to a journal, a log or the chain, every signature,
every file that is put in place whole, and after every call of MLflow's client or of its artifact stores, calls inside
calls included. Each point is a process of its own, forked from this one, which has imported everything and looked at no
store that they look at; it ends itself with SIGKILL. Then another process looks, reconciles, verifies and looks again.

A kill leaves what is on disk, and nothing else. A point that leaves, to the byte, what the point before it left (after
a call that only reads) is therefore known with it and is not walked again; `--every` walks those too.
"""

import argparse
import hashlib
import inspect
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.tracking import MlflowClient
from promotable import Promotable, promotable, promoted, sealed

from loragate import chain, lines, narration, promotion_log, record, store
from loragate.attempt import Attempt
from loragate.config import load
from loragate.engines import registry, report, seals, tracking  # noqa: F401 - no forked process has to import them
from loragate.engines.logged_models import VERSIONS
from loragate.errors import VerificationError
from loragate.home import Home
from loragate.orchestrator import QUIET
from loragate.verification import checked_bundle, verify_release
from tasks import aliases, attempts
from tasks.release_keys import open_chain, readers

narration.quiet = True
os.environ.update(QUIET)
OLD = {"candidate": "3", "challenger": "3", "champion": "2", "previous": "1"}
WANTED = {
    "release": {"candidate": "4", "champion": "4", "previous": "2"},
    "candidate": {"candidate": "4", "challenger": "4", "champion": "2", "previous": "1"},
    "promote": {"candidate": "3", "champion": "3", "previous": "2"},
    "rollback": {"candidate": "3", "challenger": "3", "champion": "1"},
    "lost": OLD,
}
"""Aliases at the end of each road."""
LIKE = {"candidate": "release", "lost": "promote"}
"""Roads that begin as another one does, with the same intent."""


def on_disk(folder: Path) -> str:
    """Digest of all names and bytes below a folder."""
    told = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        content = path.read_bytes() if path.is_file() else b""
        told.update(f"{path.relative_to(folder)} {len(content)}\n".encode() + content)
    return told.hexdigest()


class Countdown:
    """Ends this process after so many journal lines and MLflow calls; counts those that return."""

    def __init__(self, last: int, folder: Path) -> None:
        """Let `last` of them return; with 0 let all return, and look at the folder after each."""
        self.last, self.folder = last, folder
        self.done: list[tuple[str, str]] = []
        """Name of each, and what it left on disk."""

    def counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, which the count knows of."""

        def call(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            self.done.append((function.__qualname__, "" if self.last else on_disk(self.folder)))
            if len(self.done) == self.last:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    def install(self) -> None:
        """Count every line written and every call of MLflow from here on."""
        for module in (record, promotion_log):
            vars(module)["append_line"] = self.counted(lines.append_line)
        vars(seals)["sign"] = self.counted(seals.sign)  # between a line of the chain and its head
        for module in (chain, attempts):
            vars(module)["write_atomically"] = self.counted(store.write_atomically)
        for kind in (MlflowClient, ArtifactRepository, LocalArtifactRepository):
            for name, function in list(vars(kind).items()):
                if inspect.isfunction(function) and not name.startswith("_"):
                    setattr(kind, name, self.counted(function))


def in_a_process(work: Callable[[], Any], answer: Path) -> tuple[int, Any]:
    """Do something in a forked process; return how it ended and what it answered."""
    answer.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        try:
            answer.write_text(json.dumps(work()), encoding="utf-8")
        except BaseException:  # noqa: BLE001 - told, and the process ends
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code, json.loads(answer.read_text(encoding="utf-8")) if code == 0 else None


def prepare(place: Promotable) -> None:
    """Make a champion, its forerunner, a candidate that was judged against it, and two that wait for the last step."""
    place.released(1)
    place.released(2, judged_against="1")
    place.released(3, judged_against="2", goal="candidate")
    for number, goal in ((4, "champion"), (5, "candidate")):
        sealed(place.passed(number, judged_against="2", goal=goal))


def walk(place: Promotable, road: str) -> None:
    """Walk one road to its end."""
    home = place.home
    waiting = home.standings("tiny").find("3", "")
    assert waiting is not None
    if road == "promote":
        aliases.promote(home, waiting, None)
    elif road == "rollback":
        aliases.rollback(home, "tiny", None)
    elif road == "lost":
        aliases.promote(home, waiting, "tiny@1")
    else:
        goal = "champion" if road == "release" else "candidate"
        (found,) = [r for r in home.journals() if r.closed is None and r.opened.config["record"]["promote"] == goal]  # type: ignore[index, call-overload]
        number = 4 if road == "release" else 5
        attempt = Attempt(load(place.folder / "run.yaml", [f"train.seed={number}", f"record.promote={goal}"]), home)
        attempt.id, attempt.journal = found.opened.attempt, home.journal(found.opened.attempt)
        attempt.chain = open_chain(attempt.run, home)
        promoted(attempt)


def counted_walk(place: Promotable, road: str, last: int) -> list[tuple[str, str]]:
    """Walk a road that ends after so many points; return them all, where it did not come that far."""
    count = Countdown(last, place.folder)
    count.install()
    try:
        walk(place, road)
    except aliases.BlockedError:
        assert road == "lost"
    return count.done


def look(place: Promotable, when: str) -> tuple[dict[str, str], list[str]]:
    """Aliases as MLflow has them, and every one that points to something else than files as they were judged."""
    home, wrong = place.home, []
    owners = registry.aliases(home.tracking_uri, "tiny")
    for version in sorted(set(owners.values())):
        release = next((p.intent.digest for p in home.standings("tiny").promotions if p.version == version), None)
        try:
            assert release is not None, "on nobody's record"
            files = checked_bundle(home.releases / "tiny" / release, seals.unseal).digests
            registry.verify_version(home.tracking_uri, "tiny", version, files, home.root / "read")
        except (AssertionError, ValueError) as error:
            named = [alias for alias, owner in owners.items() if owner == version]
            wrong.append(f"{when}: {', '.join(named)} is version {version}: {error}")
    return owners, wrong


def unverified(home: Home) -> list[str]:
    """Why a release of the home is not as it was sealed and put on record, for each that is not."""
    found = []
    for release in (each for each in home.records() if each.outcome == "released"):
        try:
            verify_release(home, release, *readers(home), given=False)
        except VerificationError as error:
            found.append(str(error))
    return found


def shown_twice(client: MlflowClient, runs: list[str]) -> list[str]:
    """What MLflow shows more or less than once of a run: its models, their links and its points; models not ready."""
    wrong, models = [], client.search_logged_models(["1"])
    for run_id in runs:
        mine = [model for model in models if model.source_run_id == run_id]
        told = sorted((model.name, str(model.status), VERSIONS in model.tags) for model in mine)
        outputs, points = client.get_run(run_id).outputs, client.get_metric_history(run_id, "ladder/perplexity")
        linked = sorted(each.model_id for each in outputs.model_outputs) if outputs else []
        if told != [(name, "READY", True) for name in ("adapter", "gguf_q8_0", "merged")]:
            wrong.append(f"logged models of run {run_id}: {told}")
        if linked != sorted(model.model_id for model in mine):
            wrong.append(f"run {run_id} leads to {linked}")
        if len(points) != 1 or [len(model.metrics or ()) for model in mine if model.name == "adapter"] != [1]:
            wrong.append(f"{len(points)} points of run {run_id}, or of its adapter, wanted 1")
    return wrong


def judge(place: Promotable, road: str) -> list[str]:
    """Look, reconcile, look again: everything that is not as it must be after a kill."""
    home = place.home
    owners, wrong = look(place, "after the kill")
    if owners.get("champion") not in {OLD["champion"], WANTED[road]["champion"]}:
        wrong.append(f"after the kill: champion is {owners.get('champion')}")
    aliases.reconcile(home, None)
    owners, more = look(place, "after reconcile")
    wrong += more
    standings = home.standings("tiny")
    if not owners == standings.standing("") == WANTED[road]:
        wrong.append(f"aliases {owners}, by the log {standings.standing('')}, wanted {WANTED[road]}")
    again = [each.text for each in aliases.reconcile(home, None)]
    wrong += [f"a second reconcile still finds: {text}" for text in again]
    client = MlflowClient(home.tracking_uri)
    versions, runs = client.search_model_versions("name = 'tiny'"), client.search_runs(["1"])
    made = 4 if road in ("release", "candidate") else 3
    if (len(versions), len(runs)) != (made, made):
        wrong.append(f"{len(versions)} versions and {len(runs)} runs, wanted {made}")
    if {run.info.status for run in runs} != {"FINISHED"}:
        wrong.append(f"runs are {[run.info.status for run in runs]}")
    wrong += shown_twice(client, [run.info.run_id for run in runs])
    wrong += [f"not verified: {error}" for error in unverified(home)]
    if [r.outcome for r in home.records()].count("released") != made:
        wrong.append(f"outcomes on record: {[r.outcome for r in home.records()]}")
    return wrong


class Roads:
    """All roads, walked from the same home again and again."""

    def __init__(self, folder: Path) -> None:
        """Make the home in an empty folder."""
        warm = promotable(folder / "warm")
        warm.released(1)  # imports all that is imported late; no process forked from here on looks at this home
        self.place, self.copy, self.answer = promotable(folder / "place"), folder / "copy", folder / "answer"
        assert in_a_process(lambda: prepare(self.place), self.answer)[0] == 0
        shutil.copytree(self.place.folder, self.copy)
        self.points: dict[str, list[tuple[str, str]]] = {}

    def walked(self, road: str, last: int = 0) -> tuple[int, Any]:
        """Walk one as far as so many points, or to its end."""
        shutil.rmtree(self.place.folder)
        shutil.copytree(self.copy, self.place.folder)
        return in_a_process(lambda: counted_walk(self.place, road, last), self.answer)

    def judged(self, road: str) -> list[str]:
        """Judge what the last walk left."""
        ended, wrong = in_a_process(lambda: judge(self.place, road), self.answer)
        return wrong or ([f"looking ended with {ended}"] if ended else [])

    def killed(self, road: str, every: bool) -> dict[str, Any]:
        """Walk one once for every point; say how many there are and what is wrong after which.

        Points that it shares with the road that it is like, which was killed at all of its own, are left out.
        """
        code, points = self.walked(road)
        whole = self.judged(road)
        self.points[road] = points
        others = self.points[LIKE[road]] if road in LIKE else []
        pairs = zip(points, others, strict=False)
        shared = next((at for at, (one, other) in enumerate(pairs) if one[0] != other[0]), len(others))
        left = [disk for _, disk in points]
        failures: dict[int, list[str]] = {}
        killed = [at for at in range(shared, len(points)) if every or at == shared or left[at] != left[at - 1]]
        for at in killed:
            assert self.walked(road, at + 1)[0] == -signal.SIGKILL
            wrong = self.judged(road)
            sys.stderr.write(f"{road}: point {at + 1}, {points[at][0]}: {wrong or 'as it must be'}\n")
            if wrong:
                failures[at + 1] = wrong
        told = {"points": len(points) - shared, "killed": len(killed)}
        return told | {"code": code, "whole": whole, "failures": failures}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="an empty folder")
    parser.add_argument("--every", action="store_true", help="walk to the points, too, that leave nothing new on disk")
    given = parser.parse_args()
    roads = Roads(given.folder)
    print(json.dumps({road: roads.killed(road, given.every) for road in WANTED}))  # noqa: T201
