"""The zoo: stored models are what their cards say, and whatever is missing or broken is named."""

import functools
import json
import re
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from helpers import files
from helpers.images.scenes import Corpus, render, split
from helpers.networks import catalogue, zoo
from helpers.networks.accuracy import CUES, TEST_SCENES
from helpers.networks.alternet import SelfAttention2d
from helpers.networks.architectures import build
from helpers.networks.encodings import ENCODINGS
from helpers.networks.inputs import normalise
from helpers.networks.local_weights import local_card, local_notes
from helpers.networks.surgery import SkiplessBlock

STORED = [*zoo.names(), zoo.BASELINE.name]
MAIN = [card.name for card in catalogue.MAIN if zoo.is_stored(card.name)]
COUNTED = [*MAIN, zoo.BASELINE.name]  # on all scenes of their cards
CORPUS = Corpus()
MEGABYTE = 1e6


@functools.cache
def held_out(cue=None, count=TEST_SCENES, corpus=CORPUS):
    return render(corpus.without(cue) if cue else corpus, split("test", count))


@torch.inference_mode()
def shares(model, scenes):
    """Accuracies counted anew, not by the code that wrote the cards."""
    answer = torch.cat([model(normalise(model, part)).argmax(1) for part in scenes.images.split(64)])
    hits = {"pair": answer == scenes.label, "shape": answer // 4 == scenes.label // 4}
    hits["texture"] = answer % 4 == scenes.label % 4
    return {what: hit.float().mean().item() for what, hit in hits.items()}


@pytest.fixture
def empty_zoo(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "FOLDER", tmp_path / "zoo")
    monkeypatch.delenv(zoo.WEIGHTS_VARIABLE, raising=False)
    return tmp_path / "zoo"


def tiny(**changes):
    about = {"architecture": {"embed_dim": 16, "depth": 1, "num_heads": 2}, **changes}
    return catalogue.Card("vit", "vit", "a tiny stand-in", **about)


@pytest.fixture
def tiny_zoo(empty_zoo, monkeypatch):
    """A zoo whose "vit" is tiny, untrained, and stored."""
    monkeypatch.setitem(zoo.ZOO, "vit", tiny())
    zoo.save(tiny(), build(tiny()), {"accuracy": {}})
    return empty_zoo


# --- the stored models


def test_the_main_pair_is_stored():
    assert {"vit", "resnet"} <= set(zoo.names()), "run `make zoo`"


@pytest.mark.parametrize("name", COUNTED)
def test_a_main_model_is_as_good_as_its_card_says(name):
    found, said = shares(zoo.load(name), held_out()), zoo.card(name)["accuracy"]["all cues"]
    assert found == pytest.approx(said, abs=0.005), f"{name}: measured {found}, its card says {said}"


@pytest.mark.parametrize("name", STORED)
def test_a_stored_model_is_as_good_and_leans_on_the_cues_as_its_card_says(name):
    model, corpus = zoo.load(name), {**zoo.ZOO, zoo.BASELINE.name: zoo.BASELINE}[name].corpus
    if "accuracy" not in zoo.card(name):  # of a network that was told no class none is asked for
        assert zoo.ZOO[name].recipe.objective != "labels"
        return
    for cue in (*CUES, *([] if name in COUNTED else [None])):  # a few of the card's scenes: equal up to sampling
        count = 1024 if name in MAIN or cue is None else 256
        found = shares(model, held_out(cue, count, corpus))
        for what, share in zoo.card(name)["accuracy"][f"without {cue}" if cue else "all cues"].items():
            error = (share * (1 - share) * (1 / count - 1 / TEST_SCENES)) ** 0.5
            assert found[what] == pytest.approx(share, abs=4.5 * error + 0.005), f"{name} without {cue}: {what}"


@pytest.mark.parametrize("name", STORED)
def test_a_card_is_that_of_the_catalogue(name):
    wanted = {**zoo.ZOO, zoo.BASELINE.name: zoo.BASELINE}[name]
    assert zoo.is_current(wanted), f"{name} is stored from another recipe: delete its files and run `make zoo`"


@pytest.mark.parametrize("name", MAIN)
def test_networks_see_much_more_than_colours(name):
    """At least 30 points of 32-way accuracy above a linear probe on colour histograms, trained on the same scenes."""
    colours = zoo.card(zoo.BASELINE.name)["accuracy"]["all cues"]["pair"]
    assert zoo.card(name)["accuracy"]["all cues"]["pair"] >= colours + 0.30


@pytest.mark.parametrize("name", zoo.names())
def test_a_card_tells_how_the_model_was_trained(name):
    card = zoo.card(name)
    assert card["run"]["seconds"] > 0 and {"torch", "timm", "numpy", "threads"} <= set(card["run"])
    seen = [images for images, _ in card["curve"]]
    precision = card["run"].get("precision", "bfloat16")  # the first cards do not say it
    assert precision in ("bfloat16", "float32") and ("accuracy" in card) == (zoo.ZOO[name].recipe.objective == "labels")
    assert seen == sorted(seen) and 0.9 * card["recipe"]["images_seen"] < seen[-1] <= card["recipe"]["images_seen"]
    assert card["curve"][-1][1] < card["curve"][0][1]


def test_the_weights_are_small_and_half_precision():
    sizes = {name: (zoo.FOLDER / f"{name}.safetensors").stat().st_size for name in STORED}
    steps = sum(file.stat().st_size for file in (zoo.FOLDER / "steps").iterdir())
    assert max(sizes.values()) <= 10 * MEGABYTE and sum(sizes.values()) + steps <= 160 * MEGABYTE
    for name in STORED:
        assert {value.dtype for value in load_file(zoo.FOLDER / f"{name}.safetensors").values()} == {torch.float16}


# --- steps on the way


@pytest.mark.parametrize("name", [name for name in zoo.names() if zoo.ZOO[name].kept])
def test_the_steps_kept_lead_from_the_start_to_the_model(name):
    """The weights leave those of the start step by step, and come nearer to those of the end."""
    kept = [0, *zoo.ZOO[name].kept, zoo.ZOO[name].recipe.images_seen]
    states = [zoo.load_step(name, images).state_dict() for images in kept]
    matrices = [key for key, value in states[-1].items() if value.ndim >= 2 and not key.startswith("head")]
    to_end = [sum(float((state[key] - states[-1][key]).square().sum()) for key in matrices) for state in states]
    from_start = [sum(float((state[key] - states[0][key]).square().sum()) for key in matrices) for state in states]
    assert to_end == sorted(to_end, reverse=True) and to_end[-1] == 0
    assert from_start[0] == 0 and from_start[1] == min(from_start[1:])


def test_steps_are_pinned_and_others_are_named(tiny_zoo):
    kept = tiny(kept=(128, 256))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(zoo.ZOO, "vit", kept)
        steps = {images: zoo.halved(kept, build(kept, seed=images)) for images in kept.kept}
        with pytest.raises(ValueError, match=r"after \(128, 256\) images; given are \[128\]"):
            zoo.save(kept, build(kept), {}, {128: steps[128]})
        assert not list(zoo.FOLDER.rglob("vit-*"))
        zoo.save(kept, build(kept), {}, steps)
        wanted = build(kept, seed=128).state_dict()["head.weight"].half().float()
        assert torch.equal(zoo.load_step("vit", 128).state_dict()["head.weight"], wanted)
        assert torch.equal(zoo.load_step("vit", 0).pos_embed, zoo.load("vit", pretrained=False).pos_embed)
        with pytest.raises(ValueError, match="'vit' was not kept after 64 images, but after 0, 128, 256, "):
            zoo.load_step("vit", 64)
        save_file(zoo.halved(kept, build(kept, seed=3)), zoo.FOLDER / "steps" / "vit-128.safetensors")
        with pytest.raises(OSError, match="vit-128"):
            zoo.load_step("vit", 128)


# --- architectures


@pytest.mark.parametrize("name", zoo.ZOO)
def test_the_architectures_are_those_of_the_book(name):
    card = zoo.ZOO[name]
    model = build(card).eval()
    with torch.inference_mode():
        assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 32)
        features = model.forward_features(torch.zeros(1, 3, 64, 64))
    if card.family == "vit":
        is_the_vit_of(card, model, features.shape)
    elif card.family == "resnet":
        is_the_resnet_of(card, model, features.shape)
    else:
        shapes = {"mixer": (1, 64, 128), "pit": (1, 1, 128), "swin": (1, 4, 4, 128), "convnext": (1, 128, 2, 2)}
        assert features.shape == shapes[card.family]  # a PiT hands on its class token alone
        blocks = [module for name, module in model.named_modules() if re.search(r"(^|\.)blocks\.\d+$", name)]
        assert len(blocks) == (6 if card.family in ("pit", "swin") else 8)


