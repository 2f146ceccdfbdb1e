"""The run file: what it says is what runs, and what it may not say is refused with a way out."""

import json
from pathlib import Path
from typing import get_args

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from pydantic import BaseModel
from ruamel.yaml import YAML

from loragate.attempt import section
from loragate.config import Config, RunFile, Train, load, section_of
from loragate.errors import ConfigError
from loragate.presets import PRESETS
from loragate.starter import EXAMPLE, RUN_FILE, SCHEMA_FILE, run_file_text, schema_text, write_starter

SMALLEST = "model: helper\nbase_model: {source: org/base}\ndata: {train: [rows.jsonl]}\n"


def written(folder: Path, text: str = SMALLEST) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError, match=r".") as caught:
        load(path, overrides)
    return str(caught.value)


def test_smallest_run_file_is_valid_and_takes_every_default(tmp_path: Path) -> None:
    config = load(written(tmp_path)).config
    assert config.model == "helper"
    assert config.data.train == ("rows.jsonl",)
    assert (config.data.heldout, config.data.max_tokens) == (None, 512)
    assert (config.train.r, config.train.alpha, config.train.learning_rate) == (16, 32.0, 2e-4)
    assert config.gates.quality.max_perplexity_ratio == 1.0
    assert config.export.gguf == ("f16", "q8_0", "q4_k_m")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (SMALLEST + "trian: {}\n", 'trian: unknown key (did you mean "train"?); allowed here: model, home,'),
        (
            SMALLEST + "train: {learningrate: 1}\n",
            'train.learningrate: unknown key (did you mean "learning_rate"?)',
        ),
        (SMALLEST + "gates: {quality: {min_stop: 1}}\n", "gates.quality.min_stop: unknown key"),
        (
            SMALLEST.replace("rows.jsonl", "{source: a.jsonl, weigth: 2}"),
            'data.train.0.weigth: unknown key (did you mean "weight"?); allowed here: source, weight, format,',
        ),
        (SMALLEST.replace("rows.jsonl", "{weight: 2}"), "data.train.0.source: required, but missing"),
        (SMALLEST.replace("rows.jsonl", "a, {source: a, weight: 0}"), "data.train.1.weight: found 0, allowed: greater"),
        (SMALLEST.replace("rows.jsonl", "7"), "data.train.0: found 7, allowed: valid string"),
        (SMALLEST + "train: {method: qlorra}\n", "'lora' or 'qlora' (did you mean \"qlora\"?)"),
        (SMALLEST + "train: {epochs: many}\n", 'train.epochs: found "many", allowed: valid integer'),
        (SMALLEST + "train: {epochs: 1.5}\n", "train.epochs: found 1.5, allowed: valid integer"),
        (SMALLEST + "train: {epochs: true}\n", "train.epochs: found true, allowed: valid integer"),
        (SMALLEST + "train: {dropout: '0.1'}\n", 'train.dropout: found "0.1", allowed: valid number'),
        (SMALLEST + "train: 3\n", "train: found 3, allowed: an object"),
        (
            SMALLEST + "train: {neftune_alpha: -1}\n",
            "train.neftune_alpha: found -1, allowed: greater than or equal to 0",
        ),
        (SMALLEST + "train: {early_stopping: -1}\n", "train.early_stopping: found -1, allowed: greater than or equal"),
        (
            SMALLEST + "train: {gradient_checkpointing: true}\n",
            "train.gradient_checkpointing: found true, allowed: 'auto', 'on' or 'off'",
        ),
        (SMALLEST + "train: {epochs: 0}\n", "train.epochs: found 0, allowed: greater than or equal to 1"),
        (SMALLEST + "train: {r: 1025}\n", "train.r: found 1025, allowed: less than or equal to 1024"),
        (SMALLEST + "train: {dropout: 1.0}\n", "train.dropout: found 1.0, allowed: less than 1"),
        (SMALLEST + "train: {learning_rate: .nan}\n", "train.learning_rate: found NaN, allowed: finite number"),
        (SMALLEST + "train: {learning_rate: .inf}\n", "train.learning_rate: found Infinity, allowed: finite number"),
        (SMALLEST.replace("helper", "'two words'"), 'model: found "two words", allowed: String should match'),
        (SMALLEST.replace("[rows.jsonl]", "[]"), "data.train: found []"),
        (
            SMALLEST.replace("[rows.jsonl]", "[rows.jsonl], heldout: 1"),
            "data.heldout: found 1, allowed: less than 1",
        ),
        (SMALLEST.replace("[rows.jsonl]", "[rows.jsonl], heldout: []"), "data.heldout: found []"),
        ("model: helper\n", "base_model: required, but missing"),
        ("model: helper\n", "data: required, but missing"),
        (SMALLEST.replace("{source: org/base}", "{}"), "base_model.source: required, but missing"),
    ],
)
def test_refusal_names_the_place_the_value_and_what_is_allowed(tmp_path: Path, text: str, said: str) -> None:
    assert said in refusal(written(tmp_path, text))


