"""Means of products of traces tr(S M_1 S M_2 ... S M_d) over Gaussian sample covariances, whatever the matrices' size.

One S after the other is eliminated by parts: it becomes I, or meets another S, in

    the same trace   tr(S A S B)       ->  u (tr(A^T S B) + tr(A^T S) tr B)
    another one      tr(S A) tr(S B)   ->  u (tr(A^T S B) + tr(A^T S B^T))

S's carry labels: those of different labels are independent and never meet. Words are remembered up to rotation and
transposition, matrix products up to what they were made of.
"""

from typing import Any

import numpy as np

from shotnoise.predict.linear_regression.least_squares import Array

Word = tuple[tuple[int, int], ...]  # (label of S, number of the matrix after it), around the trace
Chain = tuple[tuple[int, ...], tuple[int, ...]]  # matrices, and the labels of the S between them


class Words:
    """Matrices (p, p) by number, float64 or Fractions, and the means of words in them.

    >>> words = Words()
    >>> M = words.number(np.eye(2, dtype=int).astype(object))
    >>> words.mean((((0, M), (0, M)),))  # E tr S^2 = p + u p (p + 1)
    [2, 6]
    """

    def __init__(self, trace_bound: float = 1) -> None:
        """trace_bound: for norms in place of matrices (1, 1), what a trace is at most, as a multiple."""
        self._trace_bound = trace_bound
        self._matrices: list[Array] = []
        self._numbers: dict[Any, int] = {}
        self._products: dict[tuple[int, int], int] = {}
        self._transposes: dict[int, int] = {}
        self._means: dict[tuple[Word, ...], list[Any]] = {}

    def number(self, matrix: Array) -> int:
        """The same for equal matrices, as different terms bring them."""
        key = tuple(matrix.ravel()) if matrix.dtype == object else matrix.tobytes()
        if key in self._numbers:
            return self._numbers[key]
        self._matrices.append(np.ascontiguousarray(matrix))
        new = self._numbers[key] = len(self._matrices) - 1
        if (matrix == matrix.T).all():
            self._transposes[new] = new
        return new

    def transpose(self, a: int) -> int:
        if a not in self._transposes:
            self._transposes[a] = self.number(self._matrices[a].T)
            self._transposes[self._transposes[a]] = a
        return self._transposes[a]

    def product(self, a: int, b: int) -> int:
        if (a, b) not in self._products:
            self._products[a, b] = self.number(self._matrices[a] @ self._matrices[b])
        return self._products[a, b]

    def trace(self, a: int) -> Any:
        return self.trace_of(self._matrices[a])

    def trace_of(self, matrix: Array) -> Any:
        return matrix.trace() * self._trace_bound

    def closed(self, chain: Chain) -> tuple[Any, tuple[Word, ...]]:
        """The trace of M_0 S M_1 ... S M_d: a number and words, one of which is empty."""
        matrices, labels = chain
        if not labels:
            return self.trace(matrices[0]), ()
        last = self.product(matrices[-1], matrices[0])
        return 1, (tuple(zip(labels, (*matrices[1:-1], last), strict=True)),)

    def mean(self, state: tuple[Word, ...]) -> list[Any]:
        """The coefficients in u of the mean of a product of traces."""
        if not state:
            return [1]
        state = tuple(sorted(self._canonical(word) for word in state))
        if state not in self._means:
            self._means[state] = self._eliminated(state[0], state[1:])
        return self._means[state]

    def _eliminated(self, word: Word, others: tuple[Word, ...]) -> list[Any]:
        label, after = word[0][0], _opened(word)
        total = self._times(*self.closed(after), others)
        reverse = self._transposed(after)
        for k in range(1, len(word)):
            if word[k][0] != label:
                continue
            between = self._transposed((after[0][:k], after[1][: k - 1]))
            rest = (after[0][k:], after[1][k:])
            _add(total, self.mean((_around(label, self._joined(rest, between)), *others)))
            number, left = self.closed(rest)
            _add(total, self._times(number, (_around(label, between), *left), others))
        for j, other in enumerate(others):
            remaining = others[:j] + others[j + 1 :]
            for k in range(len(other)):
                if other[k][0] != label:
                    continue
                rest = _opened(other[k:] + other[:k])
                for side in (rest, self._transposed(rest)):
                    _add(total, self.mean((_around(label, self._joined(side, reverse)), *remaining)))
        return total

    def _times(self, number: Any, words: tuple[Word, ...], others: tuple[Word, ...]) -> list[Any]:
        return [number * c for c in self.mean((*words, *others))]

    def _joined(self, left: Chain, right: Chain) -> Chain:
        middle = self.product(left[0][-1], right[0][0])
        return (*left[0][:-1], middle, *right[0][1:]), left[1] + right[1]

    def _transposed(self, chain: Chain) -> Chain:
        return tuple(self.transpose(a) for a in reversed(chain[0])), tuple(reversed(chain[1]))

    def _canonical(self, word: Word) -> Word:
        """The smallest of all rotations of the word and of its transpose, which have the same trace."""
        matrices, labels = self._transposed(_opened(word))
        turned = tuple(zip((word[0][0], *labels), matrices, strict=True))
        return min(w[k:] + w[:k] for w in (word, turned) for k in range(len(w)))


def _opened(word: Word) -> Chain:
    """What follows the first S: M_1 S M_2 ... S M_d."""
    return tuple(m for _, m in word), tuple(label for label, _ in word[1:])


def _around(label: int, chain: Chain) -> Word:
    """tr(S chain)."""
    return tuple(zip((label, *chain[1]), chain[0], strict=True))


def _add(total: list[Any], values: list[Any]) -> None:
    """total += u values."""
    total.extend([0] * (len(values) + 1 - len(total)))
    for k, value in enumerate(values):
        total[k + 1] = total[k + 1] + value
