"""The solver of logistic regression: scikit-learn's objective, and its minimum."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from featpipe.errors import HeadError
from featpipe.heads import make_head
from featpipe.logistic import Rows, Solution, Solver, _Problems
from featpipe.whitening import COLUMNS, Covariance, RowSpace, extrapolated

Problem = tuple[np.ndarray, np.ndarray, np.ndarray]


def fit_path(
    rows: Rows,
    codes: torch.Tensor,
    classes: int,
    Cs: list[float],
    weights: torch.Tensor | None = None,
    fit_intercept: bool = True,
    tol: float = 1e-8,
    max_iter: int = 500,
) -> list[Solution]:
    """One path over rows that are used once."""
    return Solver(rows, fit_intercept).fit(codes, classes, Cs, weights, tol, max_iter)


def problem(seed: int, n: int, d: int, classes: int, even: bool = False) -> Problem:
    """Features of several scales, classes of several sizes, weights of several kinds."""
    random = np.random.default_rng(seed)
    shares = np.ones(classes) if even else random.random(classes) + 0.1
    drawn = random.choice(classes, n - 2 * classes, p=shares / shares.sum())
    codes = random.permutation(np.concatenate([np.arange(classes), np.arange(classes), drawn]))
    centres = 0.5 * random.normal(size=(classes, d))
    X = (random.normal(size=(n, d)) + centres[codes]) * np.exp(random.normal(size=d))
    return X + 3 * random.normal(size=d), codes, random.integers(0, 3, n) + random.random(n)


def solve(
    X: np.ndarray, codes: np.ndarray, C: float, weights: np.ndarray | None = None,
    fit_intercept: bool = True, tol: float = 1e-13,
) -> Solution:  # fmt: skip
    given = None if weights is None else torch.tensor(weights)[None]
    rows, classes = Rows.of(torch.tensor(X)), int(codes.max()) + 1
    (found,) = fit_path(rows, torch.tensor(codes), classes, [C], given, fit_intercept, tol, 3000)
    return found


def objective(
    X: np.ndarray, codes: np.ndarray, weights: np.ndarray, C: float, coef: np.ndarray,
    intercept: np.ndarray,
) -> float:  # fmt: skip
    """What scikit-learn's user guide says that it minimises, written out."""
    logits = X.astype(np.float64) @ coef.T + intercept
    if logits.shape[1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    logits -= logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(codes)), codes]
    return float(C * (weights * losses).sum() + (coef**2).sum() / 2)


CASES = [
    (seed, *shape, C, fit_intercept)
    for seed, (shape, C, fit_intercept) in enumerate(
        [
            ((200, 10, 2), 1.0, True), ((200, 10, 2), 0.01, False), ((300, 20, 3), 1.0, True),
            ((300, 20, 3), 0.01, True), ((300, 20, 5), 0.1, False), ((400, 40, 4), 0.001, True),
            ((400, 5, 10), 1.0, True), ((500, 5, 10), 10.0, True), ((150, 30, 2), 10.0, True),
            ((150, 30, 3), 1e-4, True), ((60, 100, 2), 0.1, True), ((60, 100, 3), 0.1, True),
            ((60, 200, 4), 0.01, False), ((40, 300, 2), 1.0, False), ((80, 81, 3), 0.1, True),
            ((1000, 8, 2), 100.0, True), ((1000, 8, 6), 1.0, True), ((100, 3, 2), 1e3, True),
            ((250, 1, 2), 1.0, True), ((250, 2, 20), 1.0, True),
        ]
    )
]  # fmt: skip


