"""The chapters run with other parameters than the book's: other models, images, batches and seeds.

While they run, what they draw of jackknife errors is noted (``test_intervals.py``).
"""

import json
from pathlib import Path

import papermill
import pytest
import yaml
from test_intervals import multiples, read, watched

SMALL = {
    "00_scenes": {"models": ["resnet-seed1", "vit-gap"], "images": 128, "probe_images": 1500, "seed": 1},
    "01_similarity": {"models": ["vit-seed1", "resnet-seed1"], "images": 96, "batch": 32, "seed": 1},
    "02_representation": {
        "models": {"ViT": "vit-gap", "ResNet": "resnet-seed1"},
        "second": {"ViT": "vit-gap", "ResNet": "resnet"},
        "third": {"ViT": "vit-gap", "ResNet": "resnet-seed1"},
        "gap": "vit-gap",
        "images": 96,
        "batch": 32,
        "many": 96,
        "sizes": [32, 16],
        "seed": 1,
    },
    "03_attention": {
        "models": {"ViT": "vit-seed1", "ResNet": "resnet-seed1"},
        "seeds": {"seed 1": {"ViT": "vit-short", "ResNet": "resnet"}},
        "larger": {"3 %": "vit-data10", "all": "vit-short", "all, second seed": "vit"},
        "smaller": {"3 %": "vit-small-data10", "all": "vit-small"},
        "images": 64,
        "fewer": 32,
        "many": 96,
        "seed": 1,
    },
    "03b_receptive_fields": {
        "models": {"ViT": "vit-seed1", "ResNet": "resnet-seed1"},
        "seeds": {"seed 1": {"ViT": "vit-short", "ResNet": "resnet"}},
        "receptive": {"images": 16, "channels": 1},
        "images": 64,
        "fewer": 32,
        "seed": 1,
    },
    "04_skip_connections": {
        "models": {"ViT": "vit-seed1", "ResNet": "resnet-seed1"},
        "seeds": {"seed 1": {"ViT": "vit", "ResNet": "resnet"}},
        "control": "vit-short-seed1",
        "control_second": "vit-short",
        "lacking": [4],
        "images": 10,  # ten groups of one image for skip ratios
        "fewer": 10,
        "many": 64,  # four groups for CKA
        "batch": 16,
        "seed": 1,
    },
    "05_spatial_information": {
        "models": {"ViT": "vit-seed1", "ViT, GAP": "vit-gap", "ResNet": "resnet-seed1"},
        "seeds": {"seed 1": {"ViT": "vit", "ViT, GAP": "vit-gap-seed1", "ResNet": "resnet"}},
        "masked": "vit-mae-seed1",
        "mirrored": "vit-short-seed1",
        "images": 64,
        "fewer": 64,
        "batch": 16,
        "learn": 400,
        "probed": 96,
        "shots": 2,
        "draws": 2,
        "seed": 1,
    },
    "06_data_scale": {
        "families": {
            "ViT": ["vit-data10", "vit-data3", "vit-short", "vit-data30"],
            "small ViT": ["vit-small", "vit-small-data3", "vit-small-data10", "vit-small-data30"],
            "ResNet": ["resnet-data3", "resnet-data10", "resnet-data30", "resnet-seed1"],
        },
        "second": {"ViT": "vit-data3", "small ViT": "vit-small", "ResNet": "resnet-data3"},
        "main": "vit-seed1",
        "convolutional": "resnet-seed1",
        "seeds": {"second seed": ["vit", "resnet"], "third seed": ["vit", "not trained yet"]},
        "other": "vit",
        "images": 96,
        "closely": 64,
        "fewer": 64,
        "few": 64,
        "shots": 2,
        "learn": 320,
        "scored": 64,
        "looked": 32,
        "seed": 1,
    },
    "07_inside_a_vit": {
        "models": {"ViT": "vit-seed1", "ResNet": "resnet-seed1"},
        "seeds": ["vit", "not trained yet"],
        "mirrored": "vit-short-seed1",
        "encodings": {
            "learned": ["vit-small-seed1", "vit-small"],
            "none": ["vit-small-none-seed1", "vit-small-none"],
            "sines, 1-D": ["vit-small-sines-1d-seed1", "vit-small-sines-1d"],
            "sines, 2-D": ["vit-small-sines-2d-seed1", "vit-small-sines-2d"],
            "relative": ["vit-small-relative-seed1", "vit-small-relative"],
        },
        "images": 32,
        "draws": 5,
        "seed": 1,
    },
    "08_frequency_and_variance": {
        "vits": ["vit-seed1", "vit-gap", "not trained yet"],
        "resnets": ["resnet-seed1", "resnet", "resnet"],
        "images": 32,
        "seed": 1,
    },
    "09_loss_landscape": {
        "models": {"ViT": "vit", "ResNet": "resnet"},  # whose spectra are recorded
        "seeds": {"seed 1": {"ViT": "vit-seed1", "ResNet": "not recorded yet"}},
        "pooled": {"vit": "vit-gap"},
        "live": ["vit-small-seed1", "vit-small"],
        "heads": {"1": ["vit-short", "vit-seed1"], "8": ["vit-gap", "not recorded yet"]},  # with recorded spectra
        "widths": {"8": ["vit"], "16": ["vit-short", "vit-short-seed1"], "32": ["vit-seed2", "vit-seed1"]},
        "patches": {"4": ["vit-gap"], "8": ["vit-short", "vit-seed1"], "16": ["vit", "vit-seed2"]},
        "stages": {"ViT": ["vit", "not trained yet"], "PiT": ["resnet"], "Swin": ["resnet", "resnet-seed1"]},
        "augmented": {"weak": ["vit-small-seed1"], "strong": ["vit-small", "not trained yet"]},
        "recipe": ["vit-short", "vit-small", "mixer", "resnet-short"],
        "again": "vit-small",
        "many": 2,
        "sizes": [8, 16],
        "learnt": 64,
        "images": 64,
        "directions_tried": 1,
        "seed": 1,
    },
    "10_building_with_attention": {
        "models": {"ViT": "vit-seed1", "Mixer": "mixer", "ResNet": "resnet-seed1"},
        "seeds": ["resnet", "not trained yet"],
        "windowed": {"ViT": "vit-seed1", "ViT, GAP": "vit-gap-seed1", "small ViT": "vit-small-seed1"},
        "sides": [1, 7],
        "restricted": {
            "3 × 3": ["vit-small-window3-seed1", "vit-small-window3"],
            "5 × 5": ["vit-small-window5-seed1", "vit-small-window5"],
            "all": ["vit-small-seed1", "vit-small"],
        },
        "staged": {
            "PiT": ["pit", "not trained yet"],
            "Swin": ["swin", "pit"],  # a second network that has stages
            "ResNet": ["resnet-short-seed1", "resnet-short"],
            "ViT": ["vit-small", "vit-short"],
        },
        "built": {
            "ResNet": ["resnet-brief-seed1", "resnet-brief"],
            "end of stage 4": ["alternet-end4-seed1", "alternet-end4"],
            "ends of stages 3, 4": ["not trained yet"],
            "ends of stages 2, 3, 4": ["not trained yet"],
            "start of stage 4": ["alternet-start4-seed1", "not trained yet"],
            "blurred": ["resnet-blurred", "not trained yet"],
        },
        "images": 32,
        "similar": 64,
        "tested": 64,
        "learnt": 64,
        "batch": 16,
        "seed": 1,
    },
    "11_architecture_and_objective": {
        "models": {
            "ViT": ["vit-small-seed1", "vit-small"],
            "masked ViT": ["vit-small-mae", "not trained yet"],
            "denoiser": ["vit-small-denoiser", "not trained yet"],
            "PiT": ["pit", "not trained yet"],
            "Swin": ["swin", "not trained yet"],
            "ConvNeXt": ["convnext", "not trained yet"],
            "ResNet": ["resnet-short-seed1", "resnet-short"],
        },
        "images": 64,
        "batch": 8,
        "shots": 2,
        "learn": 320,
        "scored": 64,
        "seed": 1,
    },
}

