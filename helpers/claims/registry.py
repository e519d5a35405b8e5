"""The file ``book/claims.yml``, read and checked: what the papers claim, and the number that is asked of each claim.

A claim has one or more parts. Each part is a statistic, in words exact enough to compute it, and a criterion:
``greater_than: a``, ``less_than: a`` or ``between: [a, b]``. Each track stands once, either under ``tracks`` or,
with the reason, under ``untestable``. The form of the file is described at its top.
"""

import difflib
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from helpers.files import INSTALLED, ROOT

FILE = Path(__file__).with_name("claims.yml") if INSTALLED else ROOT / "book" / "claims.yml"
TRACKS = {"scenes": "Scenes", "imagenet": "ImageNet"}
HOLDS, FAILS, INCONCLUSIVE = "holds", "fails", "inconclusive"
STATUSES = ("measured", "planned")
SECTION_KEYS = {"title", "paper", "chapter", "claims"}
REQUIRED = {"id", "figures", "sentence", "tracks", "status"}
CLAIM_KEYS = REQUIRED | {"parts", "statistic", "criterion", "unit", "why", "untestable", "reported", "changed"}
PART_KEYS = {"statistic", "criterion", "unit", "why"}


class ClaimsError(ValueError):
    """The file of claims is malformed; the message names the claim and what is wrong with it."""


@dataclass(frozen=True)
class Criterion:
    """The values that a claim asks for: an interval, open (greater_than, less_than) or closed (between)."""

    low: float = -math.inf
    high: float = math.inf
    closed: bool = False

    def judge(self, low: float, high: float) -> str:
        """The verdict on a statistic that lies between ``low`` and ``high``."""
        if self.closed:
            inside, outside = self.low <= low and high <= self.high, high < self.low or low > self.high
        else:
            inside, outside = self.low < low and high < self.high, high <= self.low or low >= self.high
        if inside:
            return HOLDS
        return FAILS if outside else INCONCLUSIVE

    def __str__(self) -> str:
        if self.closed:
            return f"{number(self.low)} to {number(self.high)}"
        sign, bound = (">", self.low) if math.isinf(self.high) else ("<", self.high)
        return f"{sign}\N{NO-BREAK SPACE}{number(bound)}"


@dataclass(frozen=True)
class Part:
    """One number of a claim: what it is, what is asked of it, in which unit, and why that number was chosen."""

    name: str
    statistic: str
    criterion: Criterion
    unit: str = ""
    why: str = ""


@dataclass(frozen=True)
class Untestable:
    """Why a track cannot test a claim, and the checkpoints (timm names) with which it could be."""

    reason: str
    checkpoints: tuple[str, ...] = ()


@dataclass(frozen=True)
class Claim:
    """A claim of a paper: where it stands, what it says, how it is tested, and where."""

    id: str
    paper: str
    section: str
    chapter: str
    figures: str
    sentence: str
    parts: tuple[Part, ...]
    tracks: tuple[str, ...]
    untestable: Mapping[str, Untestable]
    status: str
    reported: str = ""
    changed: Mapping[str, str] | None = None

    def fingerprint(self) -> str:
        """A hash of statistics, criteria and tracks: it changes when the test of the claim does, not with its prose."""
        test: list[Any] = [[part.name, " ".join(part.statistic.split()), asdict(part.criterion)] for part in self.parts]
        test.append(sorted(self.tracks))
        return hashlib.sha256(json.dumps(test, sort_keys=True).encode()).hexdigest()[:12]


def number(value: float, digits: int | None = None) -> str:
    """A number for reading: so many decimals (by default as many as it has), with a true minus sign."""
    text = f"{value:g}" if digits is None else f"{value:.{digits}f}"
    return text.replace("-", "−") if float(text) or digits is None else text.removeprefix("-")


def load(path: Path = FILE) -> dict[str, Claim]:
    """All claims by their ids, in the order of the file.

    Raises:
        ClaimsError: the file is not as it must be; the message names the claim.
    """
    return dict(_parse(Path(path).read_text(encoding="utf-8"), Path(path).name))


