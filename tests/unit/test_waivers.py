"""Waivers: one finding, one candidate, one person, until a day; anything else, and any altered byte, does not count."""

import json
import math
import shlex
from dataclasses import asdict, replace
from datetime import date, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from signers import new_key

from checks.waivers import Case, judge, waivable
from loragate.candidate import candidate_digest, release_digest
from loragate.config import Config, RunFile
from loragate.engines.signing import sign
from loragate.errors import ConfigError
from loragate.home import Home
from loragate.record import AttemptRecord, Closed, Opened
from loragate.refs import Ref
from loragate.summary import summary
from loragate.verdicts import Finding, Verdict, at_most, conclude
from loragate.waivers import NAMESPACE, Review, Waiver, WaiverFile, waive_command
from loragate.waiving import Wish, draft, find_attempt, require_own_key, run_file, write
from tasks.waivers import read_waivers

TODAY = date(2026, 11, 26)
KEY, OTHER = new_key(), new_key()
ADA = "Ada Lovelace"
CANDIDATE = "c" * 64
RULE = "quality/perplexity_ratio"
WORSE = at_most("perplexity_ratio", 1.25, 1.0, "the ratio")
FEW = Finding("stop_share", False, "share of 8 answers is 0.5", value=0.5, limit=0.75)
VERDICT = conclude("quality", [Finding("same_tokens", True, "same"), WORSE])
WAIVER = Waiver("helper", RULE, CANDIDATE, WORSE.detail, ADA, "pilot customers only", "2026-12-31")
CASE = Case("helper", CANDIDATE, TODAY, 90, (ADA,))


def run_of(folder: Path, **waivers: object) -> RunFile:
    content = {
        "model": "helper",
        "base_model": {"source": "org/base"},
        "data": {"train": ["a.jsonl"]},
        "gates": {"waivers": {"signers": {ADA: KEY.public + " ada@laptop"}} | waivers},
    }
    path = folder / "run.yaml"
    path.write_text(json.dumps(content), encoding="utf-8")
    return RunFile(path, Config.model_validate_json(json.dumps(content)))


def put(folder: Path, waiver: Waiver, text: str = "", key: object = KEY) -> RunFile:
    """A run file, and a waiver beside it that is signed with a key."""
    run = run_of(folder)
    place = folder / "waivers"
    place.mkdir(exist_ok=True)
    content = text or waiver.text
    (place / "a.json").write_text(content, encoding="utf-8")
    signed = sign(key, content.encode("utf-8"), NAMESPACE)  # type: ignore[arg-type]
    (place / "a.json.sig").write_text(signed, encoding="ascii")
    return run


def judged(run: RunFile, case: Case = CASE, verdict: Verdict = VERDICT) -> tuple[Verdict, Review]:
    return judge(verdict, read_waivers(run), case)


def test_a_waived_finding_keeps_its_value_and_limit_and_no_longer_refuses(tmp_path: Path) -> None:
    verdict, review = judged(put(tmp_path, WAIVER))
    assert (verdict.status, verdict.refuses) == ("waived", False)
    finding = verdict.findings[1]
    assert (finding.passed, finding.value, finding.limit, finding.status) == (False, 1.25, 1.0, "waived")
    (file,) = review.honoured
    told = f"by {ADA} until 2026-12-31: pilot customers only (waiver {file.digest[:12]})"
    assert finding.waived == told
    assert verdict.sentence == f"quality gate: waived (2 rules); perplexity_ratio waived {told}"
    assert (file.file, file.key, review.ignored) == ("waivers/a.json", KEY.public, ())


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"candidate": "d" * 64}, "it is for candidate dddddddddddd of helper, this is cccccccccccc"),
        ({"model": "other"}, "it is for candidate cccccccccccc of other, this is cccccccccccc"),
        ({"rule": "quality/stop_share"}, "it waives quality/stop_share, which does not refuse here"),
        ({"found": "the ratio is 1.1"}, "it waives another finding: the ratio is 1.1"),
        ({"by": "Charles Babbage"}, "Charles Babbage is not among gates.waivers.signers"),
        ({"until": "2026-11-25"}, "it ended on 2026-11-25, today is 2026-11-26 (UTC)"),
        ({"until": "2027-02-25"}, "its last day, 2027-02-25, is more than 90 days ahead (latest: 2027-02-24)"),
        ({"until": "soon"}, "its last day, 'soon', is not a date as YYYY-MM-DD"),
    ],
)
def test_a_waiver_of_anything_else_does_not_count_and_says_why(
    tmp_path: Path, changed: dict[str, str], why: str
) -> None:
    verdict, review = judged(put(tmp_path, replace(WAIVER, **changed)))
    assert (verdict, review.honoured) == (VERDICT, ())
    assert [(each.file, each.why) for each in review.ignored] == [("waivers/a.json", why)]
    assert f"waivers/a.json does not count: {why}" in review.told


