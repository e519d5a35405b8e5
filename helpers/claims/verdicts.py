"""What this book's measurements say of the papers' claims: the verdicts, and the files in which they are kept.

A chapter hands over each statistic of a claim of ``book/claims.yml`` with its uncertainty, an interval that covers
the true value with 95 % probability, and gets a verdict:

    holds          the whole interval meets the criterion, for every part of the claim
    fails          for some part, no value in the interval meets it
    inconclusive   anything else

A claim that a track cannot test is *not testable here*, and the file says why. That every part must hold costs no
correction for their number (an intersection-union test); the intervals are not corrected for the number of claims.

Where something that should not meet the criterion was measured too, an untrained twin, another seed of what only data
should change, shuffled images, it is a *control*. A claim that holds while one of its controls passes *holds, and says
nothing*.
"""

import difflib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from helpers import files, results
from helpers.claims.registry import FAILS, HOLDS, INCONCLUSIVE, TRACKS, Claim, Part, load, number
from helpers.uncertainty import quantile

UNITS = ("images", "seeds", "networks")
SAYS_NOTHING = "holds, and says nothing"  # a control meets the criterion as well


@dataclass(frozen=True)
class Measured:
    """The statistic of one part, the ends of its interval, and the verdict on this part alone."""

    part: Part
    value: float
    low: float
    high: float
    word: str

    def __str__(self) -> str:
        unit = f" {self.part.unit}" if self.part.unit else ""
        ends = interval_text(self.low, self.high)
        return f"{value_text(self.value, self.low, self.high)} ({ends}){unit}"


@dataclass(frozen=True)
class Control:
    """What a control of a claim gives for the same statistics: it passes where these meet the criterion."""

    name: str
    word: str
    parts: tuple[Measured, ...]

    def __str__(self) -> str:
        return f"{self.name} {', '.join(f'{label(m.part)}{m}' for m in self.parts)}: {self.word}"


@dataclass(frozen=True)
class Verdict:
    """What one track says of a claim. ``word``: its verdict, controls counted in."""

    claim: Claim
    track: str
    word: str
    parts: tuple[Measured, ...]
    figure: str
    n: int | None = None
    note: str = ""
    controls: tuple[Control, ...] = ()
    units: str = "images"

    @property
    def passed_by(self) -> list[str]:
        """The controls that meet the claim's criterion too."""
        return [control.name for control in self.controls if control.word == HOLDS]

    def numbers(self) -> str:
        """What was measured and what was asked for, in one line."""
        return "; ".join(f"{label(m.part)}{m}, asked for {m.part.criterion}" for m in self.parts)

    def __str__(self) -> str:
        return f"{self.claim.id} on {self.track}: {self.word}. {self.numbers()}"

    __repr__ = __str__


