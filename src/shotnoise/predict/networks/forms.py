"""What is asked of a network at step t: a mean of products, and the square of a mean's length taken off.

    value = E[plain] + u E[scaled] - ||E inner||^2

For linear networks with x ~ N(0, I), e = W_H ... W_1 - W*, and layer k, with L = W_H ... W_{k+1}, R = W_{k-1} ... W_1:
inner = L^T e R^T is the full gradient and

    var(g_t)        plain = ||inner||^2,    scaled = ||inner||^2 + ||L^T e||^2 ||R||^2
    var(grad L)     plain = ||inner||^2,    scaled = 0
    E L             plain = 1/2 ||e||^2,    nothing taken off

(the law of total variance: a batch's own spread, and that of the point where it is drawn).
"""

GRADIENT, FULL_GRADIENT, LOSS = "gradient_variance", "full_gradient_variance", "loss"
