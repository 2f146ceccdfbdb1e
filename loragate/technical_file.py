"""The technical file: the points of Annex IV of Regulation (EU) 2024/1689, filled from what is on record.

Promises: every point of the annex is there under its official heading (English text of the Official Journal, OJ L,
2024/1689, 12.7.2024); what nobody has stated and no step has found is null, and every null is listed under `open`.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TypeGuard

from loragate import __version__
from loragate.bundle import ALLOWED
from loragate.evidence import hardware, training_flops
from loragate.facts import Facts
from loragate.model_card import FIRST

FORMAT = "loragate-technical-file/1"
REGULATION = "Regulation (EU) 2024/1689"
TITLE = "Technical documentation referred to in Article 11(1)"
SPECIFICATIONS = (
    "CycloneDX 1.6 (ECMA-424)",
    "in-toto Statement v1",
    "OpenSSF Model Signing 1",
    "RFC 8785",
    "SLSA Provenance v1",
)

Told = dict[str, object]


@dataclass(frozen=True, slots=True)
class Point:
    """A point of the annex.

    Attributes:
        number: As the annex counts it.
        fill: Makes what is known under it.
    """

    number: str
    heading: str
    fill: Callable[[Facts], Told]


def technical_file(facts: Facts) -> Told:
    """The file as a JSON value; names of facts under a point are this program's."""
    points = []
    for point in POINTS:
        found = {name: value if _known(value) else None for name, value in point.fill(facts).items()}
        known = found if any(_known(value) for value in found.values()) else None
        points.append({"point": point.number, "heading": point.heading, "facts": known})
    return {
        "format": FORMAT,
        "regulation": REGULATION,
        "annex": "IV",
        "title": TITLE,
        "groups": dict(GROUPS),
        "model": facts.config.model,
        "release": facts.release,
        "attempt": facts.record.opened.attempt,
        "started": facts.record.opened.started,
        "points": points,
        "open": [name for each in points for name in _open(each)],
    }


def _known(value: object) -> bool:
    return value is not None and value not in ("", {}, [])


def _is_facts(value: object) -> TypeGuard[Mapping[str, object]]:
    return isinstance(value, Mapping)


def _open(point: Mapping[str, object]) -> list[str]:
    """What is not known under a point: the whole of it, or the facts that are missing."""
    facts = point["facts"]
    if not _is_facts(facts):
        return [str(point["point"])]
    return [f"{point['point']} {name}" for name, value in facts.items() if value is None]


def _nothing(name: str) -> Callable[[Facts], Told]:
    """A point that only a person can fill, and for which the run file has no key."""
    return lambda _: {name: None}


def _purpose(facts: Facts) -> Told:
    said = facts.said
    return {
        "intended_purpose": said["intended_use"],
        "out_of_scope": said["out_of_scope"],
        "provider": said["contact"],
        "version": facts.release,
        "previous_version": facts.rollback or FIRST,
    }


def _software(facts: Facts) -> Told:
    return {"versions": facts.versions, "bill_of_materials": "sbom.cdx.json", "update_requirements": None}


def _forms(facts: Facts) -> Told:
    return {"files": sorted(facts.files), "placed_on_the_market_as": None}


def _development(facts: Facts) -> Told:
    said, merge = facts.said, facts.record.merge
    return {
        "pre_trained_model": said["base_model"],
        "pre_trained_model_licence": said["base_licence"],
        "pre_trained_model_digest": facts.inputs.get("base_model"),
        "how_modified": "supervised fine-tuning of a low-rank adapter, merged into the base, converted to GGUF",
        "merged": {"into": merge.chosen, "dtype": merge.dtype} if merge else None,
        "tools": {"loragate": __version__, **facts.versions},
    }


def _design(facts: Facts) -> Told:
    return {
        "optimised_for": "mean negative log-likelihood of the answers' tokens, the token that stops them included",
        "parameters": facts.settings,
        "rationale_and_assumptions": None,
        "trade_offs": None,
    }


def _architecture(facts: Facts) -> Told:
    plan = facts.record.plan
    return {
        "parameters": plan.model.parameters if plan else None,
        "trained_parameters": plan.model.trainable if plan else None,
        "adapted_layers": list(plan.model.kinds) if plan else None,
        "hardware": hardware(facts.record),
        "training_operations": training_flops(facts.record),
        "seconds": dict(facts.record.seconds),
        "integration_of_components": None,
    }


