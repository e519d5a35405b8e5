"""`make bench`: the library's speed beside the bare forward pass and other people's code. One run, one table.

    python -m tests.bench              writes build/bench/benchmarks.csv and .md
    python -m tests.bench --publish    and copies them to data/benchmarks.csv and into the README
    python -m tests.bench --tiny       a quick walk through the code; its numbers mean nothing

Each line is a ratio of two things measured in the same run, in turns, on an otherwise idle machine. The packages
torch-cka and ckatorch (the extra ``bench``) are left out where they are not installed.
"""

import argparse
import importlib.metadata
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import Ridge
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from helpers.images import scenes
from helpers.measures import objective
from helpers.measures.attention import attention_distance
from helpers.measures.class_attention import class_attention
from helpers.measures.feature_variance import feature_variance
from helpers.measures.fourier import spectra
from helpers.measures.frequency_noise import answers_under_noise
from helpers.measures.head_subsets import head_subsets
from helpers.measures.heatmap import cka_heatmap
from helpers.measures.hessian import hessian_vector_product
from helpers.measures.hsic import BLOCK
from helpers.measures.landscape import rays
from helpers.measures.lesions import lesions, units
from helpers.measures.localization import token_patches
from helpers.measures.patch_shuffle import shuffled_answers
from helpers.measures.probes import features
from helpers.measures.receptive_field import effective_receptive_fields
from helpers.measures.ridge import L2S, ridge
from helpers.measures.rollout import rollout_maps
from helpers.measures.scores import scores
from helpers.measures.skip_ratios import skip_ratios
from helpers.networks import training, zoo
from helpers.networks.inputs import normalise
from helpers.networks.taps import Tap, capture, taps_for, taps_named
from helpers.networks.unfused import unfused

ROOT = Path(__file__).resolve().parent.parent
OUT, PUBLISHED = ROOT / "build" / "bench", ROOT / "data" / "benchmarks.csv"
COLUMNS = ["what", "ours", "beside", "theirs", "ratio", "unit"]
START, END = "<!-- bench:start -->", "<!-- bench:end -->"
FIVE = (".norm1", ".attn", ".resid_mid", ".mlp", ".resid_post")  # five taps a block
FLOOR = "bare forward pass"


def seconds(fn: Callable[[], object]) -> float:
    started = time.perf_counter()
    fn()
    return time.perf_counter() - started


def in_turns(
    ours: Callable[[], object], floor: Callable[[], object], n: int, turns: int, times: int = 1
) -> tuple[float, float]:
    """Milliseconds an image of two calls over n images, the second ``times`` times: medians of turns that alternate."""

    def floors() -> None:
        for _ in range(times):
            floor()

    ours(), floor()  # the first of each also gets its memory from the system
    pairs = [(seconds(ours), seconds(floors)) for _ in range(turns)]
    taken, needed = (1e3 * median(side) / n for side in zip(*pairs, strict=True))
    return taken, needed


def line(what: str, ours: float, beside: str = "", theirs: float = np.nan, unit: str = "") -> dict:
    return {"what": what, "ours": ours, "beside": beside, "theirs": theirs, "ratio": ours / theirs, "unit": unit}


