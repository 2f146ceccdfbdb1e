"""Data sets of a hub, brought to this machine at one commit (the library datasets)."""

from pathlib import Path

import datasets
import httpx2
from huggingface_hub import HfApi

from loragate.child import Progress, Report
from loragate.errors import DataFileError, first_line
from loragate.row_work import FetchDataSet

datasets.disable_progress_bars()


def fetch(request: FetchDataSet, report: Report) -> str:
    """Save a data set as a folder of Arrow files, a folder a split; return its commit, empty for a local folder.

    Raises:
        DataFileError: It cannot be found or loaded.
    """
    report(Progress(0, 1, "data sets"))
    try:
        commit = "" if Path(request.source).is_dir() else _commit(request)
        loaded = datasets.load_dataset(
            request.source, request.subset or None, split=request.split or None, revision=commit or None
        )
        loaded.save_to_disk(request.folder)
    except (OSError, ValueError, LookupError, httpx2.HTTPError) as error:
        raise DataFileError(
            f"data.train {request.source}: there is no file or folder of that name here, and no data set of it can be "
            f"loaded from the hub: {first_line(error)}"
        ) from None
    report(Progress(1, 1, "data sets"))
    return commit


def _commit(request: FetchDataSet) -> str:
    return str(HfApi().dataset_info(request.source, revision=request.revision or None).sha)
