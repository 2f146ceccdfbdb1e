"""Read the data files, split them, and render every row into ids and mask."""

from pathlib import Path

from prefect import task

from loragate.attempt import Attempt, FetchedBase, Rows, recipe
from loragate.files import data_files, short_names
from loragate.refs import digest_file
from loragate.work import ReadRows, RenderRows
from tasks.policies import STEP


@task(name="prepare rows", **STEP)
def prepare_rows(attempt: Attempt, base: FetchedBase) -> Rows:
    """Return rendered training and held-out rows with the facts about them."""
    canonical = _read(attempt)
    data = attempt.config.data
    steps = recipe(
        "examples",
        {"rows": canonical.digest, "base": base.digest},
        code=(
            "loragate.engines.examples",
            "loragate.engines.language_model",
            "loragate.rendering",
            "loragate.rows",
            "loragate.texts",
        ),
        libraries=("transformers", "tokenizers", "detect-secrets"),
        settings={"max_tokens": data.max_tokens},
    )

    def make(folder: Path) -> object:
        request = RenderRows(base.base, canonical.folder, data.max_tokens, str(folder))
        return attempt.call("loragate.engines.examples:render_rows", request)

    stored, lengths = attempt.build(steps, dict[str, list[int]], make)
    attempt.note("lengths", "", tuple(lengths["lengths"]))
    return Rows(stored.ref.path, stored.ref.digest)


def _read(attempt: Attempt) -> Rows:
    data, files = attempt.config.data, data_files(attempt.run)
    names = short_names(files.all)
    digests = {name: digest_file(path) for path, name in names.items()}
    for name, digest in digests.items():
        attempt.note("input", f"data/{name}", digest)
    held = [names[path] for path in files.heldout] if isinstance(files.heldout, tuple) else files.heldout
    steps = recipe(
        "rows",
        digests,
        code=("loragate.engines.tables", "loragate.files", "loragate.formats", "loragate.rows"),
        libraries=("pyarrow",),
        settings={"format": data.format, "columns": dict(data.columns), "heldout": held},
    )

    def make(folder: Path) -> object:
        train = tuple(map(str, files.train))
        heldout = tuple(map(str, files.heldout)) if isinstance(files.heldout, tuple) else files.heldout
        columns = tuple(sorted(data.columns.items()))
        request = ReadRows(train, heldout, data.format, columns, str(folder))
        return attempt.call("loragate.engines.tables:read_rows", request)

    stored, _ = attempt.build(steps, dict[str, int], make)
    return Rows(stored.ref.path, stored.ref.digest)
