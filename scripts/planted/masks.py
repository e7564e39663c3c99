"""Failures beside infinities that are there on purpose, and in reduced precision."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planted.case import failing, mlp, train, with_warning_silenced


@failing
def exponential_overflows_beside_a_mask() -> None:
    """The mask's -inf becomes 0, but another score is too large; inf / inf comes later."""
    model = mlp(4, 5)
    x, closed = torch.randn(6, 4), torch.ones(6, 5).triu(3).bool()

    def loss(step: int) -> Tensor:
        scores = (model(x) * 10.0 ** (2 * step)).masked_fill(closed, -torch.inf)
        e = scores.exp()  # culprit: forward
        attention = e / e.sum(-1, keepdim=True)
        return attention[:, 0].mean()

    train(model, loss)


@failing
def product_overflows_beside_a_mask() -> None:
    """Scores with -inf in them are scaled, and a finite one leaves float16."""
    model = nn.Linear(8, 6).half()
    x, closed = torch.randn(5, 8).half(), torch.tensor([False] * 5 + [True])

    def loss(step: int) -> Tensor:
        scores = (model(x).abs() + 1).masked_fill(closed, -torch.inf)
        sharp = scores * 60000  # culprit: forward
        return sharp.softmax(-1)[:, 0].float().mean()

    train(model, loss)


@failing
def logarithm_of_zero_beside_infinite_distances() -> None:
    """A point's distance to itself is set to infinity; two other points coincide."""
    model = mlp(2, 2)
    x = torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0], [2.0, 0.0]])

    def loss(step: int) -> Tensor:
        distance = torch.cdist(model(x), model(x)).masked_fill(torch.eye(4).bool(), torch.inf)
        order = distance.log()  # culprit: forward
        return order.clamp(max=3).mean()

    train(model, loss)


@failing
def power_overflows_beside_a_mask() -> None:
    """A gap of infinity marks what is missing; a finite gap squared is too large for float16."""
    model = nn.Linear(4, 4).half()
    gaps = torch.tensor([[1.0, 2.0, 400.0, torch.inf]]).half()

    def loss(step: int) -> Tensor:
        square = gaps.pow(2)  # culprit: forward
        weight = torch.where(gaps.isinf(), 0.0, square)
        return (model(weight / weight.sum(-1, keepdim=True))).float().square().mean()

    train(model, loss)


@failing
def running_sum_overflows_beside_a_mask() -> None:
    """Log-weights of a sequence are summed up; the last is -inf, and those before it leave float16."""
    model = nn.Linear(4, 6).half()
    x = torch.randn(3, 4).half()

    def loss(step: int) -> Tensor:
        score = (model(x).abs() + 30000).masked_fill(torch.arange(6) == 5, -torch.inf)
        total = score.cumsum(-1)  # culprit: forward
        return (total - total.amax(-1, keepdim=True)).exp().float().mean()

    train(model, loss)


@failing
def matrix_product_overflows_beside_a_mask() -> None:
    """One row is -inf by intent; in another the products of finite numbers leave float16."""
    model = nn.Linear(8, 8).half()
    x, weight = torch.randn(3, 8).half(), torch.full((8, 4), 100.0).half()

    def loss(step: int) -> Tensor:
        h = model(x).abs() + torch.tensor([1.0, 200.0, 1.0]).half()[:, None]
        h = h.masked_fill(torch.tensor([True, False, False])[:, None], -torch.inf)
        scores = h @ weight  # culprit: forward
        return (scores[1:] * 0.5).float().mean()

    train(model, loss)


@failing
def attention_of_a_padded_row() -> None:
    """torch's own attention, asked for its weights, with a sequence of padding alone."""
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    x, padding = torch.randn(2, 5, 8), torch.tensor([[False] * 5, [True] * 5])

    def loss(step: int) -> Tensor:
        out, _ = attention(x, x, x, key_padding_mask=padding, need_weights=True)  # culprit: forward
        return out.square().mean()

    train(attention, loss)


@failing
def pooled_by_attention_over_nothing() -> None:
    """A recurrent encoder, attention over its steps, and a sequence of length 0."""
    model = nn.ModuleDict({"gru": nn.GRU(4, 6, batch_first=True), "score": nn.Linear(6, 1)})
    x = torch.randn(3, 5, 4)

    def loss(step: int) -> Tensor:
        length = torch.tensor([5, 3, 0 if step == 1 else 2])
        h, _ = model["gru"](x)
        score = model["score"](h).squeeze(-1).masked_fill(torch.arange(5) >= length[:, None], -torch.inf)
        weight = F.softmax(score, dim=-1)  # culprit: forward
        return (weight[..., None] * h).sum(1).square().mean()

    train(model, loss)


