"""Make the book: execute its chapters, stage them beside its pages, build the site, check it, publish it.

    python -m helpers.building.book [--jobs N]        # what `make book` runs

Everything is made under ``build/``:

    executed/   the chapters with their outputs
    results/    the tables and verdicts that they wrote
    logs/       what a chapter's process, or Jupyter Book, had to say
    runs/       what the chapters of a build that is going on have written so far
    src/        the staging tree. It mirrors the repository (book/, notebooks/), so that the links to a
                page's source are right, while executed notebooks stay out of git
    site/       the published site: replaced only by one that was built and checked without a fault
    state.json  of what inputs all this was made, and its hashes: what was changed by hand is made anew
    own/        not the build's: what chapters write that are run by hand

What lies in the way of any of these but ``own/``, say a folder in the place of a file, is removed.
"""

import argparse
import platform
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import yaml
from filelock import FileLock, Timeout

from helpers import __version__
from helpers.building import api_page, faults, head, launch, site, solutions
from helpers.building.execution import (
    BookError,
    chapters,
    cores,
    digest,
    execute,
    files_below,
    read_state,
    remove,
    write_state,
)
from helpers.files import ROOT


def documents(root: Path) -> list[str]:
    """The table of contents: each page's path in the repository, without suffix, the root page first."""
    toc = yaml.safe_load((root / "book" / "_toc.yml").read_text(encoding="utf-8"))

    def below(entry: dict) -> list[str]:
        own = [entry["file"]] if "file" in entry else []
        nested = (item for key in ("parts", "chapters", "sections") for item in entry.get(key, []))
        return own + [name for item in nested for name in below(item)]

    return [toc["root"], *below(toc)]


def timings_page(state: dict) -> str:
    """How long each chapter took when it was last executed, as a page."""
    rows = [
        f"| [](/notebooks/{name}.ipynb) | {ran['cells']} | {ran['seconds']:.0f} | {ran['threads']} | {ran['jobs']} |"
        for name, ran in sorted(state["chapters"].items())
    ]
    return f"""# How long each chapter took

By the clock, when it was last executed for this site, on {platform.system()} with {cores()} processor cores and Python
{platform.python_version()}. *Threads* are those that one chapter may use, *side by side* counts the chapters that were
executed at a time.

| Chapter | Cells | Seconds | Threads | Side by side |
|:--|--:|--:|--:|--:|
""" + "".join(f"{row}\n" for row in rows)


def generated_pages(root: Path, pages: list[str]) -> dict[str, str]:
    """The text of those pages of the table of contents that are made from data, not written.

    Raises:
        BookError: a chapter has not recorded a claim.
        ValueError: a card, a sidecar, a record or a marker is not as it must be.
    """
    made = {}
    if "book/scoreboard" in pages:
        from helpers.claims import registry, scoreboard, verdicts

        folder = root / "build" / "results"
        missing = [
            pair for pair in verdicts.unrecorded(folder) if f"notebooks/{registry.load()[pair[0]].chapter}" in pages
        ]
        if missing:
            listed = ", ".join(f"{claim} on {track}" for claim, track in missing)
            raise BookError(
                f"the scoreboard has no record of {listed}, which book/claims.yml calls measured: see that their "
                "chapters record them, and delete build/executed to have them executed again"
            )
        made["book/scoreboard"] = scoreboard.scoreboard_page(folder)
        made["book/found"] = scoreboard.found_page(folder)  # a part of the first page
    if "book/models" in pages:
        from helpers.building import models_page

        made["book/models"] = models_page.models_page()
    if "book/paper_scale" in pages:
        from helpers.building import lineup

        made["book/lineup"] = lineup.text()  # a part of that page
    if "book/faults" in pages:
        made["book/faults"] = faults.faults_page(root / "tests")
    if "book/api" in pages:
        made["book/api"] = api_page.api_page(ROOT / "helpers")
    if "book/timings" in pages:
        made["book/timings"] = timings_page(read_state(root))
    return made


def configuration(root: Path) -> dict:
    """``_config.yml`` with the version, and with buttons that lead to the sources where their address is known."""
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    page = config.setdefault("html", {})
    page["extra_footer"] = f"{page.get('extra_footer', '')} Version {__version__}."
    url = launch.repository_url(root)
    config["repository"] = {"url": url or "", "branch": "main", "path_to_book": ""}
    if url:
        buttons = ("use_repository_button", "use_edit_page_button", "use_issues_button")
        page.update(dict.fromkeys(buttons, True))
        config["launch_buttons"] = {
            "notebook_interface": "jupyterlab",
            "colab_url": "https://colab.research.google.com",
            "binderhub_url": "https://mybinder.org",
        }
        config["sphinx"]["config"]["extensions"].append(launch.__name__)
    return config