@pytest.mark.parametrize(("seed", "n", "d", "classes", "C", "fit_intercept"), CASES)
def test_coefficients_are_scikit_learns(
    seed: int, n: int, d: int, classes: int, C: float, fit_intercept: bool
) -> None:
    X, codes, weights = problem(seed, n, d, classes)
    model = LogisticRegression(C=C, tol=1e-10, max_iter=100_000, fit_intercept=fit_intercept)
    model.fit(X, codes, sample_weight=weights)
    found = solve(X, codes, C, weights, fit_intercept)
    assert found.converged
    coef, intercept = found.coef[0].numpy(), found.intercept[0].numpy()
    assert coef.shape == model.coef_.shape
    np.testing.assert_allclose(coef, model.coef_, atol=1e-4 * np.abs(model.coef_).max())
    theirs = model.intercept_ - (model.intercept_.mean() if classes > 2 else 0)
    np.testing.assert_allclose(intercept, theirs, atol=1e-3 * max(1, np.abs(theirs).max()))
    mine = objective(X, codes, weights, C, coef, intercept)
    assert mine == pytest.approx(float(found.objective), rel=1e-7)
    assert mine <= objective(X, codes, weights, C, model.coef_, model.intercept_) * (1 + 1e-9)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 1000), st.integers(30, 120), st.integers(1, 150), st.integers(2, 6),
    st.sampled_from([1e-4, 1e-2, 1.0, 100.0]), st.booleans(),
)  # fmt: skip
def test_no_objective_is_above_scikit_learns(
    seed: int, n: int, d: int, classes: int, C: float, single: bool
) -> None:
    X, codes, weights = problem(seed, n, d, classes)
    X = X.astype(np.float32) if single else X
    model = LogisticRegression(C=C, max_iter=10_000).fit(X, codes, sample_weight=weights)
    found = solve(X, codes, C, weights, tol=1e-8)
    assert found.converged
    theirs = objective(X, codes, weights, C, model.coef_, model.intercept_)
    assert float(found.objective) <= theirs * (1 + 1e-7)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_the_gradient_is_that_of_the_objective(classes: int, fit_intercept: bool) -> None:
    X, codes, weights = problem(0, 50, 6, classes)
    rows, labels = Rows.of(torch.tensor(X)), torch.tensor(codes)
    given = torch.stack([torch.tensor(weights), torch.ones(50, dtype=torch.float64)])
    covariance = Covariance.of(rows, torch.full((50,), 1 / 50), fit_intercept)
    problems = _Problems(rows, labels[None], given, classes, covariance, fit_intercept)
    W = torch.randn(2, problems.outputs, 7, dtype=torch.float64, generator=torch.manual_seed(0))
    if not fit_intercept:
        W[:, :, -1] = 0
    _, gradient, _ = problems.evaluate(W, 0.3, torch.arange(2))
    for place in np.ndindex(*W.shape):
        if place[-1] == 6 and not fit_intercept:
            continue
        above, below = W.clone(), W.clone()
        above[place] += 1e-5
        below[place] -= 1e-5
        high, low = (problems.evaluate(at, 0.3, torch.arange(2))[0] for at in (above, below))
        assert float((high - low)[place[0]] / 2e-5) == pytest.approx(
            float(gradient[place]), abs=1e-4
        )


