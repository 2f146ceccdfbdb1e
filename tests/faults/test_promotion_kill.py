"""A promotion that is killed at every point where it can be: reconcile leaves the aliases on verified files."""

import json
import os
import sys
from pathlib import Path

import pytest
from commands import ROOT, run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("road", "like", "fewest"),
    [
        ("release", "", 60),
        ("candidate", "release", 5),
        ("promote", "", 30),
        ("rollback", "", 30),
        ("lost", "promote", 3),
    ],
)
def test_promotion_killed_at_any_point_is_finished_by_reconcile(
    tmp_path: Path, road: str, like: str, fewest: int, capsys: pytest.CaptureFixture[str]
) -> None:
    script = Path(__file__).with_name("kill_points.py")
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = run([sys.executable, str(script), str(tmp_path), road, like], tmp_path, PYTHONPATH=paths)
    assert done.code == 0, done.said
    found = json.loads(done.stdout.splitlines()[-1])
    killed = found["points"] - found["shared"]
    with capsys.disabled():
        sys.stderr.write(f"\n{road}: {len(found['failures'])} of {killed} kill points fail\n")
    assert found["failures"] == {}, done.stderr
    assert (found["code"], found["whole"]) == (0, []), done.stderr
    assert killed >= fewest
