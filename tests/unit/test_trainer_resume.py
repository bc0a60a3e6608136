"""Checkpoints: a training that is interrupted anywhere ends as one that was left alone, bit for bit."""

from __future__ import annotations

import pytest
import torch
from harness.interruptions import Killed, killed_at, outcome
from harness.training_script import trained

from components import Stopped
from components.torch import Checkpoints

SHORT = {"max_iterations": 9, "validation_interval": 4}


@pytest.fixture(scope="module")
def expected():
    """What a training that nobody disturbs ends with."""
    return outcome(trained(None, SHORT))


def test_a_run_that_is_killed_at_any_step_ends_as_one_left_alone(expected, tmp_path):
    """`stopped` is asked before each step and each batch of a validation: every one of these places is tried."""
    places = 0
    while True:
        checkpoints = Checkpoints(tmp_path / str(places))
        try:
            assert outcome(trained(checkpoints, SHORT, stopped=killed_at(places))) == expected
            break
        except Killed:
            assert outcome(trained(checkpoints, SHORT)) == expected
        places += 1
    assert places == 9 + 3 * 4


def test_a_run_with_limited_gradients_resumes_bit_for_bit(tmp_path):
    """The limit is part of the declaration, and has no state of its own."""
    limited = {**SHORT, "gradient_clip": 0.01}
    undisturbed = outcome(trained(None, limited))
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(Killed):
        trained(checkpoints, {**limited, "checkpoint_seconds": 0}, stopped=killed_at(6))
    assert outcome(trained(checkpoints, limited)) == undisturbed
    assert undisturbed != outcome(trained(None, SHORT))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_of_several_batches_a_step_resumes_bit_for_bit(workers, tmp_path):
    """A checkpoint is always between two steps, also if a stop comes while the loader makes a step's batches."""
    several = {**SHORT, "accumulate": 3, "loader_kwargs": {"batch_size": 8, "num_workers": workers}}
    undisturbed = outcome(trained(None, several))
    for call in (2, 6, 13):
        checkpoints = Checkpoints(tmp_path / str(call))
        with pytest.raises(Killed):
            trained(checkpoints, {**several, "checkpoint_seconds": 0}, stopped=killed_at(call))
        assert outcome(trained(checkpoints, several)) == undisturbed


def test_a_run_of_epochs_resumes_bit_for_bit(tmp_path):
    """It ends at the same step."""
    epochs = {"max_epochs": 2, "validation_interval": 20}
    undisturbed = trained(None, epochs)
    assert undisturbed.step == 52
    with pytest.raises(Killed):
        trained(Checkpoints(tmp_path), epochs, stopped=killed_at(40))
    assert outcome(trained(Checkpoints(tmp_path), epochs)) == outcome(undisturbed)


def test_a_run_that_is_killed_again_and_again(expected, tmp_path):
    """Each attempt gets no further than a step or two, and the last one ends as expected."""
    checkpoints = Checkpoints(tmp_path)
    for attempt in range(100):
        try:
            result = trained(checkpoints, SHORT, stopped=killed_at(1 + attempt % 7))
            break
        except Killed:
            continue
    assert attempt > 2
    assert outcome(result) == expected


def test_a_stop_saves_a_checkpoint(expected, tmp_path):
    """However long ago the last one was; in the midst of a validation too, which is made anew."""
    for call in (0, 3, 4, 6, 18, 20):
        checkpoints = Checkpoints(tmp_path / str(call))
        calls = iter(range(1000))
        with pytest.raises(Stopped, match="enough"):
            trained(
                checkpoints,
                {**SHORT, "checkpoint_seconds": 3600},
                stopped=lambda calls=calls, call=call: "enough" if next(calls) == call else None,
            )
        messages = []
        result = trained(checkpoints, {**SHORT, "checkpoint_seconds": 3600}, report=messages.append)
        assert messages[0]["message"].startswith("the training goes on after step")
        assert outcome(result) == expected