def _data(facts: Facts) -> Told:
    plan = facts.record.plan
    return {
        "description": facts.said["data_description"],
        "licence": facts.said["data_licence"],
        "digests": {name: digest for name, digest in facts.inputs.items() if name.startswith("data")},
        "hub_data_sets": list(facts.data_sets),
        "training_rows": asdict(plan.rows) if plan else None,
        "checks": _judged(facts, "data"),
        "labelling": None,
    }


def _judged(facts: Facts, gate: str) -> list[Told]:
    """Every rule of a gate with what it found; the bundle's gates.json has the sentences."""
    verdicts = [verdict for verdict in facts.record.verdicts if verdict.gate == gate]
    return [
        {"rule": finding.rule, "status": finding.status, "value": finding.value, "limit": finding.limit}
        for verdict in verdicts
        for finding in verdict.findings
    ]


def _oversight(facts: Facts) -> Told:
    return {"measures": facts.said["human_oversight"], "interpretation_of_outputs": None}


def _validation(facts: Facts) -> Told:
    return {
        "procedure": "held-out rows scored before and after training, merging and conversion; gates judge each step",
        "metrics": [asdict(metric) for metric in facts.metrics],
        "gates": [{"gate": verdict.gate, "status": verdict.status} for verdict in facts.record.verdicts],
        "test_logs": ["gates.json", "record.json", "report.html"],
        "dated": facts.record.opened.started,
        "signed": "signature.json",
        "waivers": list(facts.waivers) or "none",
        "discriminatory_impacts": None,
    }


def _security(_: Facts) -> Told:
    return {
        "integrity": "manifest.json has the SHA-256 of every file; signature.json is over all of them",
        "provenance": "provenance.intoto.jsonl",
        "kinds_of_files": list(ALLOWED),
        "of_the_system_in_use": None,
    }


def _monitoring(facts: Facts) -> Told:
    slices = [asdict(metric) for metric in facts.metrics if "slice " in metric.dataset]
    rungs = (*facts.record.ladder, *facts.record.general)
    return {
        "limitations": facts.said["limits"],
        "accuracy_by_group": slices,
        "overall_accuracy": {rung.name: rung.nll.perplexity for rung in rungs},
        "warnings": list(facts.warnings) or "none",
        "unintended_outcomes": None,
        "human_oversight": facts.said["human_oversight"],
        "input_data": {"language": facts.said["language"] or None, "max_tokens": facts.config.data.max_tokens},
    }


def _changes(facts: Facts) -> Told:
    return {"previous_release": facts.rollback or FIRST, "rollback_target": facts.rollback or FIRST, "changes": None}


def _standards(_: Facts) -> Told:
    return {"harmonised_standards": None, "other_specifications": list(SPECIFICATIONS)}