@lru_cache(maxsize=4)  # a pure function of the text, so nothing can go stale
def _parse(text: str, source: str) -> dict[str, Claim]:
    try:
        content = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise ClaimsError(f"{source} is not YAML: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("sections"), list):
        raise ClaimsError(f"{source}: a list `sections` is expected at its top")
    found: dict[str, Claim] = {}
    for section in content["sections"]:
        if not isinstance(section, dict) or SECTION_KEYS - set(section):
            raise ClaimsError(f"{source}: each section has title, paper, chapter and claims; got {str(section)[:80]}")
        for entry in section["claims"]:
            place = f"{source}, claim {entry.get('id', str(entry)[:60])}"
            claim = _claim(entry, section, place)
            if claim.id in found:
                raise ClaimsError(f"{place}: the id is given twice")
            found[claim.id] = claim
    return found


def _claim(entry: dict, section: dict, place: str) -> Claim:
    """One entry of the file, checked."""

    def wrong(message: str) -> ClaimsError:
        return ClaimsError(f"{place}: {message}")

    if strange := set(entry) - CLAIM_KEYS:
        near = difflib.get_close_matches(min(strange), CLAIM_KEYS, n=1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise wrong(f"unknown key {min(strange)!r}{hint}")
    if absent := REQUIRED - set(entry):
        raise wrong(f"missing {', '.join(sorted(absent))}")
    if entry["status"] not in STATUSES:
        raise wrong(f"status is one of {', '.join(STATUSES)}, not {entry['status']!r}")
    single = {key: entry[key] for key in PART_KEYS & set(entry)}
    if ("parts" in entry) == ("statistic" in entry):
        raise wrong("give either one statistic and criterion, or several under parts")
    named = entry["parts"] if "parts" in entry else {"value": single}
    untestable = entry.get("untestable", {})
    both = [*entry["tracks"], *untestable]
    if sorted(both) != sorted(TRACKS):
        raise wrong(f"each of the tracks {', '.join(TRACKS)} stands once, under tracks or under untestable; got {both}")
    for track, why in untestable.items():
        if not isinstance(why, dict) or not why.get("reason") or set(why) - {"reason", "checkpoints"}:
            raise wrong(f"untestable on {track} takes a reason and, where one would do, checkpoints")
    changed = entry.get("changed")
    if changed is not None and (not isinstance(changed, dict) or set(changed) != {"date", "was", "reason"}):
        raise wrong("changed takes the date, what the criterion was, and the reason")
    return Claim(
        id=entry["id"],
        paper=section["paper"],
        section=section["title"],
        chapter=section["chapter"],
        figures=entry["figures"],
        sentence=entry["sentence"].strip(),
        parts=tuple(_part(name, part, wrong) for name, part in named.items()),
        tracks=tuple(entry["tracks"]),
        untestable={t: Untestable(why["reason"], tuple(why.get("checkpoints", ()))) for t, why in untestable.items()},
        status=entry["status"],
        reported=str(entry.get("reported", "")),
        changed={key: str(value) for key, value in changed.items()} if changed else None,
    )


def _part(name: str, part: Any, wrong: Callable[[str], ClaimsError]) -> Part:
    if not isinstance(part, dict) or not {"statistic", "criterion"} <= set(part) <= PART_KEYS:
        raise wrong(f"part {name!r} takes a statistic, a criterion and, if need be, a unit and a why")
    rule = part["criterion"]
    if not isinstance(rule, dict) or len(rule) != 1 or not set(rule) <= {"greater_than", "less_than", "between"}:
        raise wrong(f"the criterion of {name!r} is one of greater_than: a, less_than: a, between: [a, b]; got {rule!r}")
    (kind, bound), *_ = rule.items()
    bounds = bound if kind == "between" else [bound]
    count = 2 if kind == "between" else 1
    plain = isinstance(bounds, list) and all(isinstance(b, (int, float)) and not isinstance(b, bool) for b in bounds)
    if not plain or len(bounds) != count or not all(map(math.isfinite, bounds)) or sorted(bounds) != bounds:
        needed = "two numbers, rising" if count == 2 else "a number"
        raise wrong(f"the criterion of {name!r} takes {needed}; got {bound!r}")
    low = bounds[0] if kind != "less_than" else -math.inf
    high = bounds[-1] if kind != "greater_than" else math.inf
    criterion = Criterion(low, high, kind == "between")
    return Part(name, part["statistic"].strip(), criterion, part.get("unit", ""), str(part.get("why", "")).strip())
