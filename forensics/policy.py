"""Thresholds and required checks, read from TOML and passed along as an argument.

A misspelled threshold that quietly left the default in force would be the worst bug a gate can have, so an
unknown key is an error that names the nearest known one.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from forensics.bounds import read_bytes
from forensics.errors import BadInput
from forensics.record import ACTIONS_MILD_TO_STRICT, Action, canonical_json, sha256_text

MOST_BYTES = 1 << 20
"""Of a policy: the default one, with its comments, takes a hundredth."""
Points = Annotated[FiniteFloat, Field(ge=0.0, le=100.0)]
Margin = Annotated[FiniteFloat, Field(gt=0.0, le=100.0)]
"""A margin of zero could never be cleared: a bound of nothing lost is still above nothing."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Profile(_Section):
    """Who meets the model after release, and what people have to do before."""

    public_facing: bool
    red_team_minutes: Annotated[FiniteFloat, Field(ge=0.0)]


class Bands(_Section):
    """Percentage points of loss against the base at which the action changes."""

    deploy: Margin
    monitor: Points
    review: Points
    category_review: Points
    category_block: Points
    concern_overall: Points
    concern_category: Points

    @property
    def spelled(self) -> str:
        """The three bands of the primary metrics, as a record has them among its settings."""
        return f"{self.deploy:g} {self.monitor:g} {self.review:g}"

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.deploy <= self.monitor <= self.review:
            raise ValueError("bands must rise: deploy <= monitor <= review")
        if not self.category_review <= self.category_block:
            raise ValueError("bands must rise: category_review <= category_block")
        return self


class Power(_Section):
    """What has to be measurable before a number may count as reassurance."""

    max_detectable_drop: Points
    min_base_refusal: Points
    min_harmful_prompts: Annotated[int, Field(ge=0)]


class Policy(_Section):
    """Everything a decision depends on besides the results."""

    name: str
    validity_days: Annotated[int, Field(ge=1, le=3650)]
    required: tuple[str, ...]
    profile: Profile
    bands: Bands
    power: Power
    actions: dict[str, Action]

    @property
    def digest(self) -> str:
        """sha256 of the policy's content, whatever its spelling in TOML."""
        return sha256_text(canonical_json(self.model_dump(mode="json")))

    def action_of(self, check: str, label: str) -> Action:
        """The least action of a finding `label` of `check`; DEPLOY where the policy names none."""
        return self.actions.get(f"{check}/{label}", Action.DEPLOY)


def load_policy(path: Path | None = None, profiles: Sequence[str] = ()) -> Policy:
    """The default policy, overlaid by the TOML file at `path` if one is given, and tightened by risk profiles: of each value the stricter one stands.

    Raises:
        BadInput: A profile is not known; the file is missing, is not TOML, holds an unknown key or a value out of range.
    """
    merged = tomllib.loads(default_policy_text())
    where = "the built-in policy"
    if path is not None:
        where = str(path)
        given = _read_toml(path)
        given.setdefault("name", path.stem)
        _overlay(merged, given, where=where, prefix="")
    for name in profiles:
        where = f"profile {name}" if path is None else f"{path} under profile {name}"
        _tighten(merged, _profile(name))
        merged["name"] = f"{merged['name']}, {name}"
    # TOML has arrays and integers where the types below are tuples and floats; strictness is for the rest.
    merged["required"] = tuple(merged["required"]) if isinstance(merged["required"], list) else merged["required"]
    merged["actions"] = {key: _action(key, value, where=where) for key, value in merged["actions"].items()}
    try:
        return Policy.model_validate(merged)
    except ValidationError as error:
        details = tuple(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise BadInput(
            "the policy holds a value that cannot be used",
            where=where,
            details=details,
            hint="compare with the default policy, printed by `forensics policy`",
        ) from error


def default_policy_text() -> str:
    """The TOML of the default policy, with its comments."""
    return resources.files("forensics.policies").joinpath("default.toml").read_text(encoding="utf-8")


def _tighten(policy: dict[str, Any], profile: dict[str, Any]) -> None:
    """Let `profile` make `policy` stricter in place, and nowhere milder; what is no number or action there is left to be refused later."""
    if isinstance(policy["required"], list):
        policy["required"] = list(dict.fromkeys([*policy["required"], *profile.get("also_required", [])]))
    if isinstance(policy["validity_days"], int):
        policy["validity_days"] = min(policy["validity_days"], profile.get("validity_days", policy["validity_days"]))
    for section, stricter in (("profile", max), ("bands", min)):
        for key, value in profile.get(section, {}).items():
            if isinstance(policy[section][key], int | float):
                policy[section][key] = stricter(policy[section][key], value)
    for key, value in profile.get("power", {}).items():
        if isinstance(policy["power"][key], int | float):
            policy["power"][key] = max(policy["power"][key], value) if key.startswith("min_") else min(policy["power"][key], value)
    for key, value in profile.get("actions", {}).items():
        held = policy["actions"].get(key, Action.DEPLOY.value)
        if held in list(Action):
            policy["actions"][key] = max(held, value, key=lambda name: ACTIONS_MILD_TO_STRICT.index(Action(name)))


def profile_texts() -> dict[str, str]:
    """The TOML of every risk profile, by name."""
    folder = resources.files("forensics.policies.profiles")
    files = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".toml")), key=lambda entry: entry.name)
    return {entry.name.removesuffix(".toml"): entry.read_text(encoding="utf-8") for entry in files}


def _profile(name: str) -> dict[str, Any]:
    known = profile_texts()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(known)}"
        raise BadInput(f"there is no risk profile {name!r}", where="--profile", hint=hint)
    return tomllib.loads(known[name])


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_bytes(path, most=MOST_BYTES).decode("utf-8"))
    except OSError as error:
        raise BadInput(
            f"the policy file cannot be read: {error.strerror}", where=str(path), hint="check the path given to --policy"
        ) from error
    except (ValueError, RecursionError) as error:
        raise BadInput(
            f"the policy file is not TOML: {error}",
            where=str(path),
            hint="start from the default policy, printed by `forensics policy`",
        ) from error


def _overlay(into: dict[str, Any], given: dict[str, Any], *, where: str, prefix: str) -> None:
    """Write `given` over `into` in place, refusing keys `into` does not have (except labels under `actions`)."""
    for key, value in given.items():
        if key not in into and prefix != "actions.":
            known = [prefix + name for name in into]
            near = difflib.get_close_matches(prefix + key, known, n=1, cutoff=0.5)
            guess = f"did you mean `{near[0]}`?" if near else f"known keys here: {', '.join(known)}"
            raise BadInput(f"unknown policy key `{prefix}{key}`", where=where, hint=guess)
        if isinstance(into.get(key), dict):
            if not isinstance(value, dict):
                raise BadInput(f"`{prefix}{key}` must be a table", where=where, hint=f"write it as [{prefix}{key}]")
            _overlay(into[key], value, where=where, prefix=f"{prefix}{key}.")
        else:
            into[key] = value


def _action(key: str, value: object, *, where: str) -> Action:
    try:
        return Action(str(value))
    except ValueError as error:
        raise BadInput(f"`actions.{key}` is {value!r}, which is not an action", where=where, hint=f"one of {', '.join(Action)}") from error
