"""Every measure that takes a network and batches of images, on one tiny network: numbers to be had again elsewhere."""

import numpy as np
import pandas as pd
import timm
import torch

from helpers.measures import landscape, objective
from helpers.measures.attention import attended_patches, attention_distance
from helpers.measures.batch_sizes import cka_in_batches
from helpers.measures.class_attention import class_attention
from helpers.measures.feature_variance import feature_variance
from helpers.measures.fourier import spectra
from helpers.measures.frequency_noise import answers_under_noise
from helpers.measures.head_subsets import head_subsets
from helpers.measures.heatmap import cka_heatmap
from helpers.measures.hessian import curvature_along, hessian_spectra
from helpers.measures.lesions import lesions
from helpers.measures.patch_shuffle import shuffled_answers
from helpers.measures.probes import features
from helpers.measures.receptive_field import effective_receptive_fields
from helpers.measures.rollout import rollout_maps
from helpers.measures.scores import scores
from helpers.measures.skip_ratios import skip_ratios
from helpers.measures.token_patches import token_patches

SIZE, BATCH, IMAGES = 32, 6, 47  # eight batches, of which the last has five images: unequal shares for three processes


def network(name="vit_tiny_patch16_224", **options):
    torch.manual_seed(0)
    options = options or {"img_size": SIZE, "patch_size": 8, "depth": 2, "embed_dim": 16, "num_heads": 2}
    return timm.create_model(name, **{"num_classes": 10, **options}).eval()


def every_measure(device="cpu"):
    """Name of a measure → its numbers, of one tiny ViT on a device; one batch is fewer than there are processes."""
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (IMAGES, 3, SIZE, SIZE), dtype=np.uint8))
    batches, few, vit = images.split(BATCH), [images[:5]], network().to(device)
    labels = torch.arange(IMAGES) % 10
    labelled, of_few = list(zip(batches, labels.split(BATCH), strict=True)), [(few[0], labels[:5])]
    noisy, sure = (answers_under_noise(vit, given, [0.5, 2.0], 2) for given in (labelled, few))
    start = objective.weights(vit)
    ways = [landscape.random_direction(start, seed) for seed in range(3)]
    resnet, some = network("test_resnet", num_classes=10).to(device), [(few[0][:4], labels[:4])]
    sums = cka_heatmap({"vit": vit}, batches, ["resid_post"], shuffle=0)
    located = token_patches(vit, images, batch=BATCH, shuffle=0)
    found = {
        "CKA": sums.matrix, "its errors": sums.stderr, "its control": sums.control.matrix,
        "attention distance": attention_distance(vit, batches, groups=4),
        "skip ratios": skip_ratios(vit, batches, 4).table(),
        "skip ratios of one batch": skip_ratios(vit, few, 4).table(),
        "skip ratios by token": skip_ratios(vit, batches, 4).by_token(),
        "token patches": np.stack([at.matrix for at in located.values()]),
        "token patches of one batch": np.stack([at.matrix for at in token_patches(vit, few[0]).values()]),
        "errors of token patches": np.stack([at.statistic(lambda m, grid: m)[1] for at in located.values()]),
        "control of token patches": np.stack([at.control.matrix for at in located.values()]),
        "receptive fields": effective_receptive_fields(vit, images, channels=1, groups=4, batch=BATCH).maps.numpy(),
        "features": torch.stack(list(features(vit, images, batch=BATCH)["mean token"].values())).numpy(),
        "rollout": rollout_maps(vit, batches, chunk=4).numpy(), "class attention": class_attention(vit, few).numpy(),
        "spectra": spectra(vit, batches, 4).table(), "variance": feature_variance(vit, batches, 4).table(),
        "variance of one batch": feature_variance(vit, few, 4).table(),
        "attended": attended_patches(vit, batches, chunk=4), "attended of one batch": attended_patches(vit, few),
        "answers": torch.cat([noisy.clean, noisy.noisy.flatten(), noisy.labels]).numpy(),
        "answers of one batch": torch.cat([sure.clean, sure.noisy.flatten()]).numpy(),
        "shuffled": shuffled_answers(vit, labelled, [8, 16], groups=4),
        "shuffled of one batch": shuffled_answers(vit, few, [8], groups=4),
        "scores": scores({"one": vit, "other": resnet}, labelled, 4), "scores of one": scores({"": vit}, of_few, 4),
        "lesions": lesions(vit, labelled, groups=4), "lesions of one batch": lesions(vit, of_few, groups=4),
        "head subsets": head_subsets(vit, resnet, batches, groups=4),
        "Hessian": hessian_spectra(vit, labelled[-3:], 0.1, 2, most=8),
        "Hessian of one batch": hessian_spectra(vit, some, 0.1, 2, most=8),
        "curvature along": curvature_along(vit, *some[0], ways, [0.1]),
        "rays": landscape.rays(vit, labelled[-2:], [-0.5, 0.5], [0, 1], 0.1),
        "plane": landscape.plane(vit, some, [-0.5, 0.0, 0.5], (0, 1), 0.1),
        "in batches": np.concatenate([one.matrix for one in cka_in_batches({"vit": vit}, images, [20, 12])]),
        "errors in batches": np.concatenate([one.stderr for one in cka_in_batches({"vit": vit}, images, [20, 12])]),
    }  # fmt: skip
    return {name: value.select_dtypes("number").to_numpy(float) if isinstance(value, pd.DataFrame) else value
            for name, value in found.items()}  # fmt: skip
