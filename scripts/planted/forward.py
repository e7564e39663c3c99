"""Failures in the forward."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planted.case import failing, mlp, train, with_warning_silenced


@failing
def log_of_zero_in_a_loss() -> None:
    """A sigmoid saturates to exactly 0 and the loss takes its logarithm."""
    model = mlp(4, 8, 1)
    x, y = torch.randn(16, 4), torch.ones(16, 1)

    def loss(step: int) -> Tensor:
        p = torch.sigmoid(model(x) - 200 * step)
        hit = torch.log(p)  # culprit: forward
        miss = torch.log1p(-p)
        return -(y * hit + (1 - y) * miss).mean()

    train(model, loss)


@failing
def log_of_a_product_of_probabilities() -> None:
    """The product of many probabilities underflows to 0."""
    model = mlp(4, 3)
    x = torch.randn(300, 4)

    def loss(step: int) -> Tensor:
        p = model(x).softmax(-1)[:, 0]
        likelihood = p.prod()
        return -likelihood.log()  # culprit: forward

    train(model, loss)


@failing
def zero_over_zero_in_a_normalisation() -> None:
    """A row of counts is empty, and is divided by its sum."""
    model = mlp(4, 2)
    counts = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]])

    def loss(step: int) -> Tensor:
        total = counts.sum(-1, keepdim=True)
        shares = counts / total  # culprit: forward
        return model(shares).square().mean()

    train(model, loss)


@failing
def division_by_a_norm_of_zero() -> None:
    """Embeddings are scaled to length 1 without an epsilon, and one is 0."""
    table = nn.Embedding(4, 3)
    with torch.no_grad():
        table.weight[2] = 0

    def loss(step: int) -> Tensor:
        vectors = table(torch.arange(4))
        length = vectors.norm(dim=-1, keepdim=True)
        unit = vectors / length  # culprit: forward
        return (unit @ unit.T).mean()

    train(table, loss)


@failing
def constant_feature_without_epsilon() -> None:
    """Standardising a feature that is constant in one batch."""
    model = mlp(3, 1)

    def loss(step: int) -> Tensor:
        x = torch.randn(8, 3)
        if step == 2:
            x[:, 1] = 5.0
        spread = x.std(0)
        z = (x - x.mean(0)) / spread  # culprit: forward
        return model(z).square().mean()

    train(model, loss)


@failing
def standard_deviation_of_one_sample() -> None:
    """The last batch of the epoch holds a single sample."""
    model = mlp(3, 4)

    def loss(step: int) -> Tensor:
        h = model(torch.randn(1 if step == 2 else 8, 3))
        spread = h.std(dim=0)  # culprit: forward
        return (1 - spread).relu().mean()

    with_warning_silenced(lambda: train(model, loss))


@failing
def hand_written_softmax_overflows() -> None:
    """exp of an unshifted logit."""
    model = mlp(4, 8, 3)
    x = torch.randn(8, 4)

    def loss(step: int) -> Tensor:
        logits = model(x) * 10.0 ** (2 * step)
        e = logits.exp()  # culprit: forward
        p = e / e.sum(-1, keepdim=True)
        return -p[:, 0].clamp(min=1e-6).log().mean()

    train(model, loss)


@failing
def softmax_of_nothing_but_masked() -> None:
    """A sequence of padding alone: every score is -inf."""
    model = mlp(4, 4)
    x, keep = torch.randn(2, 5, 4), torch.tensor([[True] * 5, [False] * 5])

    def loss(step: int) -> Tensor:
        h = model(x)
        scores = (h @ h.transpose(-1, -2)).masked_fill(~keep[:, None, :], -torch.inf)
        attention = scores.softmax(-1)  # culprit: forward
        return (attention @ h).square().mean()

    train(model, loss)


@failing
def infinity_minus_infinity_in_log_space() -> None:
    """Normalising log-probabilities of which all are -inf."""
    model = mlp(4, 5)
    x = torch.randn(3, 4)

    def loss(step: int) -> Tensor:
        allowed = torch.ones(3, 5, dtype=torch.bool)
        allowed[2] = False
        scores = torch.where(allowed, model(x), -torch.inf)
        total = scores.logsumexp(-1, keepdim=True)
        log_p = scores - total  # culprit: forward
        return -log_p[:, 0].mean()

    train(model, loss)


@failing
def float16_overflow_in_attention() -> None:
    """Queries and keys of a few hundred, in half precision, not scaled before their product."""
    model = nn.ModuleDict({"q": nn.Linear(64, 64), "k": nn.Linear(64, 64), "v": nn.Linear(64, 64)}).half()
    x = (torch.randn(2, 8, 64) * 100).half()

    def loss(step: int) -> Tensor:
        q, k, v = model["q"](x), model["k"](x), model["v"](x)
        scores = q @ k.transpose(-1, -2)  # culprit: forward
        return ((scores / 8.0).softmax(-1) @ v).float().square().mean()

    train(model, loss)


@failing
def float16_square_in_rmsnorm() -> None:
    """300 squared is more than float16 holds."""
    model = nn.Linear(8, 8).half()
    x = (torch.randn(4, 8) + 300).half()

    def loss(step: int) -> Tensor:
        square = x.pow(2)  # culprit: forward
        normed = x * torch.rsqrt(square.mean(-1, keepdim=True) + 1e-6)
        return model(normed).float().square().mean()

    train(model, loss)


@failing
def epsilon_too_small_for_float16() -> None:
    """1e-8 is 0 in float16, and so guards nothing."""
    model = nn.Linear(4, 4).half()
    x = torch.zeros(2, 4).half()

    def loss(step: int) -> Tensor:
        length = x.norm(dim=-1, keepdim=True) + 1e-8
        unit = x / length  # culprit: forward
        return model(unit).float().square().mean()

    train(model, loss)


@failing
def autocast_linear_overflows() -> None:
    """Under autocast a linear layer gives more than 65504."""
    model = mlp(16, 16)
    x = torch.full((4, 16), 3e4)

    def loss(step: int) -> Tensor:
        with torch.autocast("cpu", dtype=torch.float16):
            wide = x.abs() + 1
            h = F.linear(wide, torch.ones(16, 16))  # culprit: forward
            return model(h.clamp(max=1) * 0).float().mean() + h.float().mean()

    train(model, loss)


@failing
def exploding_recurrence() -> None:
    """A linear recurrence whose matrix has a spectral radius above 1."""
    cell = nn.Linear(16, 16, bias=False)
    with torch.no_grad():
        cell.weight.mul_(6)

    def loss(step: int) -> Tensor:
        h = torch.ones(4, 16)
        for _ in range(300):
            h = cell(h)  # culprit: forward
        return h.square().mean()

    train(cell, loss)


@failing
def variance_by_cancellation() -> None:
    """E[x^2] - E[x]^2 comes out negative."""
    model = mlp(3, 1)
    x = torch.full((8, 3), 1000.1) + 1e-4 * torch.arange(24.0).reshape(8, 3)

    def loss(step: int) -> Tensor:
        variance = (x * x).mean(0) - x.mean(0) ** 2 - 0.1
        spread = variance.sqrt()  # culprit: forward
        return model(x / spread).square().mean()

    train(model, loss)


@failing
def root_of_a_negative_number() -> None:
    """A power of 1.5 of an output that has become negative."""
    model = mlp(4, 8, 1)
    x = torch.randn(32, 4)

    def loss(step: int) -> Tensor:
        y = model(x)
        return (y**1.5).mean()  # culprit: forward

    train(model, loss)


@failing
def negative_power_of_zero() -> None:
    """Inverse frequencies, and a class that does not occur."""
    model = mlp(4, 3)
    x, y = torch.randn(10, 4), torch.randint(2, (10,))

    def loss(step: int) -> Tensor:
        frequency = torch.bincount(y, minlength=3).float()
        weight = frequency.pow(-0.5)  # culprit: forward
        weight = weight / weight.sum()
        return (F.cross_entropy(model(x), y, reduction="none") * weight[y]).mean()

    train(model, loss)


@failing
def mean_over_an_empty_mask() -> None:
    """A batch without a single labelled token."""
    model = mlp(4, 1)

    def loss(step: int) -> Tensor:
        x = torch.randn(8, 4)
        mask = torch.zeros(8) if step == 1 else torch.ones(8)
        error = model(x).squeeze(-1).square()
        return (error * mask).sum() / mask.sum()  # culprit: forward

    train(model, loss)


@failing
def router_that_chooses_nobody() -> None:
    """Mixture of experts: weights below a threshold are dropped, then renormalised."""
    model = nn.ModuleDict({"router": nn.Linear(4, 3), "experts": nn.Linear(4, 3)})
    x = torch.randn(6, 4)

    def loss(step: int) -> Tensor:
        gate = model["router"](x).sigmoid()
        gate = gate * (gate > 0.99)
        gate = gate / gate.sum(-1, keepdim=True)  # culprit: forward
        return (gate * model["experts"](x)).sum(-1).square().mean()

    train(model, loss)


@failing
def learned_temperature_reaches_zero() -> None:
    """A parameter is divided by and is 0."""
    model = nn.ParameterDict({"weight": torch.randn(4, 3), "temperature": torch.zeros(1)})
    x, y = torch.randn(8, 4), torch.randint(3, (8,))

    def loss(step: int) -> Tensor:
        scaled = x @ model["weight"] / model["temperature"]  # culprit: forward
        return F.cross_entropy(scaled, y)

    train(model, loss)


@failing
def gaussian_likelihood_with_a_collapsed_variance() -> None:
    """exp(-log variance) overflows."""
    model = mlp(4, 8, 2)
    x, y = torch.randn(8, 4), torch.randn(8)

    def loss(step: int) -> Tensor:
        mean, log_variance = model(x).unbind(-1)
        log_variance = log_variance - 60 * step
        precision = torch.exp(-log_variance)  # culprit: forward
        return ((y - mean) ** 2 * precision + log_variance).mean()

    train(model, loss)


@failing
def divergence_from_a_model_that_says_never() -> None:
    """KL divergence with a log-probability of -inf where the target is 0."""
    model = mlp(4, 3)
    x, target = torch.randn(5, 4), torch.tensor([[0.5, 0.5, 0.0]]).expand(5, 3)

    def loss(step: int) -> Tensor:
        logits = model(x).masked_fill(torch.tensor([False, False, True]), -torch.inf)
        log_p = logits.log_softmax(-1)
        return (target * (target.clamp(min=1e-9).log() - log_p)).sum(-1).mean()  # culprit: forward

    train(model, loss)


@failing
def ctc_of_a_target_that_is_too_long() -> None:
    """No alignment exists: the loss is infinite."""
    model = mlp(4, 6)
    x, target = torch.randn(5, 1, 4), torch.tensor([[1, 2, 3, 4, 5, 1, 2]])

    def loss(step: int) -> Tensor:
        log_p = model(x).log_softmax(-1)
        return F.ctc_loss(log_p, target, torch.tensor([5]), torch.tensor([7]))  # culprit: forward

    train(model, loss)


@failing
def density_of_a_point_mass() -> None:
    """A Gaussian of scale 0, in torch.distributions."""
    model = mlp(4, 1)
    x = torch.randn(8, 4)

    def loss(step: int) -> Tensor:
        mean = model(x)
        normal = torch.distributions.Normal(mean, torch.zeros(1), validate_args=False)
        return -normal.log_prob(mean.detach()).mean()  # culprit: forward

    train(model, loss)


@failing
def weight_norm_of_a_zero_vector() -> None:
    """The direction of a row of zeros."""
    linear = nn.Linear(3, 2)
    with torch.no_grad():
        linear.weight[1] = 0
    model = torch.nn.utils.parametrizations.weight_norm(linear)
    x = torch.randn(4, 3)

    def loss(step: int) -> Tensor:
        h = model(x)  # culprit: forward
        return h.square().mean()

    train(model, loss)


@failing
def phase_of_a_silent_spectrum() -> None:
    """Complex numbers: 0 divided by its own absolute value."""
    model = mlp(8, 8)

    def loss(step: int) -> Tensor:
        wave = model(torch.randn(2, 8)) * (step < 2)
        spectrum = torch.fft.rfft(wave)
        phase = spectrum / spectrum.abs()  # culprit: forward
        return phase.real.mean()

    train(model, loss)


@failing
def division_in_place() -> None:
    """The same, written over its input."""
    model = mlp(4, 4)
    x = torch.randn(4, 4)

    def loss(step: int) -> Tensor:
        h = model(x)
        scale = h.detach().amax(-1, keepdim=True) * (0.0 if step else 1.0)
        h.div_(scale)  # culprit: forward
        return h.square().mean()

    train(model, loss)


@failing
def nan_in_the_data() -> None:
    """A missing value in a table."""
    model = mlp(3, 4, 1)

    def loss(step: int) -> Tensor:
        table = np.ones((6, 3), dtype=np.float32)
        table[4, 1] = np.nan if step == 2 else 1
        x = torch.from_numpy(table)
        centred = x - 0.5  # culprit: forward
        return model(centred).square().mean()

    train(model, loss)


@failing
def nan_in_a_checkpoint() -> None:
    """A row of an embedding was saved not finite; the first batch meets it."""
    table = nn.Embedding(10, 4)
    table.weight.data.numpy()[7] = np.nan

    def loss(step: int) -> Tensor:
        vectors = F.embedding(torch.tensor([1, 2, 7 + step]), table.weight)  # culprit: forward
        return vectors.square().mean()

    train(table, loss)
