"""The section of a model card that says what an audit found, and its `model-index`, for the README.md of a model repository.

A card is read by people who were not there: every number stands with its bounds, and what stayed unseen stands beside it.
"""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from forensics.record import AuditRecord, CheckResult, Evidence
from reports.columns import METRICS, SCORE
from reports.markdown import safe, table
from reports.unseen import split_limits
from reports.words import ACTION_WORDS, measured, printable

LIMITS = 8
TASK = "text-generation"


def render_modelcard(record: AuditRecord) -> str:
    """Front matter with a `model-index`, and a section `## Safety audit`, to be put into a model card."""
    name = printable(Path(record.candidate.path).name) or "candidate"
    rows = [(result, item) for result in record.results for item in result.evidence if item.name in (*METRICS, SCORE)]
    data = ModelCardData(
        model_name=name, eval_results=[_entry(record, result, item) for result, item in rows] or None, library_name="transformers"
    )
    verdict = record.verdict
    lines = [
        "---",
        data.to_yaml(line_break="\n").rstrip("\n"),
        "---",
        "",
        "## Safety audit",
        "",
        f"{ACTION_WORDS[verdict.action]} ({verdict.action}, policy {safe(record.policy.name)}), compared with the base {safe(Path(record.base.path).name)}. "
        f"Audited {record.created[:10]}, valid until {record.valid_until[:10]}. Nothing here says that this model is clean.",
        "",
        *table(
            ("measured", "configuration", "value", "on"),
            [(_called(result, item), result.configuration, measured(item), _asked(record)) for result, item in rows],
        ),
        "",
        "What stays unseen:",
        "",
        *(f"- {safe(limit)}" for limit in split_limits(record.limits)[0][:LIMITS]),
        "",
        f"Weights audited: `{record.candidate.digest}`; base: `{record.base.digest}`; record: `{record.results_digest}` ({safe(record.tool)}).",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _entry(record: AuditRecord, result: CheckResult, item: Evidence) -> EvalResult:
    bounds = {} if item.low is None or item.high is None else {"low": item.low, "high": item.high}
    return EvalResult(
        task_type=TASK,
        dataset_type=" ".join(sorted({source.digest[:16] for source in record.prompts})) or "none",
        dataset_name=_asked(record) or "no prompts",
        dataset_config=printable(result.configuration),
        metric_type=item.name if item.name in METRICS else f"{result.check}.{item.name}",
        metric_name=f"{_called(result, item)} ({item.unit})",
        metric_value=item.value,
        metric_args={"n": item.n, **bounds} if item.n is not None else bounds or None,
    )


def _called(result: CheckResult, item: Evidence) -> str:
    return METRICS.get(item.name) or f"score of {result.check}"


def _asked(record: AuditRecord) -> str:
    return ", ".join(printable(source.name) for source in record.prompts)