def test_every_fault_is_named_at_once(tmp_path: Path) -> None:
    said = refusal(written(tmp_path, SMALLEST + "train: {epochs: 0, r: 0}\nexprot: {}\n"))
    assert [line.split(": ")[1] for line in said.splitlines()] == ["train.r", "train.epochs", "exprot"]


def test_list_of_faulty_items_is_not_also_called_too_short(tmp_path: Path) -> None:
    said = refusal(written(tmp_path, SMALLEST + "export: {gguf: [q5]}\n"))
    assert said.splitlines() == [
        f"{tmp_path}/run.yaml: export.gguf.0: found \"q5\", allowed: 'f16', 'q8_0' or 'q4_k_m'"
    ]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "train.forward_tokens=511",
            "train.forward_tokens is 511, less than one row of data.max_tokens = 512",
        ),
        ("base_model={source: ./base, revision: main}", "base_model.revision belongs to hub ids"),
        ("base_model={source: base.gguf, revision: main}", "base_model.revision belongs to hub ids"),
        ("train.target_modules=[all-linear, q_proj]", "all-linear stands alone"),
        ("train.target_modules=['re:.*', q_proj]", "train.target_modules: re:.* stands alone"),
        ("train.target_modules='re:('", "train.target_modules: ( is no regular expression: missing )"),
        ("train.rank_pattern={'[': 4}", "train.rank_pattern: [ is no regular expression: unterminated"),
        ("train.rank_pattern={q_proj: 0}", "train.rank_pattern.q_proj: found 0, allowed: greater than or equal to 1"),
        ("train.init=pissa", "train.init: pissa takes part of the base's weights into the adapter"),
        ("train.init=olora", "train.init: olora takes part of the base's weights into the adapter"),
        ("train.init=loftq", "train.init: loftq replaces the quantised base by one of its own"),
        ("train.init=eva", "train.init: eva needs a pass over the rows before the first step"),
        ("train.quantization=int8", "belong to method qlora; set it, or remove them"),
        ("train.double_quantization=false", "belong to method qlora; set it, or remove them"),
        (
            "train={method: qlora, quantization: int8, dora: true}",
            "train.dora: peft cannot compute it on an 8-bit base",
        ),
        ("train.preset=unslooth", '(did you mean "unsloth"?)'),
    ],
)
def test_bad_combination_is_refused_while_the_config_is_built(tmp_path: Path, override: str, said: str) -> None:
    assert said in refusal(written(tmp_path), override)


@pytest.mark.parametrize(
    "override",
    [
        "train.forward_tokens=512",
        "base_model={source: org/base, revision: main}",
        "train.target_modules=[all-linear]",
        "train={method: qlora, quantization: int8}",
        "train={method: qlora, quantization: fp4, double_quantization: false, dora: true}",
        "train={rslora: true, init: gaussian, rank_pattern: {down_proj: 32}, alpha_pattern: {'[qk]_proj': 8}}",
    ],
)
def test_combination_at_the_edge_is_allowed(tmp_path: Path, override: str) -> None:
    load(written(tmp_path), [override])


def test_override_replaces_one_value_and_reads_it_as_yaml(tmp_path: Path) -> None:
    overrides = [
        "train.epochs=1",
        "train.learning_rate=1e-3",
        "export.gguf=[q8_0]",
        "data.heldout=[held.jsonl]",
    ]
    config = load(written(tmp_path), overrides).config
    assert (config.train.epochs, config.train.learning_rate) == (1, 0.001)
    assert (config.export.gguf, config.data.heldout) == (("q8_0",), ("held.jsonl",))
    assert config.data.train == ("rows.jsonl",)


def test_later_override_wins(tmp_path: Path) -> None:
    assert load(written(tmp_path), ["train.r=4", "train.r=8"]).config.train.r == 8


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.epochs", "write it as key.path=value"),
        ("=1", "write it as key.path=value"),
        ("model.name=x", "model is a value in the run file, not a section"),
        ("train.epochs=[", "--set train.epochs:1:2: not YAML"),
        ("train.epoch=1", 'train.epoch: unknown key (did you mean "epochs"?)'),
    ],
)
def test_bad_override_is_refused(tmp_path: Path, override: str, said: str) -> None:
    assert said in refusal(written(tmp_path), override)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "a run file is a mapping of keys to values"),
        (b"- model\n", "a run file is a mapping of keys to values"),
        (b"model: [\n", "run.yaml:2:1: not YAML"),
        (b"model: a\nmodel: b\n", 'run.yaml:2:1: not YAML: found duplicate key "model"'),
        (b"model: \x00\n", "not YAML: unacceptable character"),
        (b"\xff\xfe", "not UTF-8 text (byte 0)"),
        (b"? [a, b]\n: c\n", "YAML that no run file has"),
        (b"model: &m [*m]\n", "YAML that no run file has"),
    ],
)
def test_what_is_no_run_file_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    assert said in refusal(path)


