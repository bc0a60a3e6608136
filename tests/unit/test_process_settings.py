"""What a process has only once: a model that changes it in a call does not change it for its neighbours."""

from __future__ import annotations

import locale
import logging
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs

from components.torch import settings
from daemon.handlers.predict.process_settings import ProcessSettings

BACKENDS = torch.backends


def attribute(of: Any, name: str, value: Any) -> Callable[[], None]:
    return lambda: setattr(of, name, value)


CHANGES: dict[str, Callable[[], Any]] = {
    "default_dtype": lambda: torch.set_default_dtype(torch.bfloat16),
    "float32_matmul_precision": lambda: torch.set_float32_matmul_precision("medium"),
    "num_threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "deterministic_algorithms": lambda: torch.use_deterministic_algorithms(mode=True),
    "cuda.matmul.fp32_precision": attribute(BACKENDS.cuda.matmul, "fp32_precision", "tf32"),
    "generic.all.fp32_precision": attribute(BACKENDS, "fp32_precision", "tf32"),
    "mkldnn.matmul.fp32_precision": attribute(BACKENDS.mkldnn.matmul, "fp32_precision", "bf16"),
    "cuda.conv.fp32_precision": attribute(BACKENDS.cudnn, "allow_tf32", False),
    "cudnn.benchmark": attribute(BACKENDS.cudnn, "benchmark", True),
    "flash_sdp": lambda: BACKENDS.cuda.enable_flash_sdp(False),
    "quantized.engine": attribute(BACKENDS.quantized, "engine", "onednn"),
    "working directory": lambda: os.chdir("/"),
    "socket.setdefaulttimeout": lambda: socket.setdefaulttimeout(0.001),
    "logging.disable": lambda: logging.disable(logging.CRITICAL),
    "locale": lambda: locale.setlocale(locale.LC_ALL, "C" if "UTF-8" in locale.setlocale(locale.LC_ALL) else "C.UTF-8"),
}


@pytest.fixture
def as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a failed test leaves is put back."""
    monkeypatch.chdir(tmp_path)
    torch_, locale_ = settings.held(), locale.setlocale(locale.LC_ALL)
    yield
    settings.put_back(torch_)
    locale.setlocale(locale.LC_ALL, locale_)
    socket.setdefaulttimeout(None)
    logging.disable(logging.NOTSET)


def held(process: ProcessSettings) -> dict[str, Any]:
    return process._held()


@pytest.mark.usefixtures("as_before")
@pytest.mark.parametrize("name", CHANGES)
def test_what_a_call_changes_is_put_back_and_said_once(name: str) -> None:
    """Also if torch offers two ways to set the same."""
    process = ProcessSettings()
    before = held(process)
    with capture_logs() as logs:
        for _ in range(3):
            with process.kept("m"):
                CHANGES[name]()
                assert held(process) != before
            assert held(process) == before
    assert torch.backends.cudnn.allow_tf32  # raises if the old and the new names disagree
    said = [line for line in logs if line["change"].startswith(f"{name} was changed from")]
    assert len(said) == 1
    assert said[0]["models"] == "m"


@pytest.mark.usefixtures("as_before")
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", CHANGES)
def test_what_is_set_when_a_model_is_built_stays_and_is_said(name: str, *, first: bool) -> None:
    """The same in a worker that runs already as in one that starts with the model."""
    process = ProcessSettings()
    if not first:
        with process.kept("other"):
            pass
    before = held(process)
    with capture_logs() as logs, process.built("m"):
        CHANGES[name]()
    own = held(process)
    with process.kept("m"):
        pass
    assert held(process) == own != before
    assert any(line["model"] == "m" and line["change"].startswith(name) for line in logs)


@pytest.mark.usefixtures("as_before")
def test_a_neighbour_that_is_at_work_may_have_changed_directory_for_a_moment(tmp_path: Path) -> None:
    """It is put back when nobody is at work any more."""
    process = ProcessSettings()
    with process.kept("first"):
        os.chdir("/")
        with process.kept("second"):
            pass
        assert Path.cwd() == Path("/")
    assert Path.cwd() == tmp_path