@pytest.mark.parametrize("d", [12, 300])
def test_a_path_is_what_each_penalty_gives_alone(d: int) -> None:
    X, codes, _ = problem(1, 200, d, 3)
    Cs = [1.0, 1e-3, 0.1, 1e-3, 1e-5, 0.2]
    path = fit_path(Rows.of(torch.tensor(X)), torch.tensor(codes), 3, Cs, tol=1e-13)
    assert [one.C for one in path] == Cs
    for one in path:
        alone = solve(X, codes, one.C)
        torch.testing.assert_close(one.coef, alone.coef, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("d", [10, 150])
def test_folds_are_what_each_gives_alone(d: int) -> None:
    X, codes, _ = problem(2, 100, d, 3)
    fold = np.arange(100) % 5
    weights = torch.stack([torch.tensor(fold != one, dtype=torch.float64) for one in range(5)])
    rows, labels = Rows.of(torch.tensor(X)), torch.tensor(codes)
    (found,) = fit_path(rows, labels, 3, [0.05], weights, tol=1e-13)
    for one in range(5):
        alone = solve(X[fold != one], codes[fold != one], 0.05)
        torch.testing.assert_close(found.coef[one], alone.coef[0], atol=1e-5, rtol=1e-4)
        assert float(found.objective[one]) == pytest.approx(float(alone.objective), rel=1e-9)


@pytest.mark.parametrize("d", [12, 400])
def test_rows_may_come_in_blocks(d: int) -> None:
    X, codes, _ = problem(3, 300, d, 3)
    seen = []

    def blocks(size: int) -> Iterator[Tensor]:
        for start in range(0, 300, 64):
            seen.append(start)
            yield torch.tensor(X[start : start + 64])

    rows = Rows((300, d), blocks, "cpu")
    (found,) = fit_path(rows, torch.tensor(codes), 3, [0.1], tol=1e-12)
    torch.testing.assert_close(
        found.coef, solve(X, codes, 0.1, tol=1e-12).coef, atol=1e-6, rtol=1e-5
    )
    assert set(seen) == set(range(0, 300, 64))


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("d", [8, 150])
def test_problems_may_have_codes_of_their_own(d: int, classes: int) -> None:
    X, first, weights = problem(10, 120, d, classes)
    random = np.random.default_rng(10)
    codes = np.stack([first, random.permutation(first), (first + 1) % classes])
    given = np.stack([weights, np.ones(120), random.permutation(weights)])
    rows = Rows.of(torch.tensor(X))
    found = fit_path(
        rows, torch.tensor(codes), classes, [0.01, 0.1], torch.tensor(given), tol=1e-13
    )
    for place, C in enumerate([0.01, 0.1]):
        assert found[place].converged.all()
        for one in range(3):
            alone = solve(X, codes[one], C, given[one])
            torch.testing.assert_close(found[place].coef[one], alone.coef[0], atol=1e-5, rtol=1e-4)
            model = LogisticRegression(C=C, tol=1e-10, max_iter=100_000)
            model.fit(X, codes[one], sample_weight=given[one])
            np.testing.assert_allclose(
                found[place].coef[one], model.coef_, atol=1e-4 * np.abs(model.coef_).max()
            )
    (plain,) = fit_path(rows, torch.tensor(codes), classes, [0.1], tol=1e-13)
    torch.testing.assert_close(plain.coef[1], found[1].coef[1], atol=1e-5, rtol=1e-4)


def test_a_label_that_no_row_of_a_fold_has_is_never_given_there() -> None:
    X, first, _ = problem(11, 90, 6, 2)
    codes = torch.tensor(np.stack([first, np.arange(90) < 5, first])).long()
    weights = torch.ones(3, 90)
    weights[1, :10] = 0
    (found,) = fit_path(Rows.of(torch.tensor(X)), codes, 2, [1.0], weights, tol=1e-12)
    assert found.converged.all()
    logits = torch.tensor(X) @ found.coef[1, 0] + found.intercept[1, 0]
    assert float(logits.max()) < -100
    torch.testing.assert_close(found.coef[0], found.coef[2])


def test_codes_and_weights_of_different_problems_are_refused() -> None:
    rows, codes = Rows.of(torch.randn(6, 3)), torch.tensor([[0, 1, 0, 1, 0, 1]] * 3)
    with pytest.raises(HeadError, match=r"\(3, 6\) and weights of \(2, 6\)"):
        fit_path(rows, codes, 2, [1.0], torch.ones(2, 6))
    with pytest.raises(HeadError, match=r"\(1, 6\) and weights of \(1, 5\)"):
        fit_path(rows, codes[0], 2, [1.0], torch.ones(1, 5))


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("d", [12, 200])
def test_a_refit_after_a_sweep_is_what_it_is_alone(d: int, single: bool) -> None:
    X, codes, weights = problem(12, 100, d, 3)
    X = X.astype(np.float32) if single else X
    solver, labels = Solver(Rows.of(torch.tensor(X))), torch.tensor(codes)
    folds = torch.stack([(torch.arange(100) % 5 != one).double() for one in range(5)])
    solver.fit(labels, 3, [1e-3, 1e-2, 0.1, 1.0], folds)
    for one in (None, weights, np.ones(100)):
        own = None if one is None else torch.tensor(one)[None]
        (found,) = solver.fit(labels, 3, [0.05], own, tol=1e-13)
        alone = solve(X.astype(np.float64), codes, 0.05, one)
        torch.testing.assert_close(found.coef, alone.coef, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found.objective, alone.objective, rtol=1e-6, atol=0)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("single", [True, False])
def test_the_row_space_holds_all_that_rows_are(single: bool, centred: bool) -> None:
    dtype = torch.float32 if single else torch.float64
    X = torch.randn(30, COLUMNS + 50, generator=torch.manual_seed(0), dtype=dtype) + 2
    space = RowSpace(Rows.of(X), centred)
    plain = X.double() - (X.double().mean(0) if centred else 0)
    (fine,) = (space.rows.finer() or space.rows).blocks(30)
    torch.testing.assert_close(fine @ fine.T, plain @ plain.T)
    (block,) = space.rows.blocks(30)
    assert block.dtype == dtype
    torch.testing.assert_close(block.double(), fine, rtol=1e-5, atol=1e-4)
    inside = torch.randn(2, 3, fine.shape[1], generator=torch.manual_seed(1)).double()
    coef, middle = space.back(inside)
    torch.testing.assert_close(coef @ plain.T, inside @ fine.T)
    torch.testing.assert_close(coef.norm(dim=2), inside.norm(dim=2))  # and so is the penalty
    torch.testing.assert_close(coef @ X.double().T - middle[:, :, None] * centred, inside @ fine.T)
    own = fine.T @ fine / 30
    torch.testing.assert_close(own, torch.diag(space.covariance.values), rtol=1e-9, atol=1e-9)


@given(st.lists(st.sampled_from([1e-5, 1e-3, 0.1, 1.0, 50.0]), min_size=2, max_size=3, unique=True))
def test_a_path_that_is_a_polynomial_is_foreseen(Cs: list[float]) -> None:
    factors = torch.randn(2, 1, 4, len(Cs), dtype=torch.float64, generator=torch.manual_seed(0))

    def solution(C: float) -> Tensor:
        return factors @ torch.tensor(np.log(C) ** np.arange(len(Cs)))

    foreseen = extrapolated([(C, solution(C)) for C in Cs], 200.0)
    torch.testing.assert_close(foreseen, solution(200.0))


def test_a_class_that_one_problem_lacks_gets_no_probability_there() -> None:
    X, codes, _ = problem(4, 120, 8, 3)
    weights = torch.stack([torch.ones(120), torch.tensor(codes != 1).float()]).double()
    (found,) = fit_path(Rows.of(torch.tensor(X)), torch.tensor(codes), 3, [0.1], weights, tol=1e-13)
    assert found.converged.all()
    assert (found.coef[1, 1] == 0).all()
    # Two vectors of a softmax share what one has, and so does their penalty.
    half = solve(X[codes != 1], codes[codes != 1] // 2, 0.2)
    torch.testing.assert_close(found.coef[1, 2], half.coef[0, 0] / 2, atol=1e-5, rtol=1e-4)


def test_float32_gives_way_to_float64_where_its_digits_end() -> None:
    X, codes, _ = problem(5, 300, 20, 3)
    exact = solve(X.astype(np.float32).astype(np.float64), codes, 1.0, tol=1e-13)
    found = solve(X.astype(np.float32), codes, 1.0, tol=1e-13)
    assert found.converged
    torch.testing.assert_close(found.coef, exact.coef, atol=1e-5, rtol=1e-4)


def test_rows_that_are_all_alike_give_the_classes_shares() -> None:
    X, y = np.full((8, 20), 0.3, np.float32), np.array([0, 0, 0, 0, 0, 0, 1, 1])
    head = make_head("logistic", {"C": 1.0}).fit(X, y)
    np.testing.assert_allclose(head.predict_proba(X)[0], [0.75, 0.25], atol=1e-4)
    (found,) = fit_path(Rows.of(torch.full((4, 10), 0.3)), torch.tensor([0, 1, 0, 1]), 2, [0.01])
    assert found.converged
    assert found.coef.abs().max() < 1e-6
    weights = torch.tensor([[1.0, 2, 1, 4]])
    codes, rows = torch.tensor([0, 1, 0, 1]), Rows.of(torch.full((4, 10), 0.3))
    (found,) = fit_path(rows, codes, 2, [0.01], weights)
    assert float(found.intercept + 0.3 * found.coef.sum()) == pytest.approx(np.log(3), abs=1e-4)


def test_weights_of_nothing_are_refused() -> None:
    X, codes, _ = problem(8, 50, 5, 3)
    with pytest.raises(ValueError, match="non-zero"):
        make_head("logistic").fit(X, codes, sample_weight=np.zeros(50))
    with pytest.raises(HeadError, match="class_weight leaves no row"):
        make_head("logistic", {"class_weight": {0: 0, 1: 0, 2: 0}}).fit(X, codes)


def test_features_beyond_float32s_logits_are_solved_all_the_same() -> None:
    X, codes, _ = problem(9, 100, 5, 3)
    found = solve((X * 1e15).astype(np.float32), codes, 1e-30, tol=1e-6)
    assert found.converged
    assert torch.isfinite(found.objective).all()


def test_it_says_when_it_has_not_converged() -> None:
    X, codes, _ = problem(6, 200, 20, 3)
    head = make_head("logistic", {"max_iter": 2, "C": 10.0})
    with pytest.warns(ConvergenceWarning, match="Raise max_iter"):
        head.fit(X, codes)
    assert head.gap_ > head.tol
    assert head.n_iter_ == 2


def test_balanced_classes_weigh_the_same() -> None:
    X, codes, _ = problem(7, 300, 8, 3)
    head = make_head("logistic", {"class_weight": "balanced", "C": 1.0, "standardize": False})
    model = LogisticRegression(class_weight="balanced", tol=1e-10, max_iter=10_000).fit(X, codes)
    np.testing.assert_allclose(head.fit(X, codes).arrays()["coef"], model.coef_, atol=1e-3)
