"""Data sets through the library that a hub's are loaded by, from a local folder: no network is needed, none is used."""

from pathlib import Path

import httpx2
import pytest
from prepared import Raw, write

from loragate.child import ignore
from loragate.config import Config, RunFile
from loragate.engines import data_sets
from loragate.engines.tables import FOREIGN
from loragate.errors import DataFileError
from loragate.files import DataFiles, data_files, hub_sources
from loragate.reading import Reading, read_shard, shards
from loragate.row_work import FetchDataSet


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A data set of two splits, as it lies in a hub's repository."""
    for split, count in (("train", 5), ("validation", 2)):
        rows: list[Raw] = [{"question": f"{split} {n}?", "answer": f"{n}"} for n in range(count)]
        write(tmp_path / "set" / f"{split}.jsonl", rows)
    return tmp_path / "set"


def fetched(source: Path, folder: Path, split: str = "") -> Path:
    folder.mkdir()
    assert data_sets.fetch(FetchDataSet(str(source), "", split, "", str(folder)), ignore) == ""
    return folder


def run(folder: Path, entry: dict[str, object] | str) -> RunFile:
    tree = {"model": "m", "base_model": {"source": "org/base"}, "data": {"train": [entry]}}
    return RunFile(folder / "run.yaml", Config.model_validate(tree, strict=False))


def questions(files: DataFiles) -> dict[str, list[str]]:
    """Questions by the name of their file."""
    return {
        file.name: [
            row.messages[0].content
            for shard in shards(Path(file.path), file.name, Reading(), FOREIGN, 3)
            for row in read_shard(shard)
        ]
        for file in files.files
    }


def test_data_set_means_its_train_split_and_holds_out_its_validation_split(source: Path, tmp_path: Path) -> None:
    whole = fetched(source, tmp_path / "whole")
    files = data_files(run(tmp_path, "org/set"), {"org/set": whole})
    assert questions(files) == {
        "org/set/train/data-00000-of-00001.arrow": [f"train {n}?" for n in range(5)],
        "org/set/validation/data-00000-of-00001.arrow": [f"validation {n}?" for n in range(2)],
    }
    assert files.heldout_share == 0


def test_one_split_is_taken_alone_and_split_by_share(source: Path, tmp_path: Path) -> None:
    asked = run(tmp_path, {"source": "org/set", "split": "validation", "weight": 2.0})
    assert [entry.split for entry in hub_sources(asked)] == ["validation"]
    one = fetched(source, tmp_path / "one", "validation")
    files = data_files(asked, {"org/set[validation]": one})
    assert questions(files) == {"org/set[validation]/data-00000-of-00001.arrow": [f"validation {n}?" for n in range(2)]}
    assert (files.files[0].weight, files.heldout_share) == (2.0, 0.1)


def test_what_is_no_data_set_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        DataFileError, match=r"data\.train .*empty: there is no file or folder of that name here, and no data set"
    ):
        fetched(tmp_path / "empty", tmp_path / "out")


def test_split_that_is_not_there_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match="no data set of it can be loaded from the hub: Unknown split"):
        fetched(source, tmp_path / "out", "nosuch")


def test_hub_that_cannot_be_reached_is_a_sentence_that_names_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise httpx2.ConnectError("[Errno -2] Name or service not known")

    monkeypatch.setattr(data_sets.HfApi, "dataset_info", unreachable)
    with pytest.raises(DataFileError, match=r"data\.train data/chats: there is no file .* hub: \[Errno -2\] Name"):
        data_sets.fetch(FetchDataSet("data/chats", "", "", "", str(tmp_path)), ignore)