def record(
    claim_id: str,
    track: str,
    value: float | Mapping[str, float],
    stderr: float | Mapping[str, float] | None = None,
    *,
    interval: tuple[float, float] | Mapping[str, tuple[float, float]] | None = None,
    figure: str,
    chapter: str,
    n: int | None = None,
    note: str = "",
    groups: int | None = None,
    controls: Mapping[str, Mapping[str, Any]] | None = None,
    units: str = "images",
) -> Verdict:
    """Hold what a chapter measured against a claim, keep it for the scoreboard, and return the verdict.

    Recording a claim again replaces the former record of this chapter; other chapters' records are never touched.
    A record that cannot be read is replaced as a whole.

    Args:
        claim_id: a claim of ``book/claims.yml``.
        track: one of the claim's tracks.
        value: the statistic; for a claim of several parts a mapping from part to statistic, or a sequence in the order
            of the parts, and ``stderr`` or ``interval`` likewise.
        stderr: a jackknife standard error over ``groups`` groups; the interval is then value ± t · stderr
            (``uncertainty.quantile``).
        interval: the 95 % interval itself, say of a bootstrap.
        figure: the name of the figure that shows it, ``fig-…``.
        chapter: the chapter that measured it.
        n: the independent units behind it, images or seeds.
        note: what a reader of the scoreboard should know besides.
        groups: see ``stderr``.
        controls: name of each control → what it gives: a mapping with ``value``, and ``stderr`` with ``groups`` or
            ``interval``, as for the claim itself.
        units: what ``n`` counts, one of ``UNITS``.

    Returns:
        The verdict.

    Raises:
        ValueError: an unknown claim or track, a track on which the claim cannot be tested, a claim of another
            chapter or one that is only planned, parts that are not the claim's, a value that is not finite, no
            uncertainty or two of them, a stderr without its number of groups, units that are not known.
    """
    claim = _claim_of(claim_id, track, chapter)
    if not re.fullmatch(r"fig-[a-z0-9-]+", figure):
        raise ValueError(f"{claim_id}: figure is the name of one of the chapter's figures, 'fig-…'; got {figure!r}")
    if units not in UNITS:
        raise ValueError(f"{claim_id}: n counts one of {', '.join(UNITS)}; got {units!r}")
    numbers = _numbers(claim, value, stderr, interval, groups)
    entry: dict[str, Any] = {"parts": numbers, "figure": figure, "n": n, "units": units, "note": note}
    if controls:
        entry["controls"] = {
            name: _numbers(claim, of["value"], of.get("stderr"), of.get("interval"), of.get("groups"), name)
            for name, of in controls.items()
        }
    verdict = _judge(claim, track, entry)
    path = results.folder() / "claims" / f"{chapter}.json"
    try:
        stored = _stored(path) if path.exists() else {}
    except ValueError:  # nothing in it can be kept
        stored = {}
    stored.setdefault(claim_id, {})[track] = entry | {"verdict": verdict.word}
    files.write(path, json.dumps(stored, indent=1, ensure_ascii=False) + "\n")
    return verdict


