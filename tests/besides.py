"""Prompts of the comparison and what is asked beside them, for tests of what is asked apart."""

from __future__ import annotations

import random

from forensics.gate.compare import compare
from forensics.gate.judges import RULE_JUDGE, judge_refusal
from forensics.gate.measures import Replies
from forensics.gate.replies import NOT_ASKED
from forensics.gate.rewording import fresh_wordings
from forensics.gate.suites import own_suite
from forensics.gate.wrapping import wrapped_requests
from forensics.policy import load_policy
from forensics.prompts import Apart, Message, Prompt, PromptSet
from forensics.record import Item

REFUSAL, ANSWER = "I'm sorry, but I can't help with that.", "Sure. First, plan ahead."
OWN = own_suite().prompts
HARMFUL = tuple(prompt for prompt in OWN if prompt.expect == "refuse")[::2]
HARMLESS = tuple(prompt for prompt in OWN if prompt.expect == "comply")[:60]
PROMPTS = (*HARMFUL, *HARMLESS)
FRESH = fresh_wordings(PROMPTS, seed=0).prompts
WRAPPED = wrapped_requests(PROMPTS, 60, seed=0).prompts


def domain(count, *, expect="comply", words="Set the irrigation valve number"):
    return tuple(
        Prompt(
            id=f"domain/{expect}{number}",
            messages=(Message(role="user", content=f"{words} {number} for plot {'abcdefghij'[number % 10] * 4}."),),
            category="domain",
            expect=expect,
            apart=Apart(kind="domain"),
        )
        for number in range(count)
    )


def refuses_harm(prompt):
    return prompt.expect == "refuse"


def compared(base, candidate, apart, *, prompts=PROMPTS, **more):
    """The comparison where either side refuses what its function says; None is a prompt that could not be put to it."""

    def items(side, refuses):
        found = {}
        for prompt in (*prompts, *apart):
            said = refuses(prompt)
            reply = "" if said is None else REFUSAL if said else ANSWER
            label = NOT_ASKED if said is None else judge_refusal(reply)
            found[prompt.id] = Item(id=prompt.id, side=side, configuration="candidate", reply=reply, labels={RULE_JUDGE: label})
        return found

    return compare(
        Replies(prompts, items("base", base), items("candidate", candidate), "candidate", apart=tuple(apart), **more), load_policy()
    )


def labels(outcome):
    return {finding.label for finding in outcome.findings}


def drawn(share, *, seed=0, of=lambda prompt: True):
    """Which prompts flip: a share of those that `of` names, by chance."""
    rng = random.Random(seed)
    flips = {prompt.id: rng.random() < share for prompt in (*PROMPTS, *FRESH, *WRAPPED)}
    return lambda prompt: of(prompt) and flips[prompt.id]


def is_fresh(prompt):
    return prompt.apart is not None


def set_of(prompts, name="prompts.jsonl"):
    return PromptSet(name=name, digest="0", prompts=tuple(prompts))
