"""SGD on a tiny linear regression by the definition, with Fractions: every sequence of batches, step by step."""

from fractions import Fraction
from itertools import combinations, product

import numpy as np

import shotnoise as sn

X = [[Fraction(1), Fraction(2)], [Fraction(-1), Fraction(1)], [Fraction(3), Fraction(-1)]]
Y = [[Fraction(1)], [Fraction(2)], [Fraction(-1)]]
Y2 = [[Fraction(1), Fraction(0)], [Fraction(2), Fraction(-1)], [Fraction(-1), Fraction(2)]]
W0, W2 = [[Fraction(1), Fraction(-1)]], [[Fraction(1), Fraction(-1)], [Fraction(0), Fraction(2)]]
RATES = [Fraction(1, 4), Fraction(1, 5)]


def choices(sampling, n, b, history):
    """The batches that may come next, all equally likely."""
    if isinstance(sampling, sn.sampling.WithReplacement):
        return list(product(range(n), repeat=b))
    per_epoch = n // b
    if isinstance(sampling, sn.sampling.CyclicEpochs) and len(history) >= per_epoch:
        return [history[len(history) - per_epoch]]
    used = set()
    if not isinstance(sampling, sn.sampling.WithoutReplacement):
        used = {i for batch in history[len(history) // per_epoch * per_epoch :] for i in batch}
    return list(combinations(sorted(set(range(n)) - used), b))


def enumerated(x, y, w0, rates, b, sampling, s=None, l2=0, momentum=0, projection=None, combination=None):
    """One dict of exact values per step."""
    n, p, k = len(x), len(x[0]), len(y[0])
    s = [Fraction(1)] * n if s is None else s
    rows = [[Fraction(int(i == j)) for j in range(p)] for i in range(p)] if projection is None else projection

    def gradient(w, batch):
        g = [[l2 * w[a][j] for j in range(p)] for a in range(k)]
        for i in batch:
            for a in range(k):
                r = sum(w[a][j] * x[i][j] for j in range(p)) - y[i][a]
                for j in range(p):
                    g[a][j] += s[i] * r * x[i][j] / len(batch)
        return g

    def loss(w):
        data = sum(
            s[i] * (sum(w[a][j] * x[i][j] for j in range(p)) - y[i][a]) ** 2 for i in range(n) for a in range(k)
        ) / (2 * n)
        return data + l2 * sum(v**2 for row in w for v in row) / 2

    def projected(g):
        return [sum(row[j] * g[a][j] for j in range(p)) for a in range(k) for row in rows]

    def combined(w):
        total = Fraction(0)
        for a in range(k):
            for q in range(len(combination[0])):
                total += sum(combination[i][q][j] * gradient(w, [i])[a][j] for i in range(n) for j in range(p)) ** 2
        return total

    states = [(w0, [[Fraction(0)] * p for _ in range(k)], ())]
    found = []
    for t in range(len(rates) + 1):
        drawn = [gradient(w, batch) for w, _, h in states for batch in choices(sampling, n, b, h)]
        full = [gradient(w, range(n)) for w, _, _ in states]
        found.append({
            "gradient_variance": variance([projected(g) for g in drawn]),
            "full_gradient_variance": variance([projected(g) for g in full]),
            "loss": sum(loss(w) for w, _, _ in states) / len(states),
            "loss_variance": variance([[loss(w)] for w, _, _ in states]),
            "gradient_norm_sq": sum(v**2 for g in full for row in g for v in row) / len(full),
            "weights_variance": variance([[v for row in w for v in row] for w, _, _ in states]),
            "mean_weights": [sum(w[a][j] for w, _, _ in states) / len(states) for a in range(k) for j in range(p)],
        })  # fmt: skip
        if combination is not None:
            found[-1]["combined_gradient_norm_sq"] = sum(combined(w) for w, _, _ in states) / len(states)
        if t < len(rates):
            moved = []
            for w, m, history in states:
                for batch in choices(sampling, n, b, history):
                    g = gradient(w, batch)
                    v = [[momentum * m[a][j] + g[a][j] for j in range(p)] for a in range(k)]
                    after = [[w[a][j] - rates[t] * v[a][j] for j in range(p)] for a in range(k)]
                    moved.append((after, v, (*history, batch)))
            states = moved
    return found


def variance(vectors):
    count = len(vectors)
    mean = [sum(column) / count for column in zip(*vectors, strict=True)]
    return sum(sum(v**2 for v in vector) for vector in vectors) / count - sum(m**2 for m in mean)


def predicted(x, y, w0, b, sampling, case, rates=RATES, **options):
    options |= {"l2": float(case.get("l2", 0)), "momentum": float(case.get("momentum", 0))}
    for name, ours in (("s", "weights"), ("projection", "projection"), ("combination", "combination")):
        if name in case:
            options[ours] = np.array(case[name], float)
    return sn.predict.regression(
        np.array(x, float), np.array(y, float), np.array(w0, float), [float(a) for a in rates], [b], len(rates),
        sampling=sampling, **options,
    )  # fmt: skip


def disagreements(result, exact):
    """Where the prediction is not the exact value to rounding, among the variables that it has."""
    wrong = []
    for t, values in enumerate(exact):
        for name, value in values.items():
            if name in result:
                found = result[name].sel(step=t).values.ravel()
                if not np.allclose(found, np.array(value, float).ravel(), rtol=1e-11, atol=1e-11):
                    wrong.append((name, t))
    return wrong
