"""Which of a metric's two parameters is the predictions, and which the targets, by their names.

People write `(predictions, targets)`, `(y_true, y_pred)`, `(labels, preds)`, `(y, y_hat)`: in the wrong order precision
is recall. A name is taken apart into words; the order changes only if the names say so.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

_TARGET = re.compile(
    r"trues?|truths?|gt|ground|golds?|golden|ref|refs|references?|actuals?|expected|reals?|correct|obs|observed|"
    r"observations?|wanted"
)
_PREDICTION = re.compile(
    r"preds?|predict(ed|ions?)?|y?hats?|outputs?|out|guess(es|ed)?|scores?|prob(s|as?|ability|abilities)?|"
    r"estimate[sd]?|logits?|hyps?|hypothes[ie]s|candidates?|generated|got|detections?|simulated|fakes?|inputs?|"
    r"forecasts?|results?|responses?|p"
)
_PERHAPS_TARGET = re.compile(r"targets?|tgts?|labels?|class(es)?|annotations?|annotated|tests?")
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")


def arguments(function: Callable[..., Any], predictions: Any, targets: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the two as the positional and named arguments of a function."""
    try:
        every = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a callable of an extension
        return (predictions, targets), {}
    first = [each for each in every if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)][:2]
    given = (predictions, targets)
    if len(first) < 2:
        return given, {}
    one, other = (_role(each.name) for each in first)
    if one != other and (one == "target" or other == "prediction"):
        given = (targets, predictions)
    if first[0].kind == inspect.Parameter.KEYWORD_ONLY:
        return (), {each.name: value for each, value in zip(first, given, strict=True)}
    if first[1].kind == inspect.Parameter.KEYWORD_ONLY:
        return given[:1], {first[1].name: given[1]}
    return given, {}


def _role(name: str) -> str | None:
    """Return "target" or "prediction"; None if the name says neither, as `y` alone, which is what the other is not."""
    words = [word.lower() for word in _WORDS.findall(name)]
    for pattern, role in ((_TARGET, "target"), (_PREDICTION, "prediction"), (_PERHAPS_TARGET, "target")):
        if any(pattern.fullmatch(word) for word in words):
            return role
    return None
