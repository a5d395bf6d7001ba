"""Our figures beside those of other libraries, or of the definition written out, on the same numbers."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from scipy.linalg import subspace_angles
from scipy.spatial.distance import cosine as cosine_distance
from sklearn.covariance import EmpiricalCovariance
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from probes.geometry import cosine, linear_cka, principal_cosines, unbiased_hsic
from probes.linear import FOLDS, PENALTY, auroc, grouped_scores, sensitivity
from probes.moments import Covariance, Sketch


def hsic_by_definition(k, m):
    """The U-statistic of Song et al. 2012 as it is defined: the mean over all ordered quadruples of different inputs."""
    terms = [k[i, j] * (m[i, j] + m[q, r] - 2.0 * m[i, q]) for i, j, q, r in permutations(range(len(k)), 4)]
    return np.mean(terms)


@pytest.mark.parametrize("n", [4, 7, 9])
def test_hsic_and_cka_are_those_of_the_definition(n):
    rng = np.random.default_rng(n)
    a, b = rng.normal(size=(n, 5)), rng.normal(size=(n, 3))
    b[:, 0] += 2.0 * a[:, 0]
    kernels = [rows @ rows.T for rows in (a, b)]

    k, m = kernels
    own = hsic_by_definition(k, k) * hsic_by_definition(m, m)
    assert unbiased_hsic(k, m) == pytest.approx(hsic_by_definition(k, m), rel=1e-10)
    if own > 0.0:
        # The definition does not centre: that it need not is part of what is tested.
        assert linear_cka(a, b) == pytest.approx(hsic_by_definition(k, m) / np.sqrt(own), rel=1e-9)


def test_the_debiased_alignment_meets_that_of_feature_covariances_where_inputs_are_many():
    """Kornblith et al. 2019, equation 5, ||Y'X||^2 / (||X'X|| ||Y'Y||), from streamed covariances of both sides beside each other."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(1600, 6))
    b = a @ rng.normal(size=(6, 4)) + rng.normal(size=(1600, 4))
    seen = Covariance(10)
    for rows in np.split(np.concatenate([a, b], axis=1), 8):
        seen.add(rows)
    xx, xy, yy = seen.scatter[:6, :6], seen.scatter[:6, 6:], seen.scatter[6:, 6:]

    plain = np.sum(xy**2) / (np.linalg.norm(xx) * np.linalg.norm(yy))

    assert linear_cka(a, b) == pytest.approx(plain, abs=2e-3)


def test_angles_are_those_of_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(20, 4)), rng.normal(size=(20, 3))
    b[:, 0] = a[:, 0] + 1e-6 * b[:, 0]

    assert np.sort(principal_cosines(a, b)) == pytest.approx(np.sort(np.cos(subspace_angles(a, b))), abs=1e-12)
    assert cosine(a[:, 0], a[:, 1]) == pytest.approx(1.0 - cosine_distance(a[:, 0], a[:, 1]), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_auroc_and_sensitivity_are_those_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    positive, negative = rng.normal(1.0, 1.0, 200).round(1), rng.normal(0.0, 1.0, 300).round(1)  # rounded: ties occur
    labels, scores = [1] * 200 + [0] * 300, np.concatenate([positive, negative])
    alarms, hits, _ = roc_curve(labels, scores, drop_intermediate=False)

    assert auroc(positive, negative) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert sensitivity(positive, negative) == pytest.approx(hits[alarms <= 0.01].max(), abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_grouped_probes_are_those_of_a_scikit_learn_pipeline(seed):
    rng = np.random.default_rng(seed)
    rows, groups = rng.normal(size=(90, 12)), np.repeat(np.arange(9), 10)
    labels = np.repeat([True, False, True, False, True, False, True, False, True], 10)
    rows[labels, 0] += 1.5

    ours = grouped_scores(rows, labels.tolist(), groups.tolist(), seed=seed)

    folds = StratifiedGroupKFold(n_splits=min(FOLDS, 4), shuffle=True, random_state=seed)
    for train, test in folds.split(rows, labels, groups):
        pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=PENALTY, max_iter=1000)).fit(rows[train], labels[train])
        theirs = pipeline.decision_function(rows[test])
        assert np.array_equal(np.argsort(ours[test]), np.argsort(theirs))


def test_streamed_covariance_and_directions_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(300, 8)) * np.geomspace(8.0, 0.1, 8) + 50.0
    whole, sketch = Covariance(8), Sketch(8, size=8)
    for part in np.split(rows, 6):
        whole.add(part)
        sketch.add(part)

    theirs = PCA().fit(rows)
    directions, variances = sketch.variances(3)

    assert whole.covariance() * 299 / 300 == pytest.approx(EmpiricalCovariance().fit(rows).covariance_, abs=1e-9)
    assert variances == pytest.approx(theirs.explained_variance_[:3], rel=1e-9)
    assert np.abs(theirs.components_[:3] @ directions) == pytest.approx(np.eye(3), abs=1e-9)