def stage(root: Path) -> str:
    """Lay out ``build/src`` anew and return its hash: pages, executed chapters, generated pages, configuration.

    Where the configuration says ``hide_solutions``, the chapters are laid out without the solutions of their exercises.

    Raises:
        BookError: a chapter is missing from the table of contents, or an entry of it has no source.
    """
    pages = documents(root)
    unlisted = [path.stem for path in chapters(root) if f"notebooks/{path.stem}" not in pages]
    if unlisted:
        raise BookError(f"book/_toc.yml does not list these chapters: {', '.join(unlisted)}")
    source = root / "build" / "src"
    remove(source)
    shutil.copytree(root / "book", source / "book")
    (source / "notebooks").mkdir()
    config = configuration(root)
    try:
        for notebook in chapters(root):
            place = Path(shutil.copy(root / "build" / "executed" / notebook.name, source / "notebooks"))
            if solutions.hidden(config):
                nbformat.write(solutions.without_solutions(nbformat.read(place, as_version=4)), place)
        generated = generated_pages(root, pages)
    except ValueError as error:
        raise BookError(f"a page can't be made: {error}") from error
    for name, text in generated.items():
        (source / f"{name}.md").write_text(text, encoding="utf-8")
    (source / "_config.yml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    missing = [name for name in pages if not any((source / f"{name}{end}").exists() for end in (".md", ".ipynb"))]
    if missing:
        raise BookError(f"book/_toc.yml lists pages that do not exist: {', '.join(missing)}")
    maker = digest(ROOT, [*Path(__file__).parent.glob("*.py"), ROOT / "constraints.txt"])
    return maker + digest(source, files_below(source))


def build(root: Path) -> Path:
    """Build the staged tree with Jupyter Book, from nothing, every warning an error; the folder of its HTML.

    A build on top of an earlier one would not repeat the warnings of pages that it takes over.

    Raises:
        BookError: Jupyter Book failed or warned.
    """
    output, source = root / "build" / "_build", root / "build" / "src"
    remove(output)
    command: list[str | Path] = [Path(sys.executable).with_name("jupyter-book"), "build", source]
    command += ["--path-output", root / "build", "--config", source / "_config.yml"]
    command += ["--toc", source / "book" / "_toc.yml", "-W", "-n", "--keep-going"]
    ran = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    log = re.sub(r"\x1b\[[0-9;]*m", "", ran.stdout)  # without the terminal's colours
    (root / "build" / "logs" / "jupyter-book.log").write_text(log)
    if ran.returncode or not (output / "html" / "index.html").exists():
        said = [line for line in log.splitlines() if "WARNING" in line or "ERROR" in line]
        said = said or log.splitlines()[-30:]
        raise BookError("Jupyter Book did not build the site:\n\n" + "\n".join(said))
    config = yaml.safe_load((source / "_config.yml").read_text(encoding="utf-8"))
    head.complete(output / "html", config["title"], documents(root)[0], config["repository"]["url"])
    launch.offer(root, output / "html", config)
    return output / "html"


def publish(root: Path, built: Path) -> Path:
    """Put a built site in the place of the published one; its first page."""
    place, former = root / "build" / "site", root / "build" / "site.former"
    remove(former)
    if place.exists():
        place.rename(former)
    built.rename(place)
    shutil.rmtree(former, ignore_errors=True)
    return place / "index.html"


def make(root: Path = ROOT, jobs: int | None = None) -> Path:
    """Bring the whole book up to date; the path of the site's first page.

    Raises:
        BookError: a cell failed, Jupyter Book warned, or the built site has a fault. The site that was
            published before stays as it is.
    """
    root = root.resolve()
    lock = root / "build" / ".lock"
    lock.parent.mkdir(exist_ok=True)
    if lock.is_dir():  # no build's
        remove(lock)
    try:
        with FileLock(lock, timeout=0):
            return bring_up_to_date(root, jobs)
    except Timeout:
        raise BookError("another process is making this book just now") from None


def bring_up_to_date(root: Path, jobs: int | None) -> Path:
    """What ``make`` does, in a repository that no other build is at work in."""
    published = root / "build" / "site"
    index = published / "index.html"
    if (former := root / "build" / "site.former").is_dir() and not index.exists():
        remove(published)
        former.rename(published)  # a build was killed between the two renames of publish
    execute(root, jobs)
    key, state = stage(root), read_state(root)
    if index.exists() and state["site"] == {"key": key, "files": digest(published, files_below(published))}:
        return index
    print("building the site", file=sys.stderr)
    built = build(root)
    wrong = site.faults(built, documents(root))
    if wrong:
        raise BookError("the site was built, but has faults:\n\n" + "\n".join(wrong))
    publish(root, built)
    write_state(root, state | {"site": {"key": key, "files": digest(published, files_below(published))}})
    return index


def main() -> int:
    """The command: makes the book and prints the one path to open."""
    parser = argparse.ArgumentParser(
        prog="python -m helpers.building.book", description="Bring the whole book up to date."
    )
    parser.add_argument("--jobs", type=int, help="chapters at a time (default: as many as there are cores)")
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository (default: this one)")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        print(make(arguments.root, arguments.jobs))
    except BookError as error:
        print(f"\nThe book was not made. {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
