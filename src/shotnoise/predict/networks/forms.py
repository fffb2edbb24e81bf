"""What is asked of a network at step t: a mean of products, and the square of a mean's length taken off.

    value = E[plain] + u E[scaled] - ||E inner||^2

For linear networks with x ~ N(0, I), e = W_H ... W_1 - W*, and layer k, with L = W_H ... W_{k+1}, R = W_{k-1} ... W_1:
inner = L^T e R^T is the full gradient and

    var(g_t)        plain = ||inner||^2,    scaled = ||inner||^2 + ||L^T e||^2 ||R||^2
    var(grad L)     plain = ||inner||^2,    scaled = 0
    E L             plain = 1/2 ||e||^2,    nothing taken off
    var(L)          plain = L^2,            inner = L

(the law of total variance: a batch's own spread, and that of the point where it is drawn).
"""

GRADIENT, FULL_GRADIENT = "gradient_variance", "full_gradient_variance"
LOSS, LOSS_VARIANCE = "loss", "loss_variance"


def weight_degree(quantity: str, outputs: int) -> int:
    """Of plain in the weights, for outputs of a degree q: 2 (2 q - 1) for gradients, 2 q for the loss."""
    return {LOSS: 2 * outputs, LOSS_VARIANCE: 4 * outputs}.get(quantity, 2 * (2 * outputs - 1))


def batch_degrees(quantity: str, outputs: int, steps: int) -> list[int]:
    """d_s, s = 0 .. t-1: of plain in the means of batch s. Every update multiplies degrees by 2 q - 1."""
    return [weight_degree(quantity, outputs) * (2 * outputs - 1) ** (steps - 1 - s) for s in range(steps)]


def degree_bound(quantity: str, outputs: int, steps: int) -> int:
    """The highest power of 1/b, attained by generic weights: sum_s (d_s - 1), and one more for a batch's own spread.

    Equation (3) of the theory's notes. Of var(g_t), 1, 6, 23, 76, ... for two linear layers, 1, 10, 59 for three.
    """
    own = sum(d - 1 for d in batch_degrees(quantity, outputs, steps))
    return own + 1 if quantity == GRADIENT else own
