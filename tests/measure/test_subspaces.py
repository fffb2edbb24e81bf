"""Principal angles from tiny to right, and bounds on thousands of random pairs of matrices."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import subspace_angles

from shotnoise.errors import InputError
from shotnoise.measure.spectra import subspaces

BOUNDS = ["davis_kahan", "yu_wang_samworth", "residual"]


def orthonormal(rng, p, q):
    return np.linalg.qr(rng.normal(size=(p, q)))[0]


def at_angles(rng, p, angles):
    """Two spaces with exactly these principal angles, in random bases."""
    q = len(angles)
    Q = orthonormal(rng, p, 2 * q)
    U, V = Q[:, :q], Q[:, :q] * np.cos(angles) + Q[:, q:] * np.sin(angles)
    return U @ orthonormal(rng, q, q), V @ orthonormal(rng, q, q)


@pytest.mark.parametrize(
    "angles", [[0.3, 0.7, 1.2], [1e-12, 1e-9, 1e-3], [np.pi / 2 - 1e-12, np.pi / 2, 1.0], [0.0, 0.5]]
)
def test_angles_are_those_of_the_construction(angles):
    for seed in range(5):
        U, V = at_angles(np.random.default_rng(seed), 30, np.array(angles))
        found = subspaces.principal_angles(U, V)
        expected = np.sort(angles)
        np.testing.assert_allclose(found.angles, expected, rtol=1e-3, atol=2e-15)
        np.testing.assert_allclose(np.pi / 2 - found.angles, np.pi / 2 - expected, rtol=1e-3, atol=2e-15)
        np.testing.assert_allclose(found.sines, np.sin(expected), rtol=1e-3, atol=2e-15)
        np.testing.assert_allclose(found.cosines, np.cos(expected), rtol=1e-3, atol=2e-15)
        assert found.distance == pytest.approx(np.linalg.norm(np.sin(expected)), abs=1e-12)


def test_the_arc_cosine_alone_loses_small_angles():
    U, V = at_angles(np.random.default_rng(0), 30, np.array([1e-10, 0.4]))
    naive = np.arccos(np.clip(np.linalg.svd(U.T @ V, compute_uv=False), -1, 1))
    assert abs(naive[0] / 1e-10 - 1) > 0.5
    assert subspaces.principal_angles(U, V).angles[0] == pytest.approx(1e-10, rel=1e-4)


@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(1, 12), st.integers(1, 12))
def test_any_basis_any_order_and_scipy(seed, p, a, q):
    a, q, rng = min(a, p), min(q, p), np.random.default_rng(seed)
    U, V = orthonormal(rng, p, a), orthonormal(rng, p, q)
    found = subspaces.principal_angles(U, V)
    np.testing.assert_allclose(found.angles, np.sort(subspace_angles(U, V)), atol=1e-7)
    turned = subspaces.principal_angles(U @ orthonormal(rng, a, a), V @ orthonormal(rng, q, q))
    swapped = subspaces.principal_angles(V, U)
    for other in (turned, swapped):
        np.testing.assert_allclose(other.angles, found.angles, atol=1e-7)
    assert found.overlap == pytest.approx(np.linalg.norm(U.T @ V) ** 2 / min(a, q))


def test_overlap_of_random_spaces_is_that_of_chance():
    rng, p, a, q = np.random.default_rng(0), 60, 9, 4
    found = [subspaces.principal_angles(orthonormal(rng, p, a), orthonormal(rng, p, q)).overlap for _ in range(400)]
    stderr = np.std(found, ddof=1) / 20
    assert abs(np.mean(found) - subspaces.chance_overlap(a, p)) < 4 * stderr
    assert abs(np.mean(found) - 1.2 * subspaces.chance_overlap(a, p)) > 4 * stderr
    edge = subspaces.chance_cosine(300, 120, 600)
    largest = [
        subspaces.principal_angles(orthonormal(rng, 600, 300), orthonormal(rng, 600, 120)).cosines[0] for _ in range(3)
    ]
    assert np.mean(largest) == pytest.approx(edge, rel=0.01) and edge < 0.96 < np.sqrt(300 / 600) + np.sqrt(120 / 600)
    assert subspaces.chance_cosine(3, 3, 6) == 1


def random_pair(rng):
    """P and Q symmetric, their eigenvalues descending with eigenvectors, at many distances of each other."""
    p = int(rng.integers(3, 12))
    P = rng.normal(size=(p, p)) * rng.choice([0.3, 1, 3])
    P = np.diag(np.sort(rng.exponential(size=p) * 5)[::-1]) + (P + P.T) / 2 * rng.choice([0, 0.3])
    D = rng.normal(size=(p, p)) * 10 ** rng.uniform(-4, 1)
    Q = P + (D + D.T) / 2
    eigen = [tuple(part[..., ::-1] for part in np.linalg.eigh(A)) for A in (P, Q)]
    return P, Q, eigen


def violations(count, gap="mixed", factor=2.0):
    """How often a bound is below what it bounds, and how often it says anything."""
    rng, broken, told = np.random.default_rng(0), dict.fromkeys(BOUNDS, 0), dict.fromkeys(BOUNDS, 0)
    for _ in range(count):
        P, Q, ((values, U), (others, V)) = random_pair(rng)
        k, delta = len(P) - 1, Q - P
        truth = subspaces.vector_angles(U[:, :k], V[:, :k])
        compared = others if gap == "mixed" else values
        gaps = subspaces.mixed_gaps(values[:k], compared)
        single = subspaces.davis_kahan(np.linalg.norm(delta @ U[:, :k], axis=0), gaps)
        distance = np.array([subspaces.principal_angles(U[:, :d], V[:, :d]).distance for d in range(1, k + 1)])
        spread = values[:k] - values[1 : k + 1]
        norm, frobenius = np.linalg.norm(delta, 2), np.linalg.norm(delta)
        together = subspaces.yu_wang_samworth(spread, norm, frobenius) * factor / 2
        residual = subspaces.residual_bounds(V[:, :k], P @ V[:, :k], values)
        for name, bound, true, limit in (
            ("davis_kahan", single, truth, np.ones(k)),
            ("yu_wang_samworth", together, distance, np.sqrt(np.arange(1, k + 1))),
            ("residual", np.where(np.isnan(residual), np.inf, residual), distance, np.sqrt(np.arange(1, k + 1))),
        ):
            broken[name] += int((true > bound * (1 + 1e-9) + 1e-9).sum())
            told[name] += int((bound < limit).sum())
    return broken, told


def test_no_bound_is_ever_violated():
    broken, told = violations(400)
    assert broken == dict.fromkeys(BOUNDS, 0)
    assert all(count > 250 for count in told.values()), "and the test sees bounds that say something"


def test_the_gap_of_one_matrix_alone_is_no_gap_for_davis_kahan():
    assert violations(400, gap="of one matrix")[0]["davis_kahan"] > 10


def test_the_constant_of_yu_wang_and_samworth_is_needed():
    assert violations(400, factor=0.5)[0]["yu_wang_samworth"] > 10


def test_bounds_by_hand():
    """P = diag(3, 1), Q turned by an angle: gaps and norms in closed form."""
    t = 0.1
    R = np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]])
    P, Q = np.diag([3.0, 1.0]), R @ np.diag([3.0, 1.0]) @ R.T
    norm = 2 * np.sin(t)  # ||Q - P||_2 for eigenvalues 3 and 1
    assert np.linalg.norm(Q - P, 2) == pytest.approx(norm)
    assert subspaces.davis_kahan([norm], subspaces.mixed_gaps([3.0], [3.0, 1.0]))[0] == pytest.approx(np.sin(t))
    assert subspaces.yu_wang_samworth([2.0], norm, np.sqrt(2) * norm)[0] == pytest.approx(2 * np.sin(t))
    V = R[:, :1]
    a = 3 * np.cos(t) ** 2 + np.sin(t) ** 2
    assert subspaces.residual_bounds(V, P @ V, [3.0, 1.0])[0] == pytest.approx(2 * np.sin(t) * np.cos(t) / (a - 1))


def test_unknown_eigenvalues_only_shrink_the_gap():
    rng = np.random.default_rng(0)
    for _ in range(200):
        values, others = np.sort(rng.normal(size=4))[::-1], np.sort(rng.exponential(size=9))[::-1]
        exact = subspaces.mixed_gaps(values, others)
        some = subspaces.mixed_gaps(values, others[:5], rest=(0.0, others[4]))
        assert (some <= exact).all()
    assert subspaces.mixed_gaps([2.0], [2.5, 1.5, 0.1], rest=(0.0, 0.1)) == 0.5


def test_without_a_gap_nothing_is_said():
    assert subspaces.davis_kahan([0.1], [0.0])[0] == np.inf
    assert subspaces.yu_wang_samworth([0.0], 1.0, 1.0)[0] == np.inf
    assert np.isnan(subspaces.residual_bounds(np.eye(3)[:, :1], np.ones((3, 1)), [5.0, 4.0])[0])


def test_share_of_the_gradient():
    V = np.eye(4)[:, :3]
    np.testing.assert_allclose(subspaces.gradient_share(V, np.array([1, 2, 0, 2.0])), [1 / 9, 5 / 9, 5 / 9])
    tiny = subspaces.gradient_share(V, 1e-200 * np.array([1, 2, 0, 2.0]))
    np.testing.assert_allclose(tiny, [1 / 9, 5 / 9, 5 / 9])
    assert np.isnan(subspaces.gradient_share(V, np.zeros(4))).all()


def test_the_best_scale():
    P, Q = np.diag([3.0, 1.0]), np.diag([1.0, 1.0])
    c = subspaces.best_scale((P * Q).sum(), (Q * Q).sum())
    assert Fraction(c) == 2
    assert np.linalg.norm(P - c * Q) < min(np.linalg.norm(P - s * Q) for s in (0.9 * c, 1.1 * c))
    assert np.isnan(subspaces.best_scale(-1.0, 1.0)) and np.isnan(subspaces.best_scale(0.0, 0.0))


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            np.ones((3, 1)),
            np.eye(3)[:, :1],
            r"not orthonormal: their products differ from 0 and 1 by 2; .*numpy\.linalg\.qr",
        ),
        (np.eye(3)[:, :1], np.eye(4)[:, :1], "vectors of 3 and of 4 numbers"),
        (np.eye(3)[0], np.eye(3), r"orthonormal columns \(p, q\) with 1 <= q <= p, not \(3,\)"),
    ],
)
def test_what_is_no_subspace_is_refused(first, second, message):
    with pytest.raises(InputError, match=message):
        subspaces.principal_angles(first, second)
