"""The limits of every gate, with their defaults and their reasons: the section `gates` of a run file."""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from loragate.answer_rules import AnswerRules, schema_faults
from loragate.presets import expression_faults
from loragate.words import squeezed

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI[A-Za-z0-9+/]{43}( .*)?"
"""An ed25519 key as OpenSSH writes it: its kind, 51 bytes in base64 that begin with the kind, and a comment."""


class Section(BaseModel):
    """Base of every section: frozen, no unknown keys, no silent conversion."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


class DataLimits(Section):
    """Limits of the data gate. Source: FIELD data-failure list, e.g. trl#1623 (lost stop tokens), trl#6668."""

    min_train_rows: Positive = 2
    """Fewest training rows."""
    min_heldout_rows: Positive = 2
    """Fewest held-out rows; fewer say nothing about the model."""
    min_answer_chars: Positive = 1
    """Shortest answer in characters, white space not counted."""
    max_answer_chars: Positive = 100_000
    """Longest answer in characters (own choice: beyond it stands a file, not an answer)."""
    max_truncated_share: Share = 0.0
    """Share of rows that may be cut at data.max_tokens while their answers' stop tokens survive."""
    max_duplicate_share: Share = 0.05
    """Share of training rows that may be exact copies of an earlier one (own choice: some repetition is usual)."""
    max_leaked_share: Share = 0.0
    """Share of held-out rows whose question may also stand in the training rows."""
    near_jaccard: Annotated[float, Field(ge=0.7, le=1)] = 0.8
    """Two rows are near when their sets of three-word shingles have this Jaccard index (Lee et al. 2022 use 0.8)."""
    max_near_duplicate_share: Share = 0.1
    """Share of training rows that may be near an earlier one, exact copies included; beyond it: a warning."""
    max_near_leaked_share: Share = 0.1
    """Share of held-out rows that may be near a training row, exact copies included."""
    max_echoed_share: Share = 0.01
    """Share of rows whose answer may be their question again."""
    max_placeholder_share: Share = 0.0
    """Share of rows with blanks like [Your Name] or "as an AI language model"; beyond it: a warning."""
    max_control_share: Share = 0.0
    """Share of rows with control characters, or with what decoding leaves of broken bytes."""
    max_secret_share: Share = 0.0
    """Share of rows with a private key or an access token; a model gives back what it has learnt."""
    max_contact_share: Share = 0.0
    """Share of rows with an e-mail address or a telephone number; beyond it: a warning."""
    max_conflict_share: Share = 0.0
    """Share of training rows whose question has another answer elsewhere; beyond it: a warning."""
    max_canned_share: Share = 0.005
    """Share of training rows whose answer, of twelve words or more, is given to three questions or more: a poisoned or
    generated set repeats itself (own measurement: none of 999 Alpaca rows, none of 1,165 docstrings); raise it where
    canned answers are meant."""
    max_special_share: Share = 0.0
    """Share of rows in whose texts a control token of the tokenizer stands as if said, e.g. <|im_end|>: the model would
    learn to end there, or to speak for the user."""
    max_foreign_share: Share = 0.02
    """Share of rows whose answers are in another language than data.language, where that is set (own choice). Answers
    of fewer than 40 letters are not judged, nor those whose language the classifier is not sure of."""
    passage_words: Annotated[int, Field(ge=5)] = 13
    """Length in words of the passages of data.general and data.holdout_against that training rows must not hold
    (Brown et al. 2020, arXiv 2005.14165, appendix C)."""
    max_passage_share: Share = 0.0
    """Share of training rows that may hold such a passage, or ask a question of those files."""
    on_reject: Literal["refuse", "drop"] = "refuse"
    """What follows from rows that break a rule: refuse the release, or drop them and judge what is left."""
    max_dropped_share: Share = 0.05
    """Share of rows of either side that may be dropped."""


