"""Programs that train well for many steps before they fail, in the manner of the programs of GRIST (ESEC/FSE 2021).

Their failing line is marked as in the other failures. `scripts/autopsy.py ahead` measures how many steps before it the
first warning comes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planted.case import drifting, mlp


def train_until_it_fails(
    parameters: list[nn.Parameter], loss: Callable[[int], Tensor], steps: int, lr: float, decay: float = 0.0
) -> None:
    """Train with plain SGD; stop after the loss is not finite, as a user would."""
    optimizer = torch.optim.SGD(parameters, lr=lr, weight_decay=decay)
    for step in range(steps):
        optimizer.zero_grad()
        value = loss(step)
        value.backward()
        optimizer.step()
        if not torch.isfinite(value.detach()) or not torch.isfinite(parameters[0].detach()).all():
            break


@drifting
def logistic_regression_of_separable_classes() -> None:
    """The logits grow as long as the training lasts, and the loss takes both logarithms of each sample."""
    model = nn.Linear(2, 1)
    x = torch.cat([torch.randn(15, 2) + 4, torch.randn(15, 2) - 4])
    y = torch.cat([torch.ones(15), torch.zeros(15)])[:, None]

    def loss(step: int) -> Tensor:
        z = model(x) * (1 + 0.05 * step)
        hit, miss = torch.sigmoid(z), torch.sigmoid(-z)
        return -(y * hit.log() + (1 - y) * miss.log()).mean()  # culprit: forward

    train_until_it_fails(list(model.parameters()), loss, 1000, 0.01)


@drifting
def entropy_of_a_sharpening_policy() -> None:
    """The policy of a bandit becomes deterministic, and its entropy takes the logarithm of what is left."""
    logits = nn.Parameter(torch.zeros(4))
    reward = torch.tensor([1.0, 0.0, 0.2, 0.1])

    def loss(step: int) -> Tensor:
        p = (logits * (1 + 0.05 * step)).softmax(-1)
        entropy = -(p * p.log()).sum()  # culprit: forward
        return -(p * reward).sum() - 1e-3 * entropy + 0 * logits.sum()

    train_until_it_fails([logits], loss, 2000, 0.5)


@drifting
def softmax_by_hand_of_growing_logits() -> None:
    """Attention whose query and key norms grow, with exp in place of softmax."""
    model = nn.Linear(8, 8)
    x = torch.randn(6, 8)

    def loss(step: int) -> Tensor:
        score = model(x) @ x.T * (1 + 0.05 * step)
        weight = score.exp()  # culprit: forward
        attention = weight / weight.sum(-1, keepdim=True)
        return -attention.diagonal().mean()

    train_until_it_fails(list(model.parameters()), loss, 600, 0.1)


@drifting
def variance_that_collapses_on_a_perfect_fit() -> None:
    """A Gaussian likelihood of noiseless data: the log-variance falls without bound."""
    model = nn.Linear(2, 2)
    x = torch.randn(16, 2)
    y = x.sum(-1)

    def loss(step: int) -> Tensor:
        mean, log_variance = model(x).unbind(-1)
        mean = mean + (y - mean).detach()
        precision = torch.exp(-log_variance)  # culprit: forward
        return ((y - mean).square() * precision + log_variance).mean()

    train_until_it_fails(list(model.parameters()), loss, 3000, 0.05)


@drifting
def rate_of_a_diverging_poisson_regression() -> None:
    """An exponential link, and a step size that is a little too large for counts of this size."""
    model = nn.Linear(3, 1)
    x = torch.rand(20, 3)

    def loss(step: int) -> Tensor:
        rate = torch.exp(model(x) * 1.01**step)  # culprit: forward
        return (-rate.clamp(max=1e3) * 0.1).mean() - model(x).mean()

    train_until_it_fails(list(model.parameters()), loss, 2000, 0.05)


@drifting
def embedding_that_is_pulled_to_its_centre() -> None:
    """The squared distance shrinks by a factor in each step."""
    offset = nn.Parameter(torch.randn(3))

    def loss(step: int) -> Tensor:
        square = offset.square().sum()
        distance = square.sqrt()  # culprit: backward
        return distance * square.detach().sqrt()

    train_until_it_fails([offset], loss, 2000, 0.1)


@drifting
def weights_that_decay() -> None:
    """Weight decay on a layer whose scale is normalised away: nothing holds it up."""
    weight = nn.Parameter(torch.randn(4, 4))
    x = torch.randn(8, 4)

    def loss(step: int) -> Tensor:
        unit = weight / weight.norm()  # culprit: forward
        return (x @ unit.detach()).square().mean() + 0 * weight.sum()

    train_until_it_fails([weight], loss, 4000, 0.5, decay=0.2)


@drifting
def features_that_collapse() -> None:
    """Self-supervision without negatives: all samples get the same representation."""
    model = nn.Linear(4, 4, bias=False)
    x = torch.randn(16, 4)

    def loss(step: int) -> Tensor:
        h = model(x)
        spread = h.std(0)
        z = (h - h.mean(0)) / spread  # culprit: backward
        return 0.5 * h.square().sum(-1).mean() + 0 * z.mean()

    train_until_it_fails(list(model.parameters()), loss, 4000, 0.5)


@drifting
def likelihood_of_longer_and_longer_sequences() -> None:
    """A curriculum: the product of the probabilities of all tokens underflows at some length."""
    model = mlp(4, 5)
    x = torch.randn(400, 4)

    def loss(step: int) -> Tensor:
        p = model(x[: 1 + step]).softmax(-1)[:, 0]
        likelihood = p.prod()
        return -likelihood.log() / (1 + step)  # culprit: backward

    train_until_it_fails(list(model.parameters()), loss, 400, 0.001)


@drifting
def transport_with_annealed_regularisation() -> None:
    """Sinkhorn's epsilon is made smaller in each step, until a row of the kernel is 0."""
    model = nn.Linear(2, 2)
    x, y = torch.randn(5, 2), torch.randn(5, 2) + 3

    def loss(step: int) -> Tensor:
        cost = torch.cdist(model(x), y)
        kernel = torch.exp(-cost / (1.0 * 0.97**step))
        left = 1 / (kernel.sum(-1) + 0)  # culprit: forward
        return (left.detach().log() * cost.mean(-1)).mean() * 1e-3

    train_until_it_fails(list(model.parameters()), loss, 400, 0.001)


