"""Pictures of the site: fewer bytes where nobody sees it, and a preview."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from helpers.building import pictures


def png(array, **info):
    written = io.BytesIO()
    Image.fromarray(array).save(written, format="png", **info)
    return written.getvalue()


def figure():
    """Lines of two colours with soft edges, and a scale of colours."""
    drawn = Image.new("RGB", (800, 600), "#fcfcfa")
    pen = ImageDraw.Draw(drawn)
    for i in range(10):
        pen.line((20, 580 - 9 * i, 680, 30 + 50 * i), fill=("#0173b2", "#de8f05")[i % 2], width=5)
    for i in range(560):
        pen.line((720, 20 + i, 780, 20 + i), fill=(i * 255 // 560, 80, 200 - i * 150 // 560))
    return np.asarray(drawn.resize((400, 300), Image.Resampling.LANCZOS))


def test_a_figure_weighs_less_and_looks_the_same():
    before = png(figure(), dpi=(240, 240))
    after = pictures.lighter(before)
    assert len(after) < 0.7 * len(before)
    with Image.open(io.BytesIO(after)) as image:
        assert image.mode == "P" and image.info["dpi"] == pytest.approx((240, 240), abs=0.1)
        apart = np.asarray(image.convert("RGB"), float) - figure()
    assert np.sqrt((apart**2).mean()) <= pictures.SEEN


def test_a_photograph_and_what_can_be_seen_through_stay_as_they_are():
    noise = np.random.default_rng(0).integers(0, 256, (80, 80, 4), dtype=np.uint8)
    for before in (png(noise[..., :3].copy()), png(np.where(noise > 127, 255, 0).astype(np.uint8))):
        assert pictures.lighter(before) == before


def test_what_stays_heavy_has_half_the_pixels(tmp_path):
    (tmp_path / "_images").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (400, 900, 3), dtype=np.uint8)
    for name, width in (("heavy", 900), ("light", 800)):
        (tmp_path / "_images" / f"{name}.png").write_bytes(png(noise[:, :width]))
    pictures.lighten(tmp_path)
    sizes = {path.stem: Image.open(path).size for path in (tmp_path / "_images").iterdir()}
    assert sizes == {"heavy": (450, 200), "light": (800, 400)}


def test_lines_are_told_from_colours_that_mean_numbers(tmp_path):
    lines = Image.new("RGB", (400, 300), pictures.GROUND)
    pen = ImageDraw.Draw(lines)
    pen.line((20, 280, 380, 20), fill="#0173b2", width=6)
    pen.rectangle((20, 20, 380, 280), outline=pictures.INK)
    scale = Image.new("RGB", (400, 300), pictures.GROUND)
    scale.paste("#440154", (40, 40, 240, 260))
    photograph = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    (tmp_path / "_images").mkdir()
    for name, picture in {"lines": lines, "map": scale, "photograph": photograph}.items():
        (tmp_path / "_images" / f"{name}.png").write_bytes(png(np.asarray(picture)))
    assert pictures.drawings(tmp_path) == {"lines.png"}
    page = '<img alt="a" src="../_images/lines.png" /><img src="../_images/map.png"/><img src="lines.png">'
    assert pictures.marked(page, {"lines.png"}) == page.replace('<img alt="a"', '<img data-drawing alt="a"')


def test_a_preview_shows_a_figure_of_the_book(tmp_path):
    for folder in ("_static", "_images", "notebooks"):
        (tmp_path / folder).mkdir()
    chapter = '<img src="other.png"><figure id="{}"><img src="../_images/0f.png"/></figure>'
    (tmp_path / "_images" / "0f.png").write_bytes(png(figure()))
    assert not pictures.preview(tmp_path, "A book")  # no such chapter
    (tmp_path / pictures.PAGE).write_text(chapter.format("fig-another"))
    assert not pictures.preview(tmp_path, "A book")  # no such figure
    (tmp_path / pictures.PAGE).write_text(chapter.format(pictures.FIGURE))
    assert pictures.preview(tmp_path, "A book")
    with Image.open(tmp_path / pictures.PREVIEW) as image:
        assert image.size == pictures.SIZE
        shown = np.asarray(image.convert("RGB"), int)
    assert (shown[:110].min(axis=(0, 1)) < 90).all()  # the title's ink
    assert len(np.unique(shown[150:].reshape(-1, 3), axis=0)) > 50  # the figure


def test_a_figure_of_another_run_is_told_from_the_same_drawn_elsewhere(tmp_path):
    drawn = figure()
    nearly = np.clip(drawn + np.random.default_rng(0).integers(-8, 9, drawn.shape), 0, 255).astype(np.uint8)
    for name, array in {"one": drawn, "nearly": nearly, "other": drawn[:, ::-1].copy()}.items():
        (tmp_path / f"{name}.png").write_bytes(png(array))
    one, nearly, other = (tmp_path / f"{name}.png" for name in ("one", "nearly", "other"))
    assert pictures.apart(one, one) == 0
    assert pictures.apart(one, nearly) < pictures.SAME < pictures.apart(one, other)


def test_the_command_renews_the_picture_of_the_readme(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pictures, "ROOT", tmp_path)
    monkeypatch.setattr(pictures, "README", tmp_path / "within.png")
    assert pictures.main() == 1 and "run make book first" in capsys.readouterr().err
    chapter = tmp_path / "build" / "site" / pictures.PAGE
    chapter.parent.mkdir(parents=True)
    chapter.write_text(f'<figure id="{pictures.FIGURE}"><img src="a.png"></figure>')
    chapter.with_name("a.png").write_bytes(b"a picture")
    assert pictures.main() == 0 and (tmp_path / "within.png").read_bytes() == b"a picture"