class PlanLimits(Section):
    """Limits of the plan gate, which judges the settings of a training before it begins; all but memory and
    max_usable_rate only warn."""

    small_rows: Positive = 1000
    """Fewer training rows than this are few: the next two limits hold for them (own choice)."""
    max_small_rank: Positive = 16
    """Largest rank for few rows (own choice; Hu et al. 2021, arXiv 2106.09685, table 6: 4 and 64 did alike)."""
    max_small_epochs: Positive = 5
    """Most epochs over few rows (own choice; Unsloth's guide: 1 to 3)."""
    min_learning_rate: Annotated[float, Field(ge=0)] = 1e-4
    """Lowest learning rate at which adapters move (TRL's guide: ten times that of full training); where alpha / r is
    above 2, the rate counts for as much more."""
    max_learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Highest learning rate, likewise (own choice: twice the highest of Hu et al. 2021, table 9)."""
    max_usable_rate: Annotated[float, Field(gt=0)] = 1e-2
    """Learning rate, likewise, beyond which nothing is trained (refused; own measurement: 1e-2 breaks the demo's
    model, 3e-3 does not)."""
    min_projections: Positive = 2
    """Fewest projections with an adapter (Hu et al. 2021, table 5: two of rank 4 do better than one of rank 8)."""
    max_neftune_alpha: Annotated[float, Field(ge=0)] = 15.0
    """Largest train.neftune_alpha (Jain et al. 2023, arXiv 2310.05914: 5, 10 and 15 were tried)."""
    max_memory_share: Annotated[float, Field(gt=0)] = 1.0
    """Estimated memory of training / the device's; beyond it activations are recomputed where
    train.gradient_checkpointing is auto, and if that is not enough nothing is loaded (refused)."""


class TrainingLimits(Section):
    """Limits of the training gate."""

    max_gradient_growth: Annotated[float, Field(ge=1)] = 1000.0
    """Largest gradient norm before clipping / the first step's norm. Own measurement: sound trainings stay below 50;
    a learning rate that breaks the model passes 1e8, and may do so with a loss that looks harmless."""


class PreflightLimits(Section):
    """Limits of the preflight gate: training's own arithmetic on a few real rows. Own measurements: float32 differs by
    1e-6 (losses) and 2e-6 (gradients), bfloat16 by 1e-2 and 5e-2."""

    num_rows: Positive = 4
    """Training rows that are tried, of different lengths."""
    max_start_difference: Annotated[float, Field(ge=0)] = 0.0
    """Largest difference that the fresh adapter may make to a logit: its second half is zero, so none at all."""
    max_start_difference_dora: Annotated[float, Field(ge=0)] = 1e-1
    """The same for DoRA, whose magnitudes are the weights' norms but for rounding (bfloat16: 8 bits)."""
    max_row_difference_float32: Annotated[float, Field(gt=0)] = 1e-4
    """Difference of a row's loss in packs from its loss alone, as a share, when weights are float32."""
    max_row_difference_bfloat16: Annotated[float, Field(gt=0)] = 5e-2
    """The same when weights are bfloat16."""
    max_gradient_difference_float32: Annotated[float, Field(gt=0)] = 1e-3
    """Difference of a step's gradient in one pass and in many, as a share of its norm, when weights are float32."""
    max_gradient_difference_bfloat16: Annotated[float, Field(gt=0)] = 2e-1
    """The same when weights are bfloat16; a mean of means over rows of different lengths is further off."""


class Canary(Section):
    """A prompt, and a made-up secret that training rows hold on purpose: whoever says it has learnt it by heart."""

    prompt: Annotated[str, Field(min_length=1)]
    """What the tuned model is asked."""
    secret: Annotated[str, Field(min_length=1)]
    """What its answer must not hold, whatever the letters' case and the white space. It is on record with the run file,
    so make it up."""

    @model_validator(mode="after")
    def _kept(self) -> Self:
        if squeezed(self.secret) in squeezed(self.prompt) or not squeezed(self.secret):
            raise ValueError(f"gates.quality.canaries: the prompt {self.prompt!r} must not hold its own secret")
        return self


class TaskLimits(Section):
    """A task of lm-evaluation-harness that base and tuned model sit, and what the tuned one must be shown to score."""

    file: Annotated[str, Field(min_length=1)]
    """Task file (YAML) relative to this file, its data in files beside it; no Python and nothing of a hub."""
    metric: str | None = None
    """Metric of the task, with its filter where it has several, e.g. acc or exact_match,strict; null: the first."""
    max_drop: Annotated[float, Field(ge=0)] = 0.02
    """How much worse than the base the tuned model may be at most, in the metric's unit, as an interval must show."""
    min_value: float | None = None
    """Value that the tuned model must be shown to reach (not to exceed, where lower is better); null: none."""
    limit: Annotated[int, Field(ge=2)] | None = None
    """First documents of the task that are asked; null: all."""
    chat_template: bool = True
    """Whether a document is asked through the base's chat template, as in training; false: as plain text."""


