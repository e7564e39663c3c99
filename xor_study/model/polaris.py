"""Polaris's Adam, which `torch.optim` does not have: what the plain engine trains `polaris_adam` with."""

from __future__ import annotations

from typing import Any

import torch


class PolarisAdam(torch.optim.Optimizer):
    """Adam as Polaris 0.1 writes it: rate * mhat / (sqrt(vhat + eps_root) + eps). `torch.optim` has no such thing."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        eps_root: float = 1e-15,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "eps_root": eps_root})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # there is no closure to return a loss of
        """Make one step."""
        for group in self.param_groups:
            (beta1, beta2), lr = group["betas"], group["lr"]
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state |= {"step": 0, "mean": torch.zeros_like(parameter), "square": torch.zeros_like(parameter)}
                state["step"] += 1
                state["mean"].mul_(beta1).add_(parameter.grad, alpha=1 - beta1)
                state["square"].mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
                mean = state["mean"] / (1 - beta1 ** state["step"])
                square = state["square"] / (1 - beta2 ** state["step"])
                parameter.sub_(lr * mean / ((square + group["eps_root"]).sqrt() + group["eps"]))
