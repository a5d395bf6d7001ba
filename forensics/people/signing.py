"""Sign a record, and say where it stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from pathlib import Path

from forensics.errors import BadInput
from forensics.people.log import LABELS, SESSIONS, SIGNATURES, Attempt, ReviewLabel, Signature, add_line, load_lines, settled
from forensics.people.queue import load_queue
from forensics.people.standing import PeoplesPart, Standing, standing, untold_rules
from forensics.record import Action
from forensics.runfolder import SavedRun, load_run


@dataclass(frozen=True, kw_only=True)
class Signing:
    """What somebody signs."""

    run: Path
    name: str
    role: str = ""
    accept: bool
    read: tuple[str, ...] = ()
    residual_risk: str = ""
    until: str = ""


def sign(wanted: Signing, now: datetime) -> Signature:
    """Add a signature to a run.

    Raises:
        BadInput: There is no finished run, or it is past its day; what blocks or could not be told is to be accepted; a day is none or too late; the
            name is empty; or nothing is said of what was read and which risk is left.
    """
    saved = load_run(str(wanted.run))
    record = saved.record
    _signatures(saved)  # refuses a file that was tampered with
    if not wanted.name.strip():
        raise BadInput("a signature needs a name", where="--name", hint="whoever signs is answerable for it")
    if now > datetime.fromisoformat(record.valid_until):
        raise BadInput(f"this record expired on {record.valid_until[:10]}", where=str(wanted.run), hint="audit again, and sign that")
    untold = untold_rules(record)
    if wanted.accept and untold:
        action = Action.BLOCK if record.verdict.action is Action.BLOCK else Action.INCONCLUSIVE
        raise BadInput(
            f"a signature does not lift {action}",
            details=untold, where=str(wanted.run), hint="what blocks has to be mended, what could not be told looked at, and audited again"
        )  # fmt: skip
    if wanted.accept and not (wanted.read and wanted.residual_risk.strip()):
        raise BadInput(
            "who accepts says what they read and which risk is left", where="--read, --residual-risk",
            hint='for example --read report.html --residual-risk "Refusal of fraud may be up to 8 points lower; watched after release."',
        )  # fmt: skip
    line = Signature(
        results_digest=record.results_digest,
        created=now.replace(microsecond=0).isoformat(),
        name=wanted.name.strip(),
        role=wanted.role.strip(),
        decision="accept" if wanted.accept else "reject",
        read=wanted.read,
        residual_risk=wanted.residual_risk.strip(),
        valid_until=_until(wanted.until, record.valid_until, now),
        contents=record.contents.digest if record.contents is not None else "",
    )
    return add_line(saved.folder, SIGNATURES, line)


def _until(given: str, record_ends: str, now: datetime) -> str:
    """The end of the day that was given, at most that of the record."""
    if not given:
        return record_ends
    try:
        day = datetime.combine(date.fromisoformat(given), time.max, tzinfo=UTC).replace(microsecond=0)
    except ValueError as error:
        raise BadInput(f"{given!r} is not a day", where="--until", hint="year-month-day, for example 2027-03-31") from error
    if day < now:
        raise BadInput(f"{given} has passed", where="--until", hint="give a day that is still to come")
    if day > datetime.fromisoformat(record_ends):
        raise BadInput(f"the record itself is valid until {record_ends[:10]}", where="--until", hint="give that day or an earlier one")
    return day.isoformat()


def peoples_part(saved: SavedRun) -> PeoplesPart:
    """Everything that people added to a run.

    Raises:
        BadInput: A line of it is damaged.
    """
    digest = saved.record.results_digest
    labels = load_lines(saved.folder, LABELS, ReviewLabel, results_digest=digest)
    known = settled(labels)
    return PeoplesPart(
        signatures=_signatures(saved),
        attempts=load_lines(saved.folder, SESSIONS, Attempt, results_digest=digest),
        unsettled=sum(one.key not in known for one in load_queue(saved.folder)),
    )


def _signatures(saved: SavedRun) -> tuple[Signature, ...]:
    """The signatures of a run; whoever signed it signed these replies.

    Raises:
        BadInput: A line is damaged, or was given for other replies, labels or prompts.
    """
    contents = saved.record.contents
    lines = load_lines(saved.folder, SIGNATURES, Signature, results_digest=saved.record.results_digest)
    for line in lines:
        if line.contents and (contents is None or line.contents != contents.digest):
            raise BadInput(
                f"{line.name} signed this record with other replies, labels or prompts beside it", where=str(saved.folder), hint="restore audit.json and what lies beside it; or audit again, and sign that"
            )  # fmt: skip
    return lines


def stands(run: Path, now: datetime) -> Standing:
    """Where a run stands now.

    Raises:
        BadInput: There is no finished run, or what people added is damaged.
    """
    saved = load_run(str(run))
    return standing(saved.record, peoples_part(saved), now)


def agreement(labels: Sequence[ReviewLabel]) -> tuple[int, int, float | None]:
    """Replies that two reviewers or more labelled, those on which all agree on refusal, and Cohen's kappa of the first two; None without any."""
    from forensics.gate.judges import REFUSED
    from probes.sampling import kappa

    by_reply: dict[tuple[str, str, str], dict[str, bool]] = {}
    for label in labels:
        by_reply.setdefault((label.configuration, label.side, label.id), {})[label.reviewer] = label.label in REFUSED
    several = [said for said in by_reply.values() if len(said) > 1]
    agreed = sum(len(set(said.values())) == 1 for said in several)
    names = sorted({name for said in several for name in said})[:2]
    pairs = [(said[names[0]], said[names[1]]) for said in several if set(names) <= set(said)] if len(names) == 2 else []
    return len(several), agreed, kappa([one for one, _ in pairs], [two for _, two in pairs]) if pairs else None
