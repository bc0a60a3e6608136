"""Objects that learn by fit or partial_fit: how they are called, and that what they have learned is stored safely."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections import OrderedDict
from fractions import Fraction
from functools import partial
from uuid import UUID

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.cluster import KMeans
from sklearn.compose import make_column_transformer
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    StackingClassifier,
)
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression, SGDClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.multioutput import MultiOutputClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from sklearn.svm import SVC

from components import (
    Arguments,
    DeclarationError,
    Fit,
    ListExamples,
    LoopTrainer,
    ObjectModel,
    TrainingError,
    WeightsError,
)
from components.artifacts import loads
from components.builders import build_model, build_trainer
from components.serialization import declare
from components.training_loop import run

RNG = np.random.default_rng(0)
X = RNG.normal(size=(80, 3))
Y = (X[:, 0] > 0).astype(int)

ESTIMATORS = [
    make_pipeline(StandardScaler(), LogisticRegression()),
    RandomForestClassifier(5, random_state=0),
    HistGradientBoostingClassifier(max_iter=5),
    GradientBoostingRegressor(n_estimators=5),
    SVC(probability=False),
    KNeighborsClassifier(),
    MLPClassifier((4,), max_iter=5),
    GaussianProcessRegressor(),
    CalibratedClassifierCV(LogisticRegression(), cv=2),
    GridSearchCV(LogisticRegression(), {"C": [1, 2]}, cv=2),
    KMeans(2, n_init=1),
    make_pipeline(StackingClassifier([("one", LogisticRegression())], cv=2)),  # it has no `predict` before it is fitted
]


def fitted(estimator, given=X, targets=Y):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some do not converge, or are deprecated
        return copy.deepcopy(estimator).fit(given, targets)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda estimator: type(estimator).__name__)
def test_what_an_estimator_has_learned_comes_back(estimator):
    """Stored by skops, and loaded into a copy of the declared object: the same outputs."""
    learned = ObjectModel("m", fitted(estimator))
    data, _ = learned.packed()
    fresh = ObjectModel("m", copy.deepcopy(estimator))
    fresh.unpack(data)
    assert [np.asarray(out).tolist() for out in fresh.predict_batches(list(X))] == [
        np.asarray(out).tolist() for out in learned.predict_batches(list(X))
    ]


class Mean:
    """A user's own: what it has learned is a number."""

    def __init__(self):
        self.mean = None

    def fit(self, given, targets):
        self.mean = float(np.mean(targets))
        return self

    def __call__(self, x):
        return self.mean


class Part:
    """A class of the package that the declared object comes from: a tree of its own, a booster of xgboost."""

    def __init__(self, handle=b"1"):
        self.handle = handle

    def __getstate__(self):
        return {"handle": bytearray(self.handle)}

    def __setstate__(self, state):
        self.handle = bytes(state["handle"])


def test_an_object_of_the_users_own_learns_too():
    """It is called as it always was: it has no predict."""
    model = ObjectModel("m", Mean()).fit([1, 2, 3], [0, 0, 3])
    assert model.predict(5) == 1.0
    fresh = ObjectModel("m", Mean())
    fresh.unpack(model.packed()[0])
    assert fresh.predict(5) == 1.0


def test_what_is_learned_may_be_of_the_package_that_is_declared():
    """An object that holds none of these before it has learned; ordered dictionaries, too."""
    model = ObjectModel("m", Mean())
    model.object.mean = OrderedDict(parts=[Part(b"2")])
    fresh = ObjectModel("m", Mean())
    fresh.unpack(model.packed()[0])
    assert fresh.object.mean["parts"][0].handle == b"2"


@pytest.mark.parametrize("foreign", [pd.Series([1.0]), partial(len), len, UUID(int=1), fitted])
def test_a_foreign_class_among_what_was_learned_is_not_loaded(foreign):
    """The file may be another's: only the declaration, which is signed, says whose classes count."""
    model = ObjectModel("m", Mean())
    model.object.mean = foreign
    with pytest.raises(WeightsError, match=r"holds .*, and only types that skops knows|cannot be stored by skops"):
        ObjectModel("m", Mean()).unpack(model.packed()[0])


def test_a_class_that_the_declared_object_holds_is_loaded():
    """Whatever package it is of."""
    model, declared = ObjectModel("m", Mean()), Mean()
    model.object.mean, declared.mean = Fraction(1, 3), Fraction(1, 2)
    with pytest.raises(WeightsError, match=r"holds fractions\.Fraction"):
        ObjectModel("m", Mean()).unpack(model.packed()[0])
    fresh = ObjectModel("m", declared)
    fresh.unpack(model.packed()[0])
    assert fresh.object.mean == Fraction(1, 3)