def test_a_training_that_was_done_is_not_made_again(expected, tmp_path):
    """Whoever was killed while it stored the result finds it in the checkpoint."""
    trained(Checkpoints(tmp_path), {**SHORT, "checkpoint_seconds": 3600})

    def transform(x, y):
        raise AssertionError("nothing is to be learned any more")

    assert outcome(trained(Checkpoints(tmp_path), {**SHORT, "transform": transform})) == expected


def test_the_number_of_processes_makes_no_difference(expected):
    """Workers of the loader, in a process that has threads; with an interruption as well."""
    loader = {"batch_size": 8, "num_workers": 2}
    assert outcome(trained(None, {**SHORT, "loader_kwargs": loader})) == expected


def test_workers_and_an_interruption(expected, tmp_path):
    """What the workers had made ahead is made again."""
    checkpoints = Checkpoints(tmp_path)
    changes = {**SHORT, "loader_kwargs": {"batch_size": 8, "num_workers": 2}}
    with pytest.raises(Killed):
        trained(checkpoints, changes, stopped=killed_at(9))
    assert outcome(trained(checkpoints, changes)) == expected


@pytest.mark.parametrize("damage", ["empty", "half", "flipped", "foreign"])
def test_a_damaged_checkpoint_is_not_used(damage, expected, tmp_path):
    """The training begins anew, and says why."""
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(Killed):
        trained(checkpoints, SHORT, stopped=killed_at(9))
    [file] = tmp_path.iterdir()
    data = bytearray(file.read_bytes())
    flipped = data.copy()
    flipped[len(data) // 2] ^= 1
    file.write_bytes({"empty": b"", "half": data[: len(data) // 2], "flipped": flipped, "foreign": b"x" * 5000}[damage])
    messages = []
    assert outcome(trained(Checkpoints(tmp_path), SHORT, report=messages.append)) == expected
    assert "begins anew" in messages[0]["message"]
    assert "are not what was written" in messages[0]["message"]


def test_a_checkpoint_of_another_training_is_not_used(tmp_path):
    """With another seed, or another number of rows, its place would mean something else."""
    with pytest.raises(Killed):
        trained(Checkpoints(tmp_path), SHORT, stopped=killed_at(9))
    other = {**SHORT, "seed": 6}
    messages = []
    result = trained(Checkpoints(tmp_path), other, report=messages.append)
    assert messages[0] == {"message": "the checkpoint is of another training, this one begins anew"}
    assert outcome(result) == outcome(trained(None, other))


def test_a_checkpoint_is_replaced_in_one_step(tmp_path):
    """What a writer left half done is overlooked; what is no data is never unpickled."""
    checkpoints = Checkpoints(tmp_path / "run")
    assert checkpoints.load() is None
    checkpoints.save({"step": 1, "weights": torch.arange(3)})
    (tmp_path / "run" / "checkpoint.pt.new").write_bytes(b"half a checkpo")
    assert checkpoints.load()["step"] == 1
    checkpoints.save({"step": 2, "odd": object})
    assert checkpoints.load() is None
    assert "torch cannot read it" in checkpoints.damage


def test_the_best_weights_survive_an_interruption(tmp_path):
    """They are in the checkpoint as well, as is for how long nothing has improved."""
    changes = {**SHORT, "max_iterations": 500, "validation_interval": 2, "no_improve_then_stop": 3, "listen": "v/score"}
    alone = trained(None, changes)
    assert alone.best_step == alone.step - 3 * 2 < 494
    checkpoints = Checkpoints(tmp_path)
    # Each validation of the rows kept apart asks four times as well; the last kill falls after the best step.
    with pytest.raises(Killed):
        trained(checkpoints, changes, stopped=killed_at(alone.step * 3 - 3))
    assert checkpoints.load()["step"] > alone.best_step
    assert outcome(trained(checkpoints, changes)) == outcome(alone)
