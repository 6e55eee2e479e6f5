"""The estimators keep scikit-learn's promises, and give the models' numbers."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.decomposition import FactorAnalysis as SklearnFactorAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.mixture import GaussianMixture as SklearnMixture
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

import guides
import zoo
from zoo import estimators

IRIS = zoo.data.load("iris", dtype=torch.float64)
X = IRIS.x.numpy()

# Few steps and starts: the checks are of the interface.
CHECKED = {
    "PPCA": estimators.PPCA(),
    "FactorAnalysis": estimators.FactorAnalysis(),
    "GaussianMixture": estimators.GaussianMixture(),
    "BayesianPCA": estimators.BayesianPCA(n_components=2, n_init=1, max_iter=200),
    "BayesianGaussianMixture": estimators.BayesianGaussianMixture(n_init=1),
    "VAE": estimators.VAE(hidden=(4,), max_iter=5),
}
EXPECTED = {
    "GaussianMixture": {
        "check_sample_weight_equivalence_on_dense_data": "15 rows of 30 columns have no full covariance: refused"
    },
}


@pytest.mark.parametrize("name", CHECKED)
def test_scikit_learn_checks(name):
    failed = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for estimator, check in estimator_checks_generator(CHECKED[name]):
            title = check.func.__name__ if hasattr(check, "func") else check.__name__
            try:
                check(estimator)
            except Exception as error:
                if type(error).__name__ != "SkipTest" and type(error).__name__ != "Skipped":
                    failed[title] = error
    assert failed.keys() == EXPECTED.get(name, {}).keys(), failed


@pytest.fixture(scope="module")
def holes():
    x = X.copy()
    x[::7, 1] = np.nan
    x[3, :3] = np.nan
    return x


def test_factor_analysis_is_that_of_scikit_learn():
    x = zoo.data.load("holzinger", dtype=torch.float64).x.numpy()
    ours = estimators.FactorAnalysis(1).fit(x)
    theirs = SklearnFactorAnalysis(1, svd_method="lapack", tol=1e-8, max_iter=20_000).fit(x)
    assert ours.score(x) >= theirs.score(x) - 1e-9
    np.testing.assert_allclose(ours.get_covariance(), theirs.get_covariance(), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(ours.get_precision() @ ours.get_covariance(), np.eye(9), atol=1e-10)
    sign = np.sign(ours.transform(x)[0] * theirs.transform(x)[0])
    np.testing.assert_allclose(ours.transform(x) * sign, theirs.transform(x), atol=2e-3)
    again = ours.transform(ours.inverse_transform(np.zeros((1, 1))))
    np.testing.assert_allclose(again, 0.0, atol=1e-12)


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
def test_mixture_is_that_of_scikit_learn(kind):
    faithful = zoo.data.load("faithful", dtype=torch.float64).x.numpy()
    ours = estimators.GaussianMixture(2, covariance_type=kind, random_state=0).fit(faithful)
    theirs = SklearnMixture(2, covariance_type=kind, tol=1e-12, max_iter=5000, reg_covar=0, n_init=3, random_state=0)
    theirs.fit(faithful)
    assert ours.score(faithful) >= theirs.score(faithful) - 1e-8
    order, other = ours.weights_.argsort(), theirs.weights_.argsort()
    np.testing.assert_allclose(ours.means_[order], theirs.means_[other], rtol=1e-4)
    for name in ("covariances_", "precisions_"):
        own, known = getattr(ours, name), getattr(theirs, name)
        assert own.shape == known.shape
        own, known = (own, known) if kind == "tied" else (own[order], known[other])
        np.testing.assert_allclose(own, known, rtol=1e-3)
    assert ours.bic(faithful) == pytest.approx(theirs.bic(faithful), rel=1e-7)
    assert ours.aic(faithful) == pytest.approx(theirs.aic(faithful), rel=1e-7)
    rows, component = ours.sample(500)
    assert rows.shape == (500, 2)
    assert (component[:-1] <= component[1:]).all()


@pytest.mark.parametrize(
    "name", ["PPCA", "FactorAnalysis", "GaussianMixture", "BayesianPCA", "BayesianGaussianMixture"]
)
def test_incomplete_rows(name, holes):
    few = {"n_init": 2} if name.startswith("Bayesian") else {}
    found = getattr(estimators, name)(2, random_state=0, **few).fit(holes)
    assert np.isfinite(found.score_samples(holes)).all()
    method = found.transform if hasattr(found, "transform") else found.predict_proba
    assert np.isfinite(method(holes)).all()
    restored = pickle.loads(pickle.dumps(found))
    restored_method = restored.transform if hasattr(found, "transform") else restored.predict_proba
    np.testing.assert_allclose(restored_method(holes), method(holes))


@pytest.mark.parametrize("guide", ["MeanField", "Exact", lambda model, x: guides.Amortized(model, x, hidden=())])
def test_guide_in_place_of_em(guide):
    exact = estimators.FactorAnalysis(1).fit(X)
    found = estimators.FactorAnalysis(1, guide=guide, max_iter=2000, random_state=0).fit(X)
    assert exact.score(X) - found.score(X) < 1e-6
    np.testing.assert_allclose(found.components_, exact.components_, atol=1e-2)
    assert zoo.evaluate(found.run_, X).elbo.isfinite().all()


@pytest.mark.parametrize("rotation", ["varimax", "quartimax"])
def test_rotations_are_those_of_scikit_learn(rotation):
    x = zoo.data.load("holzinger", dtype=torch.float64).x.numpy()
    plain, ours = estimators.FactorAnalysis(3).fit(x), estimators.FactorAnalysis(3, rotation=rotation).fit(x)
    np.testing.assert_allclose(ours.get_covariance(), plain.get_covariance(), atol=1e-10)
    power = {"varimax": 1.0, "quartimax": 0.0}[rotation]

    def criterion(loadings):
        square = loadings**2
        return (square**2).sum() - power * (square.sum(0) ** 2).sum() / len(square)

    generator = np.random.default_rng(0)
    scaled = ours.components_.T
    if rotation == "varimax":  # Kaiser's normalisation
        scaled = scaled / np.linalg.norm(scaled, axis=1, keepdims=True)
    best = criterion(scaled)
    for _ in range(200):
        turn = np.linalg.qr(generator.normal(size=(3, 3)))[0]
        assert criterion(scaled @ turn) <= best + 1e-9


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="there is no guide 'MeanFild': known are"):
        estimators.PPCA(1, guide="MeanFild").fit(X)
    with pytest.raises(ValueError, match="n_components=4 must be at most 3"):
        estimators.PPCA(4).fit(X)
    with pytest.raises(ValueError, match="n_components must be a whole number"):
        estimators.PPCA(1.5).fit(X)
    with pytest.raises(ValueError, match="rotation must be None, 'varimax' or 'quartimax'"):
        estimators.FactorAnalysis(1, rotation="oblique").fit(X)
    with pytest.raises(ValueError, match="weight_concentration_prior_type must be one of"):
        estimators.BayesianGaussianMixture(2, weight_concentration_prior_type="other").fit(X)


def test_mixture_starts_where_it_is_told():
    faithful = zoo.data.load("faithful", dtype=torch.float64).x.numpy()
    end = estimators.GaussianMixture(2, random_state=0).fit(faithful)
    given = {"weights_init": end.weights_, "means_init": end.means_, "precisions_init": end.precisions_}
    again = estimators.GaussianMixture(2, **given).fit(faithful)
    assert again.lower_bounds_[0] == pytest.approx(end.lower_bound_, abs=1e-9)
    warm = estimators.GaussianMixture(2, warm_start=True, max_iter=1, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        heights = [warm.fit(faithful).lower_bound_ for _ in range(5)]
    assert (np.diff(heights) >= 0).all()
    assert heights[4] > heights[0]
    with pytest.raises(ValueError, match="weights_init must be 2 numbers"):
        estimators.GaussianMixture(2, weights_init=[0.5, 0.6]).fit(faithful)
    with pytest.raises(ValueError, match=r"precisions_init has shape \(2, 2\)"):
        estimators.GaussianMixture(2, precisions_init=np.eye(2)).fit(faithful)
    with pytest.raises(ValueError, match="positive definite"):
        estimators.GaussianMixture(2, precisions_init=-np.stack([np.eye(2)] * 2)).fit(faithful)


def test_too_few_steps_are_said():
    with pytest.warns(ConvergenceWarning, match="did not converge"):
        found = estimators.GaussianMixture(3, max_iter=2, random_state=0).fit(X)
    assert not found.converged_


@pytest.mark.parametrize("name", ["PPCA", "FactorAnalysis", "GaussianMixture"])
def test_weights_are_repeated_rows(name, holes):
    weights = np.random.default_rng(0).integers(0, 4, len(holes))
    repeated = np.repeat(holes, weights, 0)
    more = {"labels_init": None} if name == "GaussianMixture" else {}
    kind = getattr(estimators, name)
    own, other = kind(2, random_state=0, **more), kind(2, random_state=0, **more)
    if name == "GaussianMixture":
        labels = (holes[:, 0] > 5.8).astype(int)
        own, other = kind(2, labels_init=labels), kind(2, labels_init=np.repeat(labels, weights))
    own.fit(holes, sample_weight=weights)
    other.fit(repeated)
    np.testing.assert_allclose(own.score_samples(holes), other.score_samples(holes), rtol=1e-7, atol=1e-7)
    assert own.score(holes, sample_weight=weights) == pytest.approx(other.score(repeated), rel=1e-9)


def test_a_weighted_fit_by_svi_counts_the_weights():
    weights = np.random.default_rng(0).integers(0, 4, len(X))
    found = estimators.FactorAnalysis(1, guide="Exact", random_state=0).fit(X, sample_weight=weights)
    assert found.loglike_[-1] == pytest.approx((weights * found.score_samples(X)).sum(), rel=1e-6)


def test_a_random_state_is_drawn_from_once_per_fit():
    state = np.random.RandomState(0)
    estimators.FactorAnalysis(1, random_state=state).fit(X)
    other = np.random.RandomState(0)
    other.randint(2**31 - 1)
    assert state.randint(1000) == other.randint(1000)


def test_bayesian_weights_are_repeated_rows():
    weights = np.random.default_rng(0).integers(0, 3, len(X))
    repeated = np.repeat(X, weights, 0)
    own = estimators.BayesianPCA(2, n_init=4, random_state=0).fit(X, sample_weight=weights)
    other = estimators.BayesianPCA(2, n_init=4, random_state=0).fit(repeated)
    assert own.lower_bound_ == pytest.approx(other.lower_bound_, rel=1e-7)
    np.testing.assert_allclose(own.get_covariance(), other.get_covariance(), rtol=1e-3)


def test_bayesian_mixture_and_pca_find_their_size():
    faithful = zoo.data.load("faithful", dtype=torch.float64).x.numpy()
    found = estimators.BayesianGaussianMixture(4, weight_concentration_prior=1e-3, n_init=4, random_state=0)
    assert found.fit(faithful).n_components_ == 2
    assert found.weights_.sum() == pytest.approx(1.0)
    np.testing.assert_array_equal(found.predict(faithful), found.predict_proba(faithful).argmax(1))
    rows = np.random.default_rng(0).normal(size=(200, 6)) * [3, 3, 1, 1, 1, 1]
    pca = estimators.BayesianPCA(5, n_init=3, random_state=0).fit(rows)
    assert pca.n_components_ == 2
    assert (np.diff(np.linalg.norm(pca.components_, axis=1)) <= 0).all()
    assert pca.noise_variance_ == pytest.approx(1.0, rel=0.15)
    np.testing.assert_allclose(pca.inverse_transform(pca.transform(rows))[:, :2], rows[:, :2], atol=1.5)


def test_deep_model_bounds_and_inverts():
    found = estimators.VAE(2, hidden=(16,), noise="constant", max_iter=400, random_state=0).fit(X)
    bound = zoo.evaluate(found.run_, X, draws=200)
    assert found.score(X) == pytest.approx(float(bound.log_marginal.mean()), abs=0.1)
    assert found.score(X) > float(bound.elbo.mean())
    assert found.transform(X).shape == (150, 2)
    np.testing.assert_array_equal(found.transform(X), found.transform(X))  # means, not draws
    error = (found.inverse_transform(found.transform(X)) - X).var(0).sum() / X.var(0).sum()
    assert error < 0.2
    assert clone(found).get_params() == found.get_params()


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_pipeline_under_grid_search(library, holes):
    frames = pytest.importorskip(library)
    frame = frames.DataFrame({name: holes[:, j] for j, name in enumerate(IRIS.columns)})
    labels = IRIS.labels.numpy()
    pipe = make_pipeline(StandardScaler(), estimators.FactorAnalysis(3), LogisticRegression(max_iter=1000))
    search = GridSearchCV(pipe, {"factoranalysis__n_components": [1, 2, 3]}, cv=3).fit(frame, labels)
    assert search.best_score_ > 0.85
    factors = estimators.FactorAnalysis(2).set_output(transform=library).fit_transform(frame)
    assert isinstance(factors, frames.DataFrame)
    assert list(factors.columns) == ["factoranalysis0", "factoranalysis1"]
