"""Balancers that combine gradients: what each parameter receives, and what loss scaling and accumulation make of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mtl.balancing.base import Balancer, Step
from mtl.balancing.gradients import GradientBalancer, MultipleGradientDescent, shortest
from mtl.core.registry import BALANCERS

TASKS = ["fine", "middle", "coarse"]


class Pyramid(nn.Module):
    """Nested maps as of an encoder with a neck: every head reads another one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.second = nn.Conv2d(6, 6, 3, stride=2, padding=1)
        self.neck = nn.ModuleList([nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)])
        self.unused = nn.Linear(2, 2)
        self.heads = nn.ModuleDict({task: nn.Conv2d(6, 2, 1) for task in TASKS})
        self.shared = [*self.first.parameters(), *self.second.parameters(), *self.neck.parameters(), *self.unused.parameters()]
        self.own = list(self.heads.parameters())

    def losses(self, images: Tensor) -> dict[str, Tensor]:
        fine = torch.tanh(self.first(images))
        coarse = torch.tanh(self.second(fine))
        middle = self.neck[0](fine) + nn.functional.interpolate(self.neck[1](coarse), scale_factor=2.0)
        read = {"fine": fine, "middle": middle, "coarse": coarse}
        aims = dict(zip(TASKS, (0.3, -0.7, 2.0), strict=True))
        return {task: (head(read[task]).float() - aims[task]).square().mean() for task, head in self.heads.items()}


class Sum(GradientBalancer):
    """Adds the gradients up, which is what an ordinary backward pass does."""

    def aggregate(self, gradients: Tensor, tasks: list[str]) -> Tensor:
        return gradients.sum(dim=0)


def images(seed: int = 1, count: int = 2) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def everyone(*absent: str) -> dict[str, bool]:
    return {task: task not in absent for task in TASKS}


def balanced(net: Pyramid, balancer: Balancer, present: dict[str, bool], batch: Tensor | None = None) -> Tensor:
    losses = net.losses(images() if batch is None else batch)
    losses = {task: loss * float(present[task]) for task, loss in losses.items()}  # as heads do without a label
    total: Tensor = balancer(Step(losses, present, net.shared, net.own))
    return total


def gradients(parameters: list[nn.Parameter]) -> list[Tensor | None]:
    return [None if parameter.grad is None else parameter.grad.clone() for parameter in parameters]


