"""Trainers of other frameworks within an own loop, and estimators of other libraries. Each needs its package, which the
environment of tests does not have: `pip install lightning transformers accelerate xgboost lightgbm timm`.
"""

from __future__ import annotations

import copy
import tempfile
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from components import ListExamples, LoopTrainer, ObjectModel, Training, TrainingLoop
from components.errors import Stopped
from components.torch import TorchModel
from components.training_loop import run

pytestmark = pytest.mark.filterwarnings("ignore")

X = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
Y = (X.sum(1) > 0).astype(int)
ROWS = ListExamples([(x, int(y)) for x, y in zip(X, Y, strict=True)])


class Lightning(TrainingLoop):
    """The Trainer of Lightning; a callback reports."""

    def run(self, training: Training) -> None:
        from lightning.pytorch import Callback, Trainer

        class Reports(Callback):
            def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
                training.report(loss=outputs["loss"].item())

            def on_train_epoch_end(self, *_: Any) -> None:
                training.measure()

        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = Trainer(max_epochs=5, accelerator="cpu", callbacks=[Reports()], enable_model_summary=False, **quiet)
        trainer.fit(training.module, DataLoader(training.rows, batch_size=8, shuffle=True))  # type: ignore[arg-type]


class HuggingFace(TrainingLoop):
    """The Trainer of transformers; a callback reports."""

    def run(self, training: Training) -> None:
        from transformers import Trainer, TrainerCallback, TrainingArguments

        class Reports(TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                training.report()

            def on_epoch_end(self, *_: Any, **__: Any) -> None:
                training.measure()

        with tempfile.TemporaryDirectory() as folder:
            usual = {
                "report_to": [],
                "disable_tqdm": True,
                "save_strategy": "no",
                "use_cpu": True,
                "seed": training.seed,
            }
            arguments = TrainingArguments(
                folder, num_train_epochs=5, per_device_train_batch_size=8, learning_rate=0.02, **usual
            )
            Trainer(training.module, arguments, train_dataset=training.rows, callbacks=[Reports()]).train()


def lightning_module() -> Any:
    pytest.importorskip("lightning")
    from lightning.pytorch import LightningModule

    class Net(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.body = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.1))
            self.head = torch.nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(x))

        def training_step(self, batch: Any, place: int) -> torch.Tensor:
            loss = torch.nn.functional.cross_entropy(self(batch[0]), batch[1])
            self.log("train_loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), 0.02)

    torch.manual_seed(0)
    return TorchModel("m", Net(), preprocess=torch.as_tensor, postprocess=lambda y: int(y.argmax())), Lightning(), None


def words(x: np.ndarray[Any, Any]) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.as_tensor(x > 0).long()}


def labelled(x: np.ndarray[Any, Any], y: int) -> dict[str, Any]:
    return {**words(x), "labels": y}


def transformers_module() -> Any:
    pytest.importorskip("accelerate")
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 4, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    net = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes, intermediate_size=16))
    return TorchModel("m", net, preprocess=words, postprocess=lambda y: int(y.logits.argmax())), HuggingFace(), labelled


@pytest.mark.parametrize("make", [lightning_module, transformers_module])
def test_a_trainer_of_a_framework_trains_and_ends_when_the_job_is_to_stop(make: Any) -> None:
    """It learns and is measured; each row's output alone is that in a batch; a stop comes through the framework."""
    model, loop, transform = make()
    trainer = LoopTrainer("t", loop, key=("x", "y"), transform=transform)

    def right() -> dict[str, float]:
        return {"v/acc": float(np.mean(np.array(model.predict_batches(list(X))) == Y))}

    result = run(model, trainer, ROWS, evaluate=right)
    assert (result.step, result.metric_steps) == (40, [8, 16, 24, 32, 40])
    assert max(result.metric_values["v/acc"]) == right()["v/acc"] > 0.65
    assert [model.predict(x) for x in X] == model.predict_batches(list(X))
    steps = iter(range(100))
    model, loop, transform = make()
    with pytest.raises(Stopped, match="the daemon stops"):
        run(model, trainer, ROWS, stopped=lambda: "the daemon stops" if next(steps) > 9 else None)


@pytest.mark.parametrize("name", ["xgboost.XGBClassifier", "lightgbm.LGBMClassifier", "xgboost.XGBRegressor"])
def test_what_a_boosted_tree_has_learned_comes_back(name: str) -> None:
    """Its booster is a class of its own package."""
    package, _, cls = name.partition(".")
    estimator = getattr(pytest.importorskip(package), cls)(n_estimators=5)
    learned = ObjectModel("m", copy.deepcopy(estimator))
    run(learned, LoopTrainer("t", key=("x", "y")), ROWS)
    fresh = ObjectModel("m", estimator)
    fresh.unpack(learned.packed()[0])  # type: ignore[arg-type]
    assert np.array(fresh.predict_batches(list(X))) == pytest.approx(np.array(learned.predict_batches(list(X))))


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050", "vit_tiny_patch16_224"])
def test_a_network_of_timm_gives_a_row_alone_what_it_gives_in_a_batch(name: str) -> None:
    """With the transform that belongs to it."""
    timm = pytest.importorskip("timm")
    from PIL import Image

    net = timm.create_model(name, pretrained=False, num_classes=3)
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=net))
    model = TorchModel("m", net, preprocess=transform)
    pictures = [Image.new("RGB", (64, 48), color) for color in ("red", "green", "blue")]
    together = model.predict_batches(pictures)
    for picture, output in zip(pictures, together, strict=True):
        assert np.asarray(model.predict(picture)) == pytest.approx(np.asarray(output), abs=1e-4)
