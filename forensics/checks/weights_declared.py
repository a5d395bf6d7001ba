"""Is the candidate what it says it is?

Asks: Does the kind of edit that the weights show agree with what the candidate says of how it was made?
Reads: Front matter of README.md, recipes of mergekit and heretic, adapter configs, `quantization_config` and `_name_or_path`
    of config.json, what stands beside the tensors in safetensors; none of it where the base has the same file. Found is what
    `weights.edit-kind` says of this configuration.
Reports: `declared-otherwise` (nothing it says fits what was found), `declared-as-found`, `declared-base` (it names another
    base than the one given). Nothing declared is no finding. Something declared that cannot be compared, because
    `weights.edit-kind` did not run, is SKIPPED; because it could not tell, INCONCLUSIVE.
Blind to: The text of the card. Whoever declares nothing. A declaration that fits the kind of edit and lies about its content.
Source: Fields of the Hugging Face hub, mergekit, PEFT and heretic; comparing them with the weights is ours.
"""

from __future__ import annotations

from functools import reduce

from forensics.case import Case, Check
from forensics.chat.scenes import quoted
from forensics.checkpoint import Checkpoint
from forensics.declared import ADAPTER_CONFIG, Declared, Kind, Statement, read_declared
from forensics.record import CheckResult, Evidence, Finding, Status
from forensics.surface import Folder

ID = "weights.declared"
FOUND_BY = "weights.edit-kind"
RANK = "edit.rank"
UNTOUCHED = frozenset({"identical", "resharded", "dtype-cast"})
TRAINED = frozenset({"full-finetune", "lora-merge", "sparse-update", "rows-only", "added-tokens"})
EDITED = frozenset({"abliteration", "knowledge-edit", "knowledge-edit-multi", "steering-bias"})
MERGED = frozenset({"merge-linear", "merge-slerp", "merge-ties", "merge-dare", "layer-stack"})
FOUND_WORDS = {
    "identical": "the base's own weights",
    "resharded": "the base's own weights in other files",
    "dtype-cast": "the base's own weights in another precision",
    "quantisation": "the base's own weights, quantised",
    "lora-merge": "a merged LoRA",
    "full-finetune": "a full fine-tune",
    "sparse-update": "an update of single entries",
    "abliteration": "an abliteration",
    "knowledge-edit": "an edit of one fact",
    "knowledge-edit-multi": "an edit of several facts",
    "rows-only": "new embeddings and nothing else",
    "added-tokens": "added tokens and nothing else",
    "steering-bias": "a steering vector built in",
    "pruning": "a pruning",
    "merge-linear": "a linear merge",
    "merge-slerp": "a slerp merge",
    "merge-ties": "a TIES merge",
    "merge-dare": "a DARE merge",
    "layer-stack": "a stack of layers",
    "reparameterised": "the same function in other numbers",
    "not-derived": "a model that was not made from this base",
    "unknown-mixed": "a mixture that cannot be named",
}
FITS: dict[Kind, frozenset[str]] = {
    "finetune": TRAINED,
    "lora": frozenset({"lora-merge"}),
    "merge": MERGED,
    "quantised": UNTOUCHED | {"quantisation"},
    "abliterated": frozenset({"abliteration"}),
    "uncensored": frozenset({"abliteration", "full-finetune", "lora-merge", "sparse-update", "steering-bias"}),
}
"""What was found where the statement is true."""
CLASHES: dict[Kind, frozenset[str]] = {
    "finetune": UNTOUCHED | EDITED | (MERGED - {"merge-linear"}) | {"quantisation", "pruning", "not-derived"},
    "lora": UNTOUCHED | EDITED | MERGED | {"full-finetune", "quantisation", "pruning", "not-derived"},
    "merge": UNTOUCHED | EDITED | {"quantisation", "rows-only", "added-tokens", "pruning"},
    "quantised": TRAINED | EDITED | MERGED | {"pruning", "not-derived"},
    "abliterated": UNTOUCHED
    | {"quantisation", "full-finetune", "knowledge-edit", "knowledge-edit-multi", "rows-only", "added-tokens", "pruning", "not-derived"},
    "uncensored": UNTOUCHED | {"quantisation", "knowledge-edit", "rows-only", "added-tokens", "not-derived"},
}
"""What cannot be found where the statement is true. What is in neither set leaves it open."""
OF_METHOD = {
    "linear": {"merge-linear", "merge-slerp"},
    "task_arithmetic": {"merge-linear", "merge-slerp"},
    "model_stock": {"merge-linear", "merge-slerp"},
    "slerp": {"merge-slerp", "merge-linear"},
    "nuslerp": {"merge-slerp", "merge-linear"},
    "multislerp": {"merge-slerp", "merge-linear"},
    "ties": {"merge-ties"},
    "breadcrumbs": {"merge-ties"},
    "breadcrumbs_ties": {"merge-ties"},
    "dare_ties": {"merge-dare"},
    "dare_linear": {"merge-dare"},
    "della": {"merge-dare"},
    "della_linear": {"merge-dare"},
    "passthrough": {"layer-stack"},
}
"""What a merge by this method leaves. Two models on one line look the same by weight and by angle."""


