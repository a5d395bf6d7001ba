"""The files that are served, held by digest against those that were accepted. Nothing is loaded; the names of what differs come from the record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from forensics.checkpoint import hash_files, is_prose, locate
from forensics.errors import BadInput
from forensics.monitor.alarms import Alarm
from forensics.monitor.baseline import Baseline, baseline_of
from forensics.monitor.beside import alarm_of
from forensics.monitor.raising import keep_alarms
from forensics.monitor.store import Store
from forensics.record import Evidence, canonical_json, sha256_text
from forensics.surface import MORE_TEMPLATES, OWN_TEMPLATE, TOKENIZER_FILES

NAMES = 4
"""Files that a claim names; of more only the number is said."""
TEMPLATES = (OWN_TEMPLATE, "chat_template.json", MORE_TEMPLATES)
TOKENIZERS = (*TOKENIZER_FILES, "merges.txt", "special_tokens_map.json", "added_tokens.json")


@dataclass(frozen=True, kw_only=True)
class Served:
    """What came of a look: a sentence for each part that differs, what was not told apart, and the alarm, if any."""

    parts: int
    differences: tuple[str, ...]
    notes: tuple[str, ...]
    alarm: Alarm | None


def compare_weights(store: Store, folder: str, adapters: Sequence[str], now: datetime) -> Served:
    """Hold the folder that is served, and the adapters on it, against the accepted candidate; keep an alarm in the store if one differs.

    Where a candidate is an adapter on the base, `folder` is the base's, and the adapters are given beside it.

    Raises:
        BadInput: A folder is missing, or the record is of a served model or of recorded answers, and names no files.
    """
    baseline = baseline_of(store)
    if not baseline.weighed:
        raise BadInput(
            "the accepted run looked at no files, so there is no digest to hold these against", where=baseline.run, hint="audit the folder that is served: `forensics audit BASE FOLDER`, and start a monitor from that"
        )  # fmt: skip
    differences, notes = [], []
    as_adapter = baseline.candidate in baseline.adapters
    digest, files = (baseline.base, {}) if as_adapter else (baseline.candidate, baseline.files)
    for what, expected, known, path in _parts(baseline, digest, files, folder, adapters):
        found = hash_files(locate(path))
        if sha256_text(canonical_json(found)) == expected:
            continue
        changed = _changed(known, found)
        if known and all(is_prose(name) for name in changed):
            notes.append(f"{what}: only prose differs ({_listed(changed)}), which no model reads.")
        elif known:
            differences.append(f"{what}: {_sorted_out(changed)}")
        else:
            differences.append(f"{what}: its digest is another one; the record does not hold those of single files")
    if len(adapters) != len(baseline.adapters):
        differences.append(f"{len(adapters)} adapters are served, where {len(baseline.adapters)} were accepted")
    alarm = _alarm(differences, 1 + len(baseline.adapters), now) if differences else None
    if alarm is not None:
        with store.batch() as batch:
            keep_alarms(batch, store, {alarm.finding.id: alarm}, now.timestamp())
    return Served(parts=1 + len(adapters), differences=tuple(differences), notes=tuple(notes), alarm=alarm)


def _parts(
    baseline: Baseline, digest: str, files: dict[str, str], folder: str, adapters: Sequence[str]
) -> list[tuple[str, str, dict[str, str], str]]:
    """What is called what, the digest that was accepted, those of its files, and where it lies now; adapters in the order of the record."""
    known = [*baseline.adapter_files, *({} for _ in baseline.adapters)]
    names = [*baseline.adapter_names, *("" for _ in baseline.adapters)]
    rows = [("base" if digest == baseline.base else "model", digest, files, folder)]
    rows += [
        (f"adapter {name or place + 1}", accepted, held, path)
        for place, (name, accepted, held, path) in enumerate(zip(names, baseline.adapters, known, adapters, strict=False))
    ]
    return rows


def _changed(known: dict[str, str], found: dict[str, str]) -> list[str]:
    return sorted(name for name in known.keys() | found.keys() if known.get(name) != found.get(name))


def _sorted_out(names: Sequence[str]) -> str:
    """Files that differ, by what they are to a model."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(_kind(name), []).append(name)
    return "; ".join(f"{kind} differ ({_listed(members)})" for kind, members in sorted(kinds.items()))


def _kind(name: str) -> str:
    path = Path(name)
    if name.endswith((".safetensors", ".safetensors.index.json")):
        return "weights"
    if path.name in TEMPLATES or path.parts[0] in TEMPLATES:
        return "chat templates"
    if path.name == "tokenizer_config.json":
        return "tokenizer settings, which may hold a chat template,"
    if path.name in TOKENIZERS:
        return "tokenizer files"
    return "files of prose" if is_prose(name) else "programs" if name.endswith(".py") else "other files"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMES} more" if len(names) > NAMES else ""
    return ", ".join(names[:NAMES]) + more


def _alarm(differences: Sequence[str], parts: int, now: datetime) -> Alarm:
    claim = f"What is served is not what was accepted. {'. '.join(differences)}."
    evidence = Evidence(
        name="weights.different", value=float(len(differences)), unit="parts", where="served files", n=parts, expected="0: every digest is that of the record"
    )  # fmt: skip
    return alarm_of("weights/served", claim, (evidence,), "roll back", now.astimezone(UTC).timestamp())