def update(balancer: Balancer, *absent: str) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Return the gradients of the shared and of the other parameters."""
    net = Pyramid()
    balanced(net, balancer, everyone(*absent)).backward()
    return gradients(net.shared), gradients(net.own)


def jacobian(net: Pyramid) -> Tensor:
    rows = []
    for loss in net.losses(images()).values():
        found = torch.autograd.grad(loss, net.shared, retain_graph=True, allow_unused=True)
        rows.append(
            torch.cat([torch.zeros(p.numel()) if g is None else g.flatten() for p, g in zip(net.shared, found, strict=True)])
        )
    return torch.stack(rows)


def flat(values: list[Tensor | None], like: list[nn.Parameter]) -> Tensor:
    return torch.cat([torch.zeros(p.numel()) if v is None else v.flatten() for v, p in zip(values, like, strict=True)])


def assert_same(first: list[Tensor | None], second: list[Tensor | None], tolerance: float = 1e-6) -> None:
    for one, other in zip(first, second, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert (one - other).norm() <= tolerance * other.norm()


# -- the way of the gradients ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("absent", [(), ("middle",), ("fine", "coarse"), tuple(TASKS)], ids=str)
def test_a_plain_sum_is_an_ordinary_backward_pass(absent: tuple[str, ...]) -> None:
    ours, ordinary = Sum(TASKS), BALANCERS.build({"name": "static"}, TASKS)
    net = Pyramid()
    assert balanced(net, ours, everyone(*absent)).item() == pytest.approx(balanced(net, ordinary, everyone(*absent)).item())
    (shared, own), (expected, expected_own) = update(ours, *absent), update(ordinary, *absent)
    assert_same(shared, expected)
    assert_same(own, expected_own)
    assert shared[-1] is None and all(gradient is not None for gradient in own)  # no loss reaches the one; absent heads stay


def test_heads_follow_their_own_task_and_the_rest_the_combination() -> None:
    balancer = MultipleGradientDescent(TASKS)
    shared, own = update(balancer)
    _, ordinary = update(BALANCERS.build({"name": "static"}, TASKS))
    assert_same(own, ordinary)
    net = Pyramid()
    rows = jacobian(net)
    combined = flat(shared, net.shared)
    # No task gets worse to first order: the shortest combination has the same product with all that take part.
    assert ((rows @ combined) >= combined.square().sum() * (1 - 1e-4)).all()
    assert combined.norm() < rows.norm(dim=1).min()


def test_a_task_without_label_is_left_out() -> None:
    """Its gradient of zero would otherwise be the shortest combination, and nothing shared would move."""
    shared, own = update(MultipleGradientDescent(TASKS), "middle")
    net = Pyramid()
    rows = jacobian(net)[[0, 2]]
    expected = torch.from_numpy(shortest((rows @ rows.T).double().numpy())).float() @ rows
    torch.testing.assert_close(flat(shared, net.shared), expected, rtol=1e-4, atol=1e-7)
    assert expected.norm() > 0
    middle = own[2:4]
    assert all(gradient is not None and not gradient.any() for gradient in middle)


def test_a_label_whose_loss_has_no_gradient_does_not_stop_the_others() -> None:
    net, balancer = Pyramid(), MultipleGradientDescent(TASKS)
    losses = net.losses(images())
    losses["middle"] = losses["middle"] * 0.0
    balancer(Step(losses, everyone(), net.shared, net.own)).backward()
    assert_same(gradients(net.shared), update(MultipleGradientDescent(TASKS), "middle")[0], 1e-4)


@pytest.mark.parametrize("absent", [("fine", "coarse"), tuple(TASKS)], ids=str)
def test_with_less_than_two_tasks_there_is_nothing_to_combine(absent: tuple[str, ...]) -> None:
    for ours, ordinary in zip(
        update(MultipleGradientDescent(TASKS), *absent),
        update(BALANCERS.build({"name": "static"}, TASKS), *absent),
        strict=True,
    ):
        assert_same(ours, ordinary, 0.0)


def test_with_nothing_shared_there_is_nothing_to_combine() -> None:
    net, other = Pyramid(), Pyramid()
    MultipleGradientDescent(TASKS)(Step(net.losses(images()), everyone())).backward()
    torch.stack(list(other.losses(images()).values())).sum().backward()
    assert_same(gradients([*net.parameters()]), gradients([*other.parameters()]), 0.0)


# -- what the trainer does to a loss -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Sum, MultipleGradientDescent])
def test_the_gradients_scale_with_the_loss(kind: type[GradientBalancer]) -> None:
    net, expected = Pyramid(), update(kind(TASKS))
    (balanced(net, kind(TASKS), everyone()) * 2.0**16).backward()
    for values, ordinary in zip((net.shared, net.own), expected, strict=True):
        assert_same([None if p.grad is None else p.grad / 2.0**16 for p in values], ordinary, 1e-5)


def test_a_scale_that_is_too_large_skips_the_step() -> None:
    net = Pyramid()
    before = [parameter.detach().clone() for parameter in net.parameters()]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=1000)
    balancer = MultipleGradientDescent(TASKS)
    losses = {task: loss * 1e6 for task, loss in net.losses(images()).items()}
    scaler.scale(balancer(Step(losses, everyone(), net.shared, net.own))).backward()
    assert not any(parameter.grad.isfinite().all() for parameter in net.shared if parameter.grad is not None)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**126
    assert all(torch.equal(one, other) for one, other in zip(before, net.parameters(), strict=True))
    assert balancer.weights() == MultipleGradientDescent(TASKS).weights()  # a step that did not count


def test_accumulated_gradients_are_those_of_one_large_batch() -> None:
    """Of a sum; a combination is made anew for every batch, so that it must hold for equal ones only."""
    halves = [images(1), images(2)]
    small, large = Pyramid(), Pyramid()
    for half in halves:
        (balanced(small, Sum(TASKS), everyone(), half) / 2).backward()
    balanced(large, Sum(TASKS), everyone(), torch.cat(halves)).backward()
    assert_same(gradients([*small.parameters()]), gradients([*large.parameters()]))
    twice, once = Pyramid(), Pyramid()
    for _ in range(2):
        (balanced(twice, MultipleGradientDescent(TASKS), everyone()) / 2).backward()
    balanced(once, MultipleGradientDescent(TASKS), everyone()).backward()
    assert_same(gradients([*twice.parameters()]), gradients([*once.parameters()]))


def test_clipping_sees_the_combined_gradients() -> None:
    net = Pyramid()
    (balanced(net, MultipleGradientDescent(TASKS), everyone()) * 100).backward()
    found = flat(gradients([*net.parameters()]), [*net.parameters()])
    norm = nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    assert norm.item() == pytest.approx(found.norm().item(), rel=1e-5) and norm > 1
    clipped = flat(gradients([*net.parameters()]), [*net.parameters()])
    torch.testing.assert_close(clipped, found / norm, rtol=1e-4, atol=1e-7)


def test_mixed_precision_changes_little() -> None:
    net = Pyramid()
    with torch.autocast("cpu", torch.bfloat16):
        total = balanced(net, MultipleGradientDescent(TASKS), everyone())
    total.backward()
    shared, own = update(MultipleGradientDescent(TASKS))
    assert all(parameter.grad is None or parameter.grad.dtype == torch.float32 for parameter in net.parameters())
    assert_same(gradients(net.shared)[:2], shared[:2], 0.1)
    assert_same(gradients(net.own), own, 0.1)


def test_ranks_combine_the_mean_of_their_gradients() -> None:
    """Each rank alone would find other weights; with the mean all of them do what one process with all images does."""
    halves = [images(1), images(2)]
    rows: list[Tensor] = []

    def gradient_of(half: Tensor, average: object) -> list[Tensor | None]:
        net = Pyramid()
        step = Step(net.losses(half), everyone(), net.shared, net.own, average)  # type: ignore[arg-type]
        MultipleGradientDescent(TASKS)(step).backward()
        return gradients(net.shared)

    for half in halves:
        gradient_of(half, lambda own: rows.append(own.clone()) or own)
    first, second = (gradient_of(half, lambda own: torch.stack(rows).mean(dim=0)) for half in halves)
    assert_same(first, second, 0.0)
    whole = Pyramid()
    balanced(whole, MultipleGradientDescent(TASKS), everyone(), torch.cat(halves)).backward()
    assert_same(first, gradients(whole.shared), 1e-4)


# -- the shortest combination ------------------------------------------------------------------------------------------


def vectors() -> Iterator[tuple[str, np.ndarray]]:
    random = np.random.default_rng(0)
    for tasks in (1, 2, 3, 6):
        yield f"{tasks}", random.normal(size=(tasks, 40))
        yield f"{tasks} aligned", random.normal(size=(tasks, 40)) + 2.0
        yield f"{tasks} in a plane", random.normal(size=(tasks, 2)) + 0.5
        yield f"{tasks} of many lengths", random.normal(size=(tasks, 40)) * np.logspace(-4, 4, tasks)[:, None]
    yield "opposed", np.array([[1.0, 0.0], [-1.0, 0.0]])


@pytest.mark.parametrize(("name", "rows"), [pytest.param(name, rows, id=name) for name, rows in vectors()])
def test_no_combination_is_shorter(name: str, rows: np.ndarray) -> None:
    products = rows @ rows.T
    weights = shortest(products)
    assert (weights >= 0).all() and weights.sum() == pytest.approx(1.0)
    # Half the gap bounds the squared distance from the shortest one.
    gap = weights @ products @ weights - (products @ weights).min()
    assert gap <= 1e-7 * products.diagonal().min()


def test_equal_gradients_share_the_weight_and_zeros_get_none() -> None:
    assert shortest(np.ones((4, 4))) == pytest.approx([0.25] * 4, abs=1e-3)
    assert shortest(np.diag([0.0, 4.0, 1.0])) == pytest.approx([0.0, 0.2, 0.8])
    assert shortest(np.zeros((2, 2))).tolist() == [0.0, 0.0]


def test_it_is_the_combination_of_torchjd() -> None:
    reason = "TorchJD is not installed; it is part of the extra `dev`"
    aggregation = pytest.importorskip("torchjd.aggregation", reason=reason)

    class Reference(GradientBalancer):
        def aggregate(self, gradients: Tensor, tasks: list[str]) -> Tensor:
            result: Tensor = aggregation.MGDA(epsilon=1e-9, max_iters=20000)(gradients)
            return result

    for absent in ((), ("fine",), ("coarse",)):
        ours, theirs = update(MultipleGradientDescent(TASKS), *absent), update(Reference(TASKS), *absent)
        assert_same(ours[0], theirs[0], 1e-3)
        assert_same(ours[1], theirs[1])


# -- state -------------------------------------------------------------------------------------------------------------


def test_the_log_shows_a_running_mean_that_resumes() -> None:
    balancer = MultipleGradientDescent(TASKS)
    assert balancer.weights() == pytest.approx(dict.fromkeys(TASKS, 1 / 3))
    update(balancer, "coarse")
    weights = balancer.weights()
    assert weights["coarse"] == pytest.approx(1 / 3) and weights["fine"] + weights["middle"] == pytest.approx(0.9 * 2 / 3 + 0.1)
    other = MultipleGradientDescent(TASKS)
    other.load_state_dict(balancer.state_dict())
    assert other.weights() == weights


def test_a_new_gradient_balancer_has_aggregate_alone() -> None:
    class Equal(GradientBalancer):
        def aggregate(self, gradients: torch.Tensor, tasks: list[str]) -> torch.Tensor:
            return gradients.mean(0)

    assert Equal.needs_gradients


def test_the_source_states_which_balancers_look_at_gradients() -> None:
    """The configuration is checked before any balancer is imported."""
    for name, entry in BALANCERS.entries().items():
        part = BALANCERS.get(name)
        assert isinstance(part, type) and issubclass(part, Balancer)
        stated = entry.constants.get("needs_gradients", False)
        assert stated == part.needs_gradients == issubclass(part, GradientBalancer), name
