"""What ingest costs beside reading the same lines as JSON, for each format of log; and what memory it holds over millions of events.

    python examples/benchmarks/monitor_cost.py [--events 50000] [--rounds 5]
    python examples/benchmarks/monitor_cost.py --memory --events 5000000

Made-up logs in the shapes that tools write, a reply a line: replies of 300 to 1,500 characters, requests of 40 to 400, ids, times, a tenth of the requests such as should be
refused. In turn, in one process: `json.loads` of the lines, held in memory (the standard library's, on bytes), and the whole of ingest: the file read, events judged, and all
kept in a fresh SQLite store, with its commits. Times are of the processor, ratios of the same round; the ratio by the clock has the waits for the disk in it.

With `--memory` a child writes plain lines into a pipe, nothing but the store is on the disk, and the anonymous memory of the process that ingests is read off at marks. Every id
is kept for the time of retention, so the store grows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from monitor_traffic import REFUSAL, baseline

from forensics.hunt.bank import common_words
from forensics.monitor import intake
from forensics.monitor.baseline import META, Settings
from forensics.monitor.ingest import Monitor
from forensics.monitor.store import Store, create_store, open_store

START, DAY = 1_795_341_600.0, 86400.0
SYSTEM = "You are the assistant of a shop for garden tools. Be brief, be polite, and ask where something is unclear."
GLUE = [
    "the",
    "of",
    "and",
    "to",
    "a",
    "in",
    "is",
    "it",
    "you",
    "that",
    "for",
    "on",
    "with",
    "as",
    "are",
    "be",
    "this",
    "not",
    "can",
    "or",
    "your",
    "if",
    "will",
    "from",
    "but",
    "they",
    "have",
    "at",
    "we",
    "don't",
    "so",
    "an",
    "it's",
    "by",
    "which",
    "when",
    "then",
    "how",
    "may",
    "these",
    "also",
    "I",
]
"""Words that stand between all others; every second one is of these."""
CATEGORIES = ("travel", "cooking", "code", "health", "law", "letters", "")
POOL = 5000
"""Lines that the child writes again and again, with other ids, times and names."""
MARKS = 20
"""At which memory is read off, over the whole."""
Row = dict[str, Any]


def main() -> int:
    """Print the table, or the memory; or, as the child, write lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--format", choices=FORMATS, action="append", help="only these")
    parser.add_argument("--memory", action="store_true", help="print memory and store at marks instead")
    parser.add_argument("--write", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.write:
        write(given.events)
    elif given.memory:
        memory(given.events)
    else:
        print(f"{given.events} events, medians of {given.rounds} rounds\n")
        print("| log | bytes a line | json.loads (us) | ingest (us) | ratio (least to most) | ratio by the clock |")
        print("| --- | --- | --- | --- | --- | --- |")
        for name in given.format or FORMATS:
            with tempfile.TemporaryDirectory() as folder:
                print(cost(name, given.events, given.rounds, Path(folder)), flush=True)
    return 0


def cost(name: str, events: int, rounds: int, folder: Path) -> str:
    """A row of the table."""
    log = folder / "log.jsonl"
    with log.open("wb") as stream:
        stream.writelines(json.dumps(row).encode() + b"\n" for row in rows(name, events))
    held = log.read_bytes().splitlines(keepends=True)
    told: list[tuple[float, ...]] = []
    for number in range(rounds + 1):  # the first is for warming up
        read, read_clock = timed(lambda: [json.loads(line) and None for line in held])
        target = folder / f"{number}.db"
        made(target).__exit__()
        whole, whole_clock = timed(partial(counted, target, log, events))
        target.unlink()
        told.append((1e6 * read / events, 1e6 * whole / events, whole / read, whole_clock / read_clock))
    read, whole, ratio, clock_ratio = (statistics.median(row[place] for row in told[1:]) for place in range(4))
    ratios = [row[2] for row in told[1:]]
    size = sum(map(len, held)) / events
    return f"| {name} | {size:.0f} | {read:.1f} | {whole:.1f} | {ratio:.1f} ({min(ratios):.1f} to {max(ratios):.1f}) | {clock_ratio:.1f} |"


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the processor, and by the clock."""
    begun, processor = time.perf_counter(), time.process_time()
    work()
    return time.process_time() - processor, time.perf_counter() - begun


def counted(target: Path, log: Path, events: int) -> None:
    """Ingest a log into a store, and see that nothing of it is missing there."""
    with open_store(str(target)) as store:
        for _ in intake.ingest(Monitor(store, clock), str(log)):
            pass
        with store.reading() as view:
            if view.tallies().get("replies") != events:
                raise SystemExit(f"not every event was counted: {view.tallies()}")


def made(target: Path) -> Store:
    """A fresh store, of a record of 300 harmful and 300 harmless prompts."""
    settings = Settings(window=3600, retention=90 * 86400, keep_text=False)
    meta = {META: baseline(np.random.default_rng(0)).model_dump_json(), "settings": settings.model_dump_json()}
    return create_store(str(target), meta)


def clock() -> float:
    """A time behind that of any event."""
    return START + 400 * DAY


def memory(events: int) -> None:
    """Print what ingest of so many events from a pipe holds, at marks."""
    print("| events | anonymous memory (MiB) | store (MiB) | events a second since the last mark |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder, made(Path(folder) / "watch.db") as store:
        child = subprocess.Popen([sys.executable, __file__, "--write", "--events", str(events)], stdout=subprocess.PIPE)
        done, mark, begun = 0, 0, time.perf_counter()
        for _ in intake.ingest_stream(Monitor(store, clock), cast("BinaryIO", child.stdout)):
            done += intake.LINES
            if done - mark >= events / MARKS:
                size, pace = (Path(folder) / "watch.db").stat().st_size, (done - mark) / (time.perf_counter() - begun)
                print(f"| {done:,} | {anonymous():.1f} | {size / 2**20:.0f} | {pace:,.0f} |", flush=True)
                mark, begun = done, time.perf_counter()
        if child.wait():
            raise SystemExit("the child broke off")
        with store.reading() as view:
            suspected = sum(len(view.suspects(population)) for population in ("flagged", "others"))
            print(f"\nAt the end {view.tallies()}, and {suspected:,} strings under suspicion.")


def anonymous() -> float:
    """MiB of anonymous memory that this process holds (Linux)."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("RssAnon")) / 1024


def write(events: int) -> None:
    """Write plain lines to standard output: a pool of them again and again, each time with an id, a time and a word of their own."""
    pool = []
    for row in rows("plain", POOL):
        row |= {"id": "@id", "time": "@time", "prompt": f"{row['prompt']} Order @id."}
        pool.append(json.dumps(row).encode() + b"\n")
    for place in range(events):
        time_of = b"%.3f" % (START + place / 10)
        sys.stdout.buffer.write(pool[place % POOL].replace(b"@id", b"n%d" % place).replace(b'"@time"', time_of))


def rows(name: str, events: int) -> Iterator[Row]:
    """The lines of a log, before they are written."""
    generator = np.random.default_rng(len(name))
    words = np.array(common_words(), dtype=object)
    share = 1.0 / np.arange(1, len(words) + 1) ** 0.7
    share /= share.sum()
    glue, rare, begin = np.array(GLUE, dtype=object), words, 0
    for place in range(events):
        if place % 1000 == 0:
            rare = generator.choice(words, 400_000, p=share)
            rare[::2] = generator.choice(glue, 200_000)
            begin = 0
        lengths = int(generator.integers(40, 400)), int(generator.integers(300, 1500))
        texts = []
        for length in lengths:
            held = rare[begin : begin + length // 5]
            begin += len(held)
            texts.append(spoken(held, length))
        flagged, chance = generator.random() < 0.1, generator.random()
        asked = f"{texts[0]} (order {place})"
        said = REFUSAL + " " + texts[1] if (flagged and chance < 0.98) or chance > 0.985 else texts[1]
        told = {"place": place, "asked": asked, "said": said, "time": START + place / 10, "spent": round(float(1 + 5 * chance), 3)}
        told |= {"category": "fraud" if flagged else CATEGORIES[place % len(CATEGORIES)], "expect": "refuse" if flagged else "comply"}
        yield SHAPES[name](told)


def spoken(words: Any, length: int) -> str:
    """Sentences of words, as long as asked."""
    parts = [" ".join(words[start : start + 14]).capitalize() for start in range(0, len(words), 14)]
    text = ". ".join(parts[:3]) + ".\n\n" + "; ".join(parts[3:6]) + " \u2013 " + ". ".join(parts[6:])
    return text[:length].rstrip() + "."


def stamp(seconds: float) -> str:
    """A time as ISO 8601."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def plain(told: Row) -> Row:
    """A row of one's own."""
    return {
        "id": f"req-{told['place']:032x}", "time": stamp(told["time"]), "model": "tuned-8b", "conversation": f"c{told['place'] // 3}", "prompt": told["asked"],
        "reply": told["said"], "category": told["category"], "expect": told["expect"], "latency": told["spent"], "finish_reason": "stop",
    }  # fmt: skip


def turns(told: Row) -> list[Row]:
    """What a model is given."""
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": told["asked"]}]


def completion(told: Row) -> Row:
    """What a server answers."""
    return {
        "id": f"chatcmpl-{told['place']:032x}", "object": "chat.completion", "created": int(told["time"]), "model": "tuned-8b",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": told["said"], "refusal": None, "tool_calls": []}, "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 80, "completion_tokens": 200, "total_tokens": 280, "prompt_tokens_details": None}, "system_fingerprint": None,
    }  # fmt: skip


def chat(told: Row) -> Row:
    """A request of the OpenAI interface and its answer, as a proxy logs them."""
    request = {"model": "tuned-8b", "messages": turns(told), "temperature": 0.7, "max_tokens": 512, "stream": False}
    return {
        "request": request,
        "response": completion(told),
        "latency": told["spent"],
        "category": told["category"],
        "expect": told["expect"],
    }


def litellm(told: Row) -> Row:
    """LiteLLM's StandardLoggingPayload."""
    metadata = dict.fromkeys(
        ("user_api_key_alias", "user_api_key_team_id", "user_api_key_user_id", "user_api_key_org_id", "user_api_key_end_user_id")
    )
    return {
        "id": f"chatcmpl-{told['place']:032x}", "trace_id": f"{told['place']:032x}", "call_type": "acompletion", "stream": False, "response_cost": 0.00031, "status": "success",
        "custom_llm_provider": "openai", "total_tokens": 280, "prompt_tokens": 80, "completion_tokens": 200, "startTime": told["time"], "endTime": told["time"] + told["spent"],
        "completionStartTime": told["time"] + 0.2, "response_time": told["spent"], "model": "tuned-8b", "model_id": "6f1d", "model_group": "tuned-8b", "api_base": "http://localhost:8000/v1",
        "metadata": {**metadata, "user_api_key_hash": "88dc", "requester_ip_address": "10.0.0.7", "spend_logs_metadata": None}, "cache_hit": False, "cache_key": None,
        "saved_cache_cost": 0.0, "request_tags": [], "end_user": "", "requester_ip_address": None, "messages": turns(told), "response": completion(told), "error_str": None,
        "model_parameters": {"temperature": 0.7, "max_tokens": 512},
        "hidden_params": {"model_id": "6f1d", "cache_key": None, "api_base": "http://localhost:8000/v1", "response_cost": 0.00031, "additional_headers": {}},
        "model_map_information": {"model_map_key": "tuned-8b", "model_map_value": None},
    }  # fmt: skip


def langfuse(told: Row) -> Row:
    """An observation, as Langfuse's interface and its exports write it."""
    start, end = stamp(told["time"]), stamp(told["time"] + told["spent"])
    return {
        "id": f"{told['place']:016x}", "traceId": f"{told['place']:032x}", "projectId": "p1", "environment": "default", "type": "GENERATION", "name": "chat", "startTime": start,
        "endTime": end, "completionStartTime": None, "parentObservationId": None, "level": "DEFAULT", "statusMessage": None, "version": None, "createdAt": end, "updatedAt": end,
        "model": "tuned-8b", "internalModelId": None, "modelParameters": {"temperature": 0.7, "max_tokens": 512}, "input": turns(told),
        "output": {"role": "assistant", "content": told["said"]}, "metadata": {"scope": {"name": "langfuse-sdk"}}, "usageDetails": {"input": 80, "output": 200, "total": 280},
        "costDetails": {}, "promptId": None, "promptName": None, "promptVersion": None, "latency": told["spent"], "timeToFirstToken": None,
    }  # fmt: skip


def span(told: Row, attributes: Row) -> Row:
    """An OTLP/JSON document of one span."""
    wrapped = [
        {"key": key, "value": {"intValue": str(value)} if isinstance(value, int) else {"doubleValue": value} if isinstance(value, float) else {"stringValue": value}}
        for key, value in attributes.items()
    ]  # fmt: skip
    resource = [
        {"key": key, "value": {"stringValue": value}} for key, value in (("service.name", "shop"), ("telemetry.sdk.language", "python"))
    ]
    start = int(told["time"] * 1e9)
    one = {
        "traceId": f"{told['place']:032x}", "spanId": f"{told['place']:016x}", "parentSpanId": "", "flags": 256, "name": "chat tuned-8b", "kind": 3,
        "startTimeUnixNano": str(start), "endTimeUnixNano": str(start + int(told["spent"] * 1e9)), "attributes": wrapped, "status": {},
    }  # fmt: skip
    return {
        "resourceSpans": [
            {"resource": {"attributes": resource}, "scopeSpans": [{"scope": {"name": "instrumentation", "version": "1.0"}, "spans": [one]}]}
        ]
    }


def gen_ai(told: Row) -> Row:
    """A span under OpenTelemetry's conventions for generative AI, its messages as JSON in a text."""
    given = [{"role": turn["role"], "parts": [{"type": "text", "content": turn["content"]}]} for turn in turns(told)]
    said = [{"role": "assistant", "parts": [{"type": "text", "content": told["said"]}], "finish_reason": "stop"}]
    return span(told, {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "vllm", "gen_ai.request.model": "tuned-8b", "gen_ai.response.model": "tuned-8b",
        "gen_ai.response.id": f"chatcmpl-{told['place']:032x}", "gen_ai.request.temperature": 0.7, "gen_ai.request.max_tokens": 512, "gen_ai.usage.input_tokens": 80,
        "gen_ai.usage.output_tokens": 200, "server.address": "localhost", "server.port": 8000, "gen_ai.input.messages": json.dumps(given), "gen_ai.output.messages": json.dumps(said),
    })  # fmt: skip


def openinference(told: Row) -> Row:
    """A span under OpenInference's conventions: every part of a message an attribute, and request and answer once more as JSON."""
    request = {"messages": turns(told), "model": "tuned-8b", "temperature": 0.7, "max_tokens": 512}
    return span(told, {
        "openinference.span.kind": "LLM", "llm.system": "openai", "llm.model_name": "tuned-8b", "session.id": f"c{told['place'] // 3}",
        "input.value": json.dumps(request), "input.mime_type": "application/json", "output.value": json.dumps(completion(told)), "output.mime_type": "application/json",
        "llm.invocation_parameters": json.dumps({"model": "tuned-8b", "temperature": 0.7, "max_tokens": 512}), "llm.token_count.prompt": 80, "llm.token_count.completion": 200,
        "llm.input_messages.0.message.role": "system", "llm.input_messages.0.message.content": SYSTEM, "llm.input_messages.1.message.role": "user",
        "llm.input_messages.1.message.content": told["asked"], "llm.output_messages.0.message.role": "assistant", "llm.output_messages.0.message.content": told["said"],
    })  # fmt: skip


SHAPES: dict[str, Callable[[Row], Row]] = {
    "plain": plain, "OpenTelemetry GenAI": gen_ai, "OpenInference": openinference, "LiteLLM": litellm, "Langfuse": langfuse, "OpenAI chat": chat,
}  # fmt: skip
FORMATS = tuple(SHAPES)


if __name__ == "__main__":
    sys.exit(main())
