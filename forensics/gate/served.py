"""Ask models behind an OpenAI-compatible server: base and candidate in turn on the same prompt, retried, resumed, nothing asked twice.

vLLM, SGLang, Ollama, `transformers serve` and vendors' own services speak this. Adapters are models of their own there (vLLM: `--enable-lora`).
"""

from __future__ import annotations

import asyncio
import email.utils
import os
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

from forensics.errors import BadInput, ForensicsError, ToolFailed
from forensics.gate.judges import RULE_JUDGE, judge_refusal
from forensics.gate.replies import NOT_ASKED, SIDES, TEMPERATURE, Progress, Side
from forensics.prompts import Prompt
from forensics.record import Item
from forensics.runfolder import RunFolder

KEY_VARIABLES = ("FORENSICS_API_KEY", "OPENAI_API_KEY")
"""Where the key is looked for, the first that is set. It is sent to the endpoint and written nowhere."""
TRY_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0
"""Seconds before a request is made again: doubled each time, or what the server asks for."""
WORDS_SHOWN = 200
MOST_ANSWER, PIECE = 16 << 20, 1 << 16
"""Bytes of an answer, once it is unpacked, and of what is read of it at once: a server may send a bomb."""
HUSHED = "(key)"


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A server, and how to ask it: `models` are the names of base and candidate there."""

    urls: tuple[str, ...]
    models: tuple[str, str]
    max_new_tokens: int
    at_once: int
    """Requests in flight."""
    seed: int = 0
    repeats: int = 0
    """Replies to each prompt that are drawn besides the greedy one, each by a seed of its own."""
    patience: float = 600.0
    """Seconds for which one prompt is tried, waits included."""
    timeout: float = 300.0
    """Seconds that one request may take."""
    key: str = field(default="", repr=False)

    @property
    def shown(self) -> tuple[str, ...]:
        """The addresses without what may be secret in them."""
        return tuple(_shown(url) for url in self.urls)


def _shown(url: str) -> str:
    part = urlsplit(url)
    return f"{part.scheme}://{part.hostname or ''}{f':{part.port}' if part.port else ''}{part.path}"


def key_from_environment() -> str:
    """The key for the server, if there is one.

    Raises:
        BadInput: It holds what no header can; it is not shown.
    """
    key = next((os.environ[name] for name in KEY_VARIABLES if os.environ.get(name)), "").strip()
    if not key.isascii() or not key.isprintable():
        raise BadInput("the server's key holds a character that no header can", where=" or ".join(KEY_VARIABLES), hint="copy the key again")
    return key


def refuse_strange_urls(urls: Sequence[str]) -> None:
    """Refuse what is no address of a server, without saying what may be secret in it.

    Raises:
        BadInput: An address is not http or https, or has no host or a port that is none.
    """
    for url in urls:
        try:
            part = urlsplit(url)
            good = part.scheme in ("http", "https") and bool(part.hostname) and part.port != 0 and bool(httpx.URL(url).host)
        except (ValueError, httpx.InvalidURL):
            good = False
        if not good:
            raise BadInput(
                f"{url.rpartition('@')[2]!r} is not the address of a server",
                where="--endpoint",
                hint="for example http://localhost:8000/v1",
            )


def collect_served(
    endpoint: Endpoint, prompts: Sequence[Prompt], *, run: RunFolder, progress: Progress, sides: Sequence[Side] = SIDES
) -> None:
    """Put every prompt to both models, or to that of one side, and keep the replies in the run, each as soon as it is there.

    A prompt goes to both models next to each other, so that whatever the server does in between falls on both. What the run holds is not
    asked again. A prompt that the server refuses as such (HTTP 400, 413, 422) is kept as not asked, with the server's words.

    Raises:
        BadInput: The server does not know a model, wants a key, or refuses every prompt.
        ToolFailed: It did not answer, or not sensibly, for `endpoint.patience` seconds. What was answered is kept, and the same command resumes.
    """
    repeats = range(endpoint.repeats + 1)
    speakers = [(side, model) for side, model in zip(SIDES, endpoint.models, strict=True) if side in sides]
    wanted = [
        Wanted(side=side, model=model, prompt=prompt, repeat=repeat)
        for repeat in repeats
        for prompt in prompts
        for side, model in speakers
        if (side, side, prompt.id, repeat) not in run.items
    ]
    if wanted:
        asyncio.run(_collect(endpoint, wanted, len(speakers) * len(prompts) * len(repeats), run, progress))
    for side, model in speakers:
        held = [run.items[side, side, prompt.id, 0] for prompt in prompts]
        if held and all(item.labels[RULE_JUDGE] == NOT_ASKED for item in held):
            raise BadInput(
                f"the server refuses every prompt to {model}: {held[0].reply}",
                where=endpoint.shown[0],
                hint="mend what it says, and ask again into a new folder",
            )


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One reply that is to be had: whose, to what, and which of several (0 is greedy)."""

    side: Side
    model: str
    prompt: Prompt
    repeat: int

    def item(self, reply: str, *, asked: bool) -> Item:
        """The reply as it is kept."""
        label = judge_refusal(reply) if asked else NOT_ASKED
        return Item(id=self.prompt.id, side=self.side, configuration=self.side, repeat=self.repeat, reply=reply, labels={RULE_JUDGE: label})


