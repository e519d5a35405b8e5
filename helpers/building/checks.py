"""What the tests of an assignment say: comparisons whose messages name what is wrong.

The cells of ``notebooks/assignments/`` import these. Each raises ``AssertionError`` with a sentence for a student.
"""

import math
from collections.abc import Callable, Iterable
from types import CodeType
from typing import Any

import torch

__all__ = ["by_hand", "same"]


def same(
    got: Any, wanted: Any, what: str, *, hints: dict[str, Any] | None = None, rtol: float = 1e-5, atol: float = 1e-8
) -> None:
    """Whether a number or a tensor is the one wanted, up to tolerances.

    Args:
        got: what a student's function returned.
        wanted: a number, or a tensor of the shape that is expected.
        what: what was compared, at the beginning of each message.
        hints: a sentence → the answer of a mistake that it names; said where ``got`` is that answer.
        rtol: relative tolerance.
        atol: absolute tolerance.

    Raises:
        AssertionError: nothing was returned, another shape, values that are not finite, or other values.
    """
    assert got is not None, f"{what}: nothing came back; did you forget to return?"
    try:
        value = torch.as_tensor(got, dtype=torch.float64).detach()
    except (TypeError, ValueError, RuntimeError):
        raise AssertionError(f"{what}: a number or a tensor is expected, not a {type(got).__name__}") from None
    right = torch.as_tensor(wanted, dtype=torch.float64)
    shapes = f"{tuple(right.shape)} is expected, not {tuple(value.shape)}"
    assert value.shape == right.shape, f"{what}: the shape {shapes}" if right.ndim else f"{what}: one number, {shapes}"
    if torch.allclose(value, right, rtol=rtol, atol=atol, equal_nan=True):
        return
    for sentence, mistaken in (hints or {}).items():
        mistake = torch.as_tensor(mistaken, dtype=torch.float64)
        if mistake.shape == value.shape and torch.allclose(value, mistake, rtol=rtol, atol=atol, equal_nan=True):
            raise AssertionError(f"{what}: {sentence}")
    broken = ~value.isfinite() & right.isfinite()
    assert not broken.any(), f"{what}: {int(broken.sum())} of {value.numel()} values are NaN or infinite"
    place = int((value - right).abs().nan_to_num(math.inf).argmax())
    at = f" at {tuple(int(i) for i in torch.unravel_index(torch.tensor(place), value.shape))}" if value.ndim else ""
    raise AssertionError(f"{what}: {value.flatten()[place]:.6g}{at}, and {right.flatten()[place]:.6g} is right")


def by_hand(*functions: Callable[..., Any], allowed: Iterable[str] = ()) -> None:
    """Whether functions do their work themselves, and call nothing of this library but what is ``allowed``.

    Raises:
        AssertionError: one of them names a function or a module of ``helpers``.
    """
    for function in functions:
        code = getattr(function, "__code__", None)
        assert code is not None, f"{function!r} is no function that you wrote"
        for name in sorted(_names(code) - set(allowed)):
            value = function.__globals__.get(name)
            home = getattr(value, "__module__", None) or getattr(value, "__name__", "")
            if name.split(".")[0] == "helpers" or str(home).split(".")[0] == "helpers":
                raise AssertionError(f"{function.__name__} uses {name} of the library: write it yourself")


def _names(code: CodeType) -> set[str]:
    """The names that a function looks up, those of functions inside it among them."""
    inner = (_names(part) for part in code.co_consts if isinstance(part, CodeType))
    return set(code.co_names).union(*inner)
