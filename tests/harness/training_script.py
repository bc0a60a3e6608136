"""A training for tests that kill its process.

It contains everything that may differ after a resumption: dropout, batch statistics, an optimizer with a state, random
transforms of all three generators, a validation that draws random numbers.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from components import LoopTrainer, Training, TrainingLoop, training_loop
from components.examples import ListExamples
from components.torch import Checkpoints, TorchModel, TorchTrainer, Trained, train, weights

ROWS, STEPS = 203, 400


class Net(torch.nn.Module):
    """A small network with everything that has a state."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Linear(12, 64), torch.nn.BatchNorm1d(64), torch.nn.ReLU(), torch.nn.Dropout(0.3)
        )
        self.head = torch.nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits, n x 3."""
        return self.head(self.body(x))


def transform(x: np.ndarray[Any, Any], y: int) -> tuple[torch.Tensor, int]:
    """Augment by all three generators, in place too."""
    x += np.random.normal(0, 0.1, x.shape)  # noqa: NPY002  # what users' transforms call
    noise = torch.randn(12) * 0.1
    return torch.from_numpy(x).float() * random.uniform(0.9, 1.1) + noise, y


def rows(n: int, seed: int) -> ListExamples:
    """Rows of three classes that can be told apart."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, n)
    centres = np.random.default_rng(0).normal(0, 1, (3, 12))
    return ListExamples([(centres[y] + generator.normal(0, 1, 12), int(y)) for y in labels])


def model() -> TorchModel:
    """The same initial weights each time."""
    torch.manual_seed(1)
    return TorchModel("net", Net(), preprocess=lambda x: torch.as_tensor(x).float(), preferred_devices=("cpu",))


def trainer(**changes: Any) -> TorchTrainer:
    """400 steps, a checkpoint after each."""
    options: dict[str, Any] = {
        "objective": torch.nn.functional.cross_entropy,
        "transform": transform,
        "loader_kwargs": {"batch_size": 8},
        "max_iterations": STEPS,
        "validation_interval": 7,
        "checkpoint_seconds": 0,
        "seed": 5,
    }
    return TorchTrainer("net", **(options | changes))


class Centres(torch.nn.Module):
    """An objective with parameters: a temperature, and a centre for each class."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = torch.nn.Parameter(torch.ones(()))
        self.centres = torch.nn.Parameter(torch.zeros(3, 3))

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the loss."""
        apart = ((output - self.centres[target]) ** 2).mean()
        return torch.nn.functional.cross_entropy(output * self.temperature, target) + 0.1 * apart


def grouped(parameters: Any) -> torch.optim.Optimizer:
    """Two groups, each with a state and a learning rate of its own."""
    held = list(parameters)
    groups = [{"params": held[::2], "lr": 0.01, "momentum": 0.9}, {"params": held[1::2], "weight_decay": 0.1}]
    return torch.optim.SGD(groups, lr=0.05)


class Own(TrainingLoop):
    """A loop of the user's own: an optimizer and a schedule with states, a checkpoint after each epoch."""

    def run(self, training: Training) -> None:
        """Ten epochs."""
        optimizer = torch.optim.Adam(training.module.parameters(), 0.01)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3)
        done = training.restored or {"epoch": 0}
        if training.restored:
            optimizer.load_state_dict(done["optimizer"])
            schedule.load_state_dict(done["schedule"])
        for epoch in range(done["epoch"], 10):
            for given, target in DataLoader(training.rows, batch_size=8, shuffle=True):  # type: ignore[arg-type]
                loss = torch.nn.functional.cross_entropy(training.module(given), target)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                training.report(loss=loss.item())
            schedule.step()
            training.measure()
            state = {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
            training.checkpoint({"epoch": epoch + 1, **state})


DRAWN = {"chances": [float(place % 7) ** 3 for place in range(ROWS)]}
COSINE = {"scheduler_cls": "CosineAnnealingLR", "scheduler_kwargs": {"T_max": 60}}
CYCLE = {"scheduler_cls": "OneCycleLR", "scheduler_kwargs": {"max_lr": 0.1, "total_steps": 60}}
COMBINATIONS: dict[str, dict[str, Any]] = {
    "averages, drawn rows, cosine": {"ema": 0.9, **DRAWN, **COSINE},
    "averages, accumulation, bfloat16": {"ema": 0.95, "accumulate": 3, "mixed_precision": "bfloat16"},
    "groups, a schedule by steps, clipping": {"optimizer_cls": grouped, "gradient_clip": 0.5, "scheduler_cls": "StepLR"}
    | {"scheduler_kwargs": {"step_size": 9}},
    "frozen parts, averages, clipping": {"freeze": ["body.*"], "ema": 0.9, "gradient_clip": 0.1},
    "an objective's parameters, averages": {"objective": Centres(), "ema": 0.9, "gradient_clip": 1.0},
    "an objective's parameters, accumulation, drawn rows": {"objective": Centres(), "accumulate": 2, **DRAWN},
    "early stopping, schedule, averages": {"no_improve_then_stop": 2, "ema": 0.9, "validation_interval": 3, **CYCLE},
    "epochs, accumulation, groups": {"max_epochs": 2, "accumulate": 4, "optimizer_cls": grouped},
    "float16, clipping, cosine": {"mixed_precision": "float16", "gradient_clip": 0.5, **COSINE},
    "drawn rows, processes that load, frozen parts": {**DRAWN, "freeze": ["head.bias"]}
    | {"loader_kwargs": {"batch_size": 8, "num_workers": 1}},
    "a loop of one's own": {"loop": Own()},
    "all of it": {"objective": Centres(), "ema": 0.9, "accumulate": 2, "gradient_clip": 0.5, "freeze": ["body.0.bias"]}
    | {"mixed_precision": "bfloat16", **DRAWN, **CYCLE},
}
"""What a person may combine, of 60 steps; `chances` is an argument of `train`."""


def trained(
    checkpoints: Checkpoints | None, changes: dict[str, Any] | None = None, net: TorchModel | None = None, **hooks: Any
) -> Trained:
    """Run the training to its end, with a validation that moves every generator."""
    learner = net or model()

    def evaluate() -> dict[str, float]:
        random.random(), np.random.random(), torch.rand(())  # noqa: NPY002  # leaves no trace in the training
        outputs = learner.predict_batches([x for x, _ in rows(20, 3).fetch(range(20))])
        return {"v/score": sum(output.sum().item() for output in outputs)}

    options = {"evaluate": evaluate, **hooks}
    if "loop" in (changes or {}):
        loop = LoopTrainer("net", Own(), key=("x", "y"), transform=transform, seed=5)
        del options["chances"]
        outcome = training_loop.run(learner, loop, rows(ROWS, 1), rows(30, 2), checkpoints=checkpoints, **options)
        return replace(outcome, state=learner.state())
    return train(learner, trainer(**(changes or {})), rows(ROWS, 1), rows(30, 2), checkpoints=checkpoints, **options)


def run(checkpoints: Path, result: Path, ready: Connection, combination: str = "") -> None:
    """Train to the end; `ready` is written before the first step, `result` the final weights and traces."""
    torch.set_num_threads(1)
    changes = {"max_iterations": 60, **COMBINATIONS[combination]} if combination else {}
    chances = changes.pop("chances", None)
    ready.send("training")
    outcome = trained(Checkpoints(checkpoints), changes, chances=chances)
    traces = {"steps": outcome.metric_steps, "values": outcome.metric_values, "best": outcome.best_step}
    fresh = result.with_suffix(".new")
    fresh.write_bytes(json.dumps(traces).encode() + b"\n" + weights.save(outcome.state))
    fresh.replace(result)