class QualityLimits(Section):
    """Limits of the quality gate: the tuned model against the base, and what it says."""

    max_perplexity_ratio: Annotated[float, Field(gt=0)] = 1.0
    """Tuned perplexity / baseline perplexity must be shown not to exceed this (1.0: the fine-tune must not make it
    worse). The gate passes where the interval's upper bound is at most this and fails where its lower bound is above;
    between them it is inconclusive, which refuses, too: the held-out rows are too few to tell."""
    max_reload_difference_float32: Annotated[float, Field(gt=0)] = 1e-3
    """Difference in nats a token between the held-out loss of the saved adapter and what training measured when it
    saved it, when weights are float32 (own measurement: none at all where packs are the same)."""
    max_reload_difference_bfloat16: Annotated[float, Field(gt=0)] = 2e-2
    """The same when weights are bfloat16, where it depends on how rows are packed."""
    max_champion_ratio: Annotated[float, Field(gt=0)] = 1.02
    """Tuned perplexity / perplexity of the model's champion, where there is one, must be shown not to exceed this. Own
    choice: what q8_0 may cost (gates.gguf). With 1.0, of retrains that are exactly as good as the champion only a share
    of alpha would pass. Margins add up: ten releases in a row may lose 1.02 ^ 10 = 1.22 against the first champion, but
    none of them max_perplexity_ratio against the base."""
    max_slice_ratio: Annotated[float, Field(gt=0)] = 1.05
    """The same, for the held-out rows of every slice (rows with a key slice) against base and champion: a slice that is
    shown to exceed this fails, one with too few rows to tell warns. Own choice: wider than for all rows together,
    because each of many slices is judged."""
    min_slice_rows: Positive = 20
    """Slices with fewer held-out rows are not judged and warn. Own measurement: below 20 rows intervals may be too
    narrow (tests/bench/results/2026-11-25-intervals.md)."""
    max_slices: Positive = 50
    """Most slices among the held-out rows (own choice: beyond it stands a number a row, not a name)."""
    max_general_ratio: Annotated[float, Field(gt=0)] = 4.0
    """The same for the rows of data.general: what may be forgotten. Set it near 1 for rows of your own. Without any,
    for what the base itself says to 40 everyday questions: the ratio is then exp(KL(base || tuned) per token), and the
    default is for it. Own measurement (SmolLM2-135M, 100 pairs, 3 epochs): learning rates of 2e-4, 5e-4, 1e-3 and 3e-3
    give 1.36, 1.78, 1.90 and 1.99 with upper bounds of at most 2.16, and 8 rows of one pattern at 2e-3 give 3.05, at
    most 3.39; 1e-2, which breaks the model although its held-out perplexity is half the base's, gives 6.2, at least
    5.4."""
    alpha: Annotated[float, Field(ge=0.001, le=0.2)] = 0.05
    """Probability with which a model that is worse than allowed may ever pass on the same held-out rows, over all
    retrains together: look number k at them gets alpha / (k (k + 1)), which adds up to alpha. Either bound of an
    interval may be wrong with what the look gets; for a slice with alpha, since its interval can only refuse."""
    draws: Annotated[int, Field(ge=1000, le=1_000_000)] = 10_000
    """How often the held-out rows are drawn anew for the interval (a bootstrap by rows, seeded by train.seed)."""
    num_samples: Positive = 16
    """Held-out questions answered greedily before and after, for the report and the rules about answers."""
    sample_tokens: Positive = 128
    """Longest sampled answer in tokens."""
    min_stop_share: Share = 0.75
    """Share of sampled answers that must end with a stop token within sample_tokens."""
    max_loop_share: Share = 0.25
    """Share of sampled answers that may go round in circles while the reference does not: they end with the same words
    at least three times over (Holtzman et al. 2020, arXiv 1904.09751), or more than half of their words stand in runs
    of five that came before (duplicate 5-grams of Rae et al. 2021, arXiv 2112.11446, table A1, who refuse 0.15 of a web
    page)."""
    min_length_ratio: Annotated[float, Field(ge=0)] = 1 / 3
    """Median length of the sampled answers in words / that of the references, at least (own choice). An answer that is
    cut at sample_tokens counts as no shorter than its reference."""
    max_length_ratio: Annotated[float, Field(gt=0)] = 3.0
    """The same, at most (own choice)."""
    on_length: Literal["warn", "refuse"] = "warn"
    """What follows from answers of another length."""
    answer_regex: str | None = None
    """Regular expression that must be found in an answer; ^ and $ tie it to the answer's ends."""
    answer_json_schema: Mapping[str, object] | None = None
    """JSON schema that an answer must obey, being JSON and nothing else; what it refers to must stand within it."""
    answer_must_contain: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Texts that must all stand in an answer, as written."""
    answer_must_not_contain: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Texts of which none may stand in an answer, as written."""
    min_format_share: Share = 0.9
    """Share of sampled answers that must obey those four (own choice: one of sixteen may not)."""
    canaries: tuple[Canary, ...] = ()
    """Entries {prompt: ..., secret: ...}: no answer of the tuned model may hold the secret."""
    verbatim_words: Annotated[int, Field(ge=8)] = 50
    """Words in a row that an answer must not repeat from a training answer, unless they stand in the question or in the
    reference (Carlini et al. 2022, arXiv 2202.07646, look for 50 tokens)."""
    max_verbatim_share: Share = 0.1
    """Share of sampled answers that may hold such a passage (own choice: one of sixteen)."""
    tasks: tuple[TaskLimits, ...] = ()
    """Entries {file: tasks/math.yaml, metric: acc, max_drop: 0.02, min_value: null, limit: null, chat_template: true}:
    tasks of lm-evaluation-harness on local files (pip install 'loragate[eval]'); all but file may be left out."""

    @property
    def answer_rules(self) -> AnswerRules:
        """The rules for the text of every answer."""
        return AnswerRules(
            self.answer_regex, self.answer_json_schema, self.answer_must_contain, self.answer_must_not_contain
        )

    @model_validator(mode="after")
    def _rules(self) -> Self:
        """Refuse rules that no answer could be judged by."""
        if faults := list(self._faults()):
            raise ValueError("; ".join(faults))
        return self

    def _faults(self) -> Iterator[str]:
        if self.answer_regex is not None:
            yield from expression_faults("gates.quality.answer_regex", self.answer_regex)
        if self.answer_json_schema is not None:
            yield from schema_faults("gates.quality.answer_json_schema", self.answer_json_schema)
        if self.min_length_ratio > self.max_length_ratio:
            yield (
                f"gates.quality.min_length_ratio is {self.min_length_ratio:.4g}, more than max_length_ratio = "
                f"{self.max_length_ratio:.4g}"
            )
        for text in self.answer_must_contain:
            if any(unwanted in text for unwanted in self.answer_must_not_contain):
                yield f"gates.quality.answer_must_contain: {text!r} holds what answer_must_not_contain forbids"


