"""Failures in the optimizer."""

from __future__ import annotations

import threading

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planted.case import failing, mlp, train


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


@failing
def closure_that_takes_a_logarithm() -> None:
    """LBFGS calls forward and backward from within its step."""
    model = nn.Linear(2, 1)
    x, y = torch.randn(8, 2), torch.rand(8, 1)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=100.0, max_iter=4)

    def closure() -> Tensor:
        optimizer.zero_grad()
        rate = model(x).abs() * (model(x) > -1) + F.relu(model(x))
        loss = (rate - y * torch.log(rate)).mean()  # culprit: forward
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)


@failing
def step_with_a_closure() -> None:
    """What Lightning does: forward and backward run inside `optimizer.step(closure)`."""
    model = mlp(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(3):

        def closure(step: int = step) -> Tensor:
            optimizer.zero_grad()
            h = model(torch.randn(4, 3)) * float(step < 2)
            loss = (h / h.norm()).mean()  # culprit: forward
            loss.backward()
            return loss

        optimizer.step(closure)


@failing
def evaluation_in_inference_mode() -> None:
    """The validation loss is NaN; it is summed up as a number."""
    model = mlp(4, 3)
    total = 0.0
    with torch.inference_mode():
        for batch in range(3):
            p = (model(torch.randn(8, 4)) * 10.0 ** (3 * batch)).softmax(-1)
            entropy = -(p * p.log()).sum(-1).mean()  # culprit: forward
            total += entropy.item()


@failing
def training_in_a_thread() -> None:
    """The loop runs in a thread of its own, as a server's or a notebook's does."""
    model = mlp(4, 2)

    def loop() -> None:
        def loss(step: int) -> Tensor:
            h = model(torch.randn(4, 4)) * float(step < 2)
            unit = h / h.norm(dim=-1, keepdim=True)  # culprit: forward
            return unit.mean()

        train(model, loss)

    thread = threading.Thread(target=loop)
    thread.start()
    thread.join()


@failing
def learning_rate_of_nan() -> None:
    """A warm-up of 0 steps divides 0 by 0, in numpy, which only warns."""
    model = mlp(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(2):
        with np.errstate(invalid="ignore"):
            warm = float(np.float64(step) / np.float64(step))
        optimizer.param_groups[0]["lr"] = 0.01 * min(1.0, warm) if warm == warm else warm
        optimizer.zero_grad()
        model(torch.randn(4, 4)).square().mean().backward()
        optimizer.step()  # culprit: optimizer


@failing
def bias_correction_of_no_steps() -> None:
    """An exponential moving average is divided by 1 - beta**0."""
    model = mlp(4, 2)
    average = [torch.zeros_like(p) for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 4)).square().mean().backward()
        with torch.no_grad():
            for p, mean in zip(model.parameters(), average, strict=True):
                mean.lerp_(p.grad, 0.1)
                p.sub_(mean / (1 - 0.9**step), alpha=0.01)  # culprit: forward


@failing
def parameter_from_uninitialised_memory() -> None:
    """A parameter is made by torch.empty and never filled; what happens to be there is NaN."""
    was = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # fills torch.empty with NaN, as chance may do
    try:
        weight = nn.Parameter(torch.empty(4, 3))
    finally:
        torch.use_deterministic_algorithms(was)
    optimizer = torch.optim.SGD([weight], lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        h = torch.randn(5, 4) @ weight  # culprit: forward
        h.square().mean().backward()
        optimizer.step()


@failing
def adam_in_float16() -> None:
    """Adam's epsilon of 1e-8 is 0 in float16, and the squares of small gradients are 0 too."""
    model = nn.Linear(4, 2).half()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    for _ in range(2):
        optimizer.zero_grad()
        (model(torch.randn(4, 4).half()) * 1e-5).sum().backward()
        optimizer.step()  # culprit: optimizer


@failing
def norm_of_gradients_that_overflows() -> None:
    """Clipping divides by an infinite norm: all gradients become 0, silently."""
    model = mlp(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        (model(torch.randn(4, 4)) * 1e25).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # culprit: optimizer
        optimizer.step()


@failing
def schedule_that_grows() -> None:
    """The factor of an exponential schedule was meant to be below 1."""
    model = nn.Linear(4, 1)
    x, y = torch.ones(8, 4), torch.ones(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 9.0)
    for _ in range(30):
        optimizer.zero_grad()
        error = model(x) - y
        loss = error.square().mean()  # culprit: forward
        loss.backward()
        optimizer.step()
        schedule.step()


@failing
def network_that_shares_its_memory() -> None:
    """Half of a buffer is divided by the other half, in place and by a view."""
    model = mlp(4, 4)
    buffer = torch.ones(2, 4)
    for step in range(3):
        with torch.no_grad():
            buffer[0].copy_(model(torch.randn(1, 4))[0])
            buffer[1].mul_(float(step < 2))
            buffer[0].div_(buffer[1])  # culprit: forward
    model(buffer).mean().backward()