@pytest.mark.parametrize("data", [b"", b"PK", pickle.dumps({"mean": 1}), b"\0" * 100])
def test_what_is_no_state_is_refused(data):
    """A pickle is not read."""
    with pytest.raises(WeightsError, match="bytes that are no state of Mean"):
        ObjectModel("m", Mean()).unpack(data)


def test_inputs_come_as_estimators_take_them():
    """Arrays, numbers, texts, and named inputs as a DataFrame; outputs of any kind have a row for each."""
    line = ObjectModel("m", LinearRegression()).fit(X, X[:, 0])
    assert line.predict(X[3]) == pytest.approx(X[3, 0])
    assert ObjectModel("m", LinearRegression()).fit([1.0, 2.0], [2.0, 4.0]).predict(3.0) == pytest.approx(6.0)
    two = ObjectModel("m", LinearRegression(), preprocess=lambda a, b: (a, b))
    two.fit([Arguments((1, 2)), Arguments((2, 1)), Arguments((3, 5))], [3, 3, 8])
    assert two.predict(4, 4) == pytest.approx(8)
    words = ObjectModel("m", make_pipeline(TfidfVectorizer(), LogisticRegression()))
    words.fit(["good day", "bad day", "good", "bad"], [1, 0, 1, 0])
    assert words.predict_batches(["very good", "very bad"]) == [1, 0]
    encoder = ObjectModel("m", TfidfVectorizer(), forward_method="transform")
    encoder.fit(["a word", "another word"])
    assert [len(row) for row in encoder.predict_batches(["word", "another"])] == [2, 2]
    chances = ObjectModel("m", LogisticRegression(), forward_method="predict_proba").fit(X, Y)
    assert [row.sum() for row in chances.predict_batches(list(X[:2]))] == pytest.approx([1, 1])
    frame = pd.DataFrame({"size": [1.0, 2.0, 3.0, 4.0], "town": ["a", "b", "a", "b"]})
    columns = make_column_transformer((OneHotEncoder(), ["town"]), remainder="passthrough")
    named = ObjectModel("m", make_pipeline(columns, LinearRegression())).fit(frame, pd.Series([1.0, 12.0, 3.0, 14.0]))
    assert named.predict(size=5.0, town="b") == pytest.approx(15.0)
    reduced = ObjectModel("m", PCA(2).set_output(transform="pandas"), forward_method="transform")
    reduced.fit(X)
    assert [len(row) for row in reduced.predict_batches(list(X[:4]))] == [2] * 4


def test_an_output_that_is_a_list_of_heads_is_refused():
    """It has no item for each row."""
    several = MultiOutputClassifier(LogisticRegression()).fit(X, np.stack([Y, 1 - Y], 1))
    model = ObjectModel("m", several, forward_method="predict_proba")
    for n in (2, 3):
        with pytest.raises(Exception, match=r"outputs for 3 rows|expected one output for each row"):
            model.predict_batches(list(X[:n]))


def test_fit_then_declare_keeps_what_was_learned():
    """The declaration holds the object as it is; what the daemon has trained does not change a declaration."""
    model = ObjectModel("m", LogisticRegression()).fit(X, Y)
    declared = declare(model)
    blobs = {digest: data for artifact in declared.artifacts for digest, data in artifact.blobs.items()}

    def resolve(slot):
        from components import artifacts

        return artifacts.loads(slot, blobs.__getitem__)

    back = build_model("m", declared.declaration, resolve)
    assert back.predict_batches(list(X)) == model.predict_batches(list(X))
    model.unpack(ObjectModel("m", fitted(LogisticRegression(), X, 1 - Y)).packed()[0])
    assert model.predict_batches(list(X)) != back.predict_batches(list(X))
    assert declare(model).declaration == declared.declaration
    model.object.fit(X, Y)
    model.object.C = 2.0
    assert declare(model).declaration != declared.declaration


def steps_of_a_notebook():
    """A pipeline whose steps are the user's: a class, a function, a lambda, another of the same name."""

    class Scale(TransformerMixin, BaseEstimator):
        def __init__(self, by=1.0):
            self.by = by

        def fit(self, given, targets=None):
            self.mean_ = given.mean(0)
            return self

        def transform(self, given):
            return (given - self.mean_) * self.by

    def square(given):
        return given**2

    steps = [FunctionTransformer(each) for each in (square, lambda x: x + 1, lambda x: x * 2)]
    return make_pipeline(Scale(3.0), *steps, LogisticRegression())


