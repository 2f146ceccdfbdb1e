"""Write what a release says about itself: model card, technical file and both bills of materials."""

from collections.abc import Mapping

from loragate.attempt import Attempt
from loragate.facts import Facts
from loragate.record import AttemptRecord
from loragate.refs import canonical
from loragate.technical_file import technical_file

CARD, TECHNICAL_FILE, MODEL_BOM, SOFTWARE_BOM = "README.md", "technical_file.json", "ml-bom.cdx.json", "sbom.cdx.json"


def release_documents(
    attempt: Attempt, record: AttemptRecord, release: str, files: Mapping[str, str]
) -> dict[str, bytes]:
    """The documents by name; `files` are digests of what ships."""
    from loragate.engines import boms, hub_card

    rollback = f"{attempt.config.model}@{record.incumbent}" if record.incumbent else ""
    facts = Facts(record, attempt.config, release, rollback, files)
    return {
        CARD: hub_card.write(facts),
        TECHNICAL_FILE: canonical(technical_file(facts)),
        MODEL_BOM: boms.model_bom(facts),
        SOFTWARE_BOM: boms.software_bom(facts),
    }