GROUPS = {
    "1": "A general description of the AI system",
    "2": "A detailed description of the elements of the AI system and of the process for its development",
}
"""Headings of the two points that have letters."""
POINTS = (
    Point(
        "1(a)",
        "its intended purpose, the name of the provider and the version of the system reflecting its relation to "
        "previous versions",
        _purpose,
    ),
    Point(
        "1(b)",
        "how the AI system interacts with, or can be used to interact with, hardware or software, including "
        "with other AI systems, that are not part of the AI system itself, where applicable",
        _nothing("interaction"),
    ),
    Point(
        "1(c)",
        "the versions of relevant software or firmware, and any requirements related to version updates",
        _software,
    ),
    Point(
        "1(d)",
        "the description of all the forms in which the AI system is placed on the market or put into service, "
        "such as software packages embedded into hardware, downloads, or APIs",
        _forms,
    ),
    Point(
        "1(e)",
        "the description of the hardware on which the AI system is intended to run",
        _nothing("hardware"),
    ),
    Point(
        "1(f)",
        "where the AI system is a component of products, photographs or illustrations showing external "
        "features, the marking and internal layout of those products",
        _nothing("illustrations"),
    ),
    Point(
        "1(g)",
        "a basic description of the user-interface provided to the deployer",
        _nothing("user_interface"),
    ),
    Point(
        "1(h)",
        "instructions for use for the deployer, and a basic description of the user-interface provided to the "
        "deployer, where applicable",
        _nothing("instructions_for_use"),
    ),
    Point(
        "2(a)",
        "the methods and steps performed for the development of the AI system, including, where relevant, "
        "recourse to pre-trained systems or tools provided by third parties and how those were used, "
        "integrated or modified by the provider",
        _development,
    ),
    Point(
        "2(b)",
        "the design specifications of the system, namely the general logic of the AI system and of the "
        "algorithms; the key design choices including the rationale and assumptions made, including with "
        "regard to persons or groups of persons in respect of who, the system is intended to be used; the "
        "main classification choices; what the system is designed to optimise for, and the relevance of the "
        "different parameters; the description of the expected output and output quality of the system; the "
        "decisions about any possible trade-off made regarding the technical solutions adopted to comply with "
        "the requirements set out in Chapter III, Section 2",
        _design,
    ),
    Point(
        "2(c)",
        "the description of the system architecture explaining how software components build on or feed into "
        "each other and integrate into the overall processing; the computational resources used to develop, "
        "train, test and validate the AI system",
        _architecture,
    ),
    Point(
        "2(d)",
        "where relevant, the data requirements in terms of datasheets describing the training methodologies "
        "and techniques and the training data sets used, including a general description of these data sets, "
        "information about their provenance, scope and main characteristics; how the data was obtained and "
        "selected; labelling procedures (e.g. for supervised learning), data cleaning methodologies (e.g. "
        "outliers detection)",
        _data,
    ),
    Point(
        "2(e)",
        "assessment of the human oversight measures needed in accordance with Article 14, including an "
        "assessment of the technical measures needed to facilitate the interpretation of the outputs of AI "
        "systems by the deployers, in accordance with Article 13(3), point (d)",
        _oversight,
    ),
    Point(
        "2(f)",
        "where applicable, a detailed description of pre-determined changes to the AI system and its "
        "performance, together with all the relevant information related to the technical solutions adopted "
        "to ensure continuous compliance of the AI system with the relevant requirements set out in Chapter "
        "III, Section 2",
        _nothing("pre_determined_changes"),
    ),
    Point(
        "2(g)",
        "the validation and testing procedures used, including information about the validation and testing "
        "data used and their main characteristics; metrics used to measure accuracy, robustness and "
        "compliance with other relevant requirements set out in Chapter III, Section 2, as well as "
        "potentially discriminatory impacts; test logs and all test reports dated and signed by the "
        "responsible persons, including with regard to pre-determined changes as referred to under point (f)",
        _validation,
    ),
    Point(
        "2(h)",
        "cybersecurity measures put in place",
        _security,
    ),
    Point(
        "3",
        "Detailed information about the monitoring, functioning and control of the AI system, in particular "
        "with regard to: its capabilities and limitations in performance, including the degrees of accuracy "
        "for specific persons or groups of persons on which the system is intended to be used and the overall "
        "expected level of accuracy in relation to its intended purpose; the foreseeable unintended outcomes "
        "and sources of risks to health and safety, fundamental rights and discrimination in view of the "
        "intended purpose of the AI system; the human oversight measures needed in accordance with Article "
        "14, including the technical measures put in place to facilitate the interpretation of the outputs of "
        "AI systems by the deployers; specifications on input data, as appropriate",
        _monitoring,
    ),
    Point(
        "4",
        "A description of the appropriateness of the performance metrics for the specific AI system",
        _nothing("appropriateness"),
    ),
    Point(
        "5",
        "A detailed description of the risk management system in accordance with Article 9",
        _nothing("risk_management"),
    ),
    Point(
        "6",
        "A description of relevant changes made by the provider to the system through its lifecycle",
        _changes,
    ),
    Point(
        "7",
        "A list of the harmonised standards applied in full or in part the references of which have been "
        "published in the Official Journal of the European Union; where no such harmonised standards have "
        "been applied, a detailed description of the solutions adopted to meet the requirements set out in "
        "Chapter III, Section 2, including a list of other relevant standards and technical specifications "
        "applied",
        _standards,
    ),
    Point(
        "8",
        "A copy of the EU declaration of conformity referred to in Article 47",
        _nothing("declaration_of_conformity"),
    ),
    Point(
        "9",
        "A detailed description of the system in place to evaluate the AI system performance in the "
        "post-market phase in accordance with Article 72, including the post-market monitoring plan referred "
        "to in Article 72(3)",
        _nothing("post_market_monitoring"),
    ),
)
