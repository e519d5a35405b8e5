"""The first and the last sections of a report's page: what was measured, the claims, and what was left out."""

import pandas as pd

from helpers.claims.registry import load
from helpers.reporting import claims
from helpers.reporting.page import prose, table
from helpers.reporting.stored import Report

FULL = "the paper's measures of these claims ask for trainings with one thing changed, or belong to other chapters"


def card(report: Report) -> None:
    """The title, and what was measured: networks, weights, images."""
    prose(f"# {report.name}", _opening(report))
    rows = []
    for name, about in report.networks.items():
        own = about["card"]
        rows.append(
            {
                "network": name,
                "architecture": own["architecture"],
                "parameters": f"{own['parameters'] / 1e6:.2f} M",
                "images": own["images"],
                "weights": own["weights"],
            }
        )
    table(pd.DataFrame(rows), "The networks of this report: the model, those beside it, and untrained twins of each.")
    own = report.networks[report.name]["card"]
    extra = []
    if own.get("accuracy") is not None:
        extra.append(f"It names {100 * own['accuracy']:.1f} % of the pairs of shape and texture on held-out scenes.")
    if own["weights"].startswith("random"):
        extra.append(
            "**Its weights are random.** What follows is about an architecture, and nothing in it was learnt; the "
            "untrained twin is another draw of the same."
        )
    if "sha256" in own:
        extra.append(f"The weights have the sha256 `{own['sha256'][:16]}…`; the whole of it stands beside each table.")
    if extra:
        prose(" ".join(extra))


def _opening(report: Report) -> str:
    images = report.images
    beside = " and ".join(report.beside()) or "no other network"
    text = f"This page asks of `{report.name}` what *How Vision Transformers See* asks of the paper's networks. "
    text += f"It stands beside {beside}. It was measured on {images['count']:,} images ({images['source']}"
    text += f", resized to {images['resized_to']} px" if "resized_to" in images else ""
    text += f", of which the middle {100 * images['crop']:.1f} % were kept" if "crop" in images else ""
    text += f"), on {report.plan['device']}, on {report.plan['date']}. "
    if report.on_scenes:
        text += (
            "Scenes are images that the book renders itself; how a network trained on photographs behaves on them is "
        )
        text += "not how it behaves on photographs: give a folder of these to see that. "
    return text + "All tables lie in this folder, each with a sidecar that says what it was made from."


def verdicts(report: Report) -> None:
    """The claims that apply, with their verdicts, and those that do not."""
    prose("## The claims")
    found, reasons = claims.verdicts(report)
    vit, resnet = claims.parts(report)
    if found:
        told = f"Here `{vit}` takes the part of the ViT" + (f" and `{resnet}` that of the ResNet" if resnet else "")
        prose(
            f"{told}. Each claim of the papers is asked for by a number that was fixed before anything was measured "
            "(`book/claims.yml`). One network is one training, so a claim holds *for these networks* at most, and it "
            "says nothing where the untrained ones meet it too."
        )
        rows = [
            {
                "claim": verdict.claim.id, "what it says": verdict.claim.sentence, "verdict": verdict.word,
                "measured, with 95 % interval": verdict.numbers(), "control": "; ".join(map(str, verdict.controls)),
            }
            for verdict in found
        ]  # fmt: skip
        table(pd.DataFrame(rows), "The claims that apply to this model, and their verdicts.")
    left = len(load()) - len(claims.ASKED)
    prose(
        "### What does not apply" if reasons else "",
        *(f"- **{claim}**. {why}" for claim, why in reasons.items()),
        f"The book's other {left} claims are not asked here: {FULL}.",
    )


def left_out(report: Report) -> None:
    """All that was not measured, and why."""
    rows = [
        {"measure": one["title"], "networks": "; ".join(one["networks"]), "why": one["reason"]}
        for one in report.plan["measures"]
        if one["reason"]
    ]
    if rows:
        prose("## What was left out, and why")
        together = pd.DataFrame(rows).groupby(["measure", "why"], sort=False)["networks"].agg("; ".join).reset_index()
        table(together[["measure", "networks", "why"]], "Measures that were not made.")
