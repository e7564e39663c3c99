"""Training code with a planted failure, and healthy training code that only looks suspicious.

Each function is one case: it trains as anybody's script would. In a failing one the culprit line ends in a comment
with its phase, such as `# culprit: backward`; for a backward operation it is the line of the forward call that it
belongs to, except where the code's own Python (a custom function's backward, a hook) is at fault.
`FAILURES` and `HEALTHY` hold them by name. `scripts/autopsy.py` runs them, and so do the tests.
"""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Training = Callable[[], None]
FAILURES: dict[str, Training] = {}
HEALTHY: dict[str, Training] = {}


@dataclass(frozen=True)
class Culprit:
    """Where a planted failure is: line number in this file, and phase."""

    lineno: int
    phase: str


def culprit(training: Training) -> Culprit:
    """Return the marked line of a failing case."""
    lines, start = inspect.getsourcelines(training)
    (found,) = [(i, m[1]) for i, line in enumerate(lines) if (m := re.search(r"# culprit: (\w+)$", line.rstrip()))]
    return Culprit(start + found[0], found[1])


def failing(training: Training) -> Training:
    """Enter a case among the failures."""
    FAILURES[training.__name__] = training
    return training


def healthy(training: Training) -> Training:
    """Enter a case among the healthy ones."""
    HEALTHY[training.__name__] = training
    return training


def train(model: nn.Module, loss: Callable[[int], Tensor], steps: int = 3, lr: float = 0.01) -> None:
    """Do what every training loop does."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for step in range(steps):
        optimizer.zero_grad()
        loss(step).backward()
        optimizer.step()


def mlp(*sizes: int) -> nn.Sequential:
    """Return linear layers with tanh between them."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


# --- failures in the forward -----------------------------------------------------------------------------------------


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


# --- failures in the backward ----------------------------------------------------------------------------------------


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


# --- failures in the optimizer ---------------------------------------------------------------------------------------


@failing
def learning_rate_that_overflows() -> None:
    """Rate times gradient is more than float32 holds."""
    model = mlp(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e38)
    for _ in range(2):
        optimizer.zero_grad()
        (model(torch.ones(8, 4)) - 100).square().mean().backward()
        optimizer.step()  # culprit: optimizer


@failing
def learning_rate_that_diverges() -> None:
    """Each step multiplies the error, until its square overflows."""
    model = nn.Linear(4, 1)
    x, y = torch.ones(8, 4), torch.ones(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=10.0)
    for _ in range(30):
        optimizer.zero_grad()
        error = model(x) - y
        loss = error.square().mean()  # culprit: forward
        loss.backward()
        optimizer.step()


@failing
def adam_without_epsilon() -> None:
    """0/0 for a parameter whose gradient is 0."""
    model = mlp(4, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, eps=0.0)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(4, 4))[:, 0].sum().backward()
        optimizer.step()  # culprit: optimizer


