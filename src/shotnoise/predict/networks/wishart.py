"""Moments of the sample covariance S = (1/b) sum_i x_i x_i^T of x ~ N(0, I_p): polynomials in u = 1/b.

    E[S_ij Q] = delta_ij E[Q] + u sum_{S_kl in Q} E[(delta_ik S_jl + delta_il S_jk) Q / S_kl]

(integration by parts), for Q a product of entries. A product of d >= 1 entries has degree d - 1 in u.
"""

from functools import lru_cache
from itertools import combinations_with_replacement

Exponents = tuple[int, ...]


@lru_cache(maxsize=32)
def entries(p: int) -> tuple[tuple[int, int], ...]:
    """The free entries (i, j), i <= j, of a symmetric matrix (p, p), in the order of all exponents here."""
    return tuple((i, j) for i in range(p) for j in range(i, p))


def monomials(variables: int, degree: int) -> list[Exponents]:
    """All exponents of total degree up to the given one, by degree.

    >>> monomials(2, 1)
    [(0, 0), (1, 0), (0, 1)]
    """
    found = []
    for d in range(degree + 1):
        for chosen in combinations_with_replacement(range(variables), d):
            found.append(tuple(chosen.count(k) for k in range(variables)))
    return found


@lru_cache(maxsize=16)
def wishart_moments(p: int, degree: int) -> dict[Exponents, list[int]]:
    """Of every product of up to `degree` entries, the coefficients of its mean in u, constant term first.

    >>> wishart_moments(1, 3)[(3,)]  # (1 + 2 u) (1 + 4 u)
    [1, 6, 8]
    """
    return _by_parts(p, degree, centred=False)


@lru_cache(maxsize=16)
def centred_moments(p: int, degree: int) -> dict[Exponents, list[int]]:
    """The same of the entries of Z = S - I, where E[Z_ij Q] is the sum over partners alone, and S_jl = Z_jl + delta_jl.

    >>> centred_moments(1, 4)[(4,)]  # E (S - 1)^4
    [0, 0, 12, 48]
    """
    return _by_parts(p, degree, centred=True)


def _by_parts(p: int, degree: int, *, centred: bool) -> dict[Exponents, list[int]]:
    names = entries(p)
    place = {pair: k for k, (i, j) in enumerate(names) for pair in ((i, j), (j, i))}
    found: dict[Exponents, list[int]] = {}
    for exponents in monomials(len(names), degree):
        d = sum(exponents)
        if d == 0:
            found[exponents] = [1]
            continue
        first = next(k for k, e in enumerate(exponents) if e)
        i, j = names[first]
        rest = _shifted(exponents, first, -1)
        total = [0] * d
        if i == j and not centred:
            total = [c + own for c, own in zip(total, [*found[rest], *[0] * d], strict=False)]
        for k, e in enumerate(rest):
            if not e:
                continue
            a, b = names[k]
            without = _shifted(rest, k, -1)
            for hit, other in ((a, b), (b, a)):
                if hit == i:
                    partners = [_shifted(without, place[j, other], 1)]
                    if centred and j == other:
                        partners.append(without)
                    for partner in partners:
                        for power, c in enumerate(found[partner]):
                            total[power + 1] += e * c
        found[exponents] = total
    return found


def _shifted(exponents: Exponents, k: int, by: int) -> Exponents:
    return (*exponents[:k], exponents[k] + by, *exponents[k + 1 :])
