"""The chain: it grows by one signed line at a time, whoever writes it, and never on an altered one."""

import json
import multiprocessing
from pathlib import Path

import pytest

from loragate.chain import CHAIN, HEAD, START, Chain, Head, events, read_chain
from loragate.engines import seals
from loragate.errors import VerificationError
from loragate.refs import digest_bytes

KEY, OTHER = seals.new_key(), seals.new_key()


def chain_at(folder: Path, key: seals.SealingKey = KEY, *known: seals.SealingKey) -> Chain:
    publics = {each.name: each.public for each in (key, *known)}
    return Chain(
        folder,
        lambda payload: seals.sign(key, payload, seals.HEAD),
        lambda text: seals.opened_by_any(HEAD, text, seals.HEAD, publics),
    )


def opener(*keys: seals.SealingKey):
    publics = {each.name: each.public for each in keys}
    return lambda text: seals.opened_by_any(HEAD, text, seals.HEAD, publics)


def test_each_line_holds_the_hash_of_the_one_before_and_the_head_that_of_the_last(tmp_path: Path) -> None:
    chain = chain_at(tmp_path)
    assert chain.head() == Head(START, 0, 0)
    heads = [chain.append("verdict", {"gate": gate}) for gate in ("data", "plan", "merge")]
    lines = (tmp_path / CHAIN).read_bytes().splitlines(keepends=True)
    assert [json.loads(line)["previous"] for line in lines] == [START, *map(digest_bytes, lines[:2])]
    assert heads[-1] == chain.head() == Head(digest_bytes(lines[2]), 3, sum(map(len, lines)))
    links = read_chain(tmp_path, opener(KEY))
    assert [fields["gate"] for fields in events(links, "verdict")] == ["data", "plan", "merge"]
    assert b"".join(link.line for link in links) == (tmp_path / CHAIN).read_bytes()


def test_an_event_is_found_again_whatever_the_order_of_its_fields(tmp_path: Path) -> None:
    chain = chain_at(tmp_path)
    assert not chain.has("release", {"a": 1, "b": float("nan")})
    chain.append("release", {"a": 1, "b": float("nan")})
    assert chain.has("release", {"b": float("nan"), "a": 1})
    assert not chain.has("release", {"a": 2, "b": float("nan")})
    assert not chain.has("closed", {"a": 1, "b": float("nan")})


@pytest.mark.parametrize("tail", [b'{"event":', b'{"event":"verdict"}\n', b"\n"])
def test_a_line_whose_writer_was_killed_is_named_and_its_place_is_taken_by_the_next_event(
    tmp_path: Path, tail: bytes
) -> None:
    chain = chain_at(tmp_path)
    chain.append("attempt", {"attempt": "1"})
    with (tmp_path / CHAIN).open("ab") as file:
        file.write(tail)
    with pytest.raises(VerificationError, match=r"chain\.jsonl:2: after the signed end"):
        read_chain(tmp_path, opener(KEY))
    chain.append("attempt", {"attempt": "2"})
    assert [fields["attempt"] for fields in events(read_chain(tmp_path, opener(KEY)), "attempt")] == ["1", "2"]


def test_nothing_is_added_to_a_chain_that_was_altered(tmp_path: Path) -> None:
    chain = chain_at(tmp_path)
    for number in range(3):
        chain.append("attempt", {"attempt": number})
    whole = (tmp_path / CHAIN).read_bytes()
    for altered in (whole[:-1], b"", whole.replace(b'"attempt":2', b'"attempt":7')):
        (tmp_path / CHAIN).write_bytes(altered)
        with pytest.raises(VerificationError, match=r"chain\.jsonl"):
            chain.append("attempt", {"attempt": "more"})
        assert (tmp_path / CHAIN).read_bytes() == altered
    (tmp_path / CHAIN).write_bytes(whole)
    (tmp_path / HEAD).unlink()
    with pytest.raises(VerificationError, match=r"head\.json: missing"):
        chain.append("attempt", {"attempt": "more"})


def test_a_head_counts_only_by_a_key_that_is_known(tmp_path: Path) -> None:
    chain_at(tmp_path, OTHER).append("attempt", {"attempt": "theirs"})
    with pytest.raises(VerificationError, match="signed with a key that is not known here"):
        chain_at(tmp_path).append("attempt", {"attempt": "ours"})
    chain_at(tmp_path, KEY, OTHER).append("attempt", {"attempt": "after the key was changed"})
    assert len(read_chain(tmp_path, opener(KEY))) == 2


def test_a_head_signed_as_something_else_is_no_head(tmp_path: Path) -> None:
    chain = chain_at(tmp_path)
    chain.append("attempt", {"attempt": "1"})
    text = seals.sign(KEY, seals.canonical({"hash": START, "length": 0, "size": 0}), seals.STATEMENT)
    (tmp_path / HEAD).write_text(text, encoding="utf-8")
    with pytest.raises(VerificationError, match=HEAD):
        read_chain(tmp_path, opener(KEY))


def write_some(folder: str, pem: bytes, number: int) -> None:
    chain = chain_at(Path(folder), seals.load_key(pem, "a key"))
    for each in range(20):
        chain.append("verdict", {"writer": number, "each": each})


def test_processes_that_write_at_once_take_turns(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_some, args=(str(tmp_path), KEY.pem, number)) for number in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    found = events(read_chain(tmp_path, opener(KEY)), "verdict")
    assert len(found) == 60
    for number in range(3):
        assert [fields["each"] for fields in found if fields["writer"] == number] == list(range(20))
