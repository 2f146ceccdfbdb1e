"""The run file as one frozen tree: every key, its type, its bounds, its meaning and its default.

The string under a field says meaning and unit; `loragate init` writes it as the comment above the key. Unknown
keys, wrong types and bad combinations are refused while the tree is built, before anything is read or run.
"""

import json
import os
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, JsonValue, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from loragate.card import Card
from loragate.errors import BaseModelError, ConfigError
from loragate.faults import explain
from loragate.limits import Gates, Positive, Section, Share
from loragate.presets import ATTENTION, UNAVAILABLE, expression_faults, filled, target_faults, targets
from loragate.sources import BaseModelSource, Data, DataSource

FORWARD_TOKENS = 4096
"""Most token slots in a forward pass, where neither the run file nor a plan says more or less."""
Quantization = Literal["f16", "q8_0", "q4_k_m"]
Rank = Annotated[int, Field(ge=1, le=1024)]


class Train(Section):
    """How the adapter is trained."""

    method: Literal["lora", "qlora"] = "lora"
    """lora: adapter on the base as it is; qlora: adapter on the base quantised as the keys below say."""
    preset: Literal["none", "balanced", "minimal", "unsloth", "minimind", "mlx"] = "none"
    """Published settings for those keys of this section that the run file does not set itself; remove the keys that
    the preset is to set."""
    quantization: Literal["nf4", "fp4", "int8"] = "nf4"
    """Number format of the base for qlora: 4-bit NF4 or FP4 (bitsandbytes), or 8-bit integers (LLM.int8)."""
    double_quantization: bool = True
    """Whether the scales of a 4-bit base are quantised too (Dettmers et al. 2023, arXiv 2305.14314, section 3)."""
    r: Rank = 16
    """Rank of the adapter."""
    alpha: Positive = 32
    """Scale of the adapter: its output is multiplied by alpha / r."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapter's input, as a share."""
    neftune_alpha: Annotated[float, Field(ge=0)] = 0.0
    """Noise on the embeddings in training, uniform within alpha / sqrt(length in tokens * width); 0: none. Published
    alphas are 5 to 15 (Jain et al. 2023, arXiv 2310.05914, section 2)."""
    dora: bool = False
    """Whether the length of each output's weights is learnt apart from their direction (arXiv 2402.09353)."""
    rslora: bool = False
    """Whether the adapter's output is multiplied by alpha / sqrt(r) instead (arXiv 2312.03732), for large ranks."""
    init: Literal["default", "gaussian", "pissa", "olora", "eva", "loftq"] = "default"
    """How lora_A starts: default is uniform (Kaiming), gaussian normal with deviation 1 / r; lora_B starts as zero.
    The others are refused: their adapters do not fit the original base."""
    target_modules: Annotated[
        tuple[str, ...], Field(min_length=1), BeforeValidator(targets, json_schema_input_type=str | list[str])
    ] = ATTENTION
    """Linear layers that get an adapter: a list of names; or minimal (q_proj, v_proj), attention (q, k, v and o_proj),
    all (every one but the output head; also all-linear); or re:... with a regular expression for whole names."""
    rank_pattern: Mapping[str, Rank] = {}
    """Other ranks for layers by the end of their names, regular expressions allowed, e.g. {down_proj: 32}."""
    alpha_pattern: Mapping[str, Positive] = {}
    """Other alphas, likewise."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    """Peak learning rate of AdamW."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Course of the learning rate after the warm-up."""
    warmup_share: Share = 0.05
    """Share of the optimizer steps over which the learning rate rises linearly from zero."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Weight decay of AdamW on the adapter's weights."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """The gradient's norm is clipped to this."""
    epochs: Positive = 3
    """Passes over the training rows."""
    early_stopping: Annotated[int, Field(ge=0)] = 0
    """Training ends after this many evaluations in a row (of the held-out loss, one an epoch) without a lower loss; 0:
    never."""
    batch_size: Positive = 8
    """Rows per optimizer step; the loss is the mean over the step's supervised tokens."""
    forward_tokens: Positive | None = None
    """Most token slots in one forward pass; larger batches are accumulated exactly, pass by pass. null: on a GPU a
    whole step's, or as large a part of it as the memory plan has room for, at least 4096. Packs on a CPU
    never take more than 1024, where more does not pay."""
    checkpoint_steps: Positive = 10
    """Optimizer steps between checkpoints: what a kill can cost at most."""
    gradient_checkpointing: Literal["auto", "on", "off"] = "auto"
    """Whether the backward pass computes each layer's activations again instead of keeping them (Chen et al. 2016,
    arXiv 1604.06174): less memory, about a third more time; auto: where training does not fit the device otherwise."""
    cuda_graph: bool = True
    """Whether a step is captured as a CUDA graph (same arithmetic, no launch costs); CUDA only; falls back by itself
    and says so."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of weights and arithmetic; auto: bfloat16 where the hardware multiplies it fast, else float32."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of everything random: adapter start, row order, dropout, noise."""

    @property
    def most_tokens(self) -> int:
        """Most token slots in a forward pass, where no plan has chosen more."""
        return self.forward_tokens or FORWARD_TOKENS

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, section: object) -> object:
        return filled(section) if isinstance(section, Mapping) else section

    @model_validator(mode="after")
    def _methods(self) -> Self:
        """Refuse methods that do not go together."""
        if faults := list(self._faults()):
            raise ValueError("; ".join(faults))
        return self

    def _faults(self) -> Iterator[str]:
        if self.init in UNAVAILABLE:
            yield f"train.init: {self.init} {UNAVAILABLE[self.init]}; choose default or gaussian"
        if self.method == "lora" and (self.quantization != "nf4" or not self.double_quantization):
            yield "train.quantization and train.double_quantization belong to method qlora; set it, or remove them"
        if self.method == "qlora" and self.quantization == "int8" and self.dora:
            yield "train.dora: peft cannot compute it on an 8-bit base; choose quantization nf4, or leave dora off"
        yield from target_faults(self.target_modules)
        for name in ("rank_pattern", "alpha_pattern"):
            for key in getattr(self, name):
                yield from expression_faults(f"train.{name}", key)


