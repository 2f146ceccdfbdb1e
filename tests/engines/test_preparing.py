"""Preparing rows: the same outcome however it is done, every row accounted for, and what is found out about each."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from prepared import Raw, asked, describe, facts_of, pairs, read, write

from loragate import child
from loragate.child import ignore
from loragate.engines import examples
from loragate.engines.language_model import load_tokenizer, read_examples, template_of
from loragate.errors import ConfigError, DataFileError
from loragate.files import DataFile
from loragate.refs import manifest
from loragate.row_work import GeneralRows, Prepared, PrepareRows
from loragate.rows import Message
from loragate.work import Base


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> Base:
    return describe(tiny_model)


def prepare(base: Base, folder: Path, *files: DataFile, **more: Any) -> tuple[Prepared, Path]:
    """Prepare rows in this process; return what is said about them and where they are."""
    out = folder / "prepared"
    out.mkdir(parents=True)
    return examples.prepare(asked(base, out, *files, **more), ignore), out


def file(folder: Path, name: str, rows: list[Raw], **more: Any) -> DataFile:
    return DataFile(str(write(folder / name, rows)), name, **({"side": "train"} | more))


def chat(question: str, answer: str) -> Raw:
    return {"prompt": question, "completion": answer}


def mixed(count: int) -> list[Raw]:
    """Rows of which some cannot be read, some have roles out of order, and some are copies."""
    chance = random.Random(0)
    rows: list[Raw] = []
    for n in range(count):
        messages = [{"role": "user", "content": f"Question {n % 90}?"}, {"role": "assistant", "content": f"Yes {n}."}]
        kind = chance.randrange(12)
        rows.append({"messages": messages[:1] if kind == 0 else messages if kind != 1 else [{"role": "user"}]})
    return rows


def in_child(request: PrepareRows, folder: Path) -> dict[str, str]:
    """Prepare rows as the road does, in a process that may be forked; return the digests of what that leaves."""
    Path(request.folder).mkdir(parents=True)
    prepared = child.call("loragate.engines.examples:prepare", request, log=folder / "log.txt")
    assert isinstance(prepared, Prepared)
    return manifest(Path(request.folder)) | {"": json.dumps(prepared.rows, sort_keys=True)}


def test_outcome_depends_neither_on_processes_nor_on_shards(base: Base, tmp_path: Path, monkeypatch: Any) -> None:
    big = [row | {"padding": "x" * 4000} for row in mixed(700)]  # enough bytes for three processes
    files = (file(tmp_path, "a.jsonl", big), file(tmp_path, "b.jsonl", mixed(40), weight=0.5))
    found = [
        in_child(asked(base, tmp_path / f"{workers}-{rows}", *files, heldout_share=0.2, **how), tmp_path)
        for workers, rows in ((1, 500), (1, 7), (2, 33), (3, 64))
        for how in [{"workers": workers, "shard_rows": rows}]
    ]
    assert all(len(digests) == 8 for digests in found)
    assert found == found[:1] * 4


def test_every_row_of_every_file_is_in_the_facts_once(base: Base, tmp_path: Path) -> None:
    files = (file(tmp_path, "a.jsonl", mixed(60)), file(tmp_path, "b.jsonl", mixed(60), weight=0.3))
    said, out = prepare(base, tmp_path, *files, heldout_share=0.2)
    facts = facts_of(out)
    assert sorted(fact["place"] for fact in facts) == sorted(f"{f}.jsonl:{n}" for f in "ab" for n in range(1, 61))
    assert said.rows == {side: sum(f["side"] == side for f in facts) for side in ("train", "heldout", "unused")}
    for side in ("train", "heldout"):
        good = [f for f in facts if f["side"] == side and not f["problem"] and not f["roles_problem"]]
        assert [row["place"] for row in read(out / f"{side}.jsonl")] == [fact["place"] for fact in good]
        assert (out / f"{side}.sketches").stat().st_size % max(1, len(good)) == 0


def test_weight_says_how_often_an_epoch_takes_a_row(base: Base, tmp_path: Path) -> None:
    twice = file(tmp_path, "twice.jsonl", pairs(5), weight=2.0)
    few = file(tmp_path, "few.jsonl", pairs(200, start=10), weight=0.25)
    said, out = prepare(base, tmp_path, twice, few)
    rows = read(out / "train.jsonl")
    assert [row["copies"] for row in rows[:5]] == [2] * 5
    assert 30 <= len(rows) - 5 <= 70
    assert said.rows["unused"] == 200 - (len(rows) - 5)
    assert len(read_examples(str(out / "train.jsonl"))) == len(rows) + 5


def test_lengths_and_supervised_shares_of_the_training_rows_are_told(base: Base, tmp_path: Path) -> None:
    held = file(tmp_path, "held.jsonl", pairs(3, start=50), side="heldout")
    said, out = prepare(base, tmp_path, file(tmp_path, "a.jsonl", pairs(9)), held, max_tokens=44)
    rows = read(out / "train.jsonl")
    assert said.lengths is not None
    assert said.taught_shares is not None
    assert said.lengths.values == said.taught_shares.values == 9
    assert said.lengths.total == sum(row["rendered_tokens"] for row in rows)
    assert said.lengths.beyond == sum(row["rendered_tokens"] > 44 for row in rows) > 0
    assert said.taught_shares.largest <= 100


def test_rows_and_tokens_of_every_side_are_counted(base: Base, tmp_path: Path) -> None:
    held = file(tmp_path, "held.jsonl", pairs(3, start=50), side="heldout")
    general = file(tmp_path, "general.jsonl", pairs(2, start=70), side="general")
    said, out = prepare(base, tmp_path, file(tmp_path, "a.jsonl", pairs(9)), held, general)
    tokens = {side: sum(len(row["ids"]) for row in read(out / f"{side}.jsonl")) for side in ("train", "heldout")}
    assert (said.rows, said.tokens) == ({"train": 9, "heldout": 3}, tokens)
    assert said.general == GeneralRows(2, sum(len(row["ids"]) for row in read(out / "general.jsonl")))


def fact(base: Base, folder: Path, row: Raw, **more: Any) -> Raw:
    """What is known about one training row."""
    _, out = prepare(base, folder, file(folder, "a.jsonl", [row]), **more)
    (found,) = facts_of(out)
    return found


GERMAN = "Das ist ein ganz gewöhnlicher deutscher Satz, der von einem Haus am Meer und vom Wetter erzählt."
ENGLISH = "This is a perfectly ordinary English sentence that tells of a house by the sea and of the weather."


@pytest.mark.parametrize(
    ("answer", "language", "found"),
    [(GERMAN, "en", "de"), (ENGLISH, "en", ""), (GERMAN, "de", ""), (ENGLISH, "de", "en"), ("Haus", "en", "")],
)
def test_answer_in_another_language_is_named(
    base: Base, tmp_path: Path, answer: str, language: str, found: str
) -> None:
    assert fact(base, tmp_path, chat("What?", answer), language=language)["language"][:2] == found


def test_language_matters_only_where_one_is_asked_for(base: Base, tmp_path: Path) -> None:
    assert fact(base, tmp_path, chat("What?", GERMAN))["language"] == ""


def test_language_that_cannot_be_told_is_refused_with_those_that_can(base: Base, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.language: found xx, allowed: .*, de, .*, en, .*, zh"):
        fact(base, tmp_path, chat("What?", ENGLISH), language="xx")


PASSAGE = "the quick brown fox jumps over the lazy dog and runs into the dark green forest"


@pytest.mark.parametrize(
    ("row", "found"),
    [
        (chat("a?", f"Once {PASSAGE}, they say."), "13 words of bench.jsonl:1: the quick brown fox"),
        (chat(f"Why {PASSAGE.title()}", "So."), "13 words of bench.jsonl:1: the quick brown fox"),
        (chat("What is it?", "Another."), "asks what bench.jsonl:2 asks"),
        (chat("a?", "eight words are enough to be a passage"), "8 words of bench.jsonl:2: eight words are"),
        (chat("a?", "the quick brown fox jumps over the lazy cat"), ""),
        (chat("b?", "It."), ""),
    ],
)
def test_passage_and_question_of_protected_rows_are_found(base: Base, tmp_path: Path, row: Raw, found: str) -> None:
    rows = [chat("Tell me", PASSAGE), chat("What is it?", "eight words are enough to be a passage"), chat("x", "It.")]
    bench = file(tmp_path, "bench.jsonl", rows, side="protected")
    _, out = prepare(base, tmp_path / "out", file(tmp_path, "a.jsonl", [row]), bench)
    (known,) = facts_of(out)
    assert known["passage"].startswith(found)
    assert bool(known["passage"]) == bool(found)


def test_fault_in_a_later_shard_names_its_line(base: Base, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", pairs(50))
    path.write_text(path.read_text(encoding="utf-8") + "{broken\n", encoding="utf-8")
    with pytest.raises(DataFileError, match=r"a\.jsonl:51: not JSON"):
        prepare(base, tmp_path, DataFile(str(path), "a.jsonl", "train"), shard_rows=7)


def with_template(tiny_model: Path, folder: Path, change: tuple[str, str]) -> Base:
    """A copy of the tiny model whose chat template is changed in one place."""
    shutil.copytree(tiny_model, folder)
    path = folder / "chat_template.jinja"
    old, new = change
    assert old in path.read_text(encoding="utf-8")
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    return describe(folder)


SAID = "(message['content'] + '<|im_end|>')"
TURN = "message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'"


def marking(marked: str, before: str = "''") -> tuple[str, str]:
    """A change by which the template marks an answer but for something before it."""
    answer = f"{{{{ {before} }}}}{{% generation %}}{{{{ {marked} }}}}{{% endgeneration %}}"
    turn = f"{{% if message['role'] == 'assistant' %}}{answer}{{% else %}}{{{{ {SAID} }}}}{{% endif %}}"
    return TURN, f"message['role'] + '\n' }}}}{turn}{{{{ '\n'"


def test_template_whose_marks_agree_with_its_prompt_is_taught(tiny_model: Path, tmp_path: Path) -> None:
    base = with_template(tiny_model, tmp_path / "model", marking(SAID))
    found = fact(base, tmp_path, chat("What?", "That."))
    assert (found["problem"], found["lost_stops"]) == ("", 0)


def test_template_whose_marks_contradict_its_prompt_is_refused_with_both(tiny_model: Path, tmp_path: Path) -> None:
    base = with_template(tiny_model, tmp_path / "model", marking(f"{SAID}[1:]", "message['content'][0]"))
    found = fact(base, tmp_path, chat("What?", "That."))
    assert found["problem"] == (
        "the chat template marks ['hat.<|im_end|>'] as generated, "
        "but its generation prompt leaves ['That.<|im_end|>\\n'] to the model"
    )


def test_row_that_begins_with_two_bos_is_named(tiny_model: Path, tmp_path: Path) -> None:
    base = with_template(tiny_model, tmp_path / "model", ("{% for message", "{{ bos_token }}{% for message"))
    assert fact(base, tmp_path / "twice", chat("What?", "That."))["doubled_bos"] is True
    assert fact(describe(tiny_model), tmp_path / "once", chat("What?", "That."))["doubled_bos"] is False


def test_compiled_template_says_what_the_tokenizer_s_own_function_does(base: Base) -> None:
    tokenizer = load_tokenizer(base)
    turns = [("system", "Be brief."), ("user", "Größe?"), ("assistant", " a \n"), ("user", "b"), ("assistant", "c")]
    tools = [{"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {}}}]
    for start, end in ((0, 3), (1, 2), (0, 5), (1, 5)):
        messages = [Message(role, content) for role, content in turns[start:end]]
        plain = [{"role": m.role, "content": m.content} for m in messages]
        for prompt in (True, False):
            for offered in (None, tools):
                theirs = tokenizer.apply_chat_template(
                    plain, tools=offered, tokenize=False, add_generation_prompt=prompt
                )
                assert template_of(tokenizer, json.dumps(offered) if offered else "")(messages, prompt) == theirs
