"""The benchmarks that the README quotes are those of ``data/benchmarks.csv``, and they can be made."""

import numpy as np
import pandas as pd
import pytest

from helpers.networks import zoo
from tests import bench

ANALYSES = [  # of tests/bench.py, and what each is timed beside
    ("attention distance of the zoo's ViT", bench.FLOOR),
    ("attention rollout of the zoo's ViT", bench.FLOOR),
    ("attention of the class token of the zoo's ViT", bench.FLOOR),
    ("subsets of heads of block 0", "bare first block and stage"),
    ("spectra of feature maps", bench.FLOOR),
    ("variance of feature maps", bench.FLOOR),
    ("token-to-patch CKA of one block", bench.FLOOR),
    ("read-outs for probes, all blocks", bench.FLOOR),
    ("patches shuffled in three sizes, and not", "4 bare forward passes"),
    ("noise in ten bands of frequency, and none", "11 bare forward passes"),
    ("each branch silenced, by zero and by its mean", "34 bare forward passes"),  # of 16 units
    ("the loss along a ray, in 4 places", "4 bare forward passes"),
    ("accuracy and loss", bench.FLOOR),
    ("a product with the Hessian", "forward and backward pass"),
]


def table() -> pd.DataFrame:
    lines = [bench.line("one", 1.5, bench.FLOOR, 1.25, "ms"), bench.line("another", 1234.5, unit="images a second")]
    return pd.DataFrame(lines, columns=bench.COLUMNS).assign(machine="a machine", date="2026-01-02")


def test_readme_quotes_the_stored_benchmarks(root):
    stored = pd.read_csv(root / "data" / "benchmarks.csv")
    assert bench.quoted((root / "README.md").read_text()) == bench.markdown(stored)


def test_stored_benchmarks_are_one_complete_run(root):
    stored = pd.read_csv(root / "data" / "benchmarks.csv")
    assert list(stored.columns) == [*bench.COLUMNS, "machine", "date"]
    assert stored["machine"].nunique() == stored["date"].nunique() == 1
    parts = ["ViT-B/16", "zoo's ViT", "peak memory", "rendered", "training the zoo's vit", "its largest error"]
    parts += [what for what, *_ in ANALYSES] + ["skip ratios", "receptive fields", "ridge probes"]
    for part in parts:
        assert stored["what"].str.contains(part).any(), f"nothing on {part!r}: run make bench and publish it"
    assert {"torch-cka 0.21", "ckatorch 1.0.3"} <= set(stored["beside"].dropna())
    compared = stored.dropna(subset="theirs")
    np.testing.assert_allclose(compared["ratio"], compared["ours"] / compared["theirs"], rtol=2e-3)


def test_table_and_publishing(tmp_path):
    text = bench.markdown(table())
    assert "| one | 1.5 | bare forward pass | 1.25 | 1.2 | ms |" in text
    assert "| another | 1,234 |  |  |  | images a second |" in text and text.endswith("2026-01-02: a machine.")
    readme, data = tmp_path / "README.md", tmp_path / "benchmarks.csv"
    for content in ("", "an older table\n"):
        readme.write_text(f"before\n{bench.START}\n{content}{bench.END}\nafter\n")
        bench.publish(table(), readme, data)
        assert readme.read_text() == f"before\n{bench.START}\n{text}\n{bench.END}\nafter\n"
        assert bench.quoted(readme.read_text()) == bench.markdown(pd.read_csv(data))
    readme.write_text("no place")
    with pytest.raises(ValueError, match="bench:start"):
        bench.publish(table(), readme, data)


def test_heatmap_is_measured_beside_the_forward_pass():
    ours, counted = bench.beside_forward("a ViT", zoo.load("vit", pretrained=False), 64, 8, 1)
    assert "40 taps" in ours["what"] and 0 < ours["theirs"] == counted["theirs"]
    assert counted["ratio"] == pytest.approx(1 + 10 * 8 / (24 * 128))


def test_analyses_are_timed_beside_the_passes_they_need():
    found = {row["what"].removesuffix(", n = 16"): row for row in bench.analyses(16, 1)}
    assert list(found)[:-1] == [what for what, _ in ANALYSES]  # and probes beside scikit-learn
    for what, beside in ANALYSES:
        assert found[what]["beside"] == beside and found[what]["ours"] > 0 and found[what]["theirs"] > 0, what


def test_layer_measures_are_timed_beside_the_passes_they_need():
    for found, beside in (
        (bench.skip_connections(4, 1), bench.FLOOR),
        (bench.receptive_fields(2, 1), "bare backward passes"),
    ):
        assert [row["beside"] for row in found] == [beside] and found[0]["ours"] > 0 and found[0]["theirs"] > 0


def test_flattened_outputs_are_the_activations():
    import torch

    from helpers.networks.taps import capture, taps_for, taps_named

    model = zoo.load("vit", pretrained=False)
    flat = bench.Flat(model).eval()
    taps = taps_for(model, {"attn", "mlp", "resid_post"})
    with torch.inference_mode(), capture(flat, taps_named(flat, [f"flat.{i}" for i in range(24)])) as out:
        with capture(model, taps) as expected:
            flat(torch.randn(2, 3, 64, 64))
    for tap, value in zip(taps, out.values(), strict=True):
        assert torch.equal(value, expected[tap.name].flatten(1)), tap.name