def pictures(n: int, size: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def five_taps(model: nn.Module) -> list[Tap]:
    return [tap for tap in taps_for(model) if tap.name.endswith(FIVE)]


def beside_forward(name: str, model: nn.Module, size: int, n: int, turns: int) -> list[dict]:
    """A heat-map beside the forward pass it needs, in turns; and what counting the Grams' operations would give."""
    images, taps = pictures(n, size), five_taps(model)

    @torch.inference_mode()
    def forward() -> None:
        model(normalise(model, images))

    def heatmap() -> None:
        cka_heatmap({"model": model}, [images], {"model": taps})

    ours, floor = in_turns(heatmap, forward, n, turns)
    columns = min(n, (n + BLOCK) / 2)  # of a Gram matrix that are computed, on average over its rows
    counted = 1 + 10 * columns / (24 * model.embed_dim)
    return [
        line(f"CKA heat-map of {name}, {len(taps)} taps, n = {n}", ours, FLOOR, floor, "ms an image"),
        line("the same by counting the operations of the Gram matrices", floor * counted, FLOOR, floor, "ms an image"),
    ]


def skip_connections(n: int, turns: int) -> list[dict]:
    """Skip ratios of the zoo's ViT beside its forward pass, in turns."""
    model, images = zoo.load("vit", pretrained=False), pictures(n, 64)

    @torch.inference_mode()
    def forward() -> None:
        model(normalise(model, images))

    ours, floor = in_turns(lambda: skip_ratios(model, [images]), forward, n, turns)
    return [line(f"skip ratios of the zoo's ViT, n = {n}", ours, FLOOR, floor, "ms an image")]


def receptive_fields(n: int, channels: int) -> list[dict]:
    """Receptive fields of the zoo's ViT beside one forward and the backward passes that they need."""
    model, images = zoo.load("vit", pretrained=False).requires_grad_(False), pictures(n, 64)
    taps = taps_for(model, ["embed", "resid_mid", "resid_post"])

    def passes() -> None:
        x = (images.float() / 255).requires_grad_()
        with capture(model, taps, lambda x: x[:, -1]) as out:
            model(normalise(model, x))
        for token in out.values():
            for channel in range(channels):
                torch.autograd.grad(token[:, channel].sum(), x, retain_graph=True)

    def fields() -> None:
        effective_receptive_fields(model, images, taps, channels=channels, groups=n, batch=n)

    passes()
    floor, ours = seconds(passes), seconds(fields)
    what = f"receptive fields of the zoo's ViT, {len(taps)} places, {channels} channels, n = {n}"
    return [line(what, 1e3 * ours / n, "bare backward passes", 1e3 * floor / n, "ms an image")]


class Flat(nn.Module):
    """A ViT whose branch and block outputs pass, flattened, through modules that any package can hook.

    As (n, p), or as (1, n, p) for ckatorch, which takes the second axis for the images.
    """

    def __init__(self, model: nn.Module, lead: bool = False) -> None:
        super().__init__()
        self.model = model
        places = [tap for tap in taps_for(model) if tap.kind in ("attn", "mlp", "resid_post")]
        self.flat = nn.ModuleList(nn.Identity() for _ in places)
        for place, flat in zip(places, self.flat, strict=True):

            def hand_over(module: nn.Module, args: tuple, output: torch.Tensor, flat: nn.Module = flat) -> None:
                flat(output.flatten(1)[None] if lead else output.flatten(1))

            model.get_submodule(place.module).register_forward_hook(hand_over)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)


def beside_packages(n: int, batches: int) -> list[dict]:
    """The same heat-map by torch-cka and ckatorch: time, and the largest error against float64."""
    model, led = (Flat(zoo.load("vit", pretrained=False), lead).eval() for lead in (False, True))
    names = [f"flat.{i}" for i in range(len(model.flat))]
    images = normalise(model.model, scenes.render(scenes.Corpus(), range(n * batches)).images)
    loader = DataLoader(TensorDataset(images), batch_size=n)

    def ours(dtype: torch.dtype = torch.float32) -> np.ndarray:
        taps, as_it_is = {"vit": taps_named(model, names)}, {"vit": lambda x: x}
        return cka_heatmap({"vit": model}, loader, taps, gram_dtype=dtype, preprocess=as_it_is).matrix

    def torch_cka() -> np.ndarray:
        from torch_cka import CKA

        comparison = CKA(model, model, "a", "b", names, names)
        comparison.compare(loader)
        return comparison.export()["CKA"].detach().numpy()

    def ckatorch() -> np.ndarray:
        from ckatorch import CKA

        return CKA(led, led, names)(loader, epochs=1).numpy()

    exact, matrices, taken = ours(torch.float64), {}, {}
    for package, fn in {"ours": ours, "torch-cka": torch_cka, "ckatorch": ckatorch}.items():
        try:
            version = "" if package == "ours" else " " + importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            print(f"{package} is not installed: left out (pip install -e '.[bench]')", file=sys.stderr)
            continue
        started = time.perf_counter()
        matrices[package + version] = fn()
        taken[package + version] = time.perf_counter() - started
        for flat in model.flat:
            flat._forward_hooks.clear()  # the packages leave their hooks
    errors = {package: float(np.abs(matrix - exact).max()) for package, matrix in matrices.items()}
    job = f"{len(names)} layers of the zoo's ViT, {batches} batches of {n}"
    lines = []
    for package in list(matrices)[1:]:
        lines.append(line(f"heat-map of {job}", taken["ours"], package, taken[package], "s"))
        lines.append(line("its largest error against float64", errors["ours"], package, errors[package], "CKA"))
    return lines


MEMORY = """
import sys, torch
from tests.bench import pictures, peak_memory
from helpers.measures.heatmap import cka_heatmap
from helpers.networks import zoo
torch.set_num_threads(1)
model = zoo.load("vit", pretrained=False)
cka_heatmap({"vit": model}, (pictures(64, 64) for _ in range(int(sys.argv[1]))))
print(peak_memory())
"""


def peak_memory() -> float:
    """The most memory this process has held, MiB. (Linux's ru_maxrss counts the process that started it too.)"""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if platform.system() == "Darwin" else 1024)


