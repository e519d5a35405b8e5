"""The page of the library: every room that a reader may import, from its docstrings, by Sphinx's autodoc."""

from hashlib import sha256
from pathlib import Path

from helpers import files

DEPARTMENTS = {"Images": "images", "Networks": "networks", "Measures": "measures"}  # heading → folder of ``helpers``
GIVES = {  # measure → how to have it as a table ("" where it is one), and what draws it
    "heatmap.cka_heatmap": ("CKAResult.to_frame, CKAResult.to_table", "CKAResult.plot, plots.cka_heatmaps"),
    "batch_sizes.cka_in_batches": ("CKAResult.to_frame, CKAResult.to_table", "CKAResult.plot, plots.cka_heatmaps"),
    "attention.attention_distance": ("", "Result.plot, plots.sorted_heads, plots.line_band"),
    "attention.attended_patches": ("", "plots.heatmap"),
    "head_subsets.head_subsets": ("", "plots.line_band"),
    "rollout.rollout_maps": ("rollout.on_object", "plots.heatmap"),
    "class_attention.class_attention": ("class_attention.on_object_by_head", "plots.heatmap"),
    "receptive_field.effective_receptive_fields": (
        "ReceptiveFields.table",
        "Result.plot, plots.line_band, plots.heatmap",
    ),
    "skip_ratios.skip_ratios": ("SkipRatios.table, SkipRatios.by_token", "Result.plot, plots.line_band, plots.heatmap"),
    "token_patches.token_patches": ("localization.table", "Result.plot, plots.line_band, plots.heatmap"),
    "probes.features": ("probes.probe_scores", "Result.plot, plots.line_band"),
    "data_scale.probed": ("data_scale.scores", "plots.line_band"),
    "object_probes.probe_object": ("object_probes.of_networks", "plots.line_band"),
    "fourier.spectra": ("Spectra.table, Spectra.curve", "Result.plot, plots.line_band"),
    "feature_variance.feature_variance": ("FeatureVariance.table", "Result.plot, plots.line_band"),
    "frequency_noise.answers_under_noise": ("UnderNoise.table", "plots.line_band"),
    "patch_shuffle.shuffled_answers": ("", "plots.line_band"),
    "lesions.lesions": ("", "plots.line_band"),
    "scores.scores": ("", ""),
    "hessian.hessian_spectra": ("", "plots.line_band"),
    "hessian.curvature_along": ("", ""),
    "landscape.rays": ("landscape.rises", "plots.line_band"),
    "landscape.plane": ("", "plots.heatmap"),
}
KEPT = """\
A measure gives a pandas table, or something that makes one, and nothing of our own stands between that and a figure. In
a table with a column `left_out` the rows of −1 are of all images (`uncertainty.whole` takes them) and the others are
for errors. `results.write` keeps any table with a note of what it was made from, and `results.read` gives back both.
The functions of `plots` take such tables, with the names of the columns to be drawn.

For whoever wants neither to name columns nor to know where files lie, `Result` holds such a table:
`Result("attention_distance", table)`, or one of a report, `Result.load(folder, "attention_distance")`.
`Result.to_frame` is the table, `Result.plot` the measure's usual figure, `Result.save` and `Result.load` keep both with
their provenance.
`CKAResult` has the same four; its file holds all that its errors need."""
ROOMS = ("results", "recorded", "uncertainty", "plots")  # those that stand alone
INTRO = """\
Everything on this page is made from the docstrings of the code when the site is built. A shape such as (n, 3, H, W) is
that of a tensor: n images of three colours, H × W pixels. *Raises* names the errors, whose messages say what to do.
Where pip installed the library it is called `how_vits_see` and not `helpers`.
[Run it, and use your own models](/book/using_your_own.md) shows the functions at work."""


def api_page(helpers: Path) -> str:
    """The page in MyST markdown. ``helpers``: the folder of the library."""
    parts = ["# The library, function by function", INTRO]
    for heading, folder in DEPARTMENTS.items():
        rooms = sorted(path.stem for path in (helpers / folder).glob("[!_]*.py"))
        parts += [f"## {heading}", *(_room(f"helpers.{folder}.{room}") for room in rooms)]
    parts += ["## What a measure gives, and what draws it", KEPT, _gives()]
    parts += ["## Tables, intervals, figures", *(_room(f"helpers.{room}") for room in ROOMS)]
    code = sha256("".join(map(files.sha256, sorted(helpers.rglob("*.py")))).encode()).hexdigest()
    parts.append(f"% made from code with the sha256 {code}: with other docstrings the page is another one")
    return "\n\n".join(parts) + "\n"


def _gives() -> str:
    """The table of ``GIVES`` in markdown."""
    rows = ["| Measure | As a table | Drawn by |", "|:--|:--|:--|"]
    for measure, (table, drawn) in GIVES.items():
        cells = (", ".join(f"`{name}`" for name in names.split(", ")) if names else "" for names in (table, drawn))
        first, second = cells
        rows.append(f"| `{measure}` | {first or 'it is one'} | {second or 'read as it is'} |")
    return "\n".join(rows)


def _room(name: str) -> str:
    """The heading of a room, and what its own docstrings say; not those of what it imports."""
    directive = f".. automodule:: {name}\n   :members:\n   :ignore-module-all:"
    return f"### {name}\n\n```{{eval-rst}}\n{directive}\n```"
