"""Failures in the backward."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from planted.case import failing, mlp, train


@failing
def square_root_at_zero() -> None:
    """The distance of two equal points has no gradient."""
    model = mlp(3, 2)
    x = torch.randn(4, 3)

    def loss(step: int) -> Tensor:
        a, b = model(x), model(x)
        square = ((a - b) ** 2).sum(-1)
        distance = square.sqrt()  # culprit: backward
        return distance.mean()

    train(model, loss)


@failing
def arc_cosine_at_one() -> None:
    """The angle of a vector with itself."""
    model = nn.Linear(1, 1)

    def loss(step: int) -> Tensor:
        cosine = model(torch.ones(4, 1)).clamp(min=1.0, max=1.0) * 1.0 + (model.weight * 0).sum()
        angle = torch.acos(cosine)  # culprit: backward
        return angle.mean()

    train(model, loss)


@failing
def where_around_a_square_root() -> None:
    """`where` hides the value, not the gradient: 0 times infinity."""
    model = mlp(3, 4)
    x = torch.cat([torch.zeros(2, 3), torch.randn(2, 3)])

    def loss(step: int) -> Tensor:
        h = model(x).relu() * (x.sum(-1, keepdim=True) != 0)
        root = torch.sqrt(h)  # culprit: backward
        return torch.where(h > 0, root, 0.0).mean()

    train(model, loss)


@failing
def where_around_a_division() -> None:
    """The same for a quotient."""
    model = mlp(3, 2)
    x = torch.randn(4, 3)

    def loss(step: int) -> Tensor:
        above, below = model(x).unbind(-1)
        below = below * torch.tensor([1.0, 1.0, 0.0, 1.0])
        ratio = above / below  # culprit: backward
        return torch.where(below != 0, ratio, torch.zeros(())).tanh().mean()

    train(model, loss)


@failing
def where_around_an_exponential() -> None:
    """The infinite value is discarded in the forward, but the gradient of exp is exp."""
    model = mlp(3, 4)
    x = torch.randn(4, 3) * 100

    def loss(step: int) -> Tensor:
        h = model(x) * 1e4
        growth = h.exp()  # culprit: forward
        return torch.where(h < 1, growth, torch.ones(())).mean()

    train(model, loss)


@failing
def wrong_backward_of_a_custom_function() -> None:
    """A straight-through estimator whose author divides by the sign."""

    class Sign(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            """Give -1, 0 or 1."""
            ctx.save_for_backward(x)
            return x.sign()

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            """Give too much."""
            (x,) = ctx.saved_tensors
            return gradients[0] / x.sign()  # culprit: backward

    model = mlp(3, 4)
    x = torch.randn(4, 3)

    def loss(step: int) -> Tensor:
        return Sign.apply(model(x) * torch.tensor([1.0, 0.0, 1.0, 1.0])).sum()

    train(model, loss)


@failing
def hook_that_normalises_a_gradient() -> None:
    """A tensor's hook divides its gradient by the gradient's norm, which is 0."""
    model = mlp(3, 4)
    x = torch.randn(4, 3)

    def unit(gradient: Tensor) -> Tensor:
        return gradient / gradient.norm()  # culprit: backward

    def loss(step: int) -> Tensor:
        h = model(x)
        h.register_hook(unit)
        return (h * 0).sum()

    train(model, loss)


@failing
def eigenvectors_of_equal_eigenvalues() -> None:
    """The gradient of an eigenvector has 1 / (difference of eigenvalues)."""
    matrix = nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        matrix.weight.copy_(torch.eye(3))

    def loss(step: int) -> Tensor:
        symmetric = matrix.weight + matrix.weight.T
        _, vectors = torch.linalg.eigh(symmetric)  # culprit: backward
        return (vectors * torch.randn(3, 3)).sum()

    train(matrix, loss)


@failing
def gradient_penalty_at_zero() -> None:
    """A double backward: the norm of a gradient that is 0."""
    critic = mlp(3, 1)
    x = torch.randn(4, 3, requires_grad=True)

    def loss(step: int) -> Tensor:
        score = critic(x) * 0
        (slope,) = torch.autograd.grad(score.sum(), x, create_graph=True)
        square = slope.pow(2).sum(-1)
        steepness = square.sqrt()  # culprit: backward
        return (steepness - 1).pow(2).mean()

    train(critic, loss)


@failing
def potential_at_distance_zero() -> None:
    """A force as the gradient of a potential, with one particle at the centre."""
    model = mlp(1, 1)
    position = torch.tensor([[0.0, 0.0], [1.0, 2.0]], requires_grad=True)

    def loss(step: int) -> Tensor:
        radius = position.pow(2).sum(-1)
        energy = model(radius.pow(0.5)[:, None])  # culprit: backward
        (force,) = torch.autograd.grad(energy.sum(), position, create_graph=True)
        return force.square().mean()

    train(model, loss)


@failing
def checkpointed_square_root() -> None:
    """The failing operation belongs to a forward that autograd repeats."""
    model = mlp(3, 4)
    x = torch.randn(4, 3)

    def block(h: Tensor) -> Tensor:
        spread = (h * 0).square().sum(-1)
        return spread.sqrt()  # culprit: backward

    def loss(step: int) -> Tensor:
        return checkpoint(block, model(x), use_reentrant=False).mean()

    train(model, loss)


@failing
def float16_gradient_overflow() -> None:
    """A loss multiplied by a fixed factor, without a GradScaler."""
    model = nn.Linear(4, 4).half()
    x = torch.randn(4, 4).half()

    def loss(step: int) -> Tensor:
        h = model(x)
        wide = h.float()  # culprit: backward
        return wide.sum() * 1e6

    train(model, loss)


@failing
def scaler_cannot_help() -> None:
    """GradScaler skips the step for ever: the gradient is 0/0 at any scale."""
    model = mlp(3, 2)
    x = torch.randn(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu")
    for _ in range(4):
        optimizer.zero_grad()
        spread = (model(x) * 0).square().sum(-1)
        loss = spread.sqrt().mean()  # culprit: backward
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()


@failing
def deviation_of_a_constant_by_hand() -> None:
    """The root of a variance has no gradient where nothing varies (torch.std's is 0)."""
    model = mlp(3, 4)

    def loss(step: int) -> Tensor:
        h = model(torch.randn(8, 3)) * float(step < 1)
        variance = h.var(0)
        spread = variance.sqrt()  # culprit: backward
        return (1 - spread).relu().mean()

    train(model, loss)


@failing
def generalised_mean_of_nothing() -> None:
    """GeM pooling without a lower bound, over a map that is 0: the derivative of x**(1/p)."""
    model = nn.Conv2d(1, 2, 3)

    def loss(step: int) -> Tensor:
        h = (model(torch.randn(2, 1, 6, 6)) * float(step < 1)).abs()
        pooled = h.pow(3).mean((2, 3)).pow(1 / 3)  # culprit: backward
        return pooled.sum()

    train(model, loss)


@failing
def focal_loss_with_a_small_exponent() -> None:
    """(1 - p)**0.5 where p is exactly 1."""
    model = mlp(4, 8, 1)
    x = torch.randn(8, 4)

    def loss(step: int) -> Tensor:
        p = (model(x) + 40.0 * step).sigmoid()
        weight = (1 - p) ** 0.5  # culprit: backward
        return (weight * F.softplus(-model(x))).mean()

    train(model, loss)


@failing
def singular_vectors_of_equal_values() -> None:
    """The gradient of a singular vector has 1 / (difference of squared singular values)."""
    matrix = nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        matrix.weight.copy_(2 * torch.eye(3))

    def loss(step: int) -> Tensor:
        left, _, _ = torch.linalg.svd(matrix.weight)  # culprit: backward
        return (left * torch.arange(9.0).reshape(3, 3)).sum()

    train(matrix, loss)


@failing
def angle_between_equal_vectors() -> None:
    """acos of a cosine that is clamped to [-1, 1]: at 1 the slope is infinite and the clamp lets it pass."""
    model = nn.Linear(2, 2)
    x = torch.randn(6, 2)

    def loss(step: int) -> Tensor:
        a = F.normalize(model(x), dim=-1)
        cosine = (a * a).sum(-1).clamp(-1.0, 1.0) + (a - a.detach()).sum(-1)
        angle = torch.acos(cosine.clamp(-1.0, 1.0))  # culprit: backward
        return angle.mean()

    train(model, loss)


@failing
def root_mean_square_error_of_a_perfect_fit() -> None:
    """The square root of the loss, when the loss has become 0."""
    model = nn.Linear(3, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)

    def loss(step: int) -> Tensor:
        error = F.mse_loss(model(torch.randn(8, 3)), torch.zeros(8, 1))
        return torch.sqrt(error)  # culprit: backward

    train(model, loss)


@failing
def entropy_of_a_masked_choice() -> None:
    """p log p is replaced where p is 0; its gradient is not."""
    model = mlp(4, 3)
    x, closed = torch.randn(6, 4), torch.tensor([False, False, True])

    def loss(step: int) -> Tensor:
        p = model(x).masked_fill(closed, -torch.inf).softmax(-1)
        entropy = torch.where(p > 0, p * p.log(), 0.0)  # culprit: forward
        return entropy.sum(-1).mean()

    train(model, loss)


@failing
def gradient_of_an_exponent() -> None:
    """A learnable exponent becomes negative, of a base that holds 0."""
    model = nn.ParameterDict({"exponent": torch.tensor(0.5)})
    x = torch.tensor([0.0, 0.5, 2.0])

    def loss(step: int) -> Tensor:
        exponent = model["exponent"] - step
        y = x.pow(exponent)  # culprit: forward
        return (y * x).mean()

    train(model, loss)
