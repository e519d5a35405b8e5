"""What chapters measure of the papers' claims: the records, kept in files, from which verdicts are made.

A chapter hands over each statistic of a claim of ``book/claims.yml`` with its uncertainty, an interval that covers the
true value on other images with 95 % probability; the same of other trainings, and of controls. What makes a verdict of
them is in ``claims.judgement``. A claim that a track cannot test is *not testable here*, and the file says why.
"""

import difflib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from helpers import files, results, uncertainty
from helpers.claims.judgement import Verdict, by_part, judge
from helpers.claims.registry import TRACKS, Claim, load
from helpers.uncertainty import quantile

if TYPE_CHECKING:  # a front end that shows verdicts needs no torch
    from helpers.measures.cka_result import CKAResult

UNITS = ("images", "blocks", "seeds", "networks")


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
    seeds: Mapping[str, Mapping[str, Any]] | None = None,
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
        n: the independent units behind the interval, as a rule images.
        note: what a reader of the scoreboard should know besides.
        groups: see ``stderr``.
        seeds: name of each other training of the same recipe → what it gives: a mapping with ``value``, and ``stderr``
            with ``groups`` or ``interval``, as for the claim itself.
        controls: name of each control → what it gives, likewise.
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
    own = {"value": value, "stderr": stderr, "interval": interval, "groups": groups}
    entry: dict[str, Any] = {"parts": numbers(claim, own), "figure": figure, "n": n, "units": units, "note": note}
    for kind, others in (("seeds", seeds), ("controls", controls)):
        if others:
            entry[kind] = {name: numbers(claim, of, name) for name, of in others.items()}
    verdict = judge(claim, track, entry)
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


def estimated(
    statistic: Callable[..., Any], measured: "Sequence[pd.DataFrame | CKAResult]", jumps: bool = False
) -> dict[str, Any]:
    """A statistic and its uncertainty over groups of images: ``value``, and ``stderr`` with ``groups`` or ``interval``.

    Args:
        statistic: function of the tables to a number, or to one for each part of a claim.
        measured: tables with ``left_out``, or one CKA result, of whose matrix ``statistic`` is a function.
        jumps: whether the interval is a bootstrap's.

    Raises:
        ValueError: as ``uncertainty.jackknife``.
    """
    first = measured[0]
    if isinstance(first, pd.DataFrame):
        value, spread = (uncertainty.bootstrap if jumps else uncertainty.jackknife)(statistic, *measured)
        groups = uncertainty.groups(first)
    else:
        value, spread = (first.bootstrap if jumps else first.statistic)(statistic)
        groups = first.groups
    return {"value": value} | ({"interval": spread} if jumps else {"stderr": spread, "groups": groups})


def numbers(claim: Claim, given: Mapping[str, Any], other: str = "") -> dict[str, dict[str, float]]:
    """Value and ends of the interval, ``low`` and ``high``, of each part of a claim.

    Args:
        claim: the claim.
        given: ``value``, and ``stderr`` with ``groups`` or ``interval``, as for ``record``.
        other: what was measured, where it is not the claim's own networks.

    Raises:
        ValueError: as ``record``.
    """
    whose = f"{claim.id}, {other!r}" if other else claim.id
    value, stderr, interval, groups = (given.get(key) for key in ("value", "stderr", "interval", "groups"))
    if (stderr is None) == (interval is None):
        raise ValueError(f"{whose}: give the uncertainty of its value, as stderr or as interval")
    found = {}
    for part, single in by_part(claim, value, "value").items():
        if stderr is not None:
            if groups is None:
                raise ValueError(f"{whose}: say over how many groups its stderr was taken: groups=…")
            reach = float(by_part(claim, stderr, "stderr")[part]) * quantile(groups)
            low, high = float(single) - reach, float(single) + reach
        else:
            low, high = map(float, by_part(claim, interval, "interval")[part])
        if not all(map(math.isfinite, (float(single), low, high))) or low > high:
            raise ValueError(f"{whose}, {part}: {single} between {low} and {high} is not a finite interval")
        found[part] = {"value": float(single), "low": low, "high": high}
    return found


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
                    found[claim_id, track] = judge(claim, track, entry)
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