def memory(few: int, many: int) -> list[dict]:
    """Peak memory of processes that make a heat-map of few and of many batches of 64 images."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    peaks = [
        float(subprocess.check_output([sys.executable, "-c", MEMORY, str(n)], env=environment, text=True))
        for n in (few, many)
    ]
    what = f"peak memory of a heat-map of {64 * many:,} images"
    return [line(what, peaks[1], f"{64 * few:,} images", peaks[0], "MiB")]


def analyses(n: int, turns: int) -> list[dict]:
    """Analyses of the zoo's networks beside the passes that they need, in batches of a quarter, in turns; probes."""
    model, resnet = (zoo.load(name, pretrained=False).eval() for name in ("vit", "resnet"))
    images, outputs = pictures(n, 64), taps_for(model, ["resid_post"])
    parts = images.split(n // 4)

    @torch.inference_mode()
    def forward() -> None:
        for part in parts:
            model(normalise(model, part))

    @torch.inference_mode()
    def entrances() -> None:  # the ViT's first block, the ResNet's first stage
        for part in parts:
            model.blocks[0](model.patch_embed(normalise(model, part)))
            resnet.stages[0](resnet.stem(normalise(resnet, part)))

    labels = torch.arange(n) % 32
    labelled = list(zip(parts, labels.split(n // 4), strict=True))
    weights = dict(model.named_parameters())
    with unfused(model):
        product = hessian_vector_product(objective.loss(model, weights, images, labels), list(weights.values()))
    vector = torch.randn(sum(each.numel() for each in weights.values()))

    def backward() -> None:
        objective.loss(model, weights, images, labels).backward()

    lesioned = 2 * len(units(model)) + 2  # each unit by zero and by its mean; the network as it is, and the means
    jobs: list[tuple[str, Callable[[], object], int, Callable[[], object]]] = [  # ours; how often it needs which passes
        ("attention distance of the zoo's ViT", lambda: attention_distance(model, parts, groups=2), 1, forward),
        ("attention rollout of the zoo's ViT", lambda: rollout_maps(model, parts), 1, forward),
        ("attention of the class token of the zoo's ViT", lambda: class_attention(model, parts), 1, forward),
        ("subsets of heads of block 0", lambda: head_subsets(model, resnet, parts, groups=2), 1, entrances),
        ("spectra of feature maps", lambda: spectra(model, parts, groups=2), 1, forward),
        ("variance of feature maps", lambda: feature_variance(model, parts, groups=2), 1, forward),
        (
            "token-to-patch CKA of one block",
            lambda: token_patches(model, images, outputs[-1:], batch=n // 4),
            1,
            forward,
        ),
        ("read-outs for probes, all blocks", lambda: features(model, images, places=outputs, batch=n // 4), 1, forward),
        (
            "patches shuffled in three sizes, and not",
            lambda: shuffled_answers(model, parts, (8, 16, 32), groups=2),
            4,
            forward,
        ),
        ("noise in ten bands of frequency, and none", lambda: answers_under_noise(model, parts, [0.1]), 11, forward),
        (
            "each branch silenced, by zero and by its mean",
            lambda: lesions(model, labelled, groups=2),
            lesioned,
            forward,
        ),
        (
            "the loss along a ray, in 4 places",
            lambda: rays(model, labelled, (0.1, 0.2, 0.5), [0], 0.0),
            4,
            forward,
        ),
        ("accuracy and loss", lambda: scores({"vit": model}, labelled, groups=2), 1, forward),
        ("a product with the Hessian", lambda: product(vector), 1, backward),
    ]
    known = {forward: FLOOR, entrances: "bare first block and stage", backward: "forward and backward pass"}
    lines = []
    for what, fn, times, bare in jobs:
        ours, floor = in_turns(fn, bare, n, turns, times)
        beside = known[bare] if times == 1 else f"{times} bare forward passes"
        lines.append(line(f"{what}, n = {n}", ours, beside, floor, "ms an image"))
    return [*lines, *probes_beside_sklearn(n, 2 if n < 64 else 16)]


def probes_beside_sklearn(n: int, tokens: int) -> list[dict]:
    """Ridge probes of several tokens, seven penalties each, beside scikit-learn's Ridge one after another."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, 4 * n, 128, generator=generator)
    y = 2.0 * torch.nn.functional.one_hot(torch.arange(4 * n) % 32, 32) - 1
    ridge(x, y, L2S)
    ours = seconds(lambda: ridge(x, y, L2S))
    theirs = seconds(lambda: [Ridge(alpha).fit(one.numpy(), y.numpy()) for one in x for alpha in L2S])
    what = f"ridge probes of {tokens} tokens, {len(L2S)} penalties, {4 * n} images"
    return [line(what, ours, f"scikit-learn {importlib.metadata.version('scikit-learn')}", theirs, "s")]


def rendering(count: int) -> list[dict]:
    """Scenes a second on one core."""
    corpus = scenes.Corpus()
    scenes.render(corpus, range(32))
    taken = seconds(lambda: scenes.render(corpus, range(count)))
    return [line("scenes rendered on one core", count / taken, unit="images a second")]


def training_rate(steps: int) -> list[dict]:
    """Images a second of training steps with the zoo's recipe, beside forward passes alone."""
    lines = []
    for name in ("vit", "resnet"):
        card = zoo.ZOO[name]
        card = replace(card, recipe=replace(card.recipe, distinct_images=4 * card.recipe.batch))
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            training.train(card, work, stop_after=2, progress=False)  # renders the images, warms up
            started = time.perf_counter()
            training.train(card, work, stop_after=steps, progress=False)
            rate = steps * card.recipe.batch / (time.perf_counter() - started)
        lines.append(line(f"training the zoo's {name}", rate, unit="images a second"))
    return lines


def run(tiny: bool = False) -> pd.DataFrame:
    """The table. Columns ``COLUMNS``, then machine and date."""
    base = zoo.load("vit_tiny_patch16_224" if tiny else "vit_base_patch16_224", pretrained=False)
    small = zoo.load("vit", pretrained=False)
    n = 16 if tiny else 256
    parts: dict[str, Callable[[], list[dict]]] = {
        "ViT-B/16": lambda: beside_forward("the ViT-B/16 shape", base, 224, n, 1 if tiny else 3),
        "zoo's ViT": lambda: beside_forward("the zoo's ViT", small, 64, n, 1 if tiny else 7),
        "skip connections": lambda: skip_connections(n, 1 if tiny else 7),
        "receptive fields": lambda: receptive_fields(*((2, 1) if tiny else (16, 4))),
        "packages": lambda: beside_packages(*((8, 2) if tiny else (128, 4))),
        "analyses": lambda: analyses(n, 1 if tiny else 7),
        "memory": lambda: memory(*((1, 2) if tiny else (2, 32))),
        "rendering": lambda: rendering(32 if tiny else 4096),
        "training": lambda: training_rate(1 if tiny else 40),
    }
    lines = []
    for name, part in parts.items():
        print(f"{name} …", file=sys.stderr, flush=True)
        lines += part()
    return pd.DataFrame(lines, columns=COLUMNS).assign(machine=machine(), date=date.today().isoformat())


def machine() -> str:
    """What this ran on: cores, processor, library versions."""
    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
        processor = found[1] if found else processor
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores of {processor}, torch {torch.__version__}, timm {importlib.metadata.version('timm')}"


def markdown(table: pd.DataFrame) -> str:
    """The table as the README shows it."""

    def number(value: float) -> str:
        return "" if pd.isna(value) else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

    lines = ["| what | ours | beside | theirs | ours / theirs | unit |", "|---|---:|---|---:|---:|---|"]
    for row in table.fillna({"beside": "", "unit": ""}).itertuples():
        cells = [row.what, number(row.ours), row.beside, number(row.theirs), number(row.ratio), row.unit]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"Measured on {table['date'][0]}: {table['machine'][0]}."])


def quoted(readme: str) -> str:
    """What stands between the markers of a README. Raises ``ValueError`` where they are missing."""
    found = re.search(f"{START}(.*?){END}", readme, re.DOTALL)
    if not found:
        raise ValueError(f"README.md has no lines {START} and {END} to put the benchmarks between")
    return found[1].strip()


def publish(table: pd.DataFrame, readme: Path = ROOT / "README.md", data: Path = PUBLISHED) -> None:
    """Store the table where the project keeps it, and quote it in the README."""
    text = readme.read_text()
    quoted(text)  # raises where there is no place for it
    before, after = text.split(START)[0], text.split(END)[1]
    readme.write_text(f"{before}{START}\n{markdown(table)}\n{END}{after}")
    table.to_csv(data, index=False, float_format="%.4g")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a quick walk through the code")
    parser.add_argument("--publish", action="store_true", help="update data/benchmarks.csv and the README")
    options = parser.parse_args()
    table = run(options.tiny)
    OUT.mkdir(parents=True, exist_ok=True)
    table.to_csv(OUT / "benchmarks.csv", index=False, float_format="%.4g")
    table = pd.read_csv(OUT / "benchmarks.csv")
    (OUT / "benchmarks.md").write_text(markdown(table) + "\n")
    print(markdown(table))
    if options.publish:
        publish(table)


if __name__ == "__main__":
    main()