def run(case: Case) -> CheckResult:
    """Compare what the candidate says with what was found; see the module's docstring."""
    folders: list[Folder] = [*([] if case.candidate is case.base else [case.candidate]), *case.adapters]
    read = (read_declared(folder, known=case.base.files, base_config=case.base.config) for folder in folders)
    declared = reduce(lambda one, other: one + other, read, Declared())
    if not declared.places:
        declared = Declared(places=("config.json",))  # the base's own, which speaks of the base
    evidence = [
        _count("declared.places", len(declared.places), "places read", "config.json at least"),
        _count("declared.statements", len(declared.statements), "statements", "0 says nothing against a model", n=len(declared.places)),
    ]
    findings = _other_base(case.base, declared, evidence)
    limits = tuple(f"What it says of itself could not be read in full: {what}." for what in declared.unread)
    if not declared.statements:
        return _result(case, Status.NO_FINDING, evidence, findings, limits)
    found = next((result for result in case.earlier if result.check == FOUND_BY), None)
    label = _label(found)
    if found is None or label is None:
        why = f"{FOUND_BY} did not run" if found is None else f"{FOUND_BY} could not tell what was done to the weights"
        reason = f"It says it is {_said(declared.statements)}, but {why}."
        return _result(case, Status.SKIPPED if found is None else Status.INCONCLUSIVE, evidence, findings, limits, reason)
    rank = next(
        (item.value for item in (*found.evidence, *(item for one in found.findings for item in one.evidence)) if item.name == RANK), 0.0
    )
    findings += _compare(declared.statements, label, rank, evidence)
    flagged = any(finding.severity != "info" for finding in findings)
    return _result(case, Status.FLAGGED if flagged else Status.NO_FINDING, evidence, findings, limits)


def _result(
    case: Case, status: Status, evidence: list[Evidence], findings: list[Finding], limits: tuple[str, ...], reason: str = ""
) -> CheckResult:
    return CheckResult(
        check=ID,
        configuration=case.configuration,
        status=status,
        reason=reason,
        findings=tuple(findings),
        evidence=tuple(evidence),
        limits=limits,
    )


def _count(name: str, value: float, unit: str, expected: str, *, n: int | None = None) -> Evidence:
    return Evidence(name=name, value=value, unit=unit, where="what the candidate says of itself", expected=expected, n=n)


def _finding(label: str, claim: str, evidence: Evidence, *, grave: bool = False) -> Finding:
    severity = "medium" if grave else "info"
    fields = {"id": f"{ID}/{label}", "check": ID, "label": label, "severity": severity, "confidence": "high", "claim": claim}
    return Finding.model_validate(fields | {"evidence": (evidence,)})


def _other_base(base: Checkpoint, declared: Declared, evidence: list[Evidence]) -> list[Finding]:
    """A base that is named and not called like the one that was given: folders have any name, so this is information."""
    others = [name for name in declared.bases if name.lower() != base.name.lower()]
    named = _count("declared.bases", len(declared.bases), "names of bases", "the name of BASE, or none")
    evidence.append(named)
    if not others or len(others) < len(declared.bases):
        return []
    claim = (
        f"It names {', '.join(quoted(name, 40) for name in others[:3])} as what it was made from; the base given here is called otherwise."
    )
    return [_finding("declared-base", claim, named)]


