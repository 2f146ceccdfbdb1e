"""Alterations of a sealed release's record that take a key to sign with, or reach what MLflow has of it."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from loragate.bundle import KEY, MANIFEST, SIGNATURE
from loragate.chain import HEAD, Link
from loragate.promotion import CHAMPION
from loragate.refs import canonical, digest_file
from loragate.store import write_atomically
from loragate.tampering import (
    CODE,
    GATES,
    Copy,
    link_anew,
    list_again,
    other_verdict,
    read_links,
    recompute_manifest,
    weights,
    write_links,
)
from loragate.verification import MANIFEST_TAG
from tasks.release_keys import OWN
from tasks.seal_again import NEWER, OLDER, Scratch

if TYPE_CHECKING:
    from loragate.engines.seals import SealingKey

Forge = Callable[[Scratch, Copy, ExitStack], str]
"""Alters a copy, or the MLflow that it shares with the others, which the stack puts right again; returns what
verification must name."""


def sign_by_another(_: Scratch, copy: Copy, __: ExitStack) -> str:
    """Loosen a limit and sign everything anew with a key that nobody knows."""
    from loragate.engines import seals

    recompute_manifest(copy)
    _sign_bundle(copy.bundle, seals.new_key())
    return SIGNATURE


def _sign_bundle(bundle: Path, key: "SealingKey") -> None:
    from loragate.engines import sealing

    write_atomically(bundle / KEY, key.public)
    list_again(bundle, KEY)
    (bundle / SIGNATURE).unlink()
    sealing.seal(bundle, key)


def slip_key_in(_: Scratch, copy: Copy, __: ExitStack) -> str:
    """Do the same, and put the public half among the home's keys."""
    from loragate.engines import seals

    key = seals.new_key()
    recompute_manifest(copy)
    _sign_bundle(copy.bundle, key)
    write_atomically(copy.home.keys / "other.pub", key.public)
    return MANIFEST


def sign_chain_by_another(_: Scratch, copy: Copy, __: ExitStack) -> str:
    """Edit an event, link the whole chain anew and sign its head with a key that nobody knows."""
    from loragate.engines import seals

    _sign_chain(copy, other_verdict(copy, read_links(copy)), seals.new_key())
    return HEAD


def _sign_chain(copy: Copy, links: list[Link], key: "SealingKey") -> None:
    from loragate.engines import seals

    linked, head = link_anew(links)
    write_links(copy, linked)
    write_atomically(copy.home.chain / HEAD, seals.sign(key, canonical(head), seals.HEAD))


def rewrite_history(_: Scratch, copy: Copy, __: ExitStack) -> str:
    """Loosen a limit, and have bundle and chain agree on it under the home's own key."""
    from loragate.engines import seals

    key = seals.load_key((copy.home.keys / f"{OWN}.key").read_bytes(), OWN)
    recompute_manifest(copy)
    _sign_bundle(copy.bundle, key)
    links = read_links(copy)
    (sealed,) = (link for link in links if link.event == "release" and link.fields["release"] == copy.newer)
    digests = {"manifest": MANIFEST, "signature": SIGNATURE}
    told = {**sealed.fields, **{name: digest_file(copy.bundle / file) for name, file in digests.items()}}
    links[sealed.number - 1] = replace(sealed, fields=told)
    _sign_chain(copy, links, key)
    return f"{GATES} in MLflow"


def alter_in_mlflow(scratch: Scratch, copy: Copy, undo: ExitStack) -> str:
    """Flip a bit of the version's weights in MLflow."""
    path = weights(copy.bundle)
    content, name = path.read_bytes(), path.relative_to(copy.bundle).as_posix()
    _put(scratch, undo, name, content[:-1] + bytes([content[-1] ^ 1 << copy.chance.randrange(8)]))
    return f"{name} in MLflow"


def _put(scratch: Scratch, undo: ExitStack, name: str, content: bytes) -> None:
    from loragate.engines import registry, registry_saboteur

    run_id = registry.run_of(scratch.uri, scratch.model, NEWER)
    before = registry_saboteur.put_file(scratch.uri, run_id, name, content)
    undo.callback(registry_saboteur.put_file, scratch.uri, run_id, name, before)


def add_code_in_mlflow(scratch: Scratch, _: Copy, undo: ExitStack) -> str:
    """Put a Python file beside the version's weights in MLflow."""
    _put(scratch, undo, f"model/{CODE}", b"import os\n")
    return f"model/{CODE} is not of this release"


def alter_tag(scratch: Scratch, _: Copy, undo: ExitStack) -> str:
    """Have the version's tag in MLflow say another manifest."""
    from loragate.engines import registry_saboteur

    what = scratch.uri, scratch.model, NEWER, MANIFEST_TAG
    undo.callback(registry_saboteur.put_tag, *what, registry_saboteur.put_tag(*what, "0" * 64))
    return f"the tag {MANIFEST_TAG} in MLflow"


def move_alias(scratch: Scratch, _: Copy, undo: ExitStack) -> str:
    """Make the older version champion in MLflow alone."""
    from loragate.engines import registry

    undo.callback(registry.give_alias, scratch.uri, scratch.model, CHAMPION, NEWER)
    registry.give_alias(scratch.uri, scratch.model, CHAMPION, OLDER)
    return f"the alias {CHAMPION}"


FORGERIES: Mapping[str, Forge] = {
    "signed-by-another": sign_by_another,
    "key-slipped-in": slip_key_in,
    "chain-signed-anew": sign_chain_by_another,
    "mlflow-file": alter_in_mlflow,
    "mlflow-code-added": add_code_in_mlflow,
    "mlflow-tag": alter_tag,
    "mlflow-alias": move_alias,
    "history-rewritten": rewrite_history,
}