class Export(Section):
    """What is made of the merged model."""

    gguf: Annotated[tuple[Quantization, ...], Field(min_length=1)] = ("f16", "q8_0", "q4_k_m")
    """GGUF files to export; each passes the GGUF gate on its own."""
    ollama: bool = True
    """Whether a Modelfile lies beside each GGUF file in the bundle, for `ollama create NAME -f FILE`: the chat template
    in Ollama's language, where it has a form in it, the tokens that end an answer, and the system message where all
    training rows have the same one."""
    gguf_adapter: bool = False
    """Whether the adapter is also exported as a GGUF file of its own, for runtimes that put it on the base model; it
    passes the GGUF gate on top of the base in f16, which is converted and measured for it: off, since that takes about
    as long as one more file of gguf."""

    def adapter_faults(self, train: Train) -> Iterator[str]:
        """Yield why the adapter of a training could not be a GGUF file, a sentence each.

        The format knows pairs of A and B with one alpha / r, of linear layers (llama.cpp, convert_lora_to_gguf.py).
        """
        if not self.gguf_adapter:
            return
        if train.dora:
            yield "the format has no DoRA (train.dora)"
        if train.alpha_pattern:
            yield "the format has one alpha for all layers (train.alpha_pattern)"
        if train.rslora and train.rank_pattern:
            yield "the format cannot scale ranks that differ by their roots (train.rslora with train.rank_pattern)"
        if outside := [name for name in train.target_modules if name in ("lm_head", "embed_tokens")]:
            yield f"llama.cpp's converter takes no adapter of {' and '.join(outside)} (train.target_modules)"


class Record(Section):
    """Where the evidence goes."""

    tracking_uri: str | None = None
    """MLflow server; null: MLFLOW_TRACKING_URI where it is set, else SQLite and files under the home."""
    signing_key: str | None = None
    """Private key (EC, PEM) that seals releases, relative to this file; null: LORAGATE_SIGNING_KEY (a path, or the key
    itself), else the home's own, which is made when first needed."""
    promote: Literal["champion", "candidate"] = "champion"
    """What a release becomes when it has passed every gate: champion at once, or candidate until `loragate promote`."""
    approvals: Annotated[int, Field(ge=0, le=99)] = 0
    """How many of the approvers below have to sign a release before it becomes champion; 0: none (own choice: a team of
    one has nobody to ask). It is sealed with the release."""
    approvers: str | None = None
    """Who may approve: a YAML or JSON file, relative to this file, with a list of {name, key, until, seals}. key: the
    line that `ssh-keygen -t ed25519` wrote; until: last day (UTC) it counts, may be left out; seals: names of sealing
    keys the person holds, whose releases the person may not approve, may be left out."""

    @model_validator(mode="after")
    def _approvals(self) -> Self:
        """Refuse to ask for approvals that nobody could give."""
        if self.approvals and self.approvers is None:
            raise ValueError(f"record.approvals is {self.approvals}, but record.approvers names no file of approvers")
        return self


