"""A pretended accelerator: tensors that say they lie on ``mps:0``, and are as hard to please as if they did.

Their numbers are computed by the processor. But an operation that mixes them with tensors of the host is refused, no
NumPy array is made of them, and they come in no double precision. So whatever runs here, and gives the numbers of the
host, sends its tensors where they belong. Whether a real device has a kernel for every operation it cannot tell.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("mps", 0)
_FOR_TORCH = torch.device("lazy", 0)  # what torch is told: a device without kernels, on which backward passes run
_DOUBLE = (torch.float64, torch.complex128)
aten = torch.ops.aten
_BETWEEN = (aten._to_copy.default, aten.copy_.default)  # from one device to another
_BY_PLACES = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)  # these may lie on the host


class OnAccelerator(torch.Tensor):
    """A tensor on the device; ``held``: its numbers, on the host."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held):
        if held.dtype in _DOUBLE:
            raise TypeError("the MPS framework doesn't support float64")
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        self = torch.Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype, device=_FOR_TORCH, **layout)
        self.held = held
        return self

    @property
    def device(self):
        return DEVICE

    def untyped_storage(self):
        return self.held.untyped_storage()

    def numpy(self, *args, **kwargs):
        raise TypeError("can't convert mps:0 device type tensor to numpy. Use Tensor.cpu() first.")

    __array__ = numpy

    def tolist(self):
        return self.cpu().tolist()

    def __getitem__(self, places):
        return super().__getitem__(_without_lists(places))

    def __setitem__(self, places, value):
        value = value if isinstance(value, torch.Tensor) else torch.full((), value, dtype=self.dtype)
        super().__setitem__(_without_lists(places), value.to(DEVICE))

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        raise AssertionError(f"{operation} of a tensor of the accelerator, which is switched off")


def _without_lists(places):
    """The same places, lists of numbers as tensors: torch would make these itself, where nobody can see it."""
    each = places if isinstance(places, tuple) else (places,)
    return tuple(torch.tensor(one) if isinstance(one, list | range) else one for one in each)


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        there = [isinstance(x, OnAccelerator) for x in tensors]
        if any(there) and operation not in _BETWEEN:
            bound = (
                there[:1] if operation in _BY_PLACES else [on for on, x in zip(there, tensors, strict=True) if x.ndim]
            )
            if not all(bound):
                raise RuntimeError(f"{operation}: expected all tensors to be on mps:0, found one on cpu")
        on = any(there) and operation is not aten._local_scalar_dense.default
        if operation is aten.copy_.default:
            on = there[0]
        if kwargs.get("device") is not None:
            on = kwargs["device"].type != "cpu"
            kwargs = {**kwargs, "device": torch.device("cpu")}
        known = {id(x.held): x for x in tensors if isinstance(x, OnAccelerator)}  # given back by what works in place
        args, kwargs = tree_map_only(OnAccelerator, lambda x: x.held, (args, kwargs))
        found = operation(*args, **kwargs)
        return (
            tree_map_only(torch.Tensor, lambda x: known[id(x)] if id(x) in known else OnAccelerator(x), found)
            if on
            else found
        )


class _Made(TorchFunctionMode):
    """``torch.tensor`` and its like on a device: torch fills them where nobody can see it."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if function in (torch.tensor, torch.as_tensor) and device is not None:
            return function(*args, **{**kwargs, "device": "cpu"}).to(device)
        return function(*args, **kwargs)


@contextmanager
def accelerator() -> Iterator[torch.device]:
    """The device; it is there as long as the context lasts, and inference mode is ``no_grad`` meanwhile."""
    before: list[bool] = []

    def enter(self):
        before.append(torch.is_grad_enabled())
        torch.set_grad_enabled(before[-1] and not self.mode)

    def leave(self, *error):
        torch.set_grad_enabled(before.pop())

    with mock.patch.multiple(torch.inference_mode, __enter__=enter, __exit__=leave), _Made(), _Operations():
        yield DEVICE
