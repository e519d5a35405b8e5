"""The figures: opaque, on one scale, legible, and marked where a network's blocks and stages are."""

import base64
import io

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import nbclient  # noqa: E402
import nbformat  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import pytest  # noqa: E402
from matplotlib.colors import to_rgb  # noqa: E402
from PIL import Image  # noqa: E402

from helpers import plots  # noqa: E402

VIT = ["embed", *(f"blocks.{i}.{kind}" for i in range(12) for kind in ("resid_mid", "resid_post"))]
RESNET = ["stem", *(f"layer{stage + 1}.{block}" for stage, count in enumerate((3, 4, 6)) for block in range(count))]


@pytest.fixture(autouse=True)
def style():
    with matplotlib.rc_context():
        plots.use_style()
        yield
    plt.close("all")


def cka(rows, columns, value=0.5):
    return pd.DataFrame(np.full((len(rows), len(columns)), value), index=rows, columns=columns)


def drawn(ax):
    return ax.collections[0].get_array().reshape(-1)


def test_the_ground_is_opaque_and_light(tmp_path):
    plots.draw_cka(cka(VIT, VIT)).figure.savefig(tmp_path / "map.png")
    pixels = plt.imread(tmp_path / "map.png")
    assert pixels.shape[2] == 3 or pixels[..., 3].min() == 1
    assert min(pixels[0, 0, :3]) > 0.95


def test_text_is_legible_on_a_phone():
    """At least 9 pixels high where a figure of the style's own size is shown 360 pixels wide."""
    width = matplotlib.rcParams["figure.figsize"][0] * 72  # points
    for size in ("xtick.labelsize", "ytick.labelsize", "axes.labelsize", "legend.fontsize"):
        assert matplotlib.rcParams[size] * 360 / width >= 9


def test_ticks_count_blocks_of_a_vit_from_0():
    at, labels, edges, counted = plots.depth_ticks(VIT)
    assert (labels, edges, counted) == (["in", "1", "3", "5", "7", "9", "11"], [], "block")
    assert at == [0.5, 4.5, 8.5, 12.5, 16.5, 20.5, 24.5]  # at the blocks' outputs


@pytest.mark.parametrize("places", [RESNET, [name.replace("layer", "stages.").replace("m", "m") for name in RESNET]])
def test_ticks_count_stages_of_a_resnet_from_1(places):
    at, labels, edges, counted = plots.depth_ticks(places)
    assert (labels, edges, counted) == (["in", "1", "2", "3"], [1, 4, 8], "stage")
    assert at == [0.5, 2.5, 6, 11]


def test_timms_second_resnet_counts_its_stages_from_1_too():
    places = ["stem", *(f"stages.{stage}.blocks.{block}" for stage in range(4) for block in range(4))]
    assert plots.depth_ticks(places)[1:3] == (["in", "1", "2", "3", "4"], [1, 5, 9, 13])


def test_a_cka_map_spans_0_to_1_with_the_entrance_at_the_lower_left():
    matrix = cka(VIT, RESNET, 0.2)
    matrix.iloc[0, -1] = -0.1
    ax = plots.draw_cka(matrix, x="ResNet-50", y="ViT-Ti/16")
    assert ax.collections[0].get_clim() == (0, 1)
    assert ax.get_xlabel() == "ResNet-50 stage" and ax.get_ylabel() == "ViT-Ti/16 block"
    assert ax.get_ylim()[0] == 0 and ax.get_xlim()[0] == 0 and ax.get_box_aspect() == 1
    assert len(ax.lines) == 3 and ax.get_title() == ""  # two lines fewer than stages and entrance; no title
    np.testing.assert_array_equal(drawn(ax), matrix.to_numpy().ravel())
    assert not plots.draw_cka(matrix, stages=False).lines


def test_a_map_without_numbers_is_refused():
    with pytest.raises(ValueError, match="no finite number"):
        plots.draw_cka(cka(VIT, VIT, np.nan))


def test_maps_side_by_side_share_scale_and_colour_bar():
    figure = plots.cka_heatmaps({"ViT": cka(VIT, VIT), "ResNet": cka(RESNET, RESNET), "across": cka(VIT, RESNET)})
    maps = [ax for ax in figure.axes if ax.get_title()]
    assert [ax.get_title() for ax in maps] == ["ViT", "ResNet", "across"]
    assert {ax.collections[0].get_clim() for ax in maps} == {(0, 1)}
    assert [ax.get_ylabel() for ax in figure.axes].count("CKA") == 1


