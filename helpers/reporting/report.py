"""A report on any model, in one command (``make report``): measured, kept, drawn, and held against the papers' claims.

    make report MODEL=vit_tiny_patch16_224 IMAGES=folder WEIGHTS=folder

``MODEL`` is a network of the zoo, of timm, of a folder of weights, or ``file.py:function`` (``networks.adapter``).
``VS`` names the networks that it stands beside, ``IMAGES`` a folder of photographs (scenes without it), ``WEIGHTS`` a
folder with cards.json, a file of weights, or ``none`` for random ones, ``DEVICE`` cuda, mps or cpu.

What will be measured, what cannot be and why, and about how long it takes is said before. Each table is kept, below
``build/reports/NAME``, when it is made, so the same command goes on where an interrupted one stopped. At the end the
tables of all networks are put together, a measure each, for ``measures.result.Result.load``; a notebook draws them, and
becomes a page, ``index.html``.

``torchrun --nproc-per-node 2 -m helpers.reporting.report --model …`` lets several processes share the batches of each
measure (``measures.distributed``); the first of them writes.
"""

import argparse
import json
import os
import sys
import time
from contextlib import redirect_stdout
from dataclasses import replace
from datetime import date
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

from tqdm import tqdm

from helpers import files, results
from helpers.files import ROOT
from helpers.images.sources import ImageSet
from helpers.measures.distributed import LostProcess, gathered, joined, own_device, process
from helpers.networks.devices import device
from helpers.recording import store
from helpers.recording.record import RECORDINGS
from helpers.reporting import page
from helpers.reporting.plan import MISFITS, Job, jobs
from helpers.reporting.stored import Report
from helpers.reporting.subjects import Subject, halves, subjects

OUT = ROOT / "build" / "reports"
IMAGES = 2560  # by default at most so many: as many as the paper found enough


def main(arguments: list[str] | None = None) -> None:
    """Make the report that the command line asks for. Ends with one line and status 2 where the inputs do not do."""
    given = _arguments(arguments)
    try:
        with joined() as (rank, _), TemporaryDirectory() as aside:
            on = own_device(device(given.device))
            found = subjects(given.model, given.vs, given.weights, given.images, given.limit, given.crop, on)
            out = (given.out.expanduser() / found[0].folder).resolve()
            if rank:  # the first process writes; what the others would write goes away
                with redirect_stdout(None):
                    make(found, Path(aside), {"device": str(on)}, ask=given.plan)
                return
            with store.alone(out):
                asked = make(found, out, {"device": str(on)}, ask=given.plan)
                if given.plan or given.no_page:
                    return
                print(f"drawing the page of {sum(not job.reason for job in asked)} measures", flush=True)
                print(f"the report: {page.build(out)}")
    except (ValueError, OSError, LostProcess) as error:
        _stop(str(error))


def make(found: list[Subject], out: Path, about: dict[str, Any], ask: bool = False) -> list[Job]:
    """Measure all that applies and is not there yet, and keep the plan beside it.

    Args:
        found: the model and the networks beside it.
        out: the folder of the report.
        about: what the plan says of the run.
        ask: only say what would be measured.

    Returns:
        the jobs; one that failed although its trial did not has the reason by then. Of several processes it ends the
        run instead, for the others wait for what this one should have summed.
    """
    rank, count = process()
    print(f"trying each measure on a few images of {'; '.join(subject.name for subject in found)}", flush=True)
    asked = jobs(found)
    keys = [_key(job) for job in asked]
    done = [store.is_done(job.measure.recording, key, out / job.folder) for job, key in zip(asked, keys, strict=True)]
    done = gathered(done)[0]
    print(told(asked, done))
    if ask:
        return asked
    notes = {"models": {one.name: one.card for one in found}, "recorded": date.today().isoformat()}
    notes["code"] = results.code_version()
    left = sum(job.seconds for job, there in zip(asked, done, strict=True) if not job.reason and not there)
    spent = planned = 0.0
    with tqdm(total=round(left, 1), desc="report", unit="s", bar_format=BAR, disable=not left or rank > 0) as bar:
        for i, (job, key) in enumerate(zip(asked, keys, strict=True)):
            if job.reason or done[i]:
                continue
            pace = spent / planned if planned else 1.0
            if not rank:
                takes, rest = clock(job.seconds * pace), clock((left - planned) * pace)
                bar.write(f"{job.title}: about {takes}; {rest} for all that is left")
            start = time.monotonic()
            try:
                _record(job, key, out, notes)
            except MISFITS as error:
                if count > 1:
                    raise ValueError(f"{job.title} could not be measured: {error}") from error
                asked[i] = replace(job, reason=" ".join(str(error).split()))
                bar.write(f"{job.title} could not be measured: {asked[i].reason}")
            spent, planned = spent + time.monotonic() - start, planned + job.seconds
            bar.update(min(job.seconds, bar.total - bar.n))
    _write_plan(found, asked, out, about)
    if not rank:  # which alone has the tables
        Report(out).keep_results()
    return asked