def test_steps_that_a_notebook_defines_come_back():
    """Another process has them by value only; what it has learned loads there, and here."""
    here = ObjectModel("m", steps_of_a_notebook())
    declared = declare(here)
    blobs = {digest: data for artifact in declared.artifacts for digest, data in artifact.blobs.items()}
    there, again = (
        build_model("m", declared.declaration, lambda slot: loads(slot, blobs.__getitem__)) for _ in range(2)
    )
    learned = there.fit(X, Y).packed()[0]
    again.unpack(learned)
    here.unpack(learned)
    wanted = there.predict_batches(list(X))
    assert again.predict_batches(list(X)) == here.predict_batches(list(X)) == wanted
    again.unpack(here.packed()[0])
    assert again.predict_batches(list(X)) == wanted
    assert type(here.object.steps[0][1]).__name__ == "Scale"
    with pytest.raises(WeightsError, match="holds"):
        ObjectModel("m", make_pipeline(StandardScaler(), LogisticRegression())).unpack(learned)


class Splits(TransformerMixin, BaseEstimator):
    """Learns a function in place of another one that looks alike from outside."""

    def __init__(self):
        self.split = lambda x: x + 1

    def fit(self, given, targets=None):
        self.split = lambda x: x * 2
        return self

    def transform(self, given):
        return self.split(given)


def test_a_function_that_was_learned_is_not_taken_for_the_declared_one():
    """Only what the declared object holds is loaded: the other function did not travel."""
    learned = ObjectModel("m", make_pipeline(Splits(), LogisticRegression()).fit(X, Y))
    data, _ = learned.packed()
    with pytest.raises(WeightsError, match="lambda"):
        ObjectModel("m", make_pipeline(Splits(), LogisticRegression())).unpack(data)


def test_a_pipeline_has_the_methods_of_its_last_step():
    """One that ends with a scaler never predicts."""
    with pytest.raises(DeclarationError, match="a method `predict`"):
        ObjectModel("m", make_pipeline(StandardScaler()))
    ObjectModel("m", make_pipeline(StandardScaler()), forward_method="transform")


def test_what_a_call_leaves_in_an_estimator_is_no_change():
    """A vectorizer keeps an address, which differs between processes; what a person changes counts after a call too."""
    texts = ["one two", "two three", "one"]
    vectorizer = make_pipeline(TfidfVectorizer(), LogisticRegression())
    model = ObjectModel("m", vectorizer)
    learned = fitted(vectorizer, texts, [0, 1, 0])
    learned[0]._stop_words_id = 1  # as in another process
    model.unpack(ObjectModel("m", learned).packed()[0])
    model.predict_batches(texts)
    assert model.declared is vectorizer
    model.object[1].C = 2.0
    model.predict_batches(texts)
    assert model.declared is model.object


def rows(n=80):
    return ListExamples([(X[i], int(Y[i])) for i in range(n)])


def test_fit_learns_from_all_rows_at_once_and_partial_fit_by_batches():
    """Both within a training, with its steps."""
    model = ObjectModel("m", LogisticRegression())
    result = run(model, LoopTrainer("t", key=("x", "y")), rows())
    assert (result.step, (np.array(model.predict_batches(list(X))) == Y).mean() > 0.9) == (1, True)
    model = ObjectModel("m", SGDClassifier(random_state=0))
    result = run(model, LoopTrainer("t", Fit("partial_fit", epochs=3, batch_size=30), key=("x", "y")), rows())
    assert (result.step, (np.array(model.predict_batches(list(X))) == Y).mean() > 0.8) == (9, True)


def test_a_loop_that_does_not_fit_its_object_is_refused():
    """By its name."""
    with pytest.raises(TrainingError, match="LogisticRegression has no partial_fit"):
        run(ObjectModel("m", LogisticRegression()), LoopTrainer("t", Fit("partial_fit"), key=("x", "y")), rows())
    with pytest.raises(TrainingError, match="function has neither fit nor partial_fit; give the trainer a loop"):
        run(ObjectModel("m", lambda x: x), LoopTrainer("t", key=("x", "y")), rows())
    with pytest.raises(DeclarationError, match='method: expected "fit" or "partial_fit"'):
        Fit("train")
    with pytest.raises(DeclarationError, match="epochs: expected a whole number"):
        Fit(epochs=0)


def test_a_trainer_by_method_is_plain_text():
    """Its declaration needs no code that travels."""
    from components import Query

    trainer = LoopTrainer("t", Fit("partial_fit", epochs=2), select=Query("rows"), key=("x", "y"), seed=3)
    declared = declare(trainer, model="m")
    assert declared.artifacts == []
    assert declared.declaration.loop_arguments["epochs"] == 2
    back = build_trainer("m", declared.declaration, lambda slot: slot)
    assert (type(back), vars(back.loop), back.seed) == (LoopTrainer, vars(trainer.loop), 3)
