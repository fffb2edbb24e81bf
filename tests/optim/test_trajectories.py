"""Every step of both optimizers against a slow twin written from the definition; twins that are broken differ."""

import pytest
import torch
import torch.nn.functional as F
from optim_cases import DOUBLE, Slow, batches, classifier, coordinates, data, flat, per_sample, put, whole

from shotnoise.optim import AdaptiveSGD, Microbatches, Observed, PreconditionedSGD

STEPS = 25
CASES = {
    "scalar": (AdaptiveSGD, whole, {}),
    "scalar, options": (AdaptiveSGD, whole, {"lr": 0.7, "beta": 0.8, "warmup": 3, "every": 2, "weight_decay": 0.1}),
    "diagonal": (PreconditionedSGD, coordinates, {"every": 1}),
    "diagonal, options": (PreconditionedSGD, coordinates, {"lr": 1.3, "beta": 0.9, "warmup": 2, "every": 3, "weight_decay": 0.1}),
}  # fmt: skip


def trained(case, population=None, **changes):
    optimizer_type, _, options = CASES[case]
    model, (x, y) = classifier(), data()
    noise = Observed(model, population)
    optimizer = optimizer_type(model.parameters(), noise, 3.0, **{"warmup": 1, **options, **changes})
    path = []
    for batch in batches(len(x), 6, STEPS):
        optimizer.zero_grad()
        F.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
        path.append(flat(model))
    return torch.stack(path), optimizer


def expected(case, rest=0.0, **broken):
    _, blocks, options = CASES[case]
    options = {"warmup": 1, "beta": 0.99, **options}
    model, (x, y) = classifier(), data()
    slow = Slow(blocks(model), 3.0, options.get("lr", 1.0), options["beta"], options["warmup"],
                options.get("every", 1), options.get("weight_decay", 0.0), rest, **broken)  # fmt: skip
    theta, path = flat(model), []
    for batch in batches(len(x), 6, STEPS):
        put(model, theta)
        theta = slow.step(theta, per_sample(model, x[batch], y[batch]))
        path.append(theta)
    return torch.stack(path)


@pytest.mark.parametrize("case", CASES)
def test_every_step_equals_that_of_the_definition(case):
    found, _ = trained(case)
    torch.testing.assert_close(found, expected(case), rtol=0, atol=1e-12)
    assert float((found[-1] - found[0]).norm()) > 1e-3, "it moves at all"


@pytest.mark.parametrize("case", ["scalar", "diagonal"])
def test_a_twin_whose_ratio_is_that_of_the_current_batch_differs(case):
    found, _ = trained(case)
    assert float((found - expected(case, same_batch=True)).abs().max()) > 1e-3


def test_batches_without_replacement_add_the_noise_that_a_finite_set_lacks():
    found, _ = trained("scalar", population=24)
    torch.testing.assert_close(found, expected("scalar", rest=1 / 24), rtol=0, atol=1e-12)
    assert float((found - expected("scalar")).abs().max()) > 1e-3


def test_the_first_batches_are_looked_at_without_a_step():
    found, _ = trained("scalar", warmup=4)
    start = flat(classifier())
    assert torch.equal(found[:4], start.expand(4, -1)) and not torch.equal(found[4], start)


def test_a_loop_instead_of_foreach_gives_the_same():
    for case in ("scalar, options", "diagonal, options"):
        torch.testing.assert_close(trained(case, foreach=False)[0], trained(case)[0], rtol=1e-12, atol=1e-14)


def test_groups_are_blocks_with_steps_of_their_own():
    model, (x, y) = classifier(), data()
    groups = [
        {"params": list(model[0].parameters()), "lr": 0.5},
        {"params": [*model[2].parameters(), *model[3].parameters()]},
    ]
    optimizer = AdaptiveSGD(groups, Observed(model), 3.0, warmup=1)
    first = sum(p.numel() for p in groups[0]["params"])
    start = flat(model)
    twins = [Slow([slice(0, first)], 3.0, 0.5, 0.99), Slow([slice(first, None)], 3.0, 1.0, 0.99)]
    theta = start.clone()
    copy = classifier()
    for batch in batches(len(x), 6, STEPS):
        put(copy, theta)
        gradients = per_sample(copy, x[batch], y[batch])
        a, b = (twin.step(theta, gradients) for twin in twins)
        theta = torch.cat([a[:first], b[first:]])
        optimizer.zero_grad()
        F.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
        torch.testing.assert_close(flat(model), theta, rtol=0, atol=1e-12)
    assert len(optimizer.report()) == 2


def test_maximize_climbs_what_the_negative_descends():
    paths = []
    for sign, maximize in ((1.0, False), (-1.0, True)):
        model, (x, y) = classifier(), data()
        optimizer = AdaptiveSGD(model.parameters(), Observed(model), 3.0, warmup=1, maximize=maximize, weight_decay=0.1)
        for batch in batches(len(x), 6, 10):
            optimizer.zero_grad()
            (sign * F.cross_entropy(model(x[batch]), y[batch])).backward()
            optimizer.step()
        paths.append(flat(model))
    torch.testing.assert_close(*paths, rtol=0, atol=1e-13)


def test_two_passes_before_a_step_are_one_larger_batch():
    paths = []
    for parts in (1, 2):
        model, (x, y) = classifier(), data()
        optimizer = AdaptiveSGD(model.parameters(), Observed(model), 3.0, warmup=1)
        for batch in batches(len(x), 6, 10):
            optimizer.zero_grad()
            for some in batch.chunk(parts):
                (F.cross_entropy(model(x[some]), y[some]) / parts).backward()
            optimizer.step()
        paths.append(flat(model))
    torch.testing.assert_close(*paths, rtol=0, atol=1e-13)


@pytest.mark.parametrize("case", ["scalar", "diagonal"])
def test_micro_batches_are_averages_in_place_of_samples(case):
    optimizer_type, blocks, options = CASES[case]
    model, (x, y) = classifier(), data()
    noise = Microbatches()
    optimizer = optimizer_type(model.parameters(), noise, 3.0, warmup=1, **options)
    slow, theta, copy = Slow(blocks(model), 3.0, 1.0, 0.99), flat(model), classifier()
    for batch in batches(len(x), 6, STEPS):
        put(copy, theta)
        means = torch.stack([per_sample(copy, x[some], y[some]).mean(0) for some in batch.chunk(3)])
        theta = slow.step(theta, means)
        optimizer.zero_grad()
        for some in batch.chunk(3):
            (F.cross_entropy(model(x[some]), y[some]) / 3).backward()
            noise.mark()
        optimizer.step()
        torch.testing.assert_close(flat(model), theta, rtol=0, atol=1e-12)


def test_measuring_between_steps_changes_nothing():
    import shotnoise as sn

    paths = []
    for measured in (False, True):
        model, (x, y) = classifier(), data()
        problem = sn.Problem(model, "cross_entropy", x, y)
        optimizer = AdaptiveSGD(model.parameters(), Observed(model), 3.0, warmup=1)
        for batch in batches(len(x), 6, 8):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            if measured:
                sn.measure(problem, [1])
                F.cross_entropy(model(x), y)  # a forward pass that nobody differentiates
            optimizer.step()
        paths.append(flat(model))
    assert torch.equal(*paths)
    assert paths[0].dtype == DOUBLE