@failing
def quotient_that_is_zero_for_ever() -> None:
    """x / 0 is infinite, and dividing by that gives 0: the loss stays finite and nothing is learnt."""
    model = mlp(4, 8, 2)
    x = torch.full((8, 4), 3.0)

    def loss(step: int) -> Tensor:
        gain = 1.0 / x.std(0)  # culprit: forward
        scaled = model(x).mean(0) / gain[:2]
        return scaled.square().mean()

    train(model, loss)


@failing
def sum_of_many_in_float16() -> None:
    """A loss is summed in half precision before it is divided by the count."""
    model = nn.Linear(8, 8).half()
    x = torch.randn(64, 8).half()

    def loss(step: int) -> Tensor:
        error = (model(x) + 20).square()
        return error.sum() / error.numel()  # culprit: forward

    train(model, loss)


@failing
def codebook_entry_that_nobody_uses() -> None:
    """Vector quantisation: the mean of the vectors of each entry, and one entry has none."""
    model = mlp(4, 3)
    x = torch.randn(10, 4)

    def loss(step: int) -> Tensor:
        z = model(x)
        entry = F.one_hot(torch.arange(10) % 3, 4).float()
        book = entry.T @ z / entry.sum(0)[:, None]  # culprit: forward
        return (z - (entry @ book)).square().mean()

    train(model, loss)


@failing
def isolated_node_of_a_sparse_graph() -> None:
    """The mean over a node's neighbours, where it has none."""
    model = mlp(4, 3)
    x = torch.randn(4, 4)
    edges = torch.sparse_coo_tensor(torch.tensor([[0, 1, 2], [1, 0, 0]]), torch.ones(3), (4, 4), check_invariants=True)

    def loss(step: int) -> Tensor:
        degree = torch.sparse.mm(edges, torch.ones(4, 1))
        h = torch.sparse.mm(edges, model(x)) / degree  # culprit: forward
        return h.square().mean()

    with_warning_silenced(lambda: train(model, loss))  # of invariants that are not checked


@failing
def instance_norm_of_one_pixel() -> None:
    """The unbiased variance over a feature map that has shrunk to one element."""
    model = nn.Conv2d(1, 2, 3)

    def loss(step: int) -> Tensor:
        h = model(torch.randn(4, 1, 3, 3))
        variance = h.var((2, 3), keepdim=True)  # culprit: forward
        return ((h - h.mean((2, 3), keepdim=True)) * (variance + 1e-5).rsqrt()).square().mean()

    with_warning_silenced(lambda: train(model, loss))


@failing
def distances_by_the_binomial_formula() -> None:
    """|a|^2 + |b|^2 - 2 ab comes out negative for points that are far from 0 and near each other."""
    model = nn.Linear(2, 2)
    x = torch.tensor([[1000.0, 1.0], [1000.01, 1.0], [1000.02, 1.02]])

    def loss(step: int) -> Tensor:
        square = x.square().sum(-1)
        distance = torch.sqrt(square[:, None] + square - 2 * x @ x.T - 1e-3)  # culprit: forward
        return (model(x).sum(-1)[:, None] * distance).mean()

    train(model, loss)


@failing
def inverse_of_softplus_overflows() -> None:
    """log(exp(x) - 1) of a scale that has grown."""
    model = mlp(4, 8, 1)
    x = torch.randn(8, 4)

    def loss(step: int) -> Tensor:
        scale = F.softplus(model(x)) + 50.0 * step
        raw = torch.log(torch.expm1(scale))  # culprit: forward
        return raw.square().mean()

    train(model, loss)


@failing
def power_iteration_of_a_zero_matrix() -> None:
    """Spectral normalisation by hand of a layer that begins at zero."""
    layer = nn.Linear(4, 4, bias=False)
    nn.init.zeros_(layer.weight)

    def loss(step: int) -> Tensor:
        v = layer.weight @ torch.ones(4)
        v = v / v.norm()  # culprit: forward
        sigma = v @ layer.weight @ v
        return sigma.square()

    train(layer, loss)


@failing
def state_carried_over_batches() -> None:
    """Truncated backpropagation: the hidden state is detached, kept, and grows."""
    cell = nn.Linear(8, 8, bias=False)
    with torch.no_grad():
        cell.weight.copy_(3e4 * torch.eye(8))
    state = torch.ones(2, 8)
    optimizer = torch.optim.SGD(cell.parameters(), lr=1e-30)
    for _ in range(12):
        optimizer.zero_grad()
        h = cell(state.detach())  # culprit: forward
        h.mean().backward()
        optimizer.step()
        state = h