@pytest.mark.parametrize("until", [TODAY, TODAY + timedelta(days=90)])
def test_the_first_and_the_last_day_count(tmp_path: Path, until: date) -> None:
    assert not judged(put(tmp_path, replace(WAIVER, until=until.isoformat())))[0].refuses


def test_a_waiver_that_another_signed_or_nobody_does_not_count(tmp_path: Path) -> None:
    run = put(tmp_path, WAIVER, key=OTHER)
    assert judged(run)[1].ignored[0].why == "the signature was made with another key"
    (tmp_path / "waivers" / "a.json.sig").unlink()
    verdict, review = judged(run)
    assert verdict.refuses
    assert review.ignored[0].why == "it is not signed: a.json.sig cannot be read"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "it is not JSON"),
        ("[]", "it is not an object of the texts"),
        (json.dumps(asdict(WAIVER) | {"more": "x"}), "and nothing else"),
        (json.dumps(asdict(WAIVER) | {"until": 5}), "it is not an object of the texts"),
    ],
)
def test_a_signed_file_that_is_no_waiver_does_not_count(tmp_path: Path, text: str, why: str) -> None:
    verdict, review = judged(put(tmp_path, WAIVER, text))
    assert verdict.refuses
    assert why in review.ignored[0].why


def test_without_signers_no_file_is_looked_at(tmp_path: Path) -> None:
    put(tmp_path, WAIVER)
    assert read_waivers(run_of(tmp_path, signers={})) == ()


