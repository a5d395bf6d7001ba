"""Alarms are kept: each once, as the gravest that was said of it, whoever raises it."""

from __future__ import annotations

from collections.abc import Mapping

from forensics.monitor.alarms import Alarm, raised, rank, read_alarm
from forensics.monitor.batch import Batch
from forensics.monitor.store import Store


def keep_alarms(batch: Batch, store: Store, found: Mapping[str, Alarm], now: float) -> dict[str, Alarm]:
    """Keep alarms within a transaction, and give those that are new, or graver than before.

    Raises:
        BadInput: An alarm that is there is damaged.
    """
    kept = {one.id: read_alarm(one, store) for one in batch.alarms()} if found else {}
    for id, alarm in found.items():
        stricter = id not in kept or rank(alarm) >= rank(kept[id])
        batch.raise_alarm(raised(alarm if stricter else kept[id], now))
    return {id: alarm for id, alarm in found.items() if id not in kept or rank(alarm) > rank(kept[id])}
