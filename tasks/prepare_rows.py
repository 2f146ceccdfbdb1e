"""Read the data files, split them, and render every row into ids and mask."""

from pathlib import Path

from prefect import task

from loragate.attempt import Attempt, FetchedBase, Rows, recipe
from loragate.config import plain
from loragate.files import DataFiles, content_digest, data_files, hub_name, hub_sources
from loragate.row_sets import row_sets
from loragate.row_work import FetchDataSet, Prepared, PrepareRows
from tasks.policies import STEP

CODE = (
    "loragate.engines.examiner",
    "loragate.engines.examples",
    "loragate.engines.language_model",
    "loragate.engines.languages",
    "loragate.engines.sketches",
    "loragate.engines.tables",
    "loragate.files",
    "loragate.formats",
    "loragate.passages",
    "loragate.reading",
    "loragate.rendering",
    "loragate.row_work",
    "loragate.rows",
    "loragate.streamed_json",
    "loragate.texts",
    "loragate.words",
)
"""Modules that decide what becomes of a row."""


@task(name="prepare rows", **STEP)
def prepare_rows(attempt: Attempt, base: FetchedBase) -> Rows:
    """Return rendered training and held-out rows with the facts about them."""
    files, limits = find_files(attempt), attempt.config.gates.data
    digests = files.digests()
    for name, digest in digests.items():
        attempt.note("input", f"data/{name}", digest)
    attempt.note("input", "data", content_digest(digests))
    data = attempt.config.data
    settings = {
        "files": [
            [f.name, f.side, f.weight, f.format, list(map(list, f.columns)), digests[f.name]] for f in files.files
        ],
        "heldout_share": files.heldout_share,
        "max_tokens": data.max_tokens,
        "language": data.language or "",
        "passage_words": limits.passage_words,
    }
    steps = recipe(
        "rows",
        {"base": base.digest},
        code=CODE,
        libraries=("transformers", "tokenizers", "detect-secrets", "pyarrow", "py3langid", "rensa"),
        settings=settings,
    )

    def make(folder: Path) -> object:
        request = PrepareRows(
            base.base,
            files.files,
            files.heldout_share,
            data.max_tokens,
            data.language or "",
            limits.passage_words,
            str(folder),
        )
        return attempt.call("loragate.engines.examples:prepare", request)

    stored, prepared = attempt.build(steps, Prepared, make)
    general = prepared.general
    rows, tokens = prepared.rows | {"general": general.rows}, prepared.tokens | {"general": general.tokens}
    for each in row_sets(files, digests, rows, tokens):
        attempt.note("row_set", each.side, each)
    for name, shape in (("tokens", prepared.lengths), ("taught", prepared.taught_shares)):
        if shape is not None:
            attempt.note("histogram", name, shape)
    return Rows(stored.ref.path, stored.ref.digest)


def find_files(attempt: Attempt) -> DataFiles:
    """Find the data files, data sets of a hub fetched."""
    fetched = {}
    for source in hub_sources(attempt.run):
        asked = plain(source)
        steps = recipe(
            "dataset",
            {},
            code=("loragate.engines.data_sets",),
            libraries=("datasets",),
            settings={name: asked[name] for name in ("source", "subset", "split", "revision")},
        )
        wanted = (source.source, source.subset or "", source.split or "", source.revision or "")

        def make(folder: Path, wanted: tuple[str, str, str, str] = wanted) -> object:
            return attempt.call("loragate.engines.data_sets:fetch", FetchDataSet(*wanted, str(folder)))

        stored, commit = attempt.build(steps, str, make)
        attempt.note("input", f"data_set/{hub_name(source)}@{commit or 'local'}", stored.ref.digest)
        fetched[hub_name(source)] = Path(stored.ref.path)
    return data_files(attempt.run, fetched)
