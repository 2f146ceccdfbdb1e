"""What must be said about a model: known from the run file, the base and the road, or refused by name."""

import json
from pathlib import Path
from typing import get_args

import pytest

from checks.card import judge
from loragate.card import BY_ROAD, KNOWN_ELSEWHERE, BaseCard, Card, Item, emptied, stated
from loragate.config import load
from loragate.engines import hub_card
from loragate.errors import ConfigError, NotApplicableError

ITEMS = get_args(Item)
STATED = [item for item in ITEMS if item not in BY_ROAD]


def known(card: Card, base: BaseCard | None = None, language: str | None = None) -> dict[str, str]:
    return stated(card, base, "org/base", language)


def test_items_are_the_section_s_keys_and_what_the_road_fills() -> None:
    assert set(Card.model_fields) == {*STATED, "required"}


@pytest.mark.parametrize("item", STATED)
def test_a_required_item_that_is_empty_refuses_and_names_its_key(item: str) -> None:
    verdict = judge([item], known(Card.model_validate({item: " "} if item != "language" else {})))
    assert (verdict.gate, verdict.status) == ("card", "fail")
    assert f"{item}: card.required asks for it and it is empty; set card.{item}" in verdict.sentence


@pytest.mark.parametrize("item", ITEMS)
def test_a_required_item_that_is_stated_or_made_by_the_road_passes(item: str) -> None:
    card = Card.model_validate({item: "en"} if item in STATED else {})
    assert judge([item], known(card)).status == "pass"


def test_only_what_is_empty_refuses() -> None:
    verdict = judge(["contact", "limits", "run"], known(Card(contact="Ann")))
    assert [(finding.rule, finding.passed) for finding in verdict.findings] == [
        ("contact", True),
        ("limits", False),
        ("run", True),
    ]


def test_base_and_data_say_what_the_section_leaves_out() -> None:
    base = BaseCard("apache-2.0", hub=True)
    found = known(Card(), base, "de")
    assert [found[item] for item in KNOWN_ELSEWHERE] == ["org/base", "apache-2.0", "apache-2.0", "de"]
    said = known(Card(base_model="a/b", base_licence="mit", language="fr"), base, "de")
    assert [said[item] for item in KNOWN_ELSEWHERE] == ["a/b", "mit", "mit", "fr"]
    assert set(known(Card(), BaseCard(), None).values()) == {""}


def test_the_path_of_a_local_base_is_no_name() -> None:
    assert stated(Card(), BaseCard(hub=False), "/home/ann/model", None)["base_model"] == ""


def test_the_section_is_emptied_where_something_only_it_can_say_is_required() -> None:
    card = Card(contact="Ann", limits="Some", required=("contact", "method"))
    assert emptied(card) == Card(required=("contact", "method"))
    for other in (Card(contact="Ann"), Card(licence="mit", required=("licence", "run"))):
        with pytest.raises(NotApplicableError, match="only the run file can say"):
            emptied(other)


def test_an_item_that_does_not_exist_is_refused_while_the_run_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    content = {"model": "m", "base_model": {"source": "b"}, "data": {"train": ["a.jsonl"]}}
    path.write_text(
        json.dumps(content | {"card": {"required": ["licence"], "limits": "None known."}}), encoding="utf-8"
    )
    assert load(path).config.card.required == ("licence",)
    with pytest.raises(ConfigError, match=r"card\.required"):
        load(path, ["card.required=[license]"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("---\nlicense: apache-2.0\n---\n# Base\n", "apache-2.0"),
        ("---\nlicense: other\nlicense_name: llama3.2\n---\n", "llama3.2"),
        ("---\nlicense: unknown\n---\n", ""),
        ("---\nlicense: [mit, gpl-3.0]\n---\n", ""),
        ("---\ntags: [a]\n---\n", ""),
        ("# No metadata\nlicense: mit\n", ""),
        ("---\nlicense: {\n---\n", ""),
        ("---\n- a\n- b\n---\n", ""),
        ("---\nlicense: mit\nmodel-index: 3\n---\n", "mit"),
        ("", ""),
    ],
)
def test_a_base_s_licence_is_read_from_its_card_and_never_guessed(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "README.md"
    path.write_text(text, encoding="utf-8")
    assert hub_card.licence(path) == said


def test_no_card_or_no_text_says_no_licence(tmp_path: Path) -> None:
    assert hub_card.licence(tmp_path / "README.md") == ""
    (tmp_path / "README.md").write_bytes(b"\xff\xfe\x00")
    assert hub_card.licence(tmp_path / "README.md") == ""