def is_the_vit_of(card, model, features):
    """As many tokens, blocks and heads as the catalogue says, of their width."""
    cls = 0 if card.name.startswith("vit-gap") else 1
    width, depth = (64, 4) if card.name.startswith("vit-small") else (128, 8)
    patch = {"vit-small-patch4": 4, "vit-small-patch16": 16}.get(card.name.removesuffix("-seed1"), 8)
    few = 8 if card in (*catalogue.MASKED, *catalogue.MAIN) or card.start else 4
    heads, wide = few, width // few
    if named := re.match(r"vit-small-heads(\d)", card.name):
        heads, wide = int(named[1]), 16
    if named := re.match(r"vit-small-head-width(\d+)", card.name):
        heads, wide = 4, int(named[1])
    assert {(block.attn.num_heads, block.attn.head_dim) for block in model.blocks} == {(heads, wide)}
    assert features == (1, (64 // patch) ** 2 + cls, width) and len(model.blocks) == depth
    assert model.num_prefix_tokens == cls and model.global_pool == ("token" if cls else "avg")
    lacking = [i for i, block in enumerate(model.blocks) if isinstance(block, SkiplessBlock)]
    assert lacking == ([card.without_skip[0]] if card.without_skip else [])


def is_the_resnet_of(card, model, features):
    """Standardised convolutions and GroupNorms in four stages, and attention where the catalogue has it."""
    assert features == (1, 256, 5, 5)  # the stem pads by one more pixel than it needs: 34, 17, 9 and 5
    assert [len(stage.blocks) for stage in model.stages] == [4, 4, 4, 4]
    norms = [module for module in model.modules() if isinstance(module, nn.GroupNorm)]
    assert norms and {norm.num_groups for norm in norms} == {8}
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    convolutions = [module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    standardised = [module for module in convolutions if type(module).__name__ == "StdConv2d"]
    attention = [module for module in model.modules() if isinstance(module, SelfAttention2d)]
    assert len(attention) == len(card.attention)
    others = 1 + 2 * len(attention)  # the classifier, a 1 × 1 convolution, and the projections of attention
    assert len(standardised) == len(convolutions) - others


def test_variants_differ_from_their_control_in_one_thing():
    """Each variant differs from its control in what its name says, and in nothing else of what is built and trained."""
    zoo_of = {name: asdict(card) for name, card in zoo.ZOO.items()}

    def differences(name, control):
        a, b = zoo_of[name], zoo_of[control]
        changed = {key for key in a if a[key] != b[key]} - {"name", "about", "recipe", "kept"}
        return changed | {key for key in a["recipe"] if a["recipe"][key] != b["recipe"][key]}

    for card in catalogue.SKIPLESS:
        assert differences(card.name, "vit-short") == {"without_skip"}
        assert card.name == f"vit-without-{card.without_skip[1]}-skip-{card.without_skip[0]}"
    for per_cent in catalogue.FRACTIONS:
        for family, control in (("vit", "vit-short"), ("vit-small", "vit-small"), ("resnet", "resnet-short")):
            assert differences(f"{family}-data{per_cent}", control) == {"distinct_images"}
            assert zoo.ZOO[f"{family}-data{per_cent}"].recipe.distinct_images == per_cent * 1000
    for control in ("vit-short", "vit-small", "resnet-short"):
        assert differences(f"{control}-seed1", control) == {"seed"}
    for name in (card.name for card in (*catalogue.MASKED, *catalogue.MAIN) if card.seed):
        first, seed = name.split("-seed")
        assert differences(name, first) - {"start"} == {"seed"} and zoo_of[name]["kept"] == ()
        start = zoo_of[first]["start"]
        assert zoo_of[name]["start"] == (start and f"{start}-seed{seed}")
    for card in catalogue.BUILT:
        control = "vit-small" if card.window else "resnet-brief"
        kinds = ("attention", "blurred", "window") if card.name.partition("-seed")[0] != control else ()
        changed = {key for key in kinds if getattr(card, key)} | ({"seed"} if card.seed else set())
        assert differences(card.name, control) == changed and len(changed - {"seed"}) == bool(kinds)
    for card in catalogue.POSITIONS:
        assert differences(card.name, "vit-small-seed1" if card.seed else "vit-small") == {"encoding"}
        assert card.name.removesuffix("-seed1") == f"vit-small-{card.encoding}"
    assert {card.encoding for card in catalogue.POSITIONS} == set(ENCODINGS) - {"learned"}
    of_the_small_vit = {"architecture": (*catalogue.HEADS, *catalogue.PATCHES), "strong": catalogue.STRONG}
    for what, cards in {**of_the_small_vit, "objective": catalogue.OBJECTIVES}.items():
        for card in cards:
            assert differences(card.name, "vit-small-seed1" if card.seed else "vit-small") == {what}
            assert {card.name.removesuffix("-seed1") + end for end in ("", "-seed1")} <= zoo_of.keys()
    for card in (*catalogue.HEADS, *catalogue.PATCHES):
        what, number = re.fullmatch(r"vit-small-([a-z-]+)(\d+)(?:-seed1)?", card.name).groups()
        changed = dict(set(card.architecture.items()) - set(zoo.ZOO["vit-small"].architecture.items()))
        key = {"heads": "num_heads", "head-width": "head_width", "patch": "patch_size"}[what]
        assert changed == {key: int(number), **({"head_width": 16} if what == "heads" else {})}
    assert {card.name: card.recipe.objective for card in catalogue.OBJECTIVES if not card.seed} == {
        "vit-small-mae": "masked pixels",
        "vit-small-denoiser": "noise",
    }
    for card in catalogue.STAGED:  # an architecture is its family: the ViT's recipe
        assert differences(card.name, "vit-short-seed1" if card.seed else "vit-short") == {"family"}
    assert zoo.ZOO["vit-small"].kept == (catalogue.SHORT.warmup * catalogue.SHORT.images_seen,)  # the end of warm-up
    assert {card.kept for card in catalogue.STAGED} == {zoo.ZOO["vit-small"].kept}
    assert differences("resnet-brief", "resnet-short") == {"images_seen", "distinct_images"}
    assert differences("vit-small", "vit-short") == {"architecture"}
    assert differences("mixer", "vit-short") == {"family"}
    assert differences("vit-gap", "vit") == {"architecture"}
    assert differences("vit-mae", "vit") == {"images_seen", "objective", "start"}
    assert differences("resnet-short", "mixer") == {"family", "learning_rate"}
    steps = {card.recipe.images_seen for card in (*catalogue.SKIPLESS, *catalogue.SCARCE, zoo.ZOO["resnet-short"])}
    assert steps == {catalogue.SHORT.images_seen}


def test_seeds_make_different_weights_and_the_same_seed_the_same():
    first, same, other = (build(zoo.ZOO["vit"], seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not torch.equal(first["blocks.0.attn.qkv.weight"], other["blocks.0.attn.qkv.weight"])


def test_building_a_model_leaves_the_random_state_alone():
    torch.manual_seed(5)
    before = torch.rand(1)
    torch.manual_seed(5)
    zoo.load("vit", pretrained=False, seed=9)
    assert torch.equal(torch.rand(1), before)


def test_an_unknown_family_is_named():
    with pytest.raises(ValueError, match="unknown family 'gnn'.*known: vit, resnet, mixer"):
        build(replace(tiny(), family="gnn"))


# --- untrained twins


def test_the_untrained_twin_has_the_architecture_and_seeded_weights(tiny_zoo):
    trained = zoo.load("vit")
    twin, again, other = (zoo.load("vit", pretrained=False, seed=seed) for seed in (1, 1, 2))
    assert not twin.training and twin.pretrained_cfg == trained.pretrained_cfg
    assert {k: v.shape for k, v in twin.state_dict().items()} == {k: v.shape for k, v in trained.state_dict().items()}
    assert torch.equal(twin.pos_embed, again.pos_embed) and not torch.equal(twin.pos_embed, other.pos_embed)


def test_the_twin_of_a_timm_model_needs_no_network_and_has_live_branches():
    twin, again = (zoo.load("test_resnet", pretrained=False, seed=1) for _ in range(2))
    same = again.state_dict()
    assert all(torch.equal(value, same[name]) for name, value in twin.state_dict().items())
    assert twin.layer1[0].bn2.weight.abs().min() > 0, "an untrained residual branch that is zero is no control"
    assert zoo.load("test_vit", pretrained=False).pretrained_cfg["input_size"] == (3, 160, 160)


# --- what is saved is what is loaded


def test_a_saved_model_comes_back_in_half_precision(tiny_zoo):
    built, loaded = build(tiny()), zoo.load("vit")
    for key, value in built.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value.half().float())
    assert not loaded.training and next(loaded.parameters()).dtype == torch.float32
    assert zoo.names() == ["vit"] and zoo.is_current(tiny())
    assert sorted(file.name for file in tiny_zoo.iterdir()) == ["vit.json", "vit.safetensors"]


def test_a_card_of_another_recipe_is_not_current(tiny_zoo):
    assert not zoo.is_current(tiny(recipe=catalogue.Recipe(images_seen=1)))
    assert not zoo.is_current(tiny(seed=1)) and not zoo.is_current(tiny(corpus=Corpus(palette=0.1)))
    assert zoo.is_current(replace(tiny(), about="in other words"))


def test_half_a_model_is_not_in_the_zoo(tiny_zoo):
    (tiny_zoo / "vit.json").unlink()
    assert zoo.names() == []
    with pytest.raises(FileNotFoundError, match="'vit' is not trained yet.*run `make zoo`"):
        zoo.load("vit")


# --- errors


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"unknown model 'resnet-sed1'.*did you mean resnet-seed1"):
        zoo.load("resnet-sed1")
    with pytest.raises(ValueError, match=r"unknown model 'vit_tiny_patch16_244'.*vit_tiny_patch16_224"):
        zoo.load("vit_tiny_patch16_244", pretrained=False)
    with pytest.raises(ValueError, match=r"'vitgap' is not in the zoo.*did you mean vit-gap"):
        zoo.card("vitgap")


def test_missing_weights_say_how_to_get_them(empty_zoo):
    assert zoo.names() == []
    with pytest.raises(FileNotFoundError, match="'resnet' is not trained yet.*run `make zoo`"):
        zoo.load("resnet")
    assert zoo.load("resnet", pretrained=False)  # its twin needs no weights


@pytest.mark.parametrize("damage", ["flipped byte", "cut short", "another model"])
def test_corrupt_weights_are_refused(tiny_zoo, damage):
    file = tiny_zoo / "vit.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "flipped byte":
        content[-1] ^= 1
    elif damage == "cut short":
        content = content[:-100]
    else:
        save_file({"weight": torch.zeros(1)}, tiny_zoo / "other")
        content = (tiny_zoo / "other").read_bytes()
    file.write_bytes(content)
    with pytest.raises(OSError, match=r"vit\.safetensors are not those of their card \(sha256 differs\); restore it"):
        zoo.load("vit")


@pytest.mark.fault("Networks and weights", "a card whose sha256 is empty, null or no hash", "refused, naming the card")
@pytest.mark.parametrize("pinned", [None, "", "0", 0, "absent"])
def test_weights_that_the_zoos_card_does_not_pin_are_refused(tiny_zoo, pinned):
    card = json.loads((tiny_zoo / "vit.json").read_text())
    card["sha256"] = pinned
    if pinned == "absent":
        del card["sha256"]
    (tiny_zoo / "vit.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match=r"vit\.json does not pin its weights: its sha256 is .*; restore it"):
        zoo.load("vit")


@pytest.mark.fault("Training", "weights that are not finite after the last step", "not stored")
@pytest.mark.parametrize("value", [float("nan"), float("-inf"), 1e6])
def test_weights_that_are_not_finite_in_half_precision_are_not_stored(tiny_zoo, value):
    before = {file.name: file.read_bytes() for file in tiny_zoo.iterdir()}
    model = build(tiny())
    model.blocks[0].mlp.fc1.weight.data[0, 0] = value
    with pytest.raises(FloatingPointError, match=r"vit is not stored: .*blocks\.0\.mlp\.fc1\.weight"):
        zoo.save(tiny(), model, {"accuracy": {}})
    assert {file.name: file.read_bytes() for file in tiny_zoo.iterdir()} == before


@pytest.mark.fault("Networks and weights", "a card of the zoo that is a list", "refused, naming the card")
def test_a_card_that_is_no_mapping_is_named(tiny_zoo):
    (tiny_zoo / "vit.json").write_text("[1]")
    for read in (zoo.load, zoo.card, lambda name: zoo.is_current(tiny())):
        with pytest.raises(OSError, match=r"vit\.json is to hold a mapping, not \[1\]; restore it"):
            read("vit")


@pytest.mark.fault("Networks and weights", "a sha256 in capitals", "the same as in small letters")
def test_a_card_may_pin_its_weights_in_capitals(tiny_zoo):
    card = json.loads((tiny_zoo / "vit.json").read_text())
    (tiny_zoo / "vit.json").write_text(json.dumps({**card, "sha256": card["sha256"].upper()}))
    assert zoo.load("vit") is not None


@pytest.mark.fault("Networks and weights", "a card that is no JSON", "refused, naming the card")
def test_a_corrupt_card_is_named(tiny_zoo):
    (tiny_zoo / "vit.json").write_text('{"name": "vi')
    with pytest.raises(OSError, match=r"vit\.json cannot be read .*restore it"):
        zoo.load("vit")


def test_weights_of_another_size_are_refused(tiny_zoo, monkeypatch):
    monkeypatch.setitem(zoo.ZOO, "vit", tiny(architecture={"embed_dim": 24, "depth": 1, "num_heads": 2}))
    with pytest.raises(OSError, match=r"(?s)do not fit the architecture: .*size mismatch"):
        zoo.load("vit")
    monkeypatch.setitem(zoo.ZOO, "vit", tiny(architecture={"embed_dim": 16, "depth": 2, "num_heads": 2}))
    with pytest.raises(OSError, match=r"do not fit the architecture: missing blocks\.1\.norm1\.weight"):
        zoo.load("vit")


@pytest.mark.fault(
    "Networks and weights", "no network, and weights that have to be fetched", "an error that says what to do"
)
def test_a_hub_that_cannot_be_reached_says_what_to_do(tmp_path):
    """In a process of its own, because the hub's client reads its settings when it is imported."""
    code = "from helpers.networks import zoo; zoo.load('vit_tiny_patch16_224')"
    environment = {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(files.ROOT),
    }
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    last = ran.stderr.strip().splitlines()[-1]
    assert last.startswith("ConnectionError: the weights of 'vit_tiny_patch16_224' could not be fetched"), ran.stderr
    assert "cards.json and weights/" in last and zoo.WEIGHTS_VARIABLE in last


def test_a_model_without_weights_on_the_hub_is_named():
    with pytest.raises(ValueError, match="timm has no weights for 'vit_tiny_patch16_224.no_such_tag'"):
        zoo.load("vit_tiny_patch16_224.no_such_tag")


# --- a folder of weights


@pytest.fixture
def folder(tmp_path):
    """A folder with two models: a whole ViT, and a ResNet in the older form, without last stage and classifier."""
    vit, resnet = timm.create_model("test_vit"), timm.create_model("resnet26")
    kept = {key: value for key, value in resnet.state_dict().items() if not key.startswith(("layer4", "fc"))}
    kept = {key: value for key, value in kept.items() if not key.endswith("num_batches_tracked")}
    normalisation = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5]}
    older = {"kept_stages": 3, "stride_in_first_conv": True, "bn_eps": 1.001e-5}
    cards = {
        "mine": {"architecture": "test_vit", "file": "a.safetensors", **normalisation, "source": "a friend"},
        "old": {"architecture": "resnet26", "file": "b.safetensors", **normalisation, **older},
    }
    (tmp_path / "weights").mkdir()
    save_file(vit.state_dict(), tmp_path / "weights" / "a.safetensors")
    save_file({key: value.half() for key, value in kept.items()}, tmp_path / "weights" / "b.safetensors")
    (tmp_path / "cards.json").write_text(json.dumps(cards))
    return tmp_path, vit.eval(), kept


def test_a_model_comes_from_a_folder_of_weights(folder, monkeypatch):
    path, vit, _ = folder
    model, images = zoo.load("mine", folder=path), torch.rand(2, 3, 160, 160)
    with torch.inference_mode():
        assert torch.allclose(model(images), vit(images), atol=1e-5)
    assert list(model.pretrained_cfg["mean"]) == [0.1, 0.2, 0.3]
    expected = (images - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / 0.5
    assert torch.allclose(normalise(model, images), expected, atol=1e-6)
    monkeypatch.setenv(zoo.WEIGHTS_VARIABLE, str(path))
    assert torch.equal(zoo.load("mine").pos_embed, model.pos_embed)
    assert local_card("mine")["source"] == "a friend" and local_card("yours") == {}


def test_a_truncated_older_resnet_is_built_as_its_card_says(folder):
    path, _, kept = folder
    model = zoo.load("old", folder=path)
    assert isinstance(model.layer4, nn.Identity) and isinstance(model.fc, nn.Identity)
    for stage in (model.layer2, model.layer3):
        assert stage[0].conv1.stride == (2, 2) and stage[0].conv2.stride == (1, 1)
    assert {module.eps for module in model.modules() if isinstance(module, nn.BatchNorm2d)} == {1.001e-5}
    assert torch.equal(model.conv1.weight, kept["conv1.weight"].half().float())
    with torch.inference_mode():
        assert model.forward_features(torch.zeros(1, 3, 64, 64)).shape == (1, 1024, 4, 4)


@pytest.mark.parametrize("kept", [1, 2, 3, None])
def test_older_resnets_of_any_length_halve_in_the_first_convolution(folder, kept):
    """All stages that are there but the first, which does not halve; the size of the map is what it is in timm's."""
    path, *_ = folder
    cards = json.loads((path / "cards.json").read_text())
    del cards["old"]["kept_stages"]
    cards["old"] |= {} if kept is None else {"kept_stages": kept}
    (path / "cards.json").write_text(json.dumps(cards))
    model = zoo.load("old", pretrained=False, folder=path)
    there = [getattr(model, f"layer{stage}") for stage in range(1, 1 + (kept or 4))]
    assert [stage[0].conv1.stride for stage in there] == [(1, 1), *[(2, 2)] * (len(there) - 1)]
    assert {stage[0].conv2.stride for stage in there} == {(1, 1)}
    side = 64 // 2 ** (1 + len(there))
    with torch.inference_mode():
        assert model.forward_features(torch.zeros(1, 3, 64, 64)).shape[2:] == (side, side)


def test_the_notes_of_a_folders_model_pin_its_weights(folder):
    path, *_ = folder
    pinned = files.sha256(path / "weights" / "a.safetensors")
    notes = {key: value for key, value in local_card("mine", path).items() if key != "file"}
    assert local_notes("mine", path) == {**notes, "sha256": pinned}
    assert local_notes("yours", path) == local_notes("mine") == {}


def test_the_untrained_twin_of_a_folders_model(folder):
    path, *_ = folder
    (path / "weights" / "b.safetensors").unlink()  # not needed
    twin, again = (zoo.load("old", pretrained=False, folder=path, seed=4) for _ in range(2))
    assert isinstance(twin.layer4, nn.Identity) and torch.equal(twin.conv1.weight, again.conv1.weight)
    assert twin.layer1[0].bn3.weight.abs().min() > 0


def test_errors_of_a_folder_of_weights(folder):
    path, *_ = folder
    with pytest.raises(FileNotFoundError, match="is no folder of weights: it has no cards.json"):
        zoo.load("mine", folder=path / "weights")
    with pytest.raises(ValueError, match="unknown model 'mime'.*did you mean mine"):
        zoo.load("mime", folder=path)
    (path / "weights" / "a.safetensors").write_bytes(b"\0" * 50)
    with pytest.raises(OSError, match=r"a\.safetensors are corrupt .*copy it into the folder again"):
        zoo.load("mine", folder=path)
    (path / "weights" / "a.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no weights at .*a\.safetensors"):
        zoo.load("mine", folder=path)
    save_file({"pos_embed": torch.zeros(2)}, path / "weights" / "a.safetensors")
    with pytest.raises(OSError, match="do not fit the architecture"):
        zoo.load("mine", folder=path)


def change(path, name, **changes):
    cards = json.loads((path / "cards.json").read_text())
    cards[name] |= changes
    (path / "cards.json").write_text(json.dumps(cards))


@pytest.mark.fault(
    "Networks and weights", "weights that are not those of their card (sha256)", "refused, naming the file"
)
def test_weights_of_a_folder_are_those_that_their_card_pins(folder):
    path, vit, _ = folder
    right = files.sha256(path / "weights" / "a.safetensors")
    change(path, "mine", sha256=right)
    assert torch.equal(zoo.load("mine", folder=path).pos_embed, vit.pos_embed)
    change(path, "mine", sha256=right[:-1] + ("0" if right[-1] != "0" else "1"))
    with pytest.raises(OSError, match="not those of their card .*copy it into the folder again"):
        zoo.load("mine", folder=path)


@pytest.mark.fault("Networks and weights", "a card that names weights outside its folder", "refused, naming the file")
@pytest.mark.parametrize("outside", ["../../theirs.safetensors", "/", "sub/../../../theirs.safetensors", "link"])
def test_weights_outside_the_folder_are_refused(folder, outside):
    path, vit, _ = folder
    theirs = path.parent / "theirs.safetensors"
    save_file(vit.state_dict(), theirs)
    (path / "weights" / "link").symlink_to(theirs)
    change(path, "mine", file=str(theirs) if outside == "/" else outside)
    with pytest.raises(
        ValueError, match="the card of 'mine' .* names a file that does not lie in .*weights.*copy it there"
    ):
        zoo.load("mine", folder=path)


def test_weights_in_a_folder_within_or_reached_by_a_link_are_read(folder):
    path, vit, _ = folder
    (path / "weights" / "sub").mkdir()
    (path / "weights" / "a.safetensors").rename(path / "weights" / "sub" / "a.safetensors")
    change(path, "mine", file="sub/a.safetensors")
    (path.parent / "linked").symlink_to(path)
    for place in (path, path.parent / "linked"):
        assert torch.equal(zoo.load("mine", folder=place).pos_embed, vit.pos_embed)


NAN = float("nan")
WRONG = [
    ("mine", {"std": [1e-60, 0.5, 0.5]}, "std a number that is not above zero"),  # 0 in single precision
    ("mine", {"sha256": None}, "sha256 not 64 hexadecimal digits but None.*leave the key out"),
    ("mine", {"sha256": ""}, "sha256 not 64 hexadecimal digits but ''"),
    ("mine", {"sha256": "TODO"}, "sha256 not 64"),
    ("mine", {"std": [0.5, 0.0, 0.5]}, "std a number that is not above zero"),
    ("mine", {"std": [0.5, -0.5, 0.5]}, "std a number that is not above zero"),
    ("mine", {"std": 0.5}, "std not three finite numbers: 0.5"),
    ("mine", {"std": [0.5, 0.5]}, "std not three"),
    ("mine", {"mean": [0.5, NAN, 0.5]}, "mean not three finite numbers"),
    ("mine", {"mean": [0.5, float("inf"), 0.5]}, "mean not three"),
    ("mine", {"mean": ["0.5"] * 3}, "mean not three"),
    ("mine", {"file": ["a.safetensors"]}, "file no name"),
    ("mine", {"file": ""}, "file no name"),
    ("mine", {"architecture": None}, "architecture no name"),
    ("mine", {"kept_stages": 3}, "kept_stages, which is for ResNets, not test_vit"),
    ("mine", {"stride_in_first_conv": True}, "stride_in_first_conv, which is for ResNets"),
    ("old", {"kept_stages": 5}, "keeps 5 of a ResNet's 4 stages"),
    ("old", {"bn_eps": NAN}, "bn_eps no number above zero"),
    ("old", {"bn_eps": 0}, "bn_eps no number above zero"),
]


@pytest.mark.fault(
    "Networks and weights", "a mean or deviation that cannot be, such as a deviation of 0", "refused, naming it"
)
@pytest.mark.parametrize("pretrained", [True, False])
@pytest.mark.parametrize("name, changes, says", WRONG, ids=lambda value: str(value)[:30])
def test_a_value_that_cannot_be_is_refused(folder, name, changes, says, pretrained):
    change(folder[0], name, **changes)
    with pytest.raises(ValueError, match=rf"the card of '{name}' .*{says}"):
        zoo.load(name, folder=folder[0], pretrained=pretrained)


@pytest.mark.fault("Networks and weights", "cards that are no mapping, or lack a key", "refused, naming the key")
def test_cards_that_are_no_mapping_are_refused(folder):
    (folder[0] / "cards.json").write_text('{"mine": ["test_vit"]}')
    with pytest.raises(ValueError, match="the card of 'mine' .* is no mapping"):
        zoo.load("mine", folder=folder[0])
    (folder[0] / "cards.json").write_text('["mine"]')
    with pytest.raises(ValueError, match=r"cards\.json is to hold a mapping from names to cards"):
        zoo.load("mine", folder=folder[0])


@pytest.mark.fault("Networks and weights", "weights that are NaN or infinite", "refused, naming the first of them")
def test_weights_of_the_hub_that_are_not_finite_are_refused(monkeypatch):
    model = timm.create_model("test_vit")
    model.head.weight.data[0, 0] = NAN
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: model)
    with pytest.raises(OSError, match=r"hub has of 'test_vit' are not finite: head\.weight"):
        zoo.load("test_vit")


@pytest.mark.fault("Networks and weights", "cards that are no mapping, or lack a key", "refused, naming the key")
@pytest.mark.parametrize(
    "card, says",
    [
        ({"architecture": "test_vit", "file": "a.safetensors"}, "does not say: mean, std"),
        (
            {"architecture": "tst_vit", "file": "a", "mean": [0] * 3, "std": [1] * 3},
            "no architecture 'tst_vit'.*test_vit",
        ),
    ],
)
def test_an_incomplete_card_of_a_folder_is_named(tmp_path, card, says):
    (tmp_path / "cards.json").write_text(json.dumps({"mine": card}))
    with pytest.raises(ValueError, match=says):
        zoo.load("mine", folder=tmp_path)


def test_cards_survive_json():
    for card in zoo.ZOO.values():
        assert json.loads(json.dumps(asdict(card)))["name"] == card.name
