"""Verdicts as a reader sees them: a chapter's own at its end, and the scoreboard page of the whole book.

The claims themselves are in ``book/claims.yml``, read by ``claims.registry``; what a verdict is, ``claims.judgement``
says.
"""

import html
import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from helpers.claims.judgement import FAILS_HERE, HOLDS_HERE, SAYS_NOTHING, WORDS, Verdict
from helpers.claims.registry import FAILS, HOLDS, INCONCLUSIVE, TRACKS, Claim, load
from helpers.claims.verdicts import verdicts
from helpers.markup import code, literal

GROUND, INK = "#fcfcfa", "#222222"
UNTESTABLE, PLANNED, UNRECORDED = "not testable here", "planned", "not in this build"
BADGES = {  # symbol, background, text: told apart by word and symbol too, and legible on light and dark pages
    HOLDS: ("✓", "#00618f", "#ffffff"),
    HOLDS_HERE: ("✓", "#7fbcda", "#000000"),
    SAYS_NOTHING: ("≈", "#d3e6f0", "#000000"),
    FAILS: ("✗", "#a63c00", "#ffffff"),
    FAILS_HERE: ("✗", "#e8a583", "#000000"),
    INCONCLUSIVE: ("?", "#f0c75e", "#000000"),
    UNTESTABLE: ("–", "#5c5c5c", "#ffffff"),
    PLANNED: ("…", "#e3e3e3", "#000000"),
    UNRECORDED: ("…", "#e3e3e3", "#000000"),
}
INTRODUCTION = """\
What the papers claim, and what this book measures. The number of a claim comes with two 95 % intervals (in brackets):
over images, of one network or one pair, and, where a recipe was trained from several seeds, over trainings. A
network meets a criterion when its whole interval over images does, and misses it when no value in the interval does.
When all that were trained meet it, a claim *holds for these networks*; when the whole interval over trainings
meets it as well, it *holds*. *Fails for these networks* and *fails* are meant likewise, and anything else is
*inconclusive*. A single training can say no more than *for these networks*, and two seldom do, since Student's *t* of
one degree of freedom reaches nine standard deviations to either side. A claim of several parts holds when all of them
do, and fails when one does. Every criterion is a number that was fixed before the first run that measured it
(`book/claims.yml`); where the paper says no more than "larger" or "small", it is this book's choice. *Scenes* is the
controlled track, *ImageNet* the observed one.

Where it could be done the same statistic was taken of a *control* as well, something that should not meet the
criterion: an untrained twin, another seed where only data should matter, shuffled images. A claim that holds while a
control passes too *holds, and says nothing*.

:::{dropdown} Words used for all claims
The ViT and the ResNet
: The zoo's `vit` and `resnet` on scenes; ViT-Ti/16 and ResNet-50 on ImageNet.

Places
: Of a ViT, the embedding and the residual stream after each attention and each MLP. Of a ResNet, the stem's output
  and every residual block's.

Depth of a place
: Its number, from 0, over that of the complete network's last place. A ResNet without its last stage ends before 1.

CKA
: Linear, added up over batches by the unbiased estimator of HSIC, over at least 640 images.

Interval over images
: Of most numbers the value ± *t* jackknife errors over groups of images, with Student's *t* for that many groups. Of
  ranks, counts and places of a maximum, which jump, and of accuracies and probes, that of a bootstrap or a binomial,
  where nothing else is said.

Uniform
: The mean attention distance of an attention that looks everywhere alike.

Interval over trainings
: Of the mean over the networks, or pairs of networks, of one recipe and several seeds: ± *t* standard errors, with
  Student's *t* for that many trainings. A ViT is paired with the ResNet of the same seed. Where all trainings give the
  same number, a count say, their spread is not known, and there is no interval.

n
: The number of independent units behind a verdict, of either kind: trainings, and images in each of them.
:::"""


def badge(word: str) -> str:
    """A verdict as colour, symbol and word, in HTML."""
    symbol, background, colour = BADGES[word]
    style = f"background:{background};color:{colour};border-radius:0.3em;padding:0.1em 0.5em;white-space:nowrap"
    return f'<span class="verdict" style="{style}">{symbol} {word}</span>'


def status(claim: Claim, track: str, found: Mapping[tuple[str, str], Verdict]) -> str:
    """The word for a claim on a track: its verdict, or why there is none."""
    if track in claim.untestable:
        return UNTESTABLE
    if claim.status == "planned":
        return PLANNED
    return found[claim.id, track].word if (claim.id, track) in found else UNRECORDED


