"""A release computed again: a sample of its rows scored with its own adapter, or everything made anew and compared."""

from prefect import flow

from loragate.claims import Claim
from tasks.compute_again import as_planned, kept_rows, remade, replayed, same_base, same_data, score_again
from tasks.export_gguf import export_gguf
from tasks.fetch_base import fetch_base
from tasks.merge_adapter import merge_adapter
from tasks.prepare_rows import prepare_rows
from tasks.train_adapter import train_adapter


@flow(name="replay score", persist_result=False, validate_parameters=False)
def score_sample(bundle: str, where: str, home: str, overrides: list[str], rows: int) -> list[Claim]:
    """Score held-out rows with the base and the bundle's adapter, and hold them against the sums in the bundle."""
    with replayed(bundle, where, home, overrides) as (attempt, sealed):
        base = same_base(attempt, sealed, fetch_base(attempt))
        prepared = same_data(attempt, sealed, prepare_rows(attempt, base))
        return score_again(attempt, sealed, base, prepared, rows)


@flow(name="replay rebuild", persist_result=False, validate_parameters=False)
def rebuild(bundle: str, where: str, home: str, overrides: list[str]) -> list[Claim]:
    """Make adapter, merged weights and GGUF files anew by the bundle's settings, and hold their digests together."""
    with replayed(bundle, where, home, overrides) as (attempt, sealed):
        base = same_base(attempt, sealed, fetch_base(attempt))
        rows = kept_rows(attempt, same_data(attempt, sealed, prepare_rows(attempt, base)))
        adapter = train_adapter(attempt, base, rows, as_planned(sealed))
        merged = merge_adapter(attempt, base, adapter, rows)
        export_gguf(attempt, base, rows, adapter.ref, merged.ref)
        return remade(attempt, sealed, base, rows)
