"""The optimizer of a training with its schedule, and checks that it trains what the loss depends on."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from components.errors import TrainingError
from components.torch.loss import Loss
from components.torch.module import TorchModule
from components.torch.trainer import TorchTrainer, asks_again
from components.torch.unregistered import unregistered


def optimizer_of(trainer: TorchTrainer, model: TorchModule, loss: Loss) -> torch.optim.Optimizer:
    """Return the optimizer of the model's weights and of the objective's own parameters; raises TrainingError."""
    named = [(name, weight) for name, weight in model.object.named_parameters() if weight.requires_grad]
    if not named:
        raise TrainingError(
            f"model {model.identifier!r} has no weights to train: none of its parameters requires a gradient"
        )
    try:
        optimizer = made_optimizer(trainer, named)
    except (TypeError, ValueError) as error:
        raise TrainingError(f"trainer {trainer.identifier!r}: optimizer_kwargs: {error}") from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TrainingError(
            f"trainer {trainer.identifier!r}: optimizer_cls: expected it to make an optimizer of torch, got "
            f"{type(optimizer).__name__}"
        )
    if asks_again(optimizer):
        raise TrainingError(
            f"trainer {trainer.identifier!r}: optimizer_cls: {type(optimizer).__name__} evaluates the loss several "
            "times in a step (closure); use another"
        )
    held = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    if not held & {id(weight) for weight in model.object.parameters()}:
        raise TrainingError(
            f"trainer {trainer.identifier!r}: optimizer_cls: the optimizer holds none of the model's parameters, so "
            "it would train nothing; give it those of its argument, or of the module that the model was declared with"
        )
    own = [weight for weight in loss.parameters if id(weight) not in held]
    if own:
        optimizer.add_param_group({"params": own})
    return optimizer


def made_optimizer(trainer: TorchTrainer, named: Sequence[tuple[str, torch.nn.Parameter]]) -> Any:
    """Return what the trainer's `optimizer_cls` makes of parameters; raises what it raises.

    It gets the parameters; if its first parameter is called `named_parameters`, pairs of name and parameter.
    """
    make = trainer.optimizer_cls
    try:
        first = next(iter(inspect.signature(make).parameters), "")
    except (TypeError, ValueError):  # a callable of an extension
        first = ""
    given = named if first == "named_parameters" else [weight for _, weight in named]
    return make(given, **trainer.optimizer_kwargs)


def schedule_of(trainer: TorchTrainer, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler | None:
    """Return the schedule of an optimizer's learning rate, or None if there is none; raises TrainingError."""
    if trainer.scheduler_cls is None:
        return None
    try:
        schedule = trainer.scheduler_cls(optimizer, **trainer.scheduler_kwargs)
    except Exception as error:  # torch's schedules raise many types, and it may be the user's own
        raise TrainingError(
            f"trainer {trainer.identifier!r}: scheduler_kwargs: {type(error).__name__}: {error}"
        ) from error
    plateau = isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau)
    if plateau or not isinstance(schedule, torch.optim.lr_scheduler.LRScheduler) or schedule.optimizer is not optimizer:
        raise TrainingError(
            f"trainer {trainer.identifier!r}: scheduler_cls: expected it to make a schedule of "
            f"torch.optim.lr_scheduler for the optimizer of its argument, one that moves on once a step, got "
            f"{type(schedule).__name__}"
        )
    return schedule


class Leaves:
    """Refuses a loss that depends on a parameter which is neither the model's nor the objective's.

    Such a parameter (of a closure, say) would be trained in no job, and kept in no checkpoint.
    """

    def __init__(self, model: TorchModule, loss: Loss) -> None:
        self._module = model.object
        self._known = {id(weight) for weight in (*model.object.parameters(), *loss.parameters)}
        self._before: dict[int, torch.Tensor] = {}
        self._checks = 2

    def check(self, loss: torch.Tensor, where: str) -> None:
        """Raise TrainingError; looks at the first two steps of a process only.

        A leaf that is no Parameter may be an input that the model differentiates by, a new one in each step.
        """
        if not self._checks:
            return
        self._checks -= 1
        leaves = {id(leaf): leaf for leaf in _leaves(loss) if id(leaf) not in self._known}
        for leaf in leaves.values():
            if isinstance(leaf, torch.nn.Parameter) and (name := self._unregistered(leaf)) is not None:
                raise TrainingError(
                    f"{where}: the loss depends on {name}, which is in a plain list or dict of the module, so torch "
                    "does not train it; use torch.nn.ModuleList or ModuleDict, or set its requires_grad to False"
                )
            if isinstance(leaf, torch.nn.Parameter) or id(leaf) in self._before:
                raise TrainingError(
                    f"{where}: the loss depends on a parameter of shape {tuple(leaf.shape)} that is neither the "
                    "model's nor the objective's, so it would not be trained; make the objective a torch.nn.Module "
                    "that holds it, or set its requires_grad to False"
                )
        self._before = leaves

    def _unregistered(self, leaf: torch.Tensor) -> str | None:
        for name, module in unregistered(self._module).items():
            for own, weight in module.named_parameters(recurse=False):
                if weight is leaf:
                    return f"{name}.{own}"
        return None


def _leaves(loss: torch.Tensor) -> list[torch.Tensor]:
    waiting, seen, leaves = [loss.grad_fn], set(), []
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        waiting += [following for following, _ in node.next_functions]
    return leaves
