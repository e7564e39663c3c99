"""Failures in loss functions, likelihoods and metrics that are trained on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planted.case import failing, mlp, train


@failing
def label_smoothing_over_masked_logits() -> None:
    """Forbidden classes have the logit -inf, and smoothing gives each of them a share of the target."""
    model = mlp(4, 6)
    x, y = torch.randn(8, 4), torch.randint(4, (8,))
    forbidden = torch.tensor([False] * 4 + [True] * 2)

    def loss(step: int) -> Tensor:
        logits = model(x).masked_fill(forbidden, -torch.inf)
        return F.cross_entropy(logits, y, label_smoothing=0.1)  # culprit: forward

    train(model, loss)


@failing
def divergence_with_two_logarithms_of_zero() -> None:
    """kl_div of log-probabilities of which both are -inf: exp(-inf) times (-inf minus -inf)."""
    model = mlp(4, 3)
    x, never = torch.randn(5, 4), torch.tensor([False, False, True])

    def loss(step: int) -> Tensor:
        log_p = model(x).masked_fill(never, -torch.inf).log_softmax(-1)
        target = torch.zeros(5, 3).masked_fill(never, -torch.inf).log_softmax(-1)
        return F.kl_div(log_p, target, reduction="batchmean", log_target=True)  # culprit: forward

    train(model, loss)


@failing
def divergence_of_underflowing_probabilities() -> None:
    """Probabilities of a sharp softmax are exactly 0."""
    model = mlp(4, 8, 5)
    x, p = torch.randn(6, 4), torch.full((6, 5), 0.2)

    def loss(step: int) -> Tensor:
        q = (model(x) * 10.0 ** (3 * step)).softmax(-1)
        surprise = p.log() - q.log()  # culprit: forward
        return (p * surprise).sum(-1).mean()

    train(model, loss)


@failing
def poisson_likelihood_of_rate_zero() -> None:
    """A rate from a ReLU, its logarithm without an epsilon."""
    model = mlp(4, 8, 1)
    x, counts = torch.randn(16, 4), torch.ones(16, 1)

    def loss(step: int) -> Tensor:
        rate = F.relu(model(x))
        return F.poisson_nll_loss(rate, counts, log_input=False, eps=0.0)  # culprit: forward

    train(model, loss)


@failing
def gaussian_likelihood_in_float16() -> None:
    """gaussian_nll_loss clamps the variance at 1e-6, but in float16 the quotient overflows."""
    model = nn.Linear(4, 4).half()
    x, y = torch.randn(8, 4).half(), torch.randn(8, 4).half()

    def loss(step: int) -> Tensor:
        variance = torch.zeros(8, 4).half()
        return F.gaussian_nll_loss(model(x), y, variance)  # culprit: forward

    train(model, loss)


@failing
def cross_entropy_by_hand_of_a_probability_above_one() -> None:
    """Averaged scores that are no longer probabilities."""
    model = mlp(4, 8, 1)
    x, y = torch.randn(16, 4), torch.randint(2, (16, 1)).float()

    def loss(step: int) -> Tensor:
        p = model(x).sigmoid() + 0.5 * step
        miss = torch.log(1 - p)  # culprit: forward
        return -(y * p.log() + (1 - y) * miss).mean()

    train(model, loss)


@failing
def overlap_of_an_empty_class() -> None:
    """Dice loss without smoothing, where a class is neither predicted nor present."""
    model = mlp(4, 8, 3)
    x, y = torch.randn(10, 4), F.one_hot(torch.randint(2, (10,)), 3).float()

    def loss(step: int) -> Tensor:
        p = F.threshold(model(x).softmax(-1), 0.6 if step else 0.0, 0.0)
        both = 2 * (p * y).sum(0)
        dice = both / (p.sum(0) + y.sum(0))  # culprit: forward
        return 1 - dice.mean()

    train(model, loss)


@failing
def union_of_empty_boxes() -> None:
    """Intersection over union of two boxes without area."""
    model = nn.Linear(4, 4)
    x = torch.randn(5, 4)

    def loss(step: int) -> Tensor:
        size = model(x)[:, 2:].relu() * float(step < 1)
        area = size.prod(-1)
        overlap = area.minimum(area.detach() * 0.5)
        union = area + area.detach() * 0.5 - overlap
        score = overlap / union  # culprit: forward
        return (1 - score).mean()

    train(model, loss)


@failing
def mean_of_no_elements() -> None:
    """A batch has no positive sample, and the mean is taken over none."""
    model = mlp(4, 1)

    def loss(step: int) -> Tensor:
        x, y = torch.randn(8, 4), torch.arange(8) % 4 == 0
        error = model(x).squeeze(-1).square()
        positive = error[y & (step < 2)]
        return error.mean() + positive.mean()  # culprit: forward

    train(model, loss)


@failing
def correlation_with_a_constant() -> None:
    """Pearson's correlation as a loss, and targets that do not vary in one batch."""
    model = mlp(4, 8, 1)
    x = torch.randn(16, 4)

    def loss(step: int) -> Tensor:
        y = torch.zeros(16) if step == 2 else torch.randn(16)
        a = model(x).squeeze(-1)
        a, b = a - a.mean(), y - y.mean()
        correlation = (a * b).sum() / (a.norm() * b.norm())  # culprit: forward
        return 1 - correlation

    train(model, loss)