class ChapterVerdicts:
    """A chapter's claims and their verdicts: HTML in a notebook or on a page, plain lines elsewhere."""

    def __init__(self, claims: list[Claim], found: Mapping[tuple[str, str], Verdict]):
        self.claims, self.found = claims, found

    def __repr__(self) -> str:
        return "\n".join(str(self.found[c.id, t]) for c in self.claims for t in TRACKS if (c.id, t) in self.found)

    def _repr_html_(self) -> str:
        # on its own light ground, as the figures are: themes differ in what they put below HTML output in the dark
        style = f"background:{GROUND};color:{INK};border-radius:0.3em;padding:0 0.8em;line-height:1.7;text-align:left"
        return "\n".join([f'<div class="verdicts" style="{style}">', *map(self._card, self.claims), "</div>"])

    def _card(self, claim: Claim) -> str:
        head = _link(f"../book/scoreboard.html#claim-{claim.id.lower()}", f"<strong>{claim.id}</strong>")
        source = f"<em>({_html(claim.paper)}, {_html(claim.figures)})</em>"
        lines = "".join(f"<div>{self._line(claim, track)}</div>" for track in TRACKS)
        style = "border-top:1px solid #8888;padding:0.6em 0"
        return f'<div style="{style}">{head} {_html(claim.sentence)} {source}{lines}</div>'

    def _line(self, claim: Claim, track: str) -> str:
        word = status(claim, track, self.found)
        line = f"{badge(word)} <strong>{TRACKS[track]}</strong> "
        if word == UNTESTABLE:
            why = claim.untestable[track]
            return line + _html(why.reason + (f" Would do: {', '.join(why.checkpoints)}." if why.checkpoints else ""))
        verdict = self.found[claim.id, track]
        note = f" {_html(verdict.note)}" if verdict.note else ""
        figure = _link(f"#{_figure(verdict)}", "our figure")
        return f"{line}{_html(verdict.numbers())} ({figure}).{note} {_html(_beside(verdict))}"


def _beside(verdict: Verdict) -> str:
    """What other trainings and the controls of a verdict say, a sentence each; nothing where there are none."""
    sentences = []
    if verdict.seeds:
        sentences.append(f"Other trainings: {'; '.join(map(str, verdict.seeds))}.")
    if verdict.word == SAYS_NOTHING:
        sentences.append(f"A control passes too ({', '.join(verdict.passed_by)}).")
    if verdict.controls:
        sentences.append(f"Controls: {'; '.join(map(str, verdict.controls))}.")
    return " ".join(sentences)


def _html(text: str) -> str:
    return html.escape(text.replace("'", "’"), quote=False)


def _figure(verdict: Verdict) -> str:
    """The name of a verdict's figure, which becomes part of a link."""
    if not re.fullmatch(r"fig-[a-z0-9-]+", verdict.figure):
        raise ValueError(f"the record of {verdict.claim.id} on {verdict.track} names no figure: {verdict.figure!r}")
    return verdict.figure


def _link(address: str, text: str) -> str:
    return f'<a href="{address}" style="color:#00527a">{text}</a>'


def chapter_verdicts(chapter: str) -> ChapterVerdicts:
    """A chapter's own share of the scoreboard, to be shown by its last cell.

    Raises ``ValueError`` for a chapter without claims, or if one of its claims has not been recorded yet.
    """
    mine = [claim for claim in load().values() if claim.chapter == chapter and claim.status == "measured"]
    if not mine:
        raise ValueError(f"book/claims.yml has no measured claim of a chapter {chapter!r}")
    found = verdicts()
    if absent := [f"{c.id} on {t}" for c in mine for t in c.tracks if (c.id, t) not in found]:
        raise ValueError(f"chapter {chapter} has not recorded {', '.join(absent)}: judge each with the chapter's kit")
    return ChapterVerdicts(mine, found)


def scoreboard_page(folder: str | Path | None = None) -> str:
    """The scoreboard as a page of the book, in MyST Markdown.

    ``folder``: the results folder whose verdicts it shows. A link to a figure that no chapter has makes the build of
    the site fail. The page depends on the claims and the verdicts alone, not on the time or the machine.
    """
    claims, found = load(), verdicts(folder)
    lines = ["# Scoreboard", "", INTRODUCTION, "", *_summary(list(claims.values()), found)]
    lines += ["", _filter(list(claims.values()), found)]
    sections: dict[tuple[str, str, str], list[Claim]] = {}
    for claim in claims.values():
        sections.setdefault((claim.paper, claim.section, claim.chapter), []).append(claim)
    paper = None
    for (of, title, chapter), group in sections.items():
        if of != paper:
            lines += ["", f"## {literal(of)}"]
            paper = of
        there = any((claim.id, track) in found for claim in group for track in TRACKS)
        where = f"Measured in [](/notebooks/{chapter}.ipynb)." if there else f"To be measured in chapter {chapter}."
        lines += ["", f"### {literal(title)}", "", where]
        for claim in group:
            lines += ["", *_entry(claim, found)]
    return "\n".join(lines) + "\n"


def _summary(claims: list[Claim], found: Mapping[tuple[str, str], Verdict]) -> list[str]:
    """How many claims have which verdict, a column for each track."""
    counts = {track: Counter(status(claim, track, found) for claim in claims) for track in TRACKS}
    words = [word for word in BADGES if any(counts[track][word] for track in TRACKS)]
    head = ["| | " + " | ".join(TRACKS.values()) + " |", "|:--|" + "--:|" * len(TRACKS)]
    return head + [f"| {badge(word)} | " + " | ".join(str(counts[t][word]) for t in TRACKS) + " |" for word in words]