def test_any_matrix_as_a_heatmap():
    matrix = np.array([[-1.0, 2.0], [np.nan, 0.5]])
    ax = plots.heatmap(matrix, label="weight", diverging=True)
    low, high = ax.collections[0].get_clim()
    assert low == -high == -2 and ax.get_ylim()[0] > ax.get_ylim()[1]  # 0 in the middle, row 0 at the top


def test_lines_have_bands_of_the_errors_given():
    one = pd.DataFrame({"depth": [0.0, 0.5, 1.0], "CKA": [0.9, 0.5, 0.1], "error": 0.05, "low": 0.0, "high": 1.0})
    ax = plots.line_band(one, x="depth", y="CKA", error="error")
    assert ax.collections[0].get_paths()[0].get_extents().ymax == pytest.approx(0.95)
    ax = plots.line_band(one, plt.figure().subplots(), x="depth", y="CKA", error=("low", "high"))
    assert ax.collections[0].get_paths()[0].get_extents().ymax == 1
    for first, second in (("b", "a"), (3, 2)):  # not in the order of the alphabet, or of numbers
        two = pd.concat([one.assign(model=first), one.assign(model=second, CKA=0.3)])
        ax = plots.line_band(two, plt.figure().subplots(), x="depth", y="CKA", error="error", hue="model")
        assert sorted(line.get_ydata()[1] for line in ax.lines[:2]) == pytest.approx([0.3, 0.5])
        for line, band in zip(ax.lines, ax.collections, strict=False):
            assert band.get_facecolor()[0, :3] == pytest.approx(to_rgb(line.get_color()))
            assert band.get_paths()[0].get_extents().ymin == pytest.approx(min(line.get_ydata()) - 0.05)
    assert (
        len({line.get_linestyle() for line in ax.lines[:2]}) == 2
        or len({line.get_marker() for line in ax.lines[:2]}) == 2
    )


def test_bands_have_the_colours_of_their_own_lines_on_axes_that_hold_others():
    one = pd.DataFrame({"depth": [0.0, 1.0], "CKA": [0.9, 0.1], "error": 0.05})
    ax = plt.subplots()[1]
    ax.axhline(0.5, color="black")
    plots.line_band(one, ax, x="depth", y="CKA", error="error")
    assert ax.collections[0].get_facecolor()[0, :3] == pytest.approx(to_rgb(ax.lines[1].get_color())) != [0, 0, 0]


def test_heads_are_sorted_and_uniform_attention_is_drawn():
    table = pd.DataFrame({"block": [0, 0, 0, 11, 11, 11], "mean distance (px)": [90, 10, 50, 100, 105, 95]})
    ax = plots.sorted_heads(table, uniform=116.5)
    assert list(ax.lines[0].get_ydata()) == [10, 50, 90] and list(ax.lines[1].get_ydata()) == [95, 100, 105]
    assert any(set(line.get_ydata()) == {116.5} for line in ax.lines)


def test_images_in_a_grid():
    images = np.zeros((5, 3, 8, 8), dtype=np.uint8)
    figure = plots.scene_grid(images, list("abcde"), columns=3)
    assert [ax.get_title() for ax in figure.axes] == [*"abcde", ""]
    assert figure.axes[0].images[0].get_array().shape == (8, 8, 3)
    with pytest.raises(ValueError, match="5 images and 2 labels"):
        plots.scene_grid(images, ["a", "b"])
    with pytest.raises(ValueError, match="images are"):
        plots.scene_grid(np.zeros((8, 8, 3)))


def test_a_notebook_draws_figures_with_twice_the_pixels_in_the_same_space(root):
    source = "from helpers import plots\nplots.use_style()\nplots.plt.subplots(figsize=(3, 2)); plots.plt.show()"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    nbclient.NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": root}}).execute()
    (output,) = (output for output in notebook.cells[0].outputs if "image/png" in output.get("data", {}))
    with Image.open(io.BytesIO(base64.b64decode(output.data["image/png"]))) as image:
        shown = output.metadata["image/png"]
        assert [2 * shown["width"], 2 * shown["height"]] == pytest.approx(image.size, abs=2)
