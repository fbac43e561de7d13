"""What classifier and regressor share: parameters, the training loop, what is left of it."""

from __future__ import annotations

import math
import warnings
from typing import Any, ClassVar

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from fflearn.engine import Engine
from fflearn.errors import DataError, DivergenceError, SettingsWarning, SpecError
from fflearn.estimators import convert, files, settings
from fflearn.estimators.samples import Samples, parts
from fflearn.estimators.table import layer_table
from fflearn.random import Key
from fflearn.state import State, check_same_arrays
from fflearn.training import described, engine_of

FLOATS = (np.float64, np.float32)


class LocalEstimator(BaseEstimator):
    """Base of the estimators; see `LocalClassifier`."""

    task: ClassVar[str]
    state_: State
    loss_curve_: list[float]
    validation_scores_: list[float] | None

    # -- what the task decides -------------------------------------------------------------------
    def _targets(self, y: Any, known: bool) -> tuple[np.ndarray, int]:
        """Checked y -> classes (N,) or numbers (N, K), and how many outputs the network needs.

        ``known``: what y may hold was settled by an earlier call.
        """
        raise NotImplementedError

    def _class_weights(self, y: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """Sample weights with what the classes weigh."""
        return weight

    def _held_score(self, scores: np.ndarray, held: Samples) -> float:
        """How well held-out samples are predicted; more is better."""
        raise NotImplementedError

    def _names(self) -> tuple[str, ...]:
        """Names of the outputs, for the checkpoint."""
        return ()

    # -- learning --------------------------------------------------------------------------------
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Learn from samples.

        Parameters
        ----------
        X : array or sparse matrix, shape (n_samples, n_features)
            float32 is learned from in float32, everything else in float64.
        y : array, shape (n_samples,), or for numbers (n_samples, n_outputs)
        sample_weight : array, shape (n_samples,), optional
            From 0 on.  A weight is a number of repetitions, and 0 leaves the sample out: to every
            rule, at every batch size.

        Returns
        -------
        self

        Raises
        ------
        SpecError, ShapeError, DataError
            Parameters or data that do not fit together (ValueErrors all).
        DivergenceError
            Weights or loss became infinite.
        """
        settings.check(self)
        warm = self.warm_start and hasattr(self, "state_")
        samples = self._samples(X, y, sample_weight, reset=not warm, known=warm)
        seed = self._seed()
        held = None
        if self.early_stopping:
            samples, held = self._split(samples, seed)
        steps = samples.steps(self._batch_size(samples))
        dtype = np.dtype(samples.x.dtype).name
        engine = self._new_engine(samples, dtype, (steps, self.max_iter))
        state = engine.init(seed)
        if warm:
            carry_over(self.state_, state)
        else:
            self.loss_curve_, self.validation_scores_ = [], None
        self._learn(engine, state, samples, held)
        return self

    def _partial_fit(self, X: Any, y: Any, sample_weight: Any, first: bool, known: bool) -> Any:
        """One epoch over some samples: see the estimators' `partial_fit`."""
        settings.check(self)
        if self.early_stopping:
            raise SpecError("partial_fit holds nothing out: set early_stopping=False.")
        samples = self._samples(X, y, sample_weight, reset=first, known=known)
        dtype = np.dtype(samples.x.dtype).name if first else self.engine_.dtype
        engine = self._new_engine(samples, dtype, None)
        if engine.rule.variant(0.0, engine.specs) != engine.rule.variant(1.0, engine.specs):
            raise SpecError(
                f"{self.rule}: what it does depends on how much of the training is done, which "
                f"partial_fit cannot know. Use fit."
            )
        if first:
            self.state_, self.n_iter_ = engine.init(self._seed()), 0
            self.loss_curve_, self.validation_scores_ = [], None
        elif described(engine, self._names()) != self.state_.meta["run"]:
            mine = engine.init(0).arrays()
            check_same_arrays(mine, self.state_.arrays(), "what was learned so far")
        self._keep(engine, self.state_)
        self._epoch(engine, self.state_, samples, self.n_iter_)
        self.n_iter_ += 1
        self.loss_ = self.loss_curve_[-1]
        return self

    def _samples(self, X: Any, y: Any, sample_weight: Any, reset: bool, known: bool) -> Samples:
        X, y = validate_data(
            self,
            X,
            y,
            accept_sparse="csr",
            dtype=FLOATS,
            multi_output=self.task == "regression",
            y_numeric=self.task == "regression",
            reset=reset,
        )
        weight = checked_weight(sample_weight, X.shape[0])
        if not weight.all():  # weightless samples are left out before anything looks at them
            X, y, weight = X[weight > 0], y[weight > 0], weight[weight > 0]
        y, n_outputs = self._targets(y, known)
        weight = self._class_weights(y, weight)
        shape = tuple(self.in_shape) if self.in_shape is not None else (X.shape[1],)
        if math.prod(shape) != X.shape[1]:
            raise SpecError(
                f"in_shape={shape} makes {math.prod(shape)} features; X has {X.shape[1]}."
            )
        return Samples(X, y, weight, shape, n_outputs).merged(keep_order=not self.shuffle)

    def _split(self, samples: Samples, seed: int) -> tuple[Samples, Samples]:
        """What is learned from, and what is held out; equal samples stay together."""
        keep, held = train_test_split(
            np.arange(len(samples.y)),
            test_size=self.validation_fraction,
            random_state=seed % 2**32,
            stratify=samples.y if samples.y.ndim == 1 else None,
        )
        return samples.part(keep), samples.part(held)

    def _seed(self) -> int:
        """The root of all randomness: a whole number is taken as it is, as `fflearn.train` does."""
        given = self.random_state
        if isinstance(given, (int, np.integer)) and not isinstance(given, bool) and given >= 0:
            return int(given)
        return int(check_random_state(given).randint(2**31 - 1))

    def _batch_size(self, samples: Samples) -> int:
        n = len(samples.weight)
        return min(200 if self.batch_size == "auto" else int(self.batch_size), n)

    def _new_engine(self, samples: Samples, dtype: str, horizon: tuple[int, int] | None) -> Engine:
        a_batch = samples.total / samples.steps(self._batch_size(samples))
        return settings.engine(
            self, samples.shape, samples.n_classes, self.alpha / a_batch, dtype, horizon
        )

    def _learn(self, engine: Engine, state: State, samples: Samples, held: Samples | None) -> None:
        """Epochs until neither loss nor score of what is held out gets better."""
        self._keep(engine, state)
        best, best_state, waited = -math.inf, state, 0
        scores = None if held is None else self.validation_scores_ or []
        self.validation_scores_ = scores
        for epoch in range(self.max_iter):
            self._epoch(engine, state, samples, epoch)
            self.n_iter_ = epoch + 1
            now = -self.loss_curve_[-1]
            said = f"Iteration {self.n_iter_}, loss = {-now:.8f}"
            if held is not None and scores is not None:
                now = self._held_score(self._scores_of(held.x), held)
                scores.append(now)
                said += f", validation score = {now:.6f}"
            if self.verbose:
                print(said)
            waited = 0 if now >= best + self.tol else waited + 1
            if now > best:
                best = now
                best_state = state.copy() if held is not None else state
            if waited > self.n_iter_no_change:
                break
        else:
            warnings.warn(
                f"Maximum iterations ({self.max_iter}) reached and the optimization hasn't "
                f"converged yet.",
                ConvergenceWarning,
                stacklevel=3,
            )
        self.loss_ = self.loss_curve_[-1]
        self.best_validation_score_ = best if held is not None else None
        self.best_loss_ = -best if held is None else None
        self._keep(engine, best_state)

    def _epoch(self, engine: Engine, state: State, samples: Samples, epoch: int) -> None:
        """Learn from every sample once; DivergenceError leaves the state of before."""
        key = Key(state.seed).fold("order").at(epoch) if self.shuffle else None
        good, loss = state.copy(), 0.0
        # What overflows is found below, and raised.
        with np.errstate(all="ignore"), engine.running():
            for batch, weight in samples.batches(self._batch_size(samples), key):
                info, _ = engine.step(state, batch)
                loss += weight * float(info.get("loss", 0.0))
        if not math.isfinite(loss) or state.first_bad():
            state.restore(good)
            raise DivergenceError(
                f"{self.rule}: loss or weights are not finite after epoch {epoch + 1}. Scale the "
                f"features (sklearn.preprocessing.StandardScaler), or try a smaller "
                f"learning_rate_init.",
                step=state.step,
            )
        self.loss_curve_.append(loss / samples.total)

    def _take(self, coefs: list[np.ndarray], intercepts: list[np.ndarray]) -> None:
        """Become a fitted estimator with these weights of a chain of dense layers."""
        settings.check(self)
        shape, dtype = (coefs[0].shape[0],), np.dtype(coefs[0].dtype).name
        engine = settings.engine(self, shape, coefs[-1].shape[1], 0.0, dtype, None)
        state = engine.init(self._seed())
        given = [{"W": w, "b": b} for w, b in zip(coefs, intercepts, strict=True)]
        mine = [shapes(p) for p in state.params]
        if not convert.is_plain(engine.net) or mine != [shapes(p) for p in given]:
            raise SpecError(
                f"{self.rule} trains {engine.net.spec()!r}, which cannot have the weights of this "
                f"MLP. Take a rule that leaves the network as it is, as dfa does."
            )
        for own, arrays in zip(state.params, given, strict=True):
            for name, value in arrays.items():
                own[name] = value
        self._keep(engine, state)

    def _keep(self, engine: Engine, state: State) -> None:
        """Take a network over: its state, and what it needs to be used without the parameters."""
        state.meta["run"] = described(engine, self._names())
        self.state_, self._engine = state, engine
        self.n_layers_, self.n_outputs_ = len(engine.specs) + 1, engine.n_classes
        self.out_activation_ = "softmax" if self.task == "classification" else "identity"

    # -- use -------------------------------------------------------------------------------------
    @property
    def engine_(self) -> Engine:
        """The engine that learned: network, rule and optimizer, whatever the parameters are now."""
        check_is_fitted(self)
        if "_engine" not in vars(self):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SettingsWarning)  # it came when this was trained
                self._engine = engine_of(self.state_.meta["run"])
        return self._engine

    def _scores(self, X: Any) -> np.ndarray:
        """The network's scores (n_samples, n_outputs)."""
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", dtype=FLOATS, reset=False)
        return self._scores_of(X)

    def _scores_of(self, x: Any) -> np.ndarray:
        engine, by = self.engine_, "" if self.predict_by == "auto" else self.predict_by
        with np.errstate(all="ignore"):
            found = [
                engine.predict(self.state_, rows.reshape(len(rows), *engine.in_shape), by)
                for rows in parts(x)
            ]
        return np.concatenate(found)

    @property
    def coefs_(self) -> list[np.ndarray]:
        """Weight matrices (n_in, n_out) of a plain chain of dense layers, as an MLP's."""
        return [p["W"] for p in self._plain("coefs_")]

    @property
    def intercepts_(self) -> list[np.ndarray]:
        """Biases (n_out,) of a plain chain of dense layers, as an MLP's."""
        return [p["b"] for p in self._plain("intercepts_")]

    def _plain(self, asked: str) -> Any:
        if "state_" not in vars(self) or not convert.is_plain(self.engine_.net):
            raise AttributeError(
                f"{asked} is there after fit, where the network is a chain of dense layers with "
                f"biases and no norm. All arrays: state_.arrays()"
            )
        return self.state_.params

    def save(self, path: Any) -> None:
        """Write the fitted estimator as .safetensors: numbers and text, no code.

        ``fflearn predict`` reads the file, too.

        Raises
        ------
        CheckpointError
            A parameter that a file cannot hold, a number that is not finite, or no place to write.
        """
        check_is_fitted(self)
        files.save(self, path)

    @classmethod
    def load(cls, path: Any) -> Any:
        """The estimator that `save` wrote.

        Raises
        ------
        CheckpointError
            Missing, damaged, or of another estimator.
        """
        return files.load(cls, path)

    @classmethod
    def from_sklearn(cls, mlp: Any, **params: Any) -> Any:
        """The estimator with the parameters of an MLP and, if it is fitted, its weights.

        Parameters
        ----------
        mlp : MLPClassifier or MLPRegressor
        **params
            Set after the MLP's, the rule above all: ``rule="dfa", warm_start=True`` goes on from
            the MLP's weights.

        Raises
        ------
        SpecError
            Not such an MLP, or one with a loss or targets that are not ours.
        """
        return convert.from_sklearn(cls, mlp, params)

    def to_sklearn(self) -> Any:
        """The fitted network as a fitted MLPClassifier or MLPRegressor, which predicts the same.

        Raises
        ------
        SpecError
            A network that MLPs do not have, or a rule that does not predict by its output.
        """
        check_is_fitted(self)
        return convert.to_sklearn(self)

    def __getstate__(self) -> Any:
        return {n: v for n, v in super().__getstate__().items() if n != "_engine"}

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def _html_repr(self) -> str:
        """scikit-learn's diagram, and a table of the layers."""
        shown = super()._html_repr()
        return shown + layer_table(self.engine_, self.state_) if "state_" in vars(self) else shown