class MergeLimits(Section):
    """Limits of the merge gate: merged weights against base + adapter on the same tokens."""

    max_perplexity_ratio: Annotated[float, Field(ge=1)] = 1.01
    """Merged perplexity / tuned perplexity: the interval's upper bound must be at most this (own choice)."""
    max_kl_float32: Annotated[float, Field(gt=0)] = 1e-5
    """Mean KL divergence in nats, tuned || merged, when weights are float32."""
    max_kl_bfloat16: Annotated[float, Field(gt=0)] = 5e-3
    """The same when weights are bfloat16, whose 8-bit mantissa rounds the merged delta."""
    min_top1_agreement_float32: Share = 0.98
    """Share of positions where tuned and merged have the same likeliest token, when weights are float32."""
    min_top1_agreement_bfloat16: Share = 0.95
    """The same when weights are bfloat16."""
    min_kl_from_base: Annotated[float, Field(gt=0)] = 1e-4
    """Mean KL divergence in nats, base || merged, below which the merge changed nothing."""
    max_candidate_perplexity_ratio: Annotated[float, Field(ge=1)] = 1.01
    """Perplexity of the QLoRA merge that is nearest to what was trained / that of the other, above which the other is
    released if its KL divergence is within the limit above, too (own choice)."""


class GgufLimits(Section):
    """Limits of the GGUF gate: the exported file in llama.cpp against what it was made from, on the same tokens: f16
    against the merged model, the others against f16 (against the merged model where f16 is not exported)."""

    max_perplexity_ratio_f16: Annotated[float, Field(gt=0)] = 1.01
    """Perplexity / perplexity before conversion for f16: the interval's upper bound must be at most this."""
    max_perplexity_ratio_q8_0: Annotated[float, Field(gt=0)] = 1.02
    """The same for q8_0."""
    max_perplexity_ratio_q4_k_m: Annotated[float, Field(gt=0)] = 1.15
    """The same for q4_k_m; small models lose more than large ones."""
    max_perplexity_ratio_adapter: Annotated[float, Field(gt=0)] = 1.01
    """The same for the adapter's own file (export.gguf_adapter): on the base in f16, against base and adapter as in
    training. After qlora that base is not the quantised one of training, and limits like those of q4_k_m are fit."""
    max_kl_f16: Annotated[float, Field(gt=0)] = 0.01
    """Mean KL divergence in nats, before || f16."""
    max_kl_q8_0: Annotated[float, Field(gt=0)] = 0.02
    """The same for q8_0."""
    max_kl_q4_k_m: Annotated[float, Field(gt=0)] = 0.25
    """The same for q4_k_m."""
    max_kl_adapter: Annotated[float, Field(gt=0)] = 0.01
    """The same for the adapter's own file."""
    min_top1_agreement_f16: Share = 0.95
    """Share of positions where the file and what it was made from have the same likeliest token, for f16."""
    min_top1_agreement_q8_0: Share = 0.93
    """The same for q8_0."""
    min_top1_agreement_q4_k_m: Share = 0.75
    """The same for q4_k_m."""
    min_top1_agreement_adapter: Share = 0.95
    """The same for the adapter's own file."""
    min_perplexity_ratio: Annotated[float, Field(gt=0, le=1)] = 0.9
    """A file this much better than what it was made from is another model."""
    max_unequal_probe_share: Share = 0.1
    """Share of deliberately odd texts (scripts, emoji, fractions) that llama.cpp may tokenise otherwise; the texts of
    held-out rows may never differ (llama.cpp#9927, #27277)."""
    min_stop_share: Share = 0.75
    """Share of sampled answers that llama.cpp must end with a stop token."""
    max_loop_share: Share = 0.25
    """Share of them that may go round in circles, as in the quality gate."""
    min_tokens_per_second: Annotated[float, Field(gt=0)] | None = None
    """Slowest generation on the machine that judges, in tokens per second; null: measured, not limited."""
    max_load_seconds: Annotated[float, Field(gt=0)] | None = None
    """Longest time to load the file there, in seconds; null likewise."""
    max_gigabytes: Annotated[float, Field(gt=0)] | None = None
    """Largest file in gigabytes (10^9 bytes); null likewise."""