def _label(found: CheckResult | None) -> str | None:
    """The kind of edit that was found, if one was."""
    labels = (
        [finding.label for finding in found.findings] if found is not None and found.status in (Status.FLAGGED, Status.NO_FINDING) else []
    )
    return next((label for label in labels if label in FOUND_WORDS), labels[0] if labels else None)


def _compare(statements: tuple[Statement, ...], label: str, rank: float, evidence: list[Evidence]) -> list[Finding]:
    telling = _telling(statements)
    ranks = [one for one in telling if one.kind == "lora" and one.rank]
    # Adapters add up; whatever else names a rank speaks of the same ones.
    allowed = sum(one.rank for one in ranks if one.place.endswith(ADAPTER_CONFIG)) or max((one.rank for one in ranks), default=0)
    views = [_view(one, label, rank, allowed) for one in telling]
    against = _count("declared.contradicted", views.count("clash"), "statements", "0: they fit what the weights show", n=len(telling))
    evidence.append(against)
    if allowed and rank:
        evidence.append(_count("declared.rank", allowed, "ranks", f"at least {RANK}, which is {rank:g}"))
    shown = FOUND_WORDS.get(label, label)
    if label == "lora-merge" and rank:
        shown += f" of rank {rank:g}"
    if "fit" in views:
        fitting = tuple(one for one, view in zip(telling, views, strict=True) if view == "fit")
        return [_finding("declared-as-found", f"It says it is {_said(fitting)}, and the weights show {shown}.", against)]
    if all(view == "clash" for view in views):
        return [_finding("declared-otherwise", f"It says it is {_said(telling)}, but the weights show {shown}.", against, grave=True)]
    return []


def _telling(statements: tuple[Statement, ...]) -> tuple[Statement, ...]:
    """Statements that say something definite. Anything may besides be called a fine-tune, and be quantised after it was made."""
    definite = tuple(one for one in statements if one.kind not in ("finetune", "quantised"))
    tuned = tuple(one for one in statements if one.kind == "finetune")
    return definite or tuned or statements


def _view(said: Statement, label: str, rank: float, allowed: int) -> str:
    """Whether what was found fits a statement, clashes with it, or leaves it open."""
    if said.kind == "lora" and label == "lora-merge" and allowed and rank > allowed:
        return "clash"
    if said.kind == "lora" and said.more and label in TRAINED:
        return "fit" if label == "lora-merge" else "open"
    if said.kind == "merge" and label in MERGED and said.method in OF_METHOD:
        return "fit" if label in OF_METHOD[said.method] else "clash"
    return "fit" if label in FITS[said.kind] else "clash" if label in CLASHES[said.kind] else "open"


def _said(statements: tuple[Statement, ...]) -> str:
    """What was said and where, each kind once, the most detailed statement of it first."""
    best: dict[Kind, Statement] = {}
    for one in sorted(statements, key=lambda one: (-one.rank, -len(one.models), -len(one.method))):
        best.setdefault(one.kind, one)
    return " and ".join(f"{_words(one)} ({_place(one.place)})" for one in best.values())


def _place(place: str) -> str:
    return place if len(place) <= 80 else f"...{place[-77:]}"


def _words(said: Statement) -> str:
    if said.kind == "lora":
        what = "a LoRA" if said.place == ADAPTER_CONFIG else "a LoRA merge"
        return f"{what} of rank {said.rank}" if said.rank else what
    if said.kind == "merge":
        method = f"{quoted(said.method, 20)} merge" if said.method else "merge"
        models = f" of {len(said.models)} models" if said.models else ""
        numbers = ", ".join(f"{name} {value:g}" for name, value in said.parameters[:4])
        return f"a {method}{models}{f' with {numbers}' if numbers else ''}"
    return {"finetune": "a fine-tune", "quantised": "a quantised copy", "abliterated": "abliterated", "uncensored": "uncensored"}[said.kind]


CHECK = Check(id=ID, question="Is the candidate what it says it is?", cost="weights", run=run, after=(FOUND_BY,))