TWO_ERRORS = {"01_similarity"}  # draws two errors to either side, and says so
GROUPED = {"02_representation": {3}, "04_skip_connections": {4, 10}, "05_spatial_information": {4}}  # besides sixteen


@pytest.mark.parametrize("chapter", SMALL)
def test_a_chapter_runs_with_other_parameters(root, tmp_path, monkeypatch, chapter):
    source = root / "notebooks" / f"{chapter}.ipynb"
    known = papermill.inspect_notebook(str(source))
    assert not set(SMALL[chapter]) - set(known), "the chapter has lost a parameter"
    environment = watched(root, tmp_path)
    for name, value in {**environment, "VIT_BOOK_RESULTS": str(tmp_path), "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    papermill.execute_notebook(
        str(source), None, SMALL[chapter], kernel_name="python3", cwd=root, progress_bar=False, execution_timeout=600
    )
    wanted = [
        (claim["id"], track)
        for section in yaml.safe_load((root / "book" / "claims.yml").read_text())["sections"]
        for claim in section["claims"]
        if section["chapter"] == chapter and claim["status"] == "measured"
        for track in claim["tracks"]
    ]
    file = tmp_path / "claims" / f"{chapter}.json"
    recorded = json.loads(file.read_text()) if file.exists() else {}
    assert {(claim, track) for claim, tracks in recorded.items() for track in tracks} == set(wanted)
    drawn, errors = read(Path(environment["WATCH_INTERVALS"]))
    assert set(errors) >= GROUPED.get(chapter, set()), f"errors were taken over {sorted(errors)} groups"
    right, wrong = multiples(drawn, errors)
    assert right or not GROUPED.get(chapter), f"of {len(drawn)} series none are jackknife errors"
    assert not wrong or chapter in TWO_ERRORS, (
        f"{chapter} draws {sorted(wrong)} jackknife errors to either side; use uncertainty.half_width(stderr, groups)"
    )


def test_every_chapter_is_run(root: Path):
    assert set(SMALL) == {path.stem for path in (root / "notebooks").glob("[0-9]*.ipynb")}