@given(st.data())
def test_no_altered_byte_of_a_waiver_or_its_signature_counts(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("waiver")
    run = put(folder, WAIVER)
    path = folder / "waivers" / data.draw(st.sampled_from(["a.json", "a.json.sig"]))
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    verdict, review = judged(run)
    assert (verdict, review.honoured) == (VERDICT, ())


def test_a_waiver_lets_its_own_rule_go_and_no_other(tmp_path: Path) -> None:
    both = conclude("quality", [WORSE, FEW])
    verdict, _ = judged(put(tmp_path, WAIVER), verdict=both)
    assert (verdict.status, verdict.refuses) == ("fail", True)
    assert verdict.reasons == ("stop_share: share of 8 answers is 0.5",)
    assert waivable(verdict) == ("quality/stop_share",)
    assert verdict.waived[0].startswith("perplexity_ratio waived by Ada")


def test_a_verdict_that_does_not_refuse_is_left_as_it_is(tmp_path: Path) -> None:
    fine = conclude("quality", [Finding("same_tokens", True, "same")])
    assert judged(put(tmp_path, WAIVER), verdict=fine)[0] is fine


UNDECIDED = Finding("perplexity_ratio", False, "too few rows", value=1.0, limit=1.0, evidence="little")


@pytest.mark.parametrize(
    ("gate", "finding", "may"),
    [
        ("quality", WORSE, True),
        ("quality", UNDECIDED, True),
        ("data", Finding("train.answer_not_empty", False, "2 of 9", value=2, limit=0), True),
        ("quality", replace(UNDECIDED, evidence="none"), False),
        ("quality", at_most("perplexity_ratio", math.nan, 1.0, "the ratio"), False),
        ("gguf_f16", at_most("perplexity_ratio", math.inf, 1.0, "the ratio"), False),
        ("quality", Finding("same_tokens", False, "9, exactly 10 required", value=9, limit=10), False),
        ("training", Finding("loss_finite", False, "not finite at step 1"), False),
        ("training", Finding("weights_finite", False, "1 tensors", value=1, limit=0), False),
        ("data", Finding("train.no_secrets", False, "1 of 9", value=1, limit=0), False),
        ("data", Finding("facts_complete", False, "not known"), False),
    ],
)
def test_what_is_not_known_and_what_must_not_be_learnt_cannot_be_waived(
    tmp_path: Path, gate: str, finding: Finding, may: bool
) -> None:
    verdict = conclude(gate, [finding])
    waiver = replace(WAIVER, rule=f"{gate}/{finding.rule}", found=finding.detail)
    found, _ = judged(put(tmp_path, waiver), verdict=verdict)
    assert found.refuses is not may
    assert (waivable(verdict) != ()) is may


def record_of(outcome: str = "refused", **changed: object) -> AttemptRecord:
    opened = Opened("attempt-1", "helper", "2026-11-22T06:00:00+00:00", {}, {}, "")
    closed = Closed(outcome, "as it ended", "2026-11-22T06:10:00+00:00")  # type: ignore[arg-type]
    record = AttemptRecord(opened, closed, verdicts=(VERDICT,), waivers={"quality": Review(CANDIDATE, signers=1)})
    return replace(record, **changed)  # type: ignore[arg-type]


WISH = Wish(RULE, ADA, " pilot customers only ", "2026-12-31")


def test_what_is_drafted_and_written_counts(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    waiver = draft(record_of(), WISH, run, TODAY)
    assert waiver == WAIVER
    path, signed = write(run, waiver, lambda content: sign(KEY, content, NAMESPACE))
    assert (path.parent, signed.name) == (tmp_path / "waivers", f"{path.name}.sig")
    assert not judged(run)[0].refuses


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        (
            {"rule": "quality/stop_share"},
            "was not refused by quality/stop_share: it was refused by quality/perplexity_",
        ),
        ({"rule": "quality/same_tokens"}, "was not refused by quality/same_tokens"),
        ({"by": "Charles Babbage"}, '--by "Charles Babbage": .*signers names Ada Lovelace'),
        ({"reason": "  "}, "--reason is empty"),
        ({"until": "2026-11-25"}, "--until does not do: it ended on 2026-11-25"),
        ({"until": "2027-02-25"}, "more than 90 days ahead"),
        ({"until": "31.12.2026"}, "is not a date as YYYY-MM-DD"),
    ],
)
def test_a_waiver_that_would_not_count_is_not_written(tmp_path: Path, wish: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        draft(record_of(), replace(WISH, **wish), run_of(tmp_path), TODAY)


def test_a_released_attempt_and_a_rule_that_cannot_be_waived_are_not_waived(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="was not refused by quality/perplexity_ratio"):
        draft(record_of("released"), WISH, run_of(tmp_path), TODAY)
    unjudged = record_of(verdicts=(conclude("quality", [replace(UNDECIDED, evidence="none")]),))
    with pytest.raises(ConfigError, match="cannot be waived: it could not be judged"):
        draft(unjudged, WISH, run_of(tmp_path), TODAY)


def test_a_check_that_refused_is_found_by_its_id(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    journal = home.journal("check-1", "checks")
    journal.append("opened", "", record_of().opened)
    assert find_attempt(home, "check-1") == journal.read()


def test_the_command_names_the_one_signer_and_a_home_as_a_shell_reads_them() -> None:
    told = waive_command("a-1", RULE, (ADA,), "/a home")
    words = shlex.split(told)
    assert words[:7] == ["loragate", "waive", "a-1", "--rule", RULE, "--by", ADA]
    assert words[-2:] == ["--home", "/a home"]
    assert "--by NAME " in waive_command("a-1", RULE, (ADA, "Charles Babbage"), "")


def test_another_person_s_key_a_lost_run_file_and_a_pattern_without_folder_are_refused(tmp_path: Path) -> None:
    require_own_key(run_of(tmp_path), ADA, KEY.public)
    with pytest.raises(ConfigError, match=r"is not the key that .* has for Ada Lovelace"):
        require_own_key(run_of(tmp_path), ADA, OTHER.public)
    with pytest.raises(ConfigError, match="name it with --config"):
        run_file(record_of(), tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"w\*/\*.json names no folder for helper-quality"):
        write(run_of(tmp_path, files=["w*/*.json"]), WAIVER, lambda _: "")
    with pytest.raises(ConfigError, match="no such release on record"):
        find_attempt(Home(tmp_path / "home"), "attempt-9")


@pytest.mark.parametrize(
    ("name", "key"),
    [(" Ada", KEY.public), ("", KEY.public), ("Ada", "ssh-rsa AAAA"), ("Ada", KEY.public[:-4])],
    ids=["padded name", "no name", "other kind of key", "key cut short"],  # the key is another one in each process
)
def test_a_signer_without_a_name_or_a_key_is_refused_in_the_run_file(tmp_path: Path, name: str, key: str) -> None:
    with pytest.raises(ValueError, match=r"gates\.waivers\.signers"):
        run_of(tmp_path, signers={name: key})


def config_of(tmp_path: Path, **gates: object) -> Config:
    plain = json.loads(run_of(tmp_path).path.read_text(encoding="utf-8"))
    return Config.model_validate_json(json.dumps(plain | {"gates": plain["gates"] | gates}))


MADE = record_of(artifacts={"adapter": Ref("/here/a", "a" * 64)}, inputs={"data": "b" * 64})


def test_a_candidate_is_its_inputs_artifacts_and_settings_wherever_it_lies_and_whoever_may_waive(
    tmp_path: Path,
) -> None:
    config = config_of(tmp_path)
    digest = candidate_digest(MADE, config)
    elsewhere = replace(
        MADE,
        opened=replace(MADE.opened, attempt="b", started="later"),
        artifacts={"great_expectations": Ref("x", "1" * 64), "adapter": Ref("/there", "a" * 64)},
        seconds={"train": 3.0},
    )
    assert candidate_digest(elsewhere, config) == digest
    assert candidate_digest(MADE, config_of(tmp_path, waivers={"signers": {}})) == digest
    others = [
        candidate_digest(replace(MADE, inputs={"data": "c" * 64}), config),
        candidate_digest(replace(MADE, artifacts={"adapter": Ref("/here/a", "b" * 64)}), config),
        candidate_digest(MADE, config_of(tmp_path, quality={"max_perplexity_ratio": 1.3})),
    ]
    assert len({digest, *others}) == 4


def test_a_release_s_digest_covers_the_waivers_it_was_given_and_who_signed_them(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    file = WaiverFile("waivers/a.json", WAIVER.text, "", KEY.public, WAIVER)
    reviews = [
        Review(CANDIDATE),
        Review(CANDIDATE, (file,)),
        Review(CANDIDATE, (replace(file, text=replace(WAIVER, reason="another").text),)),
        Review(CANDIDATE, (replace(file, key=OTHER.public),)),
    ]
    digests = [release_digest(replace(MADE, waivers={"quality": review}), config) for review in reviews]
    assert len(set(digests)) == 4
    moved = replace(file, file="elsewhere/b.json")
    assert release_digest(replace(MADE, waivers={"quality": Review(CANDIDATE, (moved,))}), config) == digests[1]


def test_json_tells_candidate_waivers_and_the_command(tmp_path: Path) -> None:
    _, review = judged(put(tmp_path, WAIVER))
    said = json.loads(json.dumps(summary(record_of(waivers={"quality": review}), report="")))
    found = said["waivers"]["quality"]
    assert found["candidate"] == CANDIDATE
    assert found["honoured"][0]["waiver"]["reason"] == "pilot customers only"
    assert (found["ignored"], found["commands"]) == ([], [])
