"""What makes a recording whole: its files appear together, whatever is interrupted, and are known by their inputs."""

import contextlib
from pathlib import Path

import pandas as pd
import pytest
import timm
import torch
from safetensors.torch import save_file
from samples import Killed, files

from helpers import results
from helpers.recorded import recorded_arrays
from helpers.recording import store as recording


def table(where, value, name="thing", **notes):
    """A recording of one number, with arrays."""
    save_file({"value": torch.tensor([value])}, where / f"{name}.safetensors")
    pinned = results.sha256(where / f"{name}.safetensors")
    rows = pd.DataFrame({"value": [value]})
    results.write(
        name, rows, what="a number", units={"value": "1"}, where=where, arrays=pinned, recording="it", **notes
    )


@pytest.mark.parametrize("moves", range(7))
@pytest.mark.fault(
    "Recording", "a kill between arrays and table", "the recording from before, or the new one: never a mixture"
)
def test_arrays_and_tables_are_replaced_together(moves, tmp_path, monkeypatch):
    """Two tables of three files each: a kill before any of the six moves, or after all of them."""

    def measure(value):
        def write(where):
            for name in ("thing", "other"):
                table(where, value, name, inputs=str(value))

        return write

    recording.make("it", tmp_path, measure(1.0))
    assert recording.is_done("it", "1.0", tmp_path)
    real, done = Path.replace, []

    def move(self, target):
        if ".ready" in str(self.parent):
            if len(done) == moves:
                raise Killed
            done.append(self.name)
        return real(self, target)

    monkeypatch.setattr(Path, "replace", move)
    if moves < 6:
        with pytest.raises(Killed):
            recording.make("it", tmp_path, measure(2.0))
    else:
        recording.make("it", tmp_path, measure(2.0))
    for name in ("thing", "other"):  # what is read meanwhile is whole, or an error
        with contextlib.suppress(ValueError):
            value = results.read(name, tmp_path)[0]["value"].item()
            assert recorded_arrays(name, tmp_path)["value"].item() == value
    monkeypatch.setattr(Path, "replace", real)
    recording.resume(tmp_path)
    assert recording.is_done("it", "2.0", tmp_path) and not recording.is_done("it", "1.0", tmp_path)
    assert not list(tmp_path.glob(".*"))
    for name in ("thing", "other"):
        assert recorded_arrays(name, tmp_path)["value"].item() == results.read(name, tmp_path)[0]["value"].item() == 2


def test_what_a_recording_no_longer_has_goes_with_the_old_one(tmp_path):
    recording.make("it", tmp_path, lambda where: [table(where, 1.0, name, inputs="a") for name in ("thing", "other")])
    recording.make("it", tmp_path, lambda where: table(where, 2.0, inputs="b"))
    assert results.names(tmp_path) == ["thing"] and recording.is_done("it", "b", tmp_path)


def test_a_measure_that_fails_leaves_what_was_there(tmp_path):
    recording.make("it", tmp_path, lambda where: table(where, 1.0, inputs="a"))
    before = files(tmp_path)

    def fail(where):
        table(where, 2.0, inputs="b")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        recording.make("it", tmp_path, fail)
    assert files(tmp_path) == before and not list(tmp_path.glob(".*"))


def test_what_a_killed_run_measured_in_part_is_removed(tmp_path):
    (tmp_path / ".other.part").mkdir()
    (tmp_path / ".other.part" / "half.csv").touch()
    recording.make("it", tmp_path, lambda where: table(where, 1.0, inputs="a"))
    before = files(tmp_path)
    recording.resume(tmp_path)
    assert files(tmp_path) == before and not list(tmp_path.glob(".*"))


def test_inputs_are_weights_images_and_cards():
    one, same, other = (timm.create_model("test_resnet") for _ in range(3))
    same.load_state_dict(one.state_dict())
    key = recording.inputs("it", {"a": one}, images={"count": 3})
    assert recording.inputs("it", {"a": same.to(memory_format=torch.channels_last)}, images={"count": 3}) == key
    for changed in (
        recording.inputs("it", {"a": other}, images={"count": 3}),
        recording.inputs("it", {"b": one}, images={"count": 3}),
        recording.inputs("it", {"a": one}, images={"count": 4}),
    ):
        assert changed != key


@pytest.mark.fault("Recording", "two runs that write to one folder", "the second is refused")
def test_one_run_at_a_time(tmp_path):
    with recording.alone(tmp_path), pytest.raises(ValueError, match="another run is recording"):
        with recording.alone(tmp_path):
            pass
    with recording.alone(tmp_path):
        pass


@pytest.mark.parametrize(
    ("count", "usual", "size"),
    [
        (3925, 256, 256),
        (2560, 256, 256),
        (2560, 160, 160),
        (2048, 256, 256),
        (2047, 256, 127),
        (200, 256, 12),
        (8, 256, 4),
    ],
)
def test_batches_make_groups_for_the_jackknife(count, usual, size):
    """The book's own recordings keep their batches; with fewer images there are as many batches as groups."""
    assert recording.batch_size(count, usual) == size
