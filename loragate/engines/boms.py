"""Bills of materials in CycloneDX 1.6: one of the model with its card, one of the software that made it.

The library has no class for a model card, so that part is written as the specification has it (ECMA-424, section
`modelCard`); tests hold both files against the schema. Nothing in them depends on when they are written.
"""

import functools
import importlib.metadata
import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType, Pedigree
from cyclonedx.model.license import License, LicenseExpression
from cyclonedx.model.tool import ToolRepository
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from loragate import __version__
from loragate.facts import Facts, Metric
from loragate.refs import canonical

MODEL, BASE = "model", "base"
LONGEST_NAME = 100
"""Longest licence name in characters: packages put whole texts where a name belongs."""
OSI = "License :: OSI Approved :: "


def model_bom(facts: Facts) -> bytes:
    """The model, what it was made of, and every file that ships."""
    said, record = facts.said, facts.record
    base = Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=said["base_model"] or "base model",
        bom_ref=BASE,
        licenses=_licences(said["base_licence"]),
        properties=_properties({"digest": record.inputs.get("base_model", "")}),
    )
    model = Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=facts.config.model,
        version=facts.release,
        bom_ref=MODEL,
        licenses=_licences(said["licence"]),
        pedigree=Pedigree(ancestors=[_ancestor(base)]),
        properties=_properties({"attempt": record.opened.attempt, "rollback": facts.rollback or "none"}),
    )
    data, files = list(_data(facts)), list(_files(facts))
    bom = _bom(facts, "model", model, [base, *data, *files])
    bom.register_dependency(model, [base, *data])
    for file in files:
        bom.register_dependency(file, [model])
    told = _plain(bom)
    told["metadata"]["component"]["modelCard"] = _model_card(facts, [str(each.bom_ref.value) for each in data])
    return canonical(told)


def software_bom(facts: Facts) -> bytes:
    """Every package that is installed where the release is sealed, with Python itself."""
    made_by = Component(type=ComponentType.APPLICATION, name="loragate", version=__version__, bom_ref="loragate")
    python = Component(
        type=ComponentType.PLATFORM,
        name="python",
        version=facts.record.opened.environment.get("python"),
        bom_ref="python",
    )
    packages = [Component(**fields) for fields in _packages()]
    bom = _bom(facts, "software", made_by, [python, *packages])
    bom.register_dependency(made_by, [python, *packages])
    return canonical(_plain(bom))


def _bom(facts: Facts, about: str, component: Component, components: Iterable[Component]) -> Bom:
    tool = Component(type=ComponentType.APPLICATION, name="loragate", version=__version__, bom_ref="tool")
    return Bom(
        serial_number=uuid5(NAMESPACE_OID, f"{facts.release}/{about}"),
        components=components,
        metadata=BomMetaData(
            timestamp=datetime.fromisoformat(facts.record.opened.started),
            component=component,
            tools=ToolRepository(components=[tool]),
        ),
    )


def _plain(bom: Bom) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(JsonV1Dot6(bom).output_as_string())
    return value


def _ancestor(base: Component) -> Component:
    return Component(type=base.type, name=base.name, bom_ref=f"{BASE}/ancestor", licenses=base.licenses)


def _data(facts: Facts) -> Iterator[Component]:
    """Files of rows and data sets of a hub; a file's digest is of its bytes, a data set's of all its files."""
    for name, digest in facts.inputs.items():
        kind, _, rest = name.partition("/")
        if rest and kind in ("data", "data_set"):
            whole = kind == "data_set"
            yield Component(
                type=ComponentType.DATA,
                name=rest,
                bom_ref=name,
                hashes=[] if whole else [_sha256(digest)],
                properties=_properties({"digest": digest}) if whole else [],
            )


def _files(facts: Facts) -> Iterator[Component]:
    for name, digest in sorted(facts.files.items()):
        yield Component(type=ComponentType.FILE, name=name, bom_ref=f"file/{name}", hashes=[_sha256(digest)])


def _sha256(digest: str) -> HashType:
    return HashType(alg=HashAlgorithm.SHA_256, content=digest)


def _properties(values: Mapping[str, str]) -> list[Property]:
    return [Property(name=f"loragate:{name}", value=value) for name, value in values.items() if value]


def _model_card(facts: Facts, data: Iterable[str]) -> dict[str, Any]:
    said = facts.said
    considerations: dict[str, list[Any]] = {
        "useCases": [said["intended_use"]],
        "technicalLimitations": [said["limits"], said["out_of_scope"] and f"Out of scope: {said['out_of_scope']}"],
        "ethicalConsiderations": [
            {"name": "Human oversight", "mitigationStrategy": said["human_oversight"]}
            if said["human_oversight"]
            else ""
        ],
    }
    stated = {name: [each for each in values if each] for name, values in considerations.items()}
    parameters: dict[str, Any] = {
        "approach": {"type": "supervised"},
        "task": "text-generation",
        "architectureFamily": "transformer",
        "datasets": [{"ref": ref} for ref in data],
        "inputs": [{"format": "string"}],
        "outputs": [{"format": "string"}],
    }
    card = {
        "bom-ref": "model-card",
        "modelParameters": parameters,
        "quantitativeAnalysis": {"performanceMetrics": [_metric(metric) for metric in facts.metrics]},
        "considerations": {name: values for name, values in stated.items() if values},
        "properties": [{"name": f"loragate:{name}", "value": json.dumps(v)} for name, v in facts.settings.items()]
        + [{"name": "loragate:not_stated", "value": item} for item in facts.not_stated],
    }
    return {name: value for name, value in card.items() if value}


def _metric(metric: Metric) -> dict[str, Any]:
    ends = {"lowerBound": metric.low, "upperBound": metric.high}
    interval = {name: repr(value) for name, value in ends.items() if value is not None}
    told = {"type": f"{metric.name} {metric.kind}", "value": repr(metric.value), "slice": metric.dataset}
    return told | ({"confidenceInterval": interval} if interval else {})


def _licences(text: str) -> list[License]:
    return [LicenseFactory().make_from_string(text)] if text else []


@functools.cache
def _packages() -> tuple[Mapping[str, Any], ...]:
    """What is installed, by name; reading it takes a second, and it does not change under a running program."""
    found: dict[str, tuple[PackageURL, Any]] = {}
    for package in importlib.metadata.distributions():
        purl = PackageURL("pypi", name=package.metadata["Name"], version=package.version)
        found.setdefault(purl.to_string(), (purl, package.metadata))
    return tuple(
        {
            "type": ComponentType.LIBRARY,
            "name": purl.name,
            "version": purl.version,
            "bom_ref": ref,
            "purl": purl,
            "licenses": list(_said(metadata)),
        }
        for ref, (purl, metadata) in sorted(found.items())
    )


def _said(metadata: Any) -> Iterator[License]:
    """The licence that a package's metadata says: an SPDX expression, else names; nothing is guessed."""
    if expression := metadata.get("License-Expression"):
        yield from _licences(expression)
        return
    line = (metadata.get("License") or "").strip()
    classified = [each for each in metadata.get_all("Classifier") or () if each.startswith(OSI)]
    names = [each.removeprefix(OSI) for each in classified]
    if line and "\n" not in line and len(line) <= LONGEST_NAME:
        names = [line]
    made = [LicenseFactory().make_from_string(name) for name in dict.fromkeys(names)]
    expressions: list[License] = [each for each in made if isinstance(each, LicenseExpression)]
    yield from expressions[:1] or made  # the specification takes one expression, or any number of names
