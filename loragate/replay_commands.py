"""The command that judges a sealed release again, and computes it again where that is asked for."""

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from loragate.errors import ConfigError, VerificationError
from loragate.options import common, overrides_option
from loragate.release_commands import verified
from loragate.terminal import answered, put, put_json

if TYPE_CHECKING:
    from loragate.claims import Claim
    from loragate.verification import Verified

SCORES = "scores are those of this base and adapter on this data"
MADE = "artifacts follow from base, data and settings"
DOCUMENTS = "card, technical file, bills of materials, report and record say the same"


@click.command()
@click.argument("name", metavar="RELEASE|DIR")
@click.option("--score", is_flag=True, help="Score held-out rows again with the base and the bundle's adapter.")
@click.option("--rows", type=click.IntRange(min=1), default=32, show_default=True, help="How many rows, at least.")
@click.option("--rebuild", is_flag=True, help="Train, merge and convert again, and compare digests.")
@click.option(
    "--data",
    "where",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder that relative paths of the run file start at; else where the run file lay, or for DIR here.",
)
@overrides_option
@click.option(
    "--into",
    type=click.Path(path_type=Path, file_okay=False),
    help="Make things anew in this folder and keep them; else in one beside the home that is taken away.",
)
@click.option(
    "--key", "keys", multiple=True, type=click.Path(path_type=Path), help="Public key (PEM) as in `loragate verify`."
)
@common
def replay(  # noqa: PLR0913 - one parameter an option
    name: str,
    score: bool,
    rows: int,
    rebuild: bool,
    where: Path | None,
    overrides: tuple[str, ...],
    into: Path | None,
    keys: tuple[Path, ...],
    home: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Judge a release of this home, or a bundle in the folder DIR, again, and tell which of its claims hold.

    The bundle is verified first. Then every gate judges again what the bundle says it was given; intervals follow anew
    from sums per row. That takes seconds and neither model nor data. --score and --rebuild take base model and data,
    which must be those of the release: --set base_model.source=…, --set data.train=[…] or --data say where they lie.
    Exits with 4 where a claim does not hold, and names the first one.
    """
    with answered(verbose):
        from flows.replay import judge_again
        from loragate import narration
        from loragate.claims import Claim, first_broken, table, told
        from loragate.sealed_evidence import read_evidence

        narration.quiet = quiet
        found = verified(name, keys, home)
        folder = Path(found.folder)
        try:
            claims = [_verified(found), *judge_again(read_evidence(folder))]
        except VerificationError as error:
            raise VerificationError(f"{folder}: {error}") from None
        if (score or rebuild) and first_broken(claims) is None:
            start = where or _run_folder(found, name, home)
            with _scratch(into, home) as scratch:
                asked = (str(folder), str(start), str(scratch), list(overrides))
                claims += _computed(asked, rows if score else 0, rebuild, verbose)
        if not score:
            claims.append(Claim(SCORES, "not shown", "as recorded; --score scores rows again"))
        claims.append(Claim(DOCUMENTS, "not shown", "as sealed; they are for reading, and nothing is judged by them"))
        if not rebuild:
            claims.append(Claim(MADE, "not shown", "as recorded; --rebuild makes them anew"))
        broken = first_broken(claims)
        if as_json:
            put_json({"release": found.release, "digest": found.digest, **told(claims)})
        else:
            put(f"{'REPLAYED' if broken is None else 'NOT SO'}  {found.release}  {found.digest}\n\n{table(claims)}")
        if broken is not None:
            click.echo(f"loragate: {found.release}: does not hold: {broken.claim}: {broken.how}", err=True)
            sys.exit(VerificationError.exit_code)


def _verified(found: "Verified") -> "Claim":
    from loragate.claims import Claim

    chain = f", the chain of {len(found.chain):,} events has it" if found.chain else ""
    return Claim(
        "the bundle is as it was sealed", "yes", f"{found.files:,} files by their digests{chain}; {found.trust} key"
    )


def _run_folder(found: "Verified", name: str, home: str | None) -> Path:
    """Where relative paths of the settings start: where the run file of a release of this home lay, else here."""
    if found.chain is None:
        return Path.cwd()
    from loragate.home import find_home
    from loragate.listing import pick

    place = find_home(home)
    return Path(pick(place, name).opened.run_file).parent


@contextlib.contextmanager
def _scratch(into: Path | None, home: str | None) -> Iterator[Path]:
    """A folder to work in; one beside the home is taken away at the end."""
    from loragate.places import home_root

    if into is not None:
        into.mkdir(parents=True, exist_ok=True)
        yield into.absolute()
        return
    beside = home_root(home).absolute().parent
    folder = Path(tempfile.mkdtemp(prefix=".loragate-replay-", dir=beside if beside.is_dir() else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _computed(asked: tuple[str, str, str, list[str]], rows: int, rebuild: bool, verbose: bool) -> list["Claim"]:
    """Compute again what is asked for, in flows of a Prefect server that is gone afterwards."""
    from loragate.config import find_base
    from loragate.files import data_files
    from loragate.home import Home
    from loragate.orchestrator import prefect_server, prepare_environment
    from loragate.sealed_evidence import read_evidence, require_same, sealed_run

    bundle, where, scratch, overrides = asked
    try:
        run = sealed_run(Path(bundle), Path(where), overrides)
        base, files = find_base(run), data_files(run)
    except ConfigError as error:
        hint = (
            "--data DIR names the folder that relative paths start at, --set base_model.source=… or data.train=… more"
        )
        raise ConfigError(f"{error}; {hint}") from None
    require_same(read_evidence(Path(bundle)), base, files)
    place = Home(Path(scratch))
    prepare_environment(place, verbose=verbose)
    claims: list[Claim] = []
    with prefect_server(place) as ready:
        from flows import rebuild as flows

        ready()
        if rows:
            claims += flows.score_sample(bundle, where, scratch, overrides, rows)
        if rebuild:
            claims += flows.rebuild(bundle, where, scratch, overrides)
    return claims