@drifting
def overlap_with_a_class_that_dies_out() -> None:
    """Dice loss of a class that no label has: its predicted mass is driven to 0."""
    bias = nn.Parameter(torch.zeros(()))

    def loss(step: int) -> Tensor:
        p = torch.sigmoid(bias * 3).expand(10)
        dice = (p * 0).sum() / p.sum()  # culprit: forward
        return dice + bias

    train_until_it_fails([bias], loss, 2000, 0.05)


@drifting
def temperature_that_is_annealed() -> None:
    """A temperature multiplied by 0.9 in each step, without a floor."""
    model = mlp(4, 3)
    x = torch.randn(8, 4)

    def loss(step: int) -> Tensor:
        temperature = torch.full((), 0.9) ** step
        sharp = model(x).tanh() / temperature  # culprit: backward
        return sharp.clamp(-1, 1).square().mean()

    train_until_it_fails(list(model.parameters()), loss, 2000, 0.01)


@drifting
def component_of_a_mixture_that_dies() -> None:
    """Weights of a mixture are updated by their responsibilities, and their entropy is part of the loss."""
    mean = nn.Parameter(torch.tensor([0.0, 3.0]))
    weight, x = torch.tensor([0.5, 0.5]), torch.randn(50).clamp(-1, 1)

    def loss(step: int) -> Tensor:
        prior = weight.log()  # culprit: forward
        score = prior - 0.5 * (x[:, None] - mean.detach()).square()
        share = score.softmax(-1)
        entropy = -(weight * prior).sum()
        weight.copy_(share.mean(0))
        return (share * (x[:, None] - mean).square()).mean() - entropy

    train_until_it_fails([mean], loss, 200, 1e-4)


@drifting
def vectors_that_align() -> None:
    """The angle between a vector and its target becomes 0, where acos has no derivative."""
    vector, target = nn.Parameter(torch.tensor([1.0, 0.3, 0.1])), torch.tensor([1.0, 0.0, 0.0])

    def loss(step: int) -> Tensor:
        cosine = (F.normalize(vector, dim=0) * target).sum()
        angle = torch.acos(cosine.clamp(-1.0, 1.0))  # culprit: backward
        return angle * angle.detach()

    train_until_it_fails([vector], loss, 2000, 0.05)


@drifting
def activations_that_grow_in_float16() -> None:
    """A residual stack in half precision whose scale grows by a few per cent in each step."""
    model = nn.Linear(8, 8).half()
    x = torch.randn(4, 8).half()

    def loss(step: int) -> Tensor:
        scale = torch.full((), 1.05).half() ** step
        h = x + model(x).relu()
        h = h * (scale * 10)  # culprit: forward
        return (h.clamp(max=1) * 1.0).float().mean()

    train_until_it_fails(list(model.parameters()), loss, 600, 1e-4)


@drifting
def state_of_an_unstable_recurrence() -> None:
    """The state is carried from batch to batch and grows by a factor; its square overflows first."""
    cell = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        cell.weight.copy_(1.2 * torch.eye(4))
    states = [torch.ones(1, 4)]

    def loss(step: int) -> Tensor:
        states[0] = cell(states[0].detach())
        energy = states[0].square()  # culprit: forward
        return energy.amax().log1p() * 1e-6

    train_until_it_fails(list(cell.parameters()), loss, 2000, 1e-6)
