"""Whether two models read the same tokens, so that their losses on rendered rows can be compared row by row."""

import json
from dataclasses import replace
from pathlib import Path

from loragate.child import Report
from loragate.engines.language_model import encoder_of, load_tokenizer
from loragate.work import Alike, CompareTokenizers


def compare(request: CompareTokenizers, _: Report) -> Alike:
    """Name the first thing in which the tokenizers differ: chat template, vocabulary, end token, ids of texts."""
    ours = load_tokenizer(request.base)
    theirs = load_tokenizer(replace(request.base, path=request.folder))
    if ours.chat_template != theirs.chat_template:
        return Alike("another chat template")
    if ours.get_vocab() != theirs.get_vocab():
        return Alike("another vocabulary")
    if ours.eos_token_id != theirs.eos_token_id:
        return Alike("another end token")
    probes = [json.loads(line) for line in Path(request.probes).read_text(encoding="utf-8").splitlines()]
    found = encoder_of(theirs)([probe["text"] for probe in probes])
    for probe, ids in zip(probes, found, strict=True):
        if probe["ids"] != list(ids):
            return Alike(f"other tokens for {probe['text'][:40]!r}")
    return Alike("")
