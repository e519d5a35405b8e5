"""What an interval, other trainings and controls make of a claim: the verdict, and its numbers in words.

What one network, or one pair of networks, gives for a part of a claim comes with an interval over images: how it would
come out on other images. The unit of a claim about training is a training, though, so what the same recipe gave from
other seeds is judged too, and the spread between them makes an interval of its own (``uncertainty.over_trainings``):

    holds                      every training meets the criterion with its whole interval over images, and so does the
                               whole interval over trainings
    holds for these networks   every training that was measured meets it, but there is only one, or the interval over
                               the few trainings reaches beyond the criterion
    fails                      for some part, no value in the interval over trainings meets the criterion, and every
                               training fails over images
    fails for these networks   every training that was measured fails, likewise
    inconclusive               anything else

That every part must hold costs no correction for their number (an intersection-union test); the intervals are not
corrected for the number of claims.

Where something that should not meet the criterion was measured too, an untrained twin, another seed of what only data
should change, shuffled images, it is a *control*. A claim that holds while one of its controls passes *holds, and says
nothing*.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from helpers.claims.registry import FAILS, HOLDS, INCONCLUSIVE, Claim, Part, number
from helpers.uncertainty import over_trainings

HOLDS_HERE, FAILS_HERE = "holds for these networks", "fails for these networks"
SAYS_NOTHING = "holds, and says nothing"  # a control meets the criterion as well
WORDS = (HOLDS, HOLDS_HERE, SAYS_NOTHING, FAILS, FAILS_HERE, INCONCLUSIVE)


@dataclass(frozen=True)
class Measured:
    """The statistic of one part, the ends of its 95 % interval, and the verdict on this part alone."""

    part: Part
    value: float
    low: float
    high: float
    word: str

    def __str__(self) -> str:
        unit = f" {self.part.unit}" if self.part.unit else ""
        return f"{value_text(self.value, self.low, self.high)} ({interval_text(self.low, self.high)}){unit}"


@dataclass(frozen=True)
class Other:
    """What another training, or a control, gives for the same statistics. ``word``: what that would be by itself."""

    name: str
    word: str
    parts: tuple[Measured, ...]

    def __str__(self) -> str:
        return f"{self.name} {', '.join(f'{label(m.part)}{m}' for m in self.parts)}: {self.word}"


@dataclass(frozen=True)
class Verdict:
    """What one track says of a claim. ``word``: its verdict, other trainings and controls counted in.

    ``parts``: what the first training gave, over images. ``seeds``: what the others gave. ``over``: mean and interval
    of each part over all of them; None where they are too few, or all the same.
    """

    claim: Claim
    track: str
    word: str
    parts: tuple[Measured, ...]
    figure: str
    n: int | None = None
    note: str = ""
    controls: tuple[Other, ...] = ()
    units: str = "images"
    seeds: tuple[Other, ...] = ()
    over: tuple[Measured | None, ...] = ()

    @property
    def passed_by(self) -> list[str]:
        """The controls that meet the claim's criterion too."""
        return [control.name for control in self.controls if control.word == HOLDS]

    @property
    def trainings(self) -> int:
        """How many trainings were measured."""
        return 1 + len(self.seeds)

    def count(self) -> str:
        """The independent units behind the verdict: "3 trainings, 2,560 images"."""
        trainings = f"{self.trainings} training{'s' if self.seeds else ''}"
        counted = f"{self.n:,} {self.units}" if self.n else ""
        return ", ".join(filter(None, [trainings if self.units in ("images", "blocks") else "", counted]))

    def numbers(self) -> str:
        """What was measured and what was asked for, in one line."""
        return "; ".join(
            f"{label(own.part)}{own}{self._beside(over)}, asked for {own.part.criterion}"
            for own, over in zip(self.parts, self.over or [None] * len(self.parts), strict=True)
        )

    def _beside(self, over: Measured | None) -> str:
        """Behind the number of one training, that of all of them."""
        if not self.seeds:
            return ""
        return f" over {self.units}, {over or 'the same in each'} over {self.trainings} trainings"

    def __str__(self) -> str:
        return f"{self.claim.id} on {self.track}: {self.word}. {self.numbers()}"

    __repr__ = __str__


