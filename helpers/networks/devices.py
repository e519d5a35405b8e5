"""Where networks run: a device by its name, or the best that this machine has."""

import torch


def device(name: str | None) -> torch.device:
    """The device of a name such as "cuda", "cuda:1", "mps" or "cpu"; without one the best there is.

    Raises ValueError for a device that this machine does not have.
    """
    there = [kind for kind in ("cuda", "mps") if getattr(torch, kind).is_available()] + ["cpu"]
    if name is None:
        return torch.device(there[0])
    kind, colon, number = name.partition(":")
    numbered = kind == "cuda" and number.isdecimal() and int(number) < torch.cuda.device_count()
    if kind not in there or (colon and not numbered):
        raise ValueError(
            f"there is no device {name!r} here; there are {', '.join(there)}: leave DEVICE out, or name one"
        )
    return torch.device(name)
