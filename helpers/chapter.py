"""What every chapter does with its numbers: it hands them to the prose, stores its tables and judges its claims.

One object serves a whole chapter. It is made in the cell of imports and knows what all the chapter's results share::

    chapter = Chapter("03_attention", models=models.values(), images=scene_images(1024), seed=0)

    chapter.say(photos=500)                                         # {glue:text}`photos:.0f` in the prose
    chapter.store("heads", "Attention distance of all heads", table, units={"distance": "px"})
    chapter.judge("R8", "scenes", farthest, table, figure="fig-attention-heads", n=1024)
    chapter.verdicts()                                              # the last cell
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
from myst_nb import glue
from pandas.api.types import is_float_dtype

from helpers import results
from helpers.claims.scoreboard import ChapterVerdicts, chapter_verdicts
from helpers.claims.verdicts import estimated, record
from helpers.images.sources import ImageSet
from helpers.measures.heatmap import CKAResult

Models = Iterable[str] | Mapping[str, Any]
Images = ImageSet | Mapping[str, Any]
Other = Sequence[Callable[..., Any] | pd.DataFrame | CKAResult]  # what was measured, after its own statistic if any


class Chapter:
    """A chapter's name and what its results come from, with all that is done with these results.

    Args:
        name: the notebook's name without its ending, such as "03_attention".
        models: what the chapter's tables are measured on, unless a table says otherwise: names of zoo models, or a
            mapping from any model's name to what is known of it.
        images: likewise the images, as a set or as its ``describe()``.
        seed: of everything that is drawn at random.

    Raises:
        ValueError: a name that is not a chapter's.
        TypeError: a single string for the models, images that are neither a set nor a description.
    """

    def __init__(self, name: str, models: Models = (), images: Images | None = None, seed: int | None = None) -> None:
        if not re.fullmatch(results.CHAPTER, name):
            raise ValueError(f"a chapter has the name of its notebook, such as '03_attention'; got {name!r}")
        self.name, self.seed = name, seed
        self.models, self.images = _models(models), _description(images)

    def say(self, **numbers: Any) -> None:
        """Hand numbers to the prose, which shows ``spread_first`` with the role {glue:text}`spread-first:.2f`.

        Raises ``TypeError`` for anything that is not a single number.
        """
        for name, number in numbers.items():
            try:
                value = float(number)
            except (TypeError, ValueError) as error:
                raise TypeError(f"say({name}=…) takes a single number; got {number!r}") from error
            glue(name.replace("_", "-"), value, display=False)

    def store(
        self,
        name: str,
        what: str,
        table: pd.DataFrame,
        *,
        units: Mapping[str, str] | None = None,
        models: Models | None = None,
        images: Images | None = None,
    ) -> None:
        """Store a table that the chapter draws, with its provenance, as ``results.write`` does.

        Args:
            name: of the table, without the chapter's: "heads".
            what: one sentence on what it holds.
            table: one observation a row, index 0 … N−1.
            units: of the columns that have one; all other columns of floats are plain numbers.
            models: where they are not the chapter's; () where there are none.
            images: where they are not the chapter's; {} where there are none.

        Raises:
            ValueError: as ``results.write``, for a table or a unit that does not fit.
            TypeError: as ``Chapter``, for models and images.
        """
        plain = {column: "1" for column in table if is_float_dtype(table[column])}
        results.write(
            f"{self.name}/{name}",
            table,
            what=what,
            units=plain | dict(units or {}),
            models=self.models if models is None else _models(models),
            images=self.images if images is None else _description(images),
            seed=self.seed,
        )

    def judge(
        self,
        claim: str,
        track: str,
        statistic: Callable[..., Any],
        *measured: pd.DataFrame | CKAResult,
        figure: str,
        n: int | None = None,
        note: str = "",
        jumps: bool = False,
        seeds: Mapping[str, Other] | None = None,
        controls: Mapping[str, Other] | None = None,
    ) -> None:
        """Take a claim's statistic of what was measured, with its 95 % interval over groups of images, and record it.

        Where the same recipe was trained from other seeds as well, the verdict has an interval over trainings beside.

        Args:
            claim: its id in ``book/claims.yml``.
            track: "scenes" or "imagenet".
            statistic: function of the tables, or of the matrix of the CKA result, to a number for each part.
            measured: tables with a column ``left_out``, all of the same images; or one CKA result.
            figure: name of the figure that shows it, "fig-…".
            n: number of images behind the tables; a CKA result knows its own.
            note: what a reader of the verdict should know.
            jumps: whether the statistic jumps, as ranks, counts and places of a maximum do: its interval is then a
                bootstrap's, as the jackknife's would be too short.
            seeds: name → what was measured of another training of the same recipe, such as {"seed 1": [table]}: other
                tables (or another CKA result) of which the same statistic is taken, with a function in front of them
                where it is found at other places there: {"seed 1": [statistic_of_seed1, result]}.
            controls: name → what should not meet the criterion, in the same form.

        Raises:
            TypeError: nothing measured, a CKA result beside something else, tables without their number of images.
            ValueError: as ``record``, and where the tables do not belong together.
        """
        if not measured or (len(measured) > 1 and any(isinstance(one, CKAResult) for one in measured)):
            kinds = ", ".join(type(one).__name__ for one in measured) or "nothing"
            raise TypeError(f"{claim} is judged by tables with a column left_out, or by one CKA result; got {kinds}")
        if isinstance(measured[0], CKAResult):
            n = measured[0].n_images if n is None else n
        elif n is None:
            raise TypeError(f"{claim}: say how many images are behind the tables: n=…")

        def beside(others: Mapping[str, Other] | None) -> dict[str, dict[str, Any]]:
            found = {}
            for name, (first, *rest) in (others or {}).items():
                own, tables = (first, rest) if callable(first) else (statistic, [first, *rest])
                found[name] = estimated(own, tables, jumps)
            return found

        own, others = estimated(statistic, measured, jumps), {"seeds": beside(seeds), "controls": beside(controls)}
        self.record(claim, track, **own, **others, figure=figure, n=n, note=note)

    def record(self, claim: str, track: str, value: Any, stderr: Any = None, **given: Any) -> None:
        """Record a claim whose statistic and uncertainty are known, print the verdict, and say its numbers.

        Arguments and errors are those of ``verdicts.record``, with the chapter filled in. The prose shows the number of
        a claim with one part as {glue:text}`scenes-r8:.2f`, of one with several as {glue:text}`scenes-r7-nearest:.2f`:
        those of the first training, which the figures show. Where there are others, their mean and the ends of its
        interval over trainings are {glue:text}`scenes-r8-trainings:.2f`, `scenes-r8-least` and `scenes-r8-most`.
        """
        verdict = record(claim, track, value, stderr, chapter=self.name, **given)
        print(verdict)
        for part, over in zip(verdict.parts, verdict.over, strict=True):
            name = (f"{track}_{claim}" if len(verdict.parts) == 1 else f"{track}_{claim}_{part.part.name}").lower()
            self.say(**{name: part.value})
            if over:
                self.say(**{f"{name}_trainings": over.value, f"{name}_least": over.low, f"{name}_most": over.high})

    def verdicts(self) -> ChapterVerdicts:
        """The chapter's claims with their verdicts, for its last cell. Raises as ``chapter_verdicts``."""
        return chapter_verdicts(self.name)


def _models(models: Models) -> list[str] | dict[str, Any]:
    if isinstance(models, str):
        raise TypeError(f"models is a list of names or a mapping, not the string {models!r}")
    return dict(models) if isinstance(models, Mapping) else list(models)


def _description(images: Images | None) -> dict[str, Any]:
    if images is None:
        return {}
    if isinstance(images, ImageSet):
        return images.describe()
    if not isinstance(images, Mapping):
        raise TypeError(f"images is an ImageSet or the description of one; got a {type(images).__name__}")
    return dict(images)
