"""What is guaranteed of SGD's loss, as numbers: bounds on one step and on many, each beside what really happens.

`one_step`: the expected change of the loss, its tails, its exact law where the loss is quadratic. `loss_process`: the
martingale part of the loss over many steps. `least_squares`, `logistic`: the forms for linear models with more features
than samples. `QuadraticForm`: the law of a quadratic form in Gaussian noise. `refuted_deviation`: why the loss itself
does not obey the bound of its martingale part.

After Li, Gu, Zhou, Chen and Banerjee, "Hessian based analysis of SGD for deep nets: dynamics and generalization"
(2020), sections 5.2 and 5.3, with derived constants and corrected where it is wrong: each function says where.
"""

from shotnoise.predict.bounds.law import QuadraticForm
from shotnoise.predict.bounds.linear_models import least_squares, logistic
from shotnoise.predict.bounds.one_step import one_step
from shotnoise.predict.bounds.process import loss_process, refuted_deviation

__all__ = ["QuadraticForm", "least_squares", "logistic", "loss_process", "one_step", "refuted_deviation"]
