"""What scenes are made of: the outlines of the shapes and the patterns of the textures."""

import math

import numpy as np
from PIL import Image

SHAPES = ("disc", "ring", "triangle", "square", "star", "cross", "crescent", "bar")
TEXTURES = ("stripes", "checks", "dots", "blobs")
NOVEL_SHAPES = ("hexagon", "heart", "arrow", "ell", "tee", "hourglass", "half-disc", "frame")
NOVEL_TEXTURES = ("zigzag", "bricks", "rings", "grid")


def _polygon(points: int, inner: float | None = None) -> np.ndarray:
    """Corners of a regular polygon on the unit circle, or of a star with the given inner radius."""
    corners = points if inner is None else 2 * points
    angle = 2 * math.pi * np.arange(corners) / corners
    radius = np.ones(corners) if inner is None else np.where(np.arange(corners) % 2, inner, 1.0)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _outline(*points: tuple[float, float]) -> np.ndarray:
    """The polygon through ``points``, scaled so that its farthest corner lies on the unit circle."""
    corners = np.array(points, dtype=float)
    return corners / np.linalg.norm(corners, axis=1).max()


def _arc(radius: float, start: float, stop: float, x: float = 0.0, y: float = 0.0) -> list[tuple[float, float]]:
    """Points on an arc around (x, y)."""
    return [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in np.linspace(start, stop, 24)]


DISC = _polygon(36)

# A shape is a list of (polygon, fill) drawn one over another; fill 0 cuts a hole.
OUTLINES: dict[str, list[tuple[np.ndarray, int]]] = {
    "disc": [(0.9 * DISC, 255)],
    "ring": [(DISC, 255), (0.55 * DISC, 0)],
    "triangle": [(_polygon(3), 255)],
    "square": [(_polygon(4), 255)],
    "star": [(_polygon(5, inner=0.42), 255)],
    "cross": [
        (_outline((-1, -0.33), (1, -0.33), (1, 0.33), (-1, 0.33)), 255),
        (_outline((-0.33, -1), (0.33, -1), (0.33, 1), (-0.33, 1)), 255),
    ],
    "crescent": [(DISC, 255), (0.75 * DISC + np.array([0.5, 0.0]), 0)],
    "bar": [(_outline((-1, -0.36), (1, -0.36), (1, 0.36), (-1, 0.36)), 255)],
    "hexagon": [(_polygon(6), 255)],
    "heart": [
        (_outline((0, 1), *(point for x in (-0.5, 0.5) for point in _arc(0.5, math.pi, 2 * math.pi, x, -0.2))), 255),
    ],
    "arrow": [(_outline((-1, -0.25), (0.1, -0.25), (0.1, -0.75), (1, 0), (0.1, 0.75), (0.1, 0.25), (-1, 0.25)), 255)],
    "ell": [(_outline((-0.7, -1), (-0.1, -1), (-0.1, 0.4), (0.8, 0.4), (0.8, 1), (-0.7, 1)), 255)],
    "tee": [
        (_outline((-1, -0.8), (1, -0.8), (1, -0.2), (0.3, -0.2), (0.3, 1), (-0.3, 1), (-0.3, -0.2), (-1, -0.2)), 255),
    ],
    "hourglass": [(_outline((-0.8, -1), (0.8, -1), (0.15, 0), (0.8, 1), (-0.8, 1), (-0.15, 0)), 255)],
    "half-disc": [(_outline(*_arc(1.0, 0.0, math.pi, 0.0, -0.4)), 255)],
    "frame": [(_polygon(4), 255), (0.55 * _polygon(4), 0)],
}


def pattern(name: str, u: np.ndarray, v: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """The texture ``name`` at texture coordinates ``u``, ``v`` (in periods): values in [0, 1], smooth edges."""
    turn = 2 * math.pi
    if name == "stripes":
        field = np.sin(turn * u)
    elif name == "checks":
        field = 1.6 * np.sin(turn * u * 0.7) * np.sin(turn * v * 0.7)
    elif name == "dots":
        field = np.cos(turn * u) + np.cos(turn * v) - 0.7
    elif name == "blobs":
        blobs = Image.fromarray(cells).resize(u.shape[::-1], Image.Resampling.BICUBIC)
        field = (np.asarray(blobs, dtype=np.float32) - 127.5) / 40
    elif name == "zigzag":
        field = np.sin(turn * (u + 0.8 * np.abs((v * 0.6) % 1 - 0.5)))
    elif name == "bricks":
        row = np.floor(v)
        field = 8 * (np.minimum(np.abs((u * 0.6 + 0.5 * (row % 2)) % 1 - 0.5), np.abs(v % 1 - 0.5)) - 0.12)
    elif name == "rings":
        field = np.sin(turn * np.hypot(u, v))
    elif name == "grid":
        field = 6 * (0.2 - np.minimum(np.abs(u % 1 - 0.5), np.abs(v % 1 - 0.5)))
    else:
        raise ValueError(f"unknown texture {name!r}; known: {', '.join(TEXTURES + NOVEL_TEXTURES)}")
    return np.clip(0.5 + 1.5 * field, 0.0, 1.0)
