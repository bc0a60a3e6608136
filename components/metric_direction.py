"""Whether greater values of a metric are better, as far as its name or its library says so."""

from __future__ import annotations

import re

_LOWER = re.compile(
    r"loss|error|err|[a-z]*(mse|mae|mape)|rmse|perplexity|distance|divergence|wer|cer|nll|latency|entropy|deviance|"
    r"deviation|brier|hamming|fpr|fnr|ece|fid|mistakes|misses|wrong"
)
_GREATER = re.compile(
    r"acc|accuracy|f1|fbeta|precision|recall|auc|auroc|roc|ap|map|score|r2|m?iou|jaccard|dice|bleu|rouge|meteor|ndcg|dcg|"
    r"mrr|hits?|kappa|mcc|matthews|specificity|sensitivity|tpr|tnr|psnr|ssim|correlation|pearson|spearman|agree(ment)?|"
    r"correct|right|similarity|likelihood"
)
_WORDS = re.compile(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*")
_SKLEARN = {"matthews_corrcoef": True, "davies_bouldin_score": False}


def direction(name: str) -> bool | None:
    """Return whether greater is better, by the words of a name ("mse", "valid_loss", "topAccuracy"); None if unknown.

    A word that means a loss or an error decides.
    """
    words = [word.lower() for word in _WORDS.findall(name)]
    words += [word.rstrip("0123456789") for word in words]
    if any(_LOWER.fullmatch(word) for word in words):
        return False
    return True if any(_GREATER.fullmatch(word) for word in words) else None


def of_sklearn(name: str) -> bool | None:
    """Return whether a function of scikit-learn is better if greater; its documentation promises these endings."""
    if name in _SKLEARN:
        return _SKLEARN[name]
    if name.endswith(("_error", "_loss", "_deviance")):
        return False
    return True if name.endswith("_score") else None


def sounds_greater(name: str) -> bool:
    """Return whether greater is better; a name that says nothing counts as greater."""
    return direction(name) is not False
