"""A model whose row says what is done to the process, and in which step: `STEP CODE`, such as `postprocess exit()`."""

from __future__ import annotations

from typing import Any


def preprocess(x: str) -> str:
    """Runs the code of `preprocess CODE`."""
    return _step("preprocess", x)


def predict(x: str) -> str:
    """Runs the code of `predict CODE`."""
    return _step("predict", x)


def postprocess(x: str) -> Any:
    """Runs the code of `postprocess CODE`; the output of `output CODE` runs it when it is converted."""
    code = x.removeprefix("output ")
    return Odd(code) if code != x else f"did {_step('postprocess', x).partition(' ')[0]}"


def _step(name: str, x: str) -> str:
    code = x.removeprefix(f"{name} ")
    if code != x:
        exec(code, {})
    return x


class Odd(dict[str, str]):
    """An output that runs code when somebody reads its items."""

    def __init__(self, code: str) -> None:
        super().__init__(code=code)

    def items(self) -> Any:
        """Runs the code; then it is `{}`."""
        exec(self["code"], {})
        return {}.items()