BAR = "{desc}: {percentage:3.0f} %|{bar}| about {remaining} left"


def told(asked: list[Job], done: list[bool]) -> str:
    """What will be measured, what is there already, and what is not and why, in lines."""
    doing = [job for job, there in zip(asked, done, strict=True) if not job.reason and not there]
    lines = []
    for (measure, reason), group in groupby(
        zip(asked, done, strict=True), lambda pair: (pair[0].measure, pair[0].reason)
    ):
        if reason:
            names = "; ".join(one.name for job, _ in group for one in job.subjects)
            lines.append(f"  {measure.title} of {names}: left out: {reason}")
            continue
        for job, there in group:
            takes = f"about {clock(job.seconds)} on {job.images:,} images, {job.memory / 2**30:.1f} GiB"
            lines.append(f"  {job.title}: {'there already' if there else takes}")
    most = max((job.memory for job in doing), default=0) / 2**30
    total = f"in all about {clock(sum(job.seconds for job in doing))}, and {most:.1f} GiB of memory at most"
    return "\n".join([*lines, total if doing else "everything is there already"])


def clock(seconds: float) -> str:
    """A time for reading: "40 s", "3 min", "2 h 10 min"."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _key(job: Job) -> str:
    """What a job's tables depend on, as a hash; "" for one that is not made."""
    if job.reason:
        return ""
    networks = {subject.name: subject.network for subject in job.subjects}
    shown = {name: data.describe() for name, data in _shown(job).items()}
    cards = {subject.name: subject.card for subject in job.subjects}
    return store.inputs(job.measure.recording, networks, cards=cards, **shown)


def _shown(job: Job) -> dict[str, ImageSet]:
    """The images that a measure is shown: "images", and "train" where it learns from some."""
    first = job.subjects[0]
    if job.measure.recording != "probes":
        return {"images": first.images}
    parts = halves(first)
    assert parts is not None  # else there was a reason
    return dict(zip(("images", "train"), parts, strict=True))


def _record(job: Job, key: str, out: Path, notes: dict[str, Any]) -> None:
    """Measure one job and put its files in place when all are written."""
    folder, name = out / job.folder, job.measure.recording
    folder.mkdir(parents=True, exist_ok=True)
    store.resume(folder)
    networks = {subject.name: subject.network for subject in job.subjects}
    shown = _shown(job)
    about = {**notes, "models": {one.name: notes["models"][one.name] for one in job.subjects}}

    def measure(where: Path) -> None:
        RECORDINGS[name].measure(networks, where=where, recording=name, inputs=key, **shown, **about)

    store.make(name, folder, measure)


def _write_plan(found: list[Subject], asked: list[Job], out: Path, about: dict[str, Any]) -> None:
    """What the notebook has to know beside the tables: ``plan.json``."""
    networks = [
        {"name": one.name, "role": one.role, "folder": one.folder, "card": one.card, "images": one.images.describe()}
        for one in found
    ]
    measures = [
        {
            "recording": job.measure.recording, "title": job.measure.title, "folder": job.folder.as_posix(),
            "networks": [one.name for one in job.subjects], "images": job.images, "reason": job.reason,
        }
        for job in asked
    ]  # fmt: skip
    plan = {**about, "networks": networks, "measures": measures, "date": date.today().isoformat()}
    files.write(out / "plan.json", json.dumps(plan, indent=1, ensure_ascii=False) + "\n")


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make report", description="Measure any model, and draw a page of it.")
    parser.add_argument("--model", required=True, help="a name of the zoo, of timm, of a card, or file.py:function")
    parser.add_argument("--vs", nargs="*", help="networks to stand beside it (the zoo's ViT and ResNet)")
    parser.add_argument("--images", help="folder of photographs; probes ask for a sub-folder a class (scenes)")
    parser.add_argument(
        "--weights", help="folder with cards.json, file of weights, or none for random ones (timm's hub)"
    )
    parser.add_argument("--device", help="cuda, mps or cpu (the best there is)")
    parser.add_argument("--limit", type=int, default=IMAGES, help=f"images at most ({IMAGES})")
    parser.add_argument("--crop", type=float, help="share of the shorter side of a photograph (as the model's own)")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of reports (build/reports)")
    parser.add_argument("--plan", action="store_true", help="only say what would be measured and what it takes")
    parser.add_argument("--no-page", action="store_true", help="leave the tables, without notebook and page")
    given = parser.parse_args(arguments)
    if given.limit < 1:
        _stop(f"limit is a number of images, at least 1; got {given.limit}")
    return given


def _stop(message: str) -> NoReturn:
    """End with one line that says what is wrong."""
    print(f"report: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    os.environ.setdefault("TQDM_MININTERVAL", "1")
    main()