def found_page(folder: str | Path | None = None) -> str:
    """What the book found, for its first page, in MyST Markdown: each verdict as a tile, and counts of them.

    ``folder``: the results folder whose verdicts it shows.
    """
    claims, found = list(load().values()), verdicts(folder)
    lines = [":::{div} tiles", "", "| Chapter | " + " | ".join(TRACKS.values()) + " |", "|:--|" + ":--|" * len(TRACKS)]
    for chapter in sorted({claim.chapter for claim in claims}):
        mine = [claim for claim in claims if claim.chapter == chapter]
        there = any((claim.id, track) in found for claim in mine for track in TRACKS)
        cells = [f"[](/notebooks/{chapter}.ipynb)" if there else f"Chapter {_number(chapter).lstrip('0')}, to come"]
        cells += [" ".join(_tile(claim, track, found) for claim in mine) for track in TRACKS]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", ":::", "", *_summary(claims, found)]) + "\n"


def _tile(claim: Claim, track: str, found: Mapping[tuple[str, str], Verdict]) -> str:
    """A claim's verdict as a small coloured link to its card, in HTML."""
    word = status(claim, track, found)
    symbol, background, colour = BADGES[word]
    style = f"background:{background};color:{colour};border-radius:0.25em;padding:0.05em 0.35em;white-space:nowrap"
    says = html.escape(f"{claim.id}, {TRACKS[track]}: {word}. {claim.sentence}").replace("|", "&#124;")
    address = f"scoreboard.html#claim-{claim.id.lower()}"
    return f'<a class="tile" href="{address}" title="{says}" style="{style}">{claim.id} {symbol}</a>'


def _filter(claims: list[Claim], found: Mapping[tuple[str, str], Verdict]) -> str:
    """The place of the lists by which ``scoreboard.js`` filters the cards, with what they offer; empty without it."""
    given = {status(claim, track, found) for claim in claims for track in TRACKS}
    offered = {
        "verdicts": [(_class(word), word) for word in BADGES if word in given],
        "tracks": [(_class(track), name) for track, name in TRACKS.items()],
        "chapters": [(_class(chapter), _number(chapter)) for chapter in sorted({claim.chapter for claim in claims})],
    }
    return f'<div class="scoreboard-filter" data-options="{html.escape(json.dumps(offered))}"></div>'


def _number(chapter: str) -> str:
    """The number in a chapter's name, "03" or "03b"."""
    return chapter.split("_")[0]


def _class(text: str) -> str:
    """A text as part of the name of a class in CSS."""
    return re.sub("[^a-z0-9]+", "-", text.lower())


def _entry(claim: Claim, found: Mapping[tuple[str, str], Verdict]) -> list[str]:
    """One claim: its sentence, a line for each track, and how it is measured, folded away."""
    classes = [f"of-{_class(claim.chapter)}", *(f"{_class(t)}-{_class(status(claim, t, found))}" for t in TRACKS)]
    lines = [f"(claim-{claim.id.lower()})=", f"::::{{card}} {claim.id} · {literal(claim.sentence)}"]
    lines += [f":class-card: claim {' '.join(classes)}", ""]
    reported = f" The paper reports: {claim.reported}." if claim.reported else ""
    lines += [literal(f"{claim.figures}.{reported}"), ""]
    words = {status(claim, track, found) for track in TRACKS}
    if words <= {PLANNED}:
        lines += [f"{badge(PLANNED)} **{' and '.join(TRACKS.values())}**", ""]
    for track, name in TRACKS.items() if words - {PLANNED} else ():
        word = status(claim, track, found)
        text = ""
        if word == UNTESTABLE:
            text = f" {literal(claim.untestable[track].reason)}{_checkpoints(claim, track)}"
        elif word in WORDS:
            verdict = found[claim.id, track]
            note = f" {literal(verdict.note)}" if verdict.note else ""
            source = f"{{numref}}`{_figure(verdict)}`, n = {verdict.count()}"
            text = f" {literal(verdict.numbers())} ({source}).{note} {literal(_beside(verdict))}".rstrip()
        lines += [f"{badge(word)} **{name}**{text}", ""]
    lines += [":::{dropdown} How it is measured"]
    for part in claim.parts:
        name = f"*{literal(part.name)}*: " if part.name != "value" else ""
        why = f" Why this number: {literal(part.why)}" if part.why else ""
        unit = f" {literal(part.unit)}" if part.unit else ""
        lines += [f"{name}{literal(part.statistic)} Asked for: {literal(part.criterion)}{unit}.{why}", ""]
    if claim.changed:
        was, date, reason = (literal(claim.changed[key]) for key in ("was", "date", "reason"))
        lines += [f"**Changed after it had been measured** ({date}). Before: {was} Reason: {reason}", ""]
    return [*lines, ":::", "::::"]


def _checkpoints(claim: Claim, track: str) -> str:
    names = claim.untestable[track].checkpoints
    return f" Would do: {', '.join(map(code, names))}." if names else ""
