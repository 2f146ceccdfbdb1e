"""A promotion that is killed at every point where it can be: reconcile leaves the aliases on verified files."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT, run


@pytest.fixture(scope="module")
def roads(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What was found on each road."""
    folder = tmp_path_factory.mktemp("kills")
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    script = Path(__file__).with_name("kill_points.py")
    done = run([sys.executable, str(script), str(folder)], folder, PYTHONPATH=paths)
    assert done.code == 0, done.said
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("road", "fewest"), [("release", 60), ("candidate", 10), ("promote", 30), ("rollback", 30), ("lost", 5)]
)
def test_promotion_killed_at_any_point_is_finished_by_reconcile(
    roads: dict[str, Any], road: str, fewest: int, capsys: pytest.CaptureFixture[str]
) -> None:
    found = roads[road]
    with capsys.disabled():
        told = f"{len(found['failures'])} of {found['points']} kill points fail"
        sys.stderr.write(f"\n{road}: {told}; {found['killed']} differ in what they leave on disk\n")
    assert found["failures"] == {}
    assert (found["code"], found["whole"]) == (0, [])
    assert found["points"] >= fewest
    assert 0 < found["killed"] <= found["points"]