async def _collect(endpoint: Endpoint, wanted: Sequence[Wanted], total: int, run: RunFolder, progress: Progress) -> None:
    queue = iter(enumerate(wanted))
    done = total - len(wanted)
    progress("served replies", done, total)

    async with client_of(endpoint) as client:

        async def work() -> None:
            nonlocal done
            for number, one in queue:
                url = endpoint.urls[number // 2 % len(endpoint.urls)]
                turns = [{"role": turn.role, "content": turn.content} for turn in one.prompt.messages]
                reply, asked = await chat(client, endpoint, url, one.model, turns, repeat=one.repeat)
                run.add_items([one.item(reply, asked=asked)])
                done += 1
                progress("served replies", done, total)

        await all_of([work for _ in range(min(endpoint.at_once, len(wanted)))])


async def all_of(works: Sequence[Callable[[], Coroutine[Any, Any, None]]]) -> None:
    """Run all at the same time; the first failure of ours stops the others and is raised alone."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_plainly(work())) for work in works]
        await _first_failure(tasks)
    failed = next((task.result() for task in tasks if not task.cancelled() and task.result() is not None), None)
    if failed is not None:
        raise failed


def client_of(endpoint: Endpoint) -> httpx.AsyncClient:
    """A client that keeps so many connections, and sends the key if there is one."""
    headers = {"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}
    limits = httpx.Limits(max_connections=endpoint.at_once, max_keepalive_connections=endpoint.at_once)
    return httpx.AsyncClient(headers=headers, limits=limits, timeout=endpoint.timeout, follow_redirects=False)


async def _plainly(work: Any) -> ForensicsError | None:
    """Run `work`; a failure of ours is handed back, so that it is told alone and not as one of a group."""
    try:
        await work
    except ForensicsError as error:
        return error
    return None


async def _first_failure(tasks: Sequence[asyncio.Task[ForensicsError | None]]) -> None:
    """Wait for all tasks; where one fails the others are stopped."""
    for finished in asyncio.as_completed(tasks):
        if await finished is not None:
            for task in tasks:
                task.cancel()
            return


@dataclass(frozen=True, kw_only=True)
class _Form:
    """A kind of request: where it goes, what it is called, how its answer is read, and which drawing it is (0: greedy)."""

    path: str
    called: str
    read: Callable[[httpx.Response], str | None]
    repeat: int = 0


async def chat(
    client: httpx.AsyncClient, endpoint: Endpoint, url: str, model: str, turns: Sequence[dict[str, str]], *, repeat: int = 0
) -> tuple[str, bool]:
    """What `model` says to `turns`, and True; or what the server says of a conversation that it refuses as such, and False.

    Greedy, or drawn by a seed of its own where `repeat` is over 0.

    Raises:
        BadInput: The server does not know the model, wants a key, or refuses.
        ToolFailed: It did not answer, or not sensibly, for `endpoint.patience` seconds.
    """
    form = _Form(path="chat/completions", called="a chat completion", read=_said, repeat=repeat)
    return await _asked(client, endpoint, url, form, {"model": model, "messages": list(turns)})


async def complete(client: httpx.AsyncClient, endpoint: Endpoint, url: str, model: str, text: str) -> tuple[str, bool]:
    """How `model` goes on with a bare text, no chat template around it; else as `chat`.

    Raises:
        BadInput: The server does not know the model, wants a key, or refuses; or it takes chats alone.
        ToolFailed: It did not answer, or not sensibly, for `endpoint.patience` seconds.
    """
    form = _Form(path="completions", called="a completion", read=_completed)
    return await _asked(client, endpoint, url, form, {"model": model, "prompt": text})


async def _asked(client: httpx.AsyncClient, endpoint: Endpoint, url: str, form: _Form, asked: dict[str, Any]) -> tuple[str, bool]:
    temperature, seed = TEMPERATURE if form.repeat else 0, endpoint.seed + form.repeat
    how = {"max_tokens": endpoint.max_new_tokens, "temperature": temperature, "seed": seed, "stream": False}
    model = asked["model"]
    start, wait = time.monotonic(), FIRST_WAIT
    while True:
        trouble, asked_for = "", 0.0
        try:
            answer = await _post(client, f"{url.rstrip('/')}/{form.path}", asked | how, endpoint.key)
        except httpx.HTTPError as error:
            trouble = _hushed(f"{type(error).__name__}: {error}".strip(": "), endpoint.key)
        else:
            if answer.status_code == httpx.codes.OK:
                said = form.read(answer)
                if said is not None:
                    return _hushed(said, endpoint.key), True
                trouble = f"its answer is not {form.called}: {answer.text[:WORDS_SHOWN]!r}"
            elif answer.status_code in TRY_AGAIN:
                trouble, asked_for = f"HTTP {answer.status_code} {_hushed(_words(answer), endpoint.key)}", _retry_after(answer)
            elif answer.status_code in (400, 413, 422) and not _about_the_model(answer, model):
                return _hushed(_words(answer), endpoint.key), False
            else:
                raise _refusal(answer, f"{url.rstrip('/')}/{form.path}", model, endpoint.key)
        wait_for = min(LONGEST_WAIT, max(wait, asked_for))
        if time.monotonic() - start + wait_for > endpoint.patience:
            raise ToolFailed(
                f"the server did not answer for {endpoint.patience:g} seconds; last: {trouble}",
                where=f"{_shown(url)} ({model})",
                hint="what was answered is kept; start the server and give the same command again",
            )
        await asyncio.sleep(wait_for)
        wait *= 2


async def _post(client: httpx.AsyncClient, url: str, asked: dict[str, Any], key: str) -> httpx.Response:
    """The answer to a request, without the key should the server repeat it.

    Raises:
        httpx.HTTPError: It could not be had, or is larger than any answer, once it is unpacked.
    """
    content = bytearray()
    async with client.stream("POST", url, json=asked) as answer:
        async for part in answer.aiter_bytes(PIECE):
            content += part
            if len(content) > MOST_ANSWER:
                raise httpx.DecodingError(f"an answer of more than {MOST_ANSWER >> 20} MiB", request=answer.request)
    whole = bytes(content).replace(key.encode("ascii"), HUSHED.encode("ascii")) if key else bytes(content)
    told = {name: answer.headers[name] for name in ("retry-after", "content-type") if name in answer.headers}
    return httpx.Response(answer.status_code, headers=told, content=whole, request=answer.request)


def _hushed(text: str, key: str) -> str:
    """A text of a server's without the key, which it may have spelled in JSON's own way."""
    return text.replace(key, HUSHED) if key else text


def _said(answer: httpx.Response) -> str | None:
    """The text of a chat completion; None if it is none. A reply that was filtered away is empty."""
    try:
        message = answer.json()["choices"][0]["message"]
        said = message.get("content")
    except (ValueError, RecursionError, KeyError, IndexError, TypeError, AttributeError):
        return None
    if said is None:
        said = message.get("refusal") or ""
    return said if isinstance(said, str) else None


def _completed(answer: httpx.Response) -> str | None:
    """The text of a completion; None if it is none."""
    try:
        said = answer.json()["choices"][0]["text"]
    except (ValueError, RecursionError, KeyError, IndexError, TypeError):
        return None
    return said if isinstance(said, str) else None


def _words(answer: httpx.Response) -> str:
    """What a server says of an error, in one line."""
    try:
        said = answer.json()
        error = said.get("error", said) if isinstance(said, dict) else said
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, RecursionError):
        text = answer.text
    return " ".join(text.split())[:WORDS_SHOWN]


def _about_the_model(answer: httpx.Response, model: str) -> bool:
    words = _words(answer).lower()
    return "model" in words and (model.lower() in words or "not found" in words or "does not exist" in words)


def _refusal(answer: httpx.Response, url: str, model: str, key: str) -> BadInput:
    hints = {401: f"set {KEY_VARIABLES[0]} to the server's key", 403: f"set {KEY_VARIABLES[0]} to a key that may use it"}
    hint = hints.get(answer.status_code, "check the address (it ends in /v1) and the names of models, which `GET /v1/models` lists")
    if answer.status_code in (404, 405) and not url.endswith("/chat/completions"):
        hint += "; a bare text goes to /completions, which servers of chats alone do not have"
    return BadInput(
        f"the server refuses: HTTP {answer.status_code} {_hushed(_words(answer), key)}", where=f"{_shown(url)} ({model})", hint=hint
    )


def _retry_after(answer: httpx.Response) -> float:
    """Seconds for which the server asks to be left alone, at most `LONGEST_WAIT`; 0 if it does not say."""
    said = answer.headers.get("retry-after", "")
    try:
        return max(0.0, float(said))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(said).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0