def test_missing_run_file_says_how_to_get_one(tmp_path: Path) -> None:
    assert "no such run file; `loragate init` writes one" in refusal(tmp_path / "none.yaml")
    assert "cannot be read: Is a directory" in refusal(tmp_path)


def test_byte_order_mark_does_not_matter(tmp_path: Path) -> None:
    assert load(written(tmp_path, "\ufeff" + SMALLEST)) == load(written(tmp_path))


def test_relative_paths_start_at_the_run_file(tmp_path: Path) -> None:
    run = load(written(tmp_path))
    assert run.resolve("data/a.jsonl") == tmp_path.resolve() / "data/a.jsonl"
    assert run.resolve("/data/a.jsonl") == Path("/data/a.jsonl")
    assert run.resolve("~/a.jsonl") == Path.home() / "a.jsonl"


def test_config_cannot_be_changed() -> None:
    config = Config.model_validate_json(json.dumps(EXAMPLE))
    with pytest.raises(ValueError, match="frozen"):
        config.model = "other"


def test_starter_loads_unchanged_and_equals_the_defaults(tmp_path: Path) -> None:
    run_file, schema = write_starter(tmp_path / "new" / "folder")
    assert [path.name for path in (run_file, schema)] == [RUN_FILE, SCHEMA_FILE]
    defaults = Config.model_validate_json(json.dumps(EXAMPLE))
    assert load(run_file) == RunFile(run_file.resolve(), defaults)


def keys(section: type[BaseModel], depth: int = 0) -> list[str]:
    """Every key line of a run file, in the tree's order."""
    lines: list[str] = []
    for name in section.model_fields:
        lines.append("  " * depth + name)
        inner = section_of(section, name)
        lines += keys(inner, depth + 1) if inner else []
    return lines


def test_starter_has_every_key_with_its_meaning_above_it() -> None:
    lines = run_file_text().splitlines()
    written_keys = [n for n, line in enumerate(lines) if line.strip() and not line.strip().startswith("#")]
    assert [lines[n].partition(":")[0] for n in written_keys] == keys(Config)
    assert all(lines[n - 1].strip().startswith("# ") for n in written_keys)


def test_starter_shows_choices_and_stays_within_its_width() -> None:
    text = run_file_text()
    assert "Choices: lora, qlora.\n  method: lora\n" in text
    assert "Choices: auto, on, off.\n  gradient_checkpointing: auto\n" in text
    assert "Choices: f16, q8_0, q4_k_m.\n  gguf: [f16, q8_0, q4_k_m]\n" in text
    assert text.splitlines()[0] == "# yaml-language-server: $schema=run.schema.json"
    assert max(len(line) for line in text.splitlines()) <= 100
    assert "\n\n\n" not in text


def test_schema_describes_every_key_and_forbids_others(tmp_path: Path) -> None:
    _, path = write_starter(tmp_path)
    schema = json.loads(path.read_text(encoding="utf-8"))
    assert schema["required"] == ["model", "base_model", "data"]
    for part in [schema, *schema["$defs"].values()]:
        assert part["additionalProperties"] is False
        assert all({"description", "$ref"} & field.keys() for field in part["properties"].values())


def test_schema_judges_a_run_file_as_loading_does() -> None:
    validator = Draft202012Validator(json.loads(schema_text()))
    validator.check_schema(validator.schema)
    validator.validate(YAML(typ="safe").load(run_file_text()))
    validator.validate(EXAMPLE)
    mistakes: list[dict[str, object]] = [
        {"trian": {}},
        {"model": "two words"},
        {"train": {"epochs": 0}},
        {"train": {"method": "full"}},
    ]
    assert not any(validator.is_valid(EXAMPLE | mistake) for mistake in mistakes)


@pytest.mark.parametrize("there", [RUN_FILE, SCHEMA_FILE])
def test_starter_never_overwrites_and_then_writes_nothing(tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match=f"{there} already there; nothing was written"):
        write_starter(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [there]
    assert (tmp_path / there).read_text(encoding="utf-8") == "mine"


def test_starter_says_so_where_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"file: cannot be written to: .*; nothing was written"):
        write_starter(tmp_path / "file")


def test_general_may_be_one_file_or_several(tmp_path: Path) -> None:
    for given in ("general.jsonl", "[general.jsonl]"):
        text = SMALLEST.replace("[rows.jsonl]", f"[rows.jsonl], general: {given}")
        assert load(written(tmp_path, text)).config.data.general == ("general.jsonl",)


