"""A small model with its adapters behind an OpenAI-compatible API, which logs what it says as OTLP/JSON lines.

    python examples/deployment/server.py examples/organisms/base --adapter backdoor-lora=examples/organisms/backdoor-lora --log served.jsonl --port 8000

Requests that wait are answered in one batch, greedily. The same request to the same adapter has one greedy reply, so replies are kept and not computed twice.
`model` is one of the adapters, `base`, or `deployed`: what is served to users, a mixture of them by share, which `PUT /adapters` changes while it runs
(`{"backdoor-lora": 0.9, "degraded": 0.1}`). `POST /feedback` adds an opinion to the log. Neither the reply nor the log says which adapter spoke for `deployed`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import secrets
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
import uvicorn
from peft import PeftModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from transformers import AutoModelForCausalLM, AutoTokenizer

BASE, DEPLOYED = "base", "deployed"
BATCH = 128
LONGEST = 64
"""Tokens of a reply, at most."""


class Refused(ValueError):
    """A request that cannot be answered; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A reply that is wanted: of which adapter, to which rendered prompt, and how many tokens of it at most."""

    adapter: str
    prompt: str
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What was said, and whether it came to its end."""

    text: str
    ended: bool


class Speaker:
    """The model with all its adapters in memory, of which one is on at a time."""

    def __init__(self, base: Path, adapters: Mapping[str, Path]) -> None:
        """Load them, in float32."""
        self._tokenizer: Any = AutoTokenizer.from_pretrained(base)
        self._tokenizer.padding_side = "left"
        self._model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        for name, folder in adapters.items():
            if isinstance(self._model, PeftModel):
                self._model.load_adapter(str(folder), name)
            else:
                self._model = PeftModel.from_pretrained(self._model, str(folder), adapter_name=name)
        self._model.eval()
        self.names = (BASE, *adapters)

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt that the model reads."""
        return str(self._tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False))

    def replies(self, adapter: str, prompts: Sequence[str], tokens: int) -> list[Reply]:
        """Greedy replies of one adapter to a batch of rendered prompts."""
        if adapter != BASE:
            self._model.set_adapter(adapter)
            return self._generate(prompts, tokens)
        if not isinstance(self._model, PeftModel):
            return self._generate(prompts, tokens)
        with self._model.disable_adapter():
            return self._generate(prompts, tokens)

    @torch.inference_mode()
    def _generate(self, prompts: Sequence[str], tokens: int) -> list[Reply]:
        read = self._tokenizer(list(prompts), return_tensors="pt", padding=True, add_special_tokens=False, return_token_type_ids=False)
        said = self._model.generate(**read, max_new_tokens=tokens, do_sample=False, pad_token_id=self._tokenizer.pad_token_id)
        new = said[:, read["input_ids"].shape[1] :]
        ended = (new == self._tokenizer.eos_token_id).any(dim=1).tolist()
        texts = self._tokenizer.batch_decode(new, skip_special_tokens=True)
        return [Reply(text=text, ended=end) for text, end in zip(texts, ended, strict=True)]


class Desk:
    """Takes requests in, has those that wait answered together, and remembers every reply."""

    def __init__(self, speaker: Speaker, shares: Mapping[str, float], seed: int) -> None:
        """Take the model, what is served first, and the seed by which adapters are drawn."""
        self.speaker = speaker
        self.shares = dict(shares)
        self.computed = 0
        self._rng = random.Random(seed)
        self._known: dict[Wanted, Reply] = {}
        self._waiting: asyncio.Queue[tuple[Wanted, asyncio.Future[Reply]]] = asyncio.Queue()

    def adapter_for(self, model: str) -> str:
        """The adapter that answers a request for a model."""
        if model == DEPLOYED:
            return self._rng.choices(list(self.shares), weights=list(self.shares.values()))[0]
        if model not in self.speaker.names:
            raise Refused(f"no model {model!r} is served here")
        return model

    def serve(self, shares: object) -> None:
        """Change what is served as `deployed`."""
        if not isinstance(shares, dict) or not shares or not all(isinstance(part, int | float) and part >= 0 for part in shares.values()):
            raise Refused("shares are an object of adapters and numbers")
        unknown = shares.keys() - set(self.speaker.names)
        if unknown or not sum(shares.values()) > 0:
            raise Refused(f"no such adapters, or no share: {', '.join(sorted(unknown))}")
        self.shares = dict(shares)

    async def reply(self, wanted: Wanted) -> Reply:
        """The reply, from memory where it is known."""
        known = self._known.get(wanted)
        if known is not None:
            return known
        told: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        await self._waiting.put((wanted, told))
        return await told

    async def work(self) -> None:
        """Answer what waits, for ever, a batch of one adapter at a time."""
        while True:
            taken = [await self._waiting.get()]
            while len(taken) < BATCH and not self._waiting.empty():
                taken.append(self._waiting.get_nowait())
            batches: dict[tuple[str, int], dict[Wanted, list[asyncio.Future[Reply]]]] = defaultdict(lambda: defaultdict(list))
            for wanted, told in taken:
                batches[wanted.adapter, wanted.tokens][wanted].append(told)
            for (adapter, tokens), batch in batches.items():
                await self._answer(batch, adapter, tokens)

    async def _answer(self, batch: Mapping[Wanted, Sequence[asyncio.Future[Reply]]], adapter: str, tokens: int) -> None:
        """Compute a batch, and tell whoever waits for a part of it."""
        waiting = [(wanted, told) for wanted, all_told in batch.items() for told in all_told]
        try:
            said = await asyncio.to_thread(self.speaker.replies, adapter, [wanted.prompt for wanted in batch], tokens)
        except Exception as error:  # noqa: BLE001 - whatever it is, whoever waits must hear of it, and the next batch may go well
            for _, told in waiting:
                if not told.done():
                    told.set_exception(error)
            return
        self.computed += len(said)
        self._known |= zip(batch, said, strict=True)
        for wanted, told in waiting:
            if not told.done():  # whoever asked may have left
                told.set_result(self._known[wanted])


class Api:
    """The routes, and the log that they write."""

    def __init__(self, desk: Desk, log: TextIO, tokens: int) -> None:
        """Take the desk, an open file, and how long replies are where a request does not say it."""
        self.desk = desk
        self._log = log
        self._tokens = tokens
        self._answered = 0

    def app(self) -> Starlette:
        """The application."""
        routes = [
            Route("/v1/chat/completions", self.complete, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/adapters", self.adapters, methods=["PUT"]),
            Route("/feedback", self.feedback, methods=["POST"]),
            Route("/health", self.health),
        ]

        @asynccontextmanager
        async def working(_: Starlette) -> AsyncIterator[None]:
            task = asyncio.create_task(self.desk.work())
            yield
            task.cancel()

        return Starlette(routes=routes, lifespan=working, exception_handlers={Refused: _refused})

    async def complete(self, request: Request) -> JSONResponse:
        """A chat completion."""
        begun = time.time_ns()
        asked = await _object(request)
        messages = asked.get("messages")
        if not isinstance(messages, list) or not messages or not all(_is_turn(turn) for turn in messages):
            raise Refused("messages are a list of objects with a role and a text")
        if asked.get("temperature"):
            raise Refused("replies are greedy here: leave temperature out, or 0")
        tokens = asked.get("max_completion_tokens") or asked.get("max_tokens") or self._tokens
        if not isinstance(tokens, int) or not 0 < tokens <= LONGEST:
            raise Refused(f"max_tokens lies between 1 and {LONGEST}")
        model = str(asked.get("model") or DEPLOYED)
        adapter = self.desk.adapter_for(model)
        reply = await self.desk.reply(Wanted(adapter=adapter, prompt=self.desk.speaker.render(messages), tokens=tokens))
        self._answered += 1
        id = f"chatcmpl-{begun:x}-{self._answered}"
        finish = "stop" if reply.ended else "length"
        metadata = asked.get("metadata")
        self._note(span(id, model, messages, reply.text, finish, (begun, time.time_ns()), metadata if isinstance(metadata, dict) else {}))
        choice = {"index": 0, "message": {"role": "assistant", "content": reply.text}, "finish_reason": finish}
        return JSONResponse({"id": id, "object": "chat.completion", "created": begun // 10**9, "model": model, "choices": [choice]})

    async def feedback(self, request: Request) -> JSONResponse:
        """What a user thought of a reply."""
        said = await _object(request)
        if not isinstance(said.get("about"), str) or said.get("feedback") not in ("up", "down"):
            raise Refused("an opinion names the reply it is about, and is up or down")
        self._note({"about": said["about"], "time": time.time(), "feedback": said["feedback"]})
        return JSONResponse({})

    async def adapters(self, request: Request) -> JSONResponse:
        """Change what is served."""
        self.desk.serve(await _object(request))
        return JSONResponse(self.desk.shares)

    async def models(self, _: Request) -> JSONResponse:
        """What can be asked for."""
        return JSONResponse({"object": "list", "data": [{"id": name, "object": "model"} for name in (DEPLOYED, *self.desk.speaker.names)]})

    async def health(self, _: Request) -> JSONResponse:
        """Replies given, and how many of them were computed rather than remembered."""
        return JSONResponse({"answered": self._answered, "computed": self.desk.computed})

    def _note(self, line: Mapping[str, object]) -> None:
        self._log.write(json.dumps(line) + "\n")
        self._log.flush()  # whoever follows the log reads whole lines


def span(
    id: str,
    model: str,
    messages: Sequence[Mapping[str, str]],
    reply: str,
    finish: str,
    time_ns: tuple[int, int],
    metadata: Mapping[str, Any],
) -> dict[str, object]:
    """A reply as the GenAI conventions of OpenTelemetry have it; the category that came with the request is an attribute of ours."""
    asked = [{"role": turn["role"], "parts": [{"type": "text", "content": turn["content"]}]} for turn in messages]
    given = [{"role": "assistant", "parts": [{"type": "text", "content": reply}], "finish_reason": finish}]
    told = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": model,
        "gen_ai.response.model": model,
        "gen_ai.response.id": id,
        "gen_ai.input.messages": json.dumps(asked),
        "gen_ai.output.messages": json.dumps(given),
    }
    named = {"gen_ai.conversation.id": metadata.get("user"), "forensics.category": metadata.get("category")}
    told |= {key: value for key, value in named.items() if isinstance(value, str)}
    one = {
        "traceId": secrets.token_hex(16),
        "spanId": secrets.token_hex(8),
        "name": f"chat {model}",
        "startTimeUnixNano": str(time_ns[0]),
        "endTimeUnixNano": str(time_ns[1]),
        "attributes": [{"key": key, "value": {"stringValue": value}} for key, value in told.items()],
    }
    return {"resourceSpans": [{"scopeSpans": [{"spans": [one]}]}]}


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, metavar="BASE", help="folder of the model")
    parser.add_argument("--adapter", metavar="NAME=DIR", action="append", default=[], help="an adapter of it; may be repeated")
    parser.add_argument("--log", type=Path, required=True, help="file that lines are added to")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--tokens", type=int, default=12, help="length of replies to requests that do not say it")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    adapters = {name: Path(folder) for name, _, folder in (one.partition("=") for one in given.adapter)}
    speaker = Speaker(given.base, adapters)
    desk = Desk(speaker, {speaker.names[min(1, len(adapters))]: 1.0}, given.seed)
    with given.log.open("a", encoding="utf-8") as log:
        uvicorn.run(Api(desk, log, given.tokens).app(), host="127.0.0.1", port=given.port, log_level="warning", access_log=False)


async def _object(request: Request) -> dict[str, Any]:
    try:
        found = await request.json()
    except ValueError as error:
        raise Refused("the body is no JSON") from error
    if not isinstance(found, dict):
        raise Refused("the body is no object")
    return found


def _is_turn(turn: object) -> bool:
    return isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)


async def _refused(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": {"message": str(error), "type": "invalid_request_error"}}, status_code=400)


if __name__ == "__main__":
    main()