def checked_weight(sample_weight: Any, n: int) -> np.ndarray:
    """Weights (n,), one each where none are given; DataError where they cannot be weights."""
    if sample_weight is None:
        return np.ones(n)
    weight = np.asarray(sample_weight, np.float64)
    weight = np.full(n, weight) if weight.ndim == 0 else weight
    if weight.shape != (n,) or not np.isfinite(weight).all():
        raise DataError(f"sample_weight needs {n} finite numbers; got the shape {weight.shape}.")
    if (weight < 0).any() or not weight.any():
        raise DataError("sample_weight needs numbers from 0 on, and not all zero.")
    return weight


def carry_over(old: State, new: State) -> None:
    """Go on from what was learned, with a fresh optimizer: as an MLP's warm start does."""
    if [shapes(p) for p in new.params] != [shapes(p) for p in old.params]:
        raise SpecError(
            "warm_start goes on with the network that was fitted; this one has other layers. "
            "Set warm_start=False."
        )
    for a, b in zip([*new.params, *new.aux], [*old.params, *old.aux], strict=True):
        if shapes(a) == shapes(b):  # the arrays of another rule are other ones
            for name, value in b.items():
                a[name] = value


def shapes(arrays: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a layer's arrays."""
    return {name: a.shape for name, a in arrays.items()}