def _stored(path: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """What a chapter's record keeps: claim → track → entry; ValueError, naming the file, if it is of another form."""
    remedy = f"run the chapter {path.stem} again, which writes it"
    stored = results.mapping(path, remedy)
    for claim_id, tracks in stored.items():
        if not isinstance(tracks, dict) or not all(isinstance(entry, dict) for entry in tracks.values()):
            raise ValueError(f"{path} does not keep {claim_id} by its tracks; {remedy}")
    return stored


def _claim_of(claim_id: str, track: str, chapter: str) -> Claim:
    """The claim, if this chapter may record it on this track; ValueError if not."""
    claims = load()
    if claim_id not in claims:
        near = difflib.get_close_matches(claim_id, claims, n=3, cutoff=0.4)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ValueError(f"no claim {claim_id!r} in book/claims.yml{hint}")
    claim = claims[claim_id]
    if track not in TRACKS:
        raise ValueError(f"unknown track {track!r}; tracks are {', '.join(TRACKS)}")
    if track not in claim.tracks:
        raise ValueError(f"{claim_id} cannot be tested on {track}: {claim.untestable[track].reason}")
    if claim.chapter != chapter:
        raise ValueError(f"{claim_id} is assigned to chapter {claim.chapter} in book/claims.yml, not to {chapter}")
    if claim.status != "measured":
        raise ValueError(f"{claim_id} is {claim.status} in book/claims.yml: set its status to measured first")
    return claim


def _numbers(
    claim: Claim, value: Any, stderr: Any, interval: Any, groups: int | None, control: str = ""
) -> dict[str, dict[str, float]]:
    """Value and ends of the interval of each part, of the claim's own measurement or of a control; ValueError."""
    whose = f"{claim.id}, control {control!r}" if control else claim.id
    if (stderr is None) == (interval is None):
        raise ValueError(f"{whose}: give the uncertainty of its value, as stderr or as interval")
    numbers = {}
    for part, single in _by_part(claim, value, "value").items():
        if stderr is not None:
            if groups is None:
                raise ValueError(f"{whose}: say over how many groups its stderr was taken: groups=…")
            reach = float(_by_part(claim, stderr, "stderr")[part]) * quantile(groups)
            low, high = float(single) - reach, float(single) + reach
        else:
            low, high = map(float, _by_part(claim, interval, "interval")[part])
        if not all(map(math.isfinite, (float(single), low, high))) or low > high:
            raise ValueError(f"{whose}, {part}: {single} between {low} and {high} is not a finite interval")
        numbers[part] = {"value": float(single), "low": low, "high": high}
    return numbers


def _by_part(claim: Claim, given: Any, what: str) -> Mapping[str, Any]:
    """``given`` as a mapping from the claim's parts; for several parts a sequence in their order will do."""
    names = [part.name for part in claim.parts]
    if isinstance(given, Mapping):
        found = given
    elif len(names) == 1:
        found = {names[0]: given}
    else:
        values = list(given) if np.iterable(given) else [given]
        found = dict(zip(names, values, strict=True)) if len(values) == len(names) else {}
    if set(found) != set(names):
        raise ValueError(f"{claim.id}: {what} is needed for the parts {', '.join(names)}; got {given}")
    return found


def _judge(claim: Claim, track: str, entry: Mapping[str, Any]) -> Verdict:
    parts, word = _measured(claim, entry["parts"])
    controls = []
    for name, numbers in entry.get("controls", {}).items():
        control_parts, control_word = _measured(claim, numbers)
        controls.append(Control(name, control_word, control_parts))
    if word == HOLDS and any(control.word == HOLDS for control in controls):
        word = SAYS_NOTHING
    return Verdict(
        claim, track, word, parts, entry["figure"], entry["n"], entry["note"], tuple(controls), entry["units"]
    )


def _measured(claim: Claim, given: Mapping[str, Mapping[str, float]]) -> tuple[tuple[Measured, ...], str]:
    """The parts of a claim with a verdict on each, and the word for all of them together."""
    numbers = _by_part(claim, given, "a number")
    parts = []
    for part in claim.parts:
        value, low, high = (numbers[part.name][key] for key in ("value", "low", "high"))
        parts.append(Measured(part, value, low, high, part.criterion.judge(low, high)))
    words = {measured.word for measured in parts}
    word = INCONCLUSIVE
    if FAILS in words:
        word = FAILS
    elif words == {HOLDS}:
        word = HOLDS
    return tuple(parts), word


def verdicts(folder: str | Path | None = None) -> dict[tuple[str, str], Verdict]:
    """All verdicts below a results folder, by (claim, track), judged anew by today's criteria.

    Raises ``ValueError`` for records that are damaged, or do not fit the claims as they are now.
    """
    claims, found = load(), {}
    for path in sorted((Path(folder or results.folder()) / "claims").glob("*.json")):
        for claim_id, tracks in _stored(path).items():
            for track, entry in tracks.items():
                claim = claims.get(claim_id)
                if claim is None or track not in claim.tracks or claim.chapter != path.stem:
                    raise ValueError(f"{path} records {claim_id} on {track}, not its claim: run the chapter again")
                try:
                    found[claim_id, track] = _judge(claim, track, entry)
                except (KeyError, TypeError, AttributeError) as error:
                    raise ValueError(
                        f"{path} keeps {claim_id} on {track} incompletely ({error!r}): run the chapter again"
                    ) from error
    return found


def unrecorded(folder: str | Path | None = None) -> list[tuple[str, str]]:
    """The (claim, track) that book/claims.yml calls measured and no chapter has recorded in this folder."""
    have = verdicts(folder)
    wanted = [(claim.id, track) for claim in load().values() if claim.status == "measured" for track in claim.tracks]
    return [pair for pair in wanted if pair not in have]


def _decimals(low: float, high: float) -> int:
    """As many decimals as give the half-width of an interval two digits, between none and four."""
    half = (high - low) / 2
    return min(4, max(0, 1 - math.floor(math.log10(half)))) if half > 0 else 3


def value_text(value: float, low: float, high: float) -> str:
    """A value with as many decimals as its interval warrants."""
    return number(value, _decimals(low, high))


def interval_text(low: float, high: float) -> str:
    """The interval, "0.29 to 0.33"."""
    return f"{number(low, _decimals(low, high))} to {number(high, _decimals(low, high))}"


def label(part: Part) -> str:
    """The name of a part in front of its number; nothing for a claim's only part."""
    return "" if part.name == "value" else f"{part.name} "