@failing
def cosine_by_hand_of_zeros() -> None:
    """Two embeddings, one of them of a padding token."""
    table = nn.Embedding(5, 8, padding_idx=0)

    def loss(step: int) -> Tensor:
        a, b = table(torch.tensor([1, 2, 0])), table(torch.tensor([3, 4, 1]))
        lengths = a.norm(dim=-1) * b.norm(dim=-1)
        cosine = (a * b).sum(-1) / lengths  # culprit: forward
        return 1 - cosine.mean()

    train(table, loss)


@failing
def contrastive_loss_with_a_small_temperature() -> None:
    """exp of a cosine divided by 0.01 overflows float32."""
    model = mlp(4, 8)
    x = torch.randn(6, 4)

    def loss(step: int) -> Tensor:
        z = F.normalize(model(x), dim=-1)
        similar = torch.exp(z @ z.T / 0.01)  # culprit: forward
        return -(similar.diagonal() / similar.sum(-1)).log().mean()

    train(model, loss)


@failing
def ratio_of_policies() -> None:
    """PPO: the new policy has moved far from the one that acted."""
    model = mlp(4, 8, 3)
    x, action = torch.randn(16, 4), torch.randint(3, (16, 1))

    def loss(step: int) -> Tensor:
        log_p = model(x).log_softmax(-1).gather(-1, action)
        old = log_p.detach() - 60.0 * step
        ratio = torch.exp(log_p - old)  # culprit: forward
        return -ratio.mean()

    train(model, loss)


@failing
def density_at_the_edge_of_its_support() -> None:
    """A Beta distribution, and a share of exactly 1."""
    model = mlp(4, 8, 2)
    x, share = torch.randn(6, 4), torch.tensor([0.1, 0.4, 0.5, 0.7, 0.9, 1.0])

    def loss(step: int) -> Tensor:
        a, b = (F.softplus(model(x)) + 1).unbind(-1)
        beta = torch.distributions.Beta(a, b, validate_args=False)
        return -beta.log_prob(share).mean()  # culprit: forward

    train(model, loss)


@failing
def logit_of_a_certain_target() -> None:
    """Distilling logits from probabilities that are exactly 1."""
    model = mlp(4, 8, 1)
    x, p = torch.randn(4, 4), torch.tensor([[0.2], [0.5], [0.9], [1.0]])

    def loss(step: int) -> Tensor:
        target = torch.logit(p)  # culprit: forward
        return F.mse_loss(model(x), target)

    train(model, loss)


@failing
def spectral_loss_of_silence() -> None:
    """The logarithm of the magnitude of a short-time spectrum."""
    model = mlp(16, 16)

    def loss(step: int) -> Tensor:
        wave = model(torch.randn(2, 16)) * float(step < 2)
        magnitude = torch.fft.rfft(wave).abs()
        level = torch.log(magnitude)  # culprit: forward
        return level.square().mean()

    train(model, loss)


@failing
def optimal_transport_with_little_regularisation() -> None:
    """Sinkhorn: the kernel exp(-cost / epsilon) underflows, and a scaling divides by 0."""
    model = mlp(2, 2)
    x, y = torch.randn(5, 2), torch.randn(5, 2) + 20

    def loss(step: int) -> Tensor:
        cost = torch.cdist(model(x), y)
        kernel = torch.exp(-cost / 0.05)
        left = torch.ones(5) / (kernel @ torch.ones(5))  # culprit: forward
        right = torch.ones(5) / (kernel.T @ left)
        return (left[:, None] * kernel * right * cost).sum()

    train(model, loss)


@failing
def determinant_that_underflows() -> None:
    """The logarithm of det in place of slogdet."""
    flow = nn.Linear(60, 60, bias=False)
    with torch.no_grad():
        flow.weight.copy_(0.1 * torch.eye(60))

    def loss(step: int) -> Tensor:
        volume = torch.linalg.det(flow.weight)
        return -volume.log() + flow.weight.square().sum()  # culprit: forward

    train(flow, loss)


@failing
def covariance_of_too_few_samples() -> None:
    """logdet of a covariance matrix of lower rank than size."""
    model = mlp(3, 4)
    x = torch.zeros(3, 3)

    def loss(step: int) -> Tensor:
        h = model(x)
        covariance = (h - h.mean(0)).T @ (h - h.mean(0)) / 2
        return torch.logdet(covariance)  # culprit: forward

    train(model, loss)