@failing
def clipping_by_hand() -> None:
    """The largest norm divided by a norm of 0, times 0."""
    model = mlp(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(3):
        optimizer.zero_grad()
        (model(torch.randn(4, 4)) * (step < 2)).sum().backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norm = torch.stack([g.norm() for g in gradients]).norm()
        factor = 1.0 / norm  # culprit: forward
        for gradient in gradients:
            gradient.mul_(factor)
        optimizer.step()


def with_warning_silenced(training: Training) -> None:
    """Run without torch's own remark on degrees of freedom."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        training()


# --- healthy ---------------------------------------------------------------------------------------------------------


@healthy
def transformer_with_causal_mask_and_padding() -> None:
    """-inf in both masks; torch's own layers."""
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    x = torch.randn(3, 6, 16)
    padding = torch.zeros(3, 6).masked_fill(torch.arange(6) >= torch.tensor([[6], [4], [2]]), -torch.inf)
    mask = nn.Transformer.generate_square_subsequent_mask(6)
    train(model, lambda step: model(x, mask=mask, src_key_padding_mask=padding).square().mean())


@healthy
def attention_by_hand_with_masked_fill() -> None:
    """Scores filled with -inf, then softmax."""
    model = nn.ModuleDict({name: nn.Linear(8, 8) for name in "qkv"})
    x, future = torch.randn(2, 5, 8), torch.ones(5, 5, dtype=torch.bool).triu(1)

    def loss(step: int) -> Tensor:
        q, k, v = (model[name](x) for name in "qkv")
        scores = (q @ k.transpose(-1, -2) / 8**0.5).masked_fill(future, -torch.inf)
        return (scores.softmax(-1) @ v).square().mean()

    train(model, loss)


@healthy
def attention_with_the_smallest_number() -> None:
    """finfo.min in place of -inf: sums of it overflow, no element does."""
    model = nn.Linear(8, 8)
    x = torch.randn(2, 5, 8)
    mask = torch.full((5, 5), torch.finfo(torch.float32).min).triu(1)

    def loss(step: int) -> Tensor:
        h = model(x)
        return ((h @ h.transpose(-1, -2) + mask).softmax(-1) @ h).square().mean()

    train(model, loss)


@healthy
def fused_attention_with_a_boolean_mask() -> None:
    """scaled_dot_product_attention turns it into -inf itself."""
    model = nn.Linear(8, 24)
    x, keep = torch.randn(2, 5, 8), torch.ones(5, 5, dtype=torch.bool).tril()

    def loss(step: int) -> Tensor:
        q, k, v = model(x)[:, None].chunk(3, -1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=keep).square().mean()

    train(model, loss)


@healthy
def entropy_where_probabilities_are_zero() -> None:
    """0 log 0 is replaced, both before the logarithm (trained) and after it (measured)."""
    model = mlp(4, 3)
    x = torch.randn(6, 4)

    def loss(step: int) -> Tensor:
        p = F.threshold(model(x).softmax(-1), 0.2, 0.0)
        with torch.no_grad():
            measured = torch.where(p > 0, p * p.log(), 0.0).sum(-1).mean()
        assert measured.item() <= 0
        safe = torch.where(p > 0, p, 1.0)
        return (p * safe.log()).sum(-1).mean()

    train(model, loss)


@healthy
def mixed_precision_with_a_scaled_overflow() -> None:
    """GradScaler begins far too high, skips, and halves its scale until nothing overflows."""
    model = nn.Linear(16, 4)
    x = torch.randn(8, 16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
    for _ in range(16):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            h = model(x)
        loss = h.float().square().mean()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()


@healthy
def connectionist_temporal_classification() -> None:
    """The forward variables of the CTC loss are full of -inf."""
    model = mlp(4, 6)
    x, target = torch.randn(12, 2, 4), torch.randint(1, 6, (2, 4))
    lengths = torch.tensor([12, 10]), torch.tensor([4, 3])
    train(model, lambda step: F.ctc_loss(model(x).log_softmax(-1), target, *lengths))
    with torch.no_grad():
        F.ctc_loss(model(x).log_softmax(-1), target, *lengths)


@healthy
def hidden_markov_model_in_log_space() -> None:
    """Forbidden transitions are -inf and stay so."""
    emission = nn.Linear(3, 4)
    x = torch.randn(7, 3)
    transition = torch.where(torch.ones(4, 4).triu().bool(), torch.zeros(4, 4), -torch.inf).log_softmax(-1)

    def loss(step: int) -> Tensor:
        score = torch.full((4,), -torch.inf)
        score[0] = 0.0
        for log_p in emission(x).log_softmax(-1):
            previous = score.clamp(min=-1e30)[:, None] + transition.clamp(min=-1e30)
            score = previous.logsumexp(0) + log_p
        return -score.logsumexp(0)

    train(emission, loss)


@healthy
def gradients_that_torch_repairs() -> None:
    """norm at 0, a product with zeros, 0 to the power of 0, a double where."""
    model = mlp(3, 4)
    x = torch.randn(4, 3)

    def loss(step: int) -> Tensor:
        h = model(x) * torch.tensor([1.0, 0.0, 0.0, 1.0])
        norm = (h * 0).norm(dim=-1).sum() + torch.linalg.vector_norm(h * 0)
        product = h.prod(-1).sum() + h.cumprod(-1).sum()
        power = (h.abs() ** 0).sum() + (h**2).sum() + torch.pow(h.abs() * 0, torch.tensor(2.0)).sum()
        cosine = F.cosine_similarity(h * 0, h, dim=-1).sum() + F.normalize(h * 0, dim=-1).sum()
        return norm + product + power + cosine + torch.cdist(h, h).sum()

    train(model, loss)


@healthy
def missing_values_that_are_replaced() -> None:
    """NaN in the data, taken care of by the code."""
    model = mlp(3, 4, 1)
    x = torch.tensor([[1.0, torch.nan, 2.0], [0.5, 1.0, torch.nan]]).repeat(4, 1)

    def loss(step: int) -> Tensor:
        centred = (x - x.nanmean(0)) / 2
        first = torch.where(x.isnan(), 0.0, centred)
        return (model(first) + model(x.nan_to_num())).square().mean()

    train(model, loss)


@healthy
def nearest_neighbours_and_a_best_so_far() -> None:
    """The own distance is set to infinity; the best loss begins at infinity."""
    model = mlp(3, 2)
    x, best = torch.randn(6, 3), torch.tensor(torch.inf)
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(4):
        h = model(x)
        distance = torch.cdist(h, h) + torch.diag(torch.full((6,), torch.inf))
        loss = distance.min(-1).values.mean()
        best = torch.minimum(best, loss.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert best.item() < torch.inf


@healthy
def beam_search_and_sampling() -> None:
    """Scores of -inf are ranked, sampled from and thrown away."""
    model = mlp(4, 7)
    with torch.no_grad():
        logits = model(torch.randn(3, 4))
        kept = logits.topk(2, -1)
        cut = torch.full_like(logits, -torch.inf).scatter(-1, kept.indices, kept.values)
        p = cut.softmax(-1)
        choice = torch.multinomial(p, 1)
        score = p.log().gather(-1, choice)
        ranked = p.log().topk(2, -1).values
        assert torch.isfinite(score).all()
        assert torch.isfinite(ranked).all()


@healthy
def uninitialised_memory_that_is_filled() -> None:
    """`empty` may hold anything until it is written."""
    model = mlp(4, 4)
    buffer = torch.empty(8, 4)
    buffer.view(torch.int32).fill_(0x7FC00000)  # what was there happens to be NaN

    def loss(step: int) -> Tensor:
        for i in range(8):
            buffer[i] = torch.randn(4)
        out = torch.empty(8, 4)
        torch.mul(buffer, 2.0, out=out)
        return model(out).square().mean()

    train(model, loss)


@healthy
def convolutions_with_clipping_and_averages() -> None:
    """Batch norm, max pooling over -inf, dropout, clipping, an exponential moving average."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(), nn.Flatten())
    average = torch.optim.swa_utils.AveragedModel(model)
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(4):
        x = F.pad(torch.randn(4, 1, 6, 6), (1, 1, 1, 1), value=-torch.inf)
        loss = model(F.max_pool2d(x, 2)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        average.update_parameters(model)


@healthy
def recurrent_network_with_packed_sequences() -> None:
    """LSTM over sequences of unequal length, cross entropy with ignored targets."""
    model = nn.ModuleDict({"lstm": nn.LSTM(3, 5, batch_first=True), "head": nn.Linear(5, 4)})
    x, y = torch.randn(3, 6, 3), torch.randint(4, (3, 6))
    y[1, 4:], y[2, 2:] = -100, -100

    def loss(step: int) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([6, 4, 2]), batch_first=True)
        h, _ = nn.utils.rnn.pad_packed_sequence(model["lstm"](packed)[0], batch_first=True)
        return F.cross_entropy(model["head"](h).flatten(0, 1), y.flatten(), ignore_index=-100)

    train(model, loss)