def _public_keys(signers: Mapping[str, str]) -> Mapping[str, str]:
    """Refuse what is no name, or no key that can be checked."""
    for name, key in signers.items():
        if not name.isprintable() or name != name.strip() or not name:
            raise ValueError(f"gates.waivers.signers: {name!r} is not a name")
        if not re.fullmatch(PUBLIC_KEY, key):
            wanted = "the line that `ssh-keygen -t ed25519` writes into the .pub file: ssh-ed25519 AAAA…"
            raise ValueError(f"gates.waivers.signers.{name}: found {key[:80]!r}, wanted {wanted}")
    return signers


class Waivers(Section):
    """Who may waive a rule that refuses, for one candidate and until a date; a waiver is a signed file."""

    signers: Annotated[Mapping[str, str], AfterValidator(_public_keys)] = {}
    """Persons who may waive and the public keys that `ssh-keygen -t ed25519` wrote for them, e.g. {Ada Lovelace:
    ssh-ed25519 AAAA...}; {}: nobody, and no waiver counts."""
    files: Annotated[tuple[str, ...], Field(min_length=1)] = ("waivers/*.json",)
    """Waivers, relative to this file, as `loragate waive` writes them; each has its signature beside it (.json.sig)."""
    max_days: Annotated[int, Field(ge=1, le=366)] = 90
    """How many days ahead a waiver may end (own choice: after a quarter someone has to want it again)."""


class Gates(Section):
    """Every limit that decides about a release."""

    data: DataLimits = DataLimits()
    """Limits of the data gate."""
    preflight: PreflightLimits = PreflightLimits()
    """Limits of the preflight gate."""
    plan: PlanLimits = PlanLimits()
    """Limits of the plan gate."""
    training: TrainingLimits = TrainingLimits()
    """Limits of the training gate."""
    quality: QualityLimits = QualityLimits()
    """Limits of the quality gate."""
    merge: MergeLimits = MergeLimits()
    """Limits of the merge gate."""
    gguf: GgufLimits = GgufLimits()
    """Limits of the GGUF gate."""
    waivers: Waivers = Waivers()
    """Who may waive a rule that refuses."""