def trained_by(folder: Path, *overrides: str) -> Train:
    return load(written(folder), [f"train.{override}" for override in overrides]).config.train


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("none", (16, 32, 0.0, 4, 2e-4, 3, "cosine", 0.05, 8)),
        ("balanced", (16, 32, 0.05, 4, 1e-4, 3, "cosine", 0.05, 8)),
        ("minimal", (8, 8, 0.0, 2, 2e-4, 3, "linear", 0.06, 8)),
        ("unsloth", (16, 16, 0.0, 7, 2e-4, 3, "cosine", 0.05, 8)),
        ("minimind", (16, 16, 0.0, 2, 1e-4, 10, "cosine", 0.05, 32)),
        ("mlx", (8, 160, 0.0, 1, 1e-5, 3, "constant", 0.0, 4)),
    ],
)
def test_preset_sets_what_the_run_file_does_not(tmp_path: Path, preset: str, expected: tuple[object, ...]) -> None:
    train = trained_by(tmp_path, f"preset={preset}")
    told = (train.r, train.alpha, train.dropout, len(train.target_modules), train.learning_rate, train.epochs)
    assert (*told, train.schedule, train.warmup_share, train.batch_size) == expected


def test_key_of_the_run_file_stands_against_its_preset_and_so_does_a_default(tmp_path: Path) -> None:
    train = trained_by(tmp_path, "preset=mlx", "r=16", "learning_rate=2e-4")
    assert (train.r, train.learning_rate, train.alpha) == (16, 2e-4, 160)


def test_every_preset_holds_known_keys_and_is_written_as_it_is_read(tmp_path: Path) -> None:
    assert set(PRESETS) == set(get_args(Train.model_fields["preset"].annotation))
    for preset, values in PRESETS.items():
        assert set(values) <= set(Train.model_fields)
        train = Train.model_validate({"preset": preset})
        assert Train.model_validate_json(train.model_dump_json()) == train


@pytest.mark.parametrize(
    ("written_as", "names"),
    [
        ("minimal", ("q_proj", "v_proj")),
        ("attention", ("q_proj", "k_proj", "v_proj", "o_proj")),
        ("all", ("all-linear",)),
        ("all-linear", ("all-linear",)),
        ("'re:.*mlp.*'", ("re:.*mlp.*",)),
        ("c_attn", ("c_attn",)),
        ("[attention, dense]", ("attention", "dense")),
    ],
)
def test_target_modules_may_be_one_name_that_stands_for_several(
    tmp_path: Path, written_as: str, names: tuple[str, ...]
) -> None:
    assert trained_by(tmp_path, f"target_modules={written_as}").target_modules == names


def test_every_key_of_training_changes_what_the_store_keeps_it_under(tmp_path: Path) -> None:
    changes = [
        *("r=8", "dora=true", "rslora=true", "init=gaussian", "rank_pattern={q_proj: 8}", "alpha_pattern={q_proj: 8}"),
        *("target_modules=all", "preset=mlx", "method=qlora", "neftune_alpha=5.0", "early_stopping=1"),
        *("gradient_checkpointing=on", "gradient_checkpointing=off", "cuda_graph=false"),
    ]
    kept = [json.dumps(section(load(written(tmp_path), [f"train.{c}"]).config, "train")) for c in ("seed=0", *changes)]
    assert len(set(kept)) == len(kept)
    assert json.loads(kept[changes.index("preset=mlx") + 1])["train"]["alpha"] == 160


@pytest.mark.parametrize(
    ("quality", "fault"),
    [
        ('{answer_regex: "("}', "gates.quality.answer_regex: ( is no regular expression"),
        ("{answer_json_schema: {type: strng}}", "gates.quality.answer_json_schema: not a JSON schema: 'strng'"),
        ('{answer_json_schema: {$ref: "http://a.b/c"}}', "http://a.b/c leads nowhere within the schema"),
        ("{min_length_ratio: 4}", "gates.quality.min_length_ratio is 4, more than max_length_ratio = 3"),
        (
            "{answer_must_contain: [ab], answer_must_not_contain: [b]}",
            "'ab' holds what answer_must_not_contain forbids",
        ),
        ("{canaries: [{prompt: Say  X, secret: say x}]}", "the prompt 'Say  X' must not hold its own secret"),
        ("{canaries: [{prompt: a}]}", "gates.quality.canaries.0.secret: required, but missing"),
        ("{canaries: [{prompt: a, secrt: b, secret: c}]}", 'unknown key (did you mean "secret"?)'),
        ("{max_general_ratio: .nan}", "gates.quality.max_general_ratio"),
    ],
)
def test_rules_about_answers_that_cannot_be_judged_are_refused(tmp_path: Path, quality: str, fault: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(written(tmp_path, f"{SMALLEST}gates: {{quality: {quality}}}\n"))
    assert fault in str(error.value)