def judge(claim: Claim, track: str, entry: Mapping[str, Any]) -> Verdict:
    """The verdict on what a chapter recorded. Raises ``ValueError`` or ``KeyError`` for an entry that lacks a part."""
    parts, own = _measured(claim, entry["parts"])
    seeds = _others(claim, entry.get("seeds", {}))
    controls = _others(claim, entry.get("controls", {}))
    over = _over_trainings([parts, *(other.parts for other in seeds)])
    each = {own, *(other.word for other in seeds)}
    all_over = together([part.word if part else "" for part in over])
    word = INCONCLUSIVE
    if each == {HOLDS}:
        word = HOLDS if all_over == HOLDS else HOLDS_HERE
        if any(control.word == HOLDS for control in controls):
            word = SAYS_NOTHING
    elif each == {FAILS}:
        word = FAILS if all_over == FAILS else FAILS_HERE
    about = {name: entry[name] for name in ("figure", "n", "note", "units")}
    return Verdict(claim, track, word, parts, controls=controls, seeds=seeds, over=over, **about)


def _others(claim: Claim, given: Mapping[str, Mapping[str, Any]]) -> tuple[Other, ...]:
    others = []
    for name, numbers in given.items():
        parts, word = _measured(claim, numbers)
        others.append(Other(name, word, parts))
    return tuple(others)


def _over_trainings(trainings: Sequence[tuple[Measured, ...]]) -> tuple[Measured | None, ...]:
    """Of each part the mean over trainings with its interval and verdict; None where no spread can be told."""
    found: list[Measured | None] = []
    for same in zip(*trainings, strict=True):
        mean, (low, high) = over_trainings([measured.value for measured in same])
        if low < high:  # neither of a single one nor of equal ones
            found.append(Measured(same[0].part, mean, low, high, same[0].part.criterion.judge(low, high)))
        else:
            found.append(None)
    return tuple(found)


def _measured(claim: Claim, given: Mapping[str, Mapping[str, float]]) -> tuple[tuple[Measured, ...], str]:
    """The parts of a claim with a verdict on each, and the word for all of them together."""
    numbers = by_part(claim, given, "a number")
    parts = []
    for part in claim.parts:
        value, low, high = (numbers[part.name][key] for key in ("value", "low", "high"))
        parts.append(Measured(part, value, low, high, part.criterion.judge(low, high)))
    return tuple(parts), together([measured.word for measured in parts])


def together(words: Sequence[str]) -> str:
    """The word for a claim whose parts have these."""
    if FAILS in words:
        return FAILS
    return HOLDS if set(words) == {HOLDS} else INCONCLUSIVE


def by_part(claim: Claim, given: Any, what: str) -> Mapping[str, Any]:
    """``given`` as a mapping from the claim's parts; for several parts a sequence in their order will do.

    Raises ``ValueError`` where it is neither.
    """
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


def _decimals(low: float, high: float) -> int:
    """As many decimals as give the half-width of an interval two digits, between none and four."""
    half = (high - low) / 2
    return min(4, max(0, 1 - math.floor(math.log10(half)))) if half > 0 else 3


def value_text(value: float, low: float, high: float) -> str:
    """A value with as many decimals as its interval warrants; a whole number that no image changes has none."""
    return number(value, 0 if low == high == round(value) else _decimals(low, high))


def interval_text(low: float, high: float) -> str:
    """The interval, "0.29 to 0.33"; in words where it has no width, or none that the printed digits show."""
    if low == high:
        return "the same on whatever images are drawn"
    first, last = (number(end, _decimals(low, high)) for end in (low, high))
    return f"{first} to {last}" if first != last else "the same in all digits on whatever images are drawn"


def label(part: Part) -> str:
    """The name of a part in front of its number; nothing for a claim's only part."""
    return "" if part.name == "value" else f"{part.name} "