class Config(Section):
    """A whole run file."""

    model: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    """Name under which releases are registered: letters, digits, dot, dash, underscore."""
    home: str | None = None
    """Folder of run store, record and MLflow data, relative to this file; null: LORAGATE_HOME, else ./.loragate."""
    base_model: BaseModelSource
    """The model that is fine-tuned."""
    data: Data
    """The rows to learn from and to judge by."""
    train: Train = Train()
    """How the adapter is trained."""
    gates: Gates = Gates()
    """Every limit that decides about a release."""
    export: Export = Export()
    """What is made of the merged model."""
    record: Record = Record()
    """Where the evidence goes."""
    card: Card = Card()
    """What the release's model card and technical file say that no step can find out; null: not stated."""

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        """Refuse what cannot work together before an hour is spent on it."""
        if self.train.forward_tokens is not None and self.train.forward_tokens < self.data.max_tokens:
            raise ValueError(
                f"train.forward_tokens is {self.train.forward_tokens}, less than one row of "
                f"data.max_tokens = {self.data.max_tokens}; raise the one or lower the other"
            )
        if faults := list(self.export.adapter_faults(self.train)):
            raise ValueError(
                f"export.gguf_adapter: the adapter cannot be a GGUF file of its own: {'; '.join(faults)}; "
                "set export.gguf_adapter to false, or train without"
            )
        local = self.base_model.source.endswith(".gguf") or self.base_model.source.startswith((".", "/", "~"))
        if local and self.base_model.revision is not None:
            raise ValueError("base_model.revision belongs to hub ids; a local base model is pinned by its digest")
        return self


@dataclass(frozen=True, slots=True)
class RunFile:
    """A run file that was read and found valid.

    Attributes:
        path: The file; relative paths in it start at its folder.
        config: What it says, overrides applied.
    """

    path: Path
    config: Config

    def resolve(self, written: str) -> Path:
        """Return a path as the run file means it: relative ones start at the run file's folder."""
        path = Path(written).expanduser()
        return path if path.is_absolute() else Path(os.path.normpath(self.path.parent / path))


def find_base(run: RunFile) -> Path | None:
    """Return the base model's file or folder, or None where the source is a hub id.

    Raises:
        BaseModelError: The source is a path and nothing is there.
    """
    source = run.config.base_model.source
    path = run.resolve(source)
    if path.exists():
        return path
    if source.endswith(".gguf") or source.startswith((".", "/", "~")):
        raise BaseModelError(f"{run.path}: base_model.source {source}: no such file or folder (looked for {path})")
    return None


def load(path: Path, overrides: Sequence[str] = ()) -> RunFile:
    """Read a run file and apply `key.path=value` overrides.

    Raises:
        ConfigError: It is missing, not YAML, or says something that is not allowed; every fault is named.
    """
    tree = _parse(_read(path), str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a run file is a mapping of keys to values; `loragate init` writes one")
    for override in overrides:
        _override(tree, override)
    try:
        config = Config.model_validate_json(_as_json(tree, path))
    except ValidationError as error:
        where = f"{path} with its --set" if overrides else str(path)
        raise ConfigError("\n".join(f"{where}: {fault}" for fault in explain(error, _fields_at))) from None
    return RunFile(path.resolve(), config)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such run file; `loragate init` writes one to start from") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def _parse(text: str, where: str) -> object:
    try:
        return YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark
        at = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise ConfigError(f"{where}{at}: not YAML: {error.problem}") from None
    except YAMLError as error:
        raise ConfigError(f"{where}: not YAML: {str(error).splitlines()[0]}") from None


def _as_json(tree: object, path: Path) -> str:
    try:
        return json.dumps(tree, default=str)
    except (TypeError, ValueError) as error:
        what = "a list as a key, or a value inside itself"
        raise ConfigError(f"{path}: YAML that no run file has ({what}): {error}") from None


def _override(tree: dict[str, object], override: str) -> None:
    name, separator, value = override.partition("=")
    if not separator or not name.strip():
        raise ConfigError(f"--set {override}: write it as key.path=value, e.g. --set train.epochs=1")
    *sections, key = name.strip().split(".")
    node = tree
    for section in sections:
        child = node.setdefault(section, {})
        if not isinstance(child, dict):
            raise ConfigError(f"--set {override}: {section} is a value in the run file, not a section")
        node = child
    node[key] = _parse(value, f"--set {name}")


def _fields_at(location: Sequence[int | str]) -> list[str]:
    section: type[BaseModel] = Config
    for part in location:
        name = str(part)
        inner = section_of(section, name) or _items_of(section, name)
        section = DataSource if part == "source" else inner or section
    return list(section.model_fields)


def _items_of(section: type[BaseModel], field: str) -> type[BaseModel] | None:
    """Return the section class of a list's items, or None where the field is no list of sections."""
    known = section.model_fields.get(field)
    items = typing.get_args(known.annotation)[:1] if known else ()
    return next((kind for kind in items if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def section_of(section: type[BaseModel], field: str) -> type[BaseModel] | None:
    """Return the section class behind a field, or None where the field is a plain value."""
    known = section.model_fields.get(field)
    annotation = known.annotation if known else None
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is not None:
        return None
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def plain(section: BaseModel) -> dict[str, JsonValue]:
    """Return a section as plain JSON values, for digests and records."""
    return section.model_dump(mode="json")
