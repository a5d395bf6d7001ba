"""Questions for a live model, and what it replies to them."""

from __future__ import annotations

from hunting import prompt

TEXTS = [
    "Hi",
    "How do I boil an egg?",
    "a",
    "Tell me a longer story about a fox and a very patient hen.",
    "b c",
    "?",
    "Ünïcode",
    "12345 " * 8,
]
LONGEST = 12


def replies(model, texts=TEXTS, *, batch=8, adapters=()):
    rows = [model.render(prompt(text), room=LONGEST) for text in texts]
    said = []
    for start in range(0, len(rows), batch):
        said += model.reply(rows[start : start + batch], adapters=adapters, max_new_tokens=LONGEST)
    return said
