"""The same training in JAX, as its best users would write it; run by `scripts/benchmark.py`, which talks to it in JSON.

Each line on standard input names a peer, an optimizer, runs and steps; each line of the answer holds the seconds of one
training (compiled before, batches drawn inside) and the runs' mean losses. Batches and measures are the package's.

- `vmap`: one network's step on the four corners, under `jax.vmap` and `jax.lax.scan`.
- `vmap on 32`: the same on the 32 samples of a batch.
- `scalarised`: every weight a vector of its own over 512 networks, so that XLA can fuse a step into a few loops.
"""

from __future__ import annotations

import functools
import json
import operator
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

jax.config.update("jax_enable_x64", True)

FLOAT = jnp.float32
CORNERS = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
TARGETS = np.array([0, 1, 1, 0], np.float32)
GAMMA = np.uint64(0x9E3779B97F4A7C15)
UNITS, BLOCK = 8, 512


def word(key: Any, number: Any) -> Any:
    """Return output `number` of SplitMix64 seeded with `key`."""
    z = key + number.astype(jnp.uint64) * GAMMA
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def counts(key: Any, number: Any) -> list[Any]:
    """Return how often each corner stands in a batch."""
    bits = word(key, number)
    x1, x2 = bits.astype(jnp.uint32), (bits >> np.uint64(32)).astype(jnp.uint32)
    both, one, two = (lax.population_count(v).astype(FLOAT) for v in (x1 & x2, x1, x2))
    return [32 - one - two + both, two - both, one - both, both]


def cross_entropy(logit: Any, target: Any) -> Any:
    """Return binary cross-entropy, cut off at 100, for targets that are known when it is traced."""
    p = jax.nn.sigmoid(logit)
    return -jnp.maximum(jnp.log(jnp.where(target == 1, p, 1 - p)), -100)


def start(like: Any) -> dict[str, Any]:
    """Return the measures before the first step."""
    zero, whole = jnp.zeros_like(like), jnp.zeros(like.shape, jnp.int32)
    return {
        "sum": zero,
        "least": zero + jnp.inf,
        "largest": zero - jnp.inf,
        "logit": zero,
        "norm": zero,
        "first": whole,
        "wrong": whole,
    }


def measure(record: dict[str, Any], number: Any, loss: Any, grads: list[Any], params: list[Any], logits: Any) -> Any:
    """Return the measures with one step taken in."""
    absolute = [jnp.abs(x) for x in (*grads, *params)]
    finite = jnp.isfinite(
        functools.reduce(jnp.maximum, [x.max() if x.ndim > loss.ndim else x for x in absolute]) + loss
    )
    norm = jnp.sqrt(sum((x * x).sum() if x.ndim > loss.ndim else x * x for x in grads))
    right = sum(((z > 0) if y else (z < 0)).astype(jnp.int32) for z, y in zip(logits, TARGETS, strict=True))
    number = number.astype(jnp.int32)
    return {
        "sum": record["sum"] + loss,
        "least": jnp.fmin(record["least"], loss),
        "largest": jnp.fmax(record["largest"], loss),
        "logit": jnp.fmax(record["logit"], functools.reduce(jnp.maximum, [jnp.abs(z) for z in logits])),
        "norm": jnp.fmax(record["norm"], norm),
        "first": jnp.where(~finite & (record["first"] == 0), number, record["first"]),
        "wrong": jnp.where(right < 4, number, record["wrong"]),
    }


def update(optimizer: str, p: Any, g: Any, state: Any, lr: Any, corrections: Any) -> tuple[Any, Any]:
    """Return a parameter and its state after one update."""
    if optimizer == "sgd":
        return p - lr * g, state
    mean, square = state
    mean = mean + FLOAT(0.1) * (g - mean)
    square = FLOAT(0.999) * square + FLOAT(0.001) * g * g
    return p - lr * corrections[0] * mean / (jnp.sqrt(square) * corrections[1] + FLOAT(1e-8)), (mean, square)


def steps_of(steps: int) -> tuple[Any, Any, Any]:
    """Return what the scan runs over: step numbers and Adam's corrections."""
    number = np.arange(1, steps + 1)
    root = 1 / np.sqrt(1 - 0.999**number)
    return number, (1 / (1 - 0.9**number)).astype(np.float32), root.astype(np.float32)


def logits_of(params: list[Any], x: Any) -> Any:
    """Return the logits of inputs (n, 2), of one network."""
    weight, bias, output, last = params
    return jnp.tanh(x @ weight.T + bias) @ output + last


def vmapped(optimizer: str, steps: int, samples: bool) -> Any:
    """Return the training of many networks by `vmap`."""

    def objective(params: list[Any], batch: Any) -> Any:
        if samples:
            x, y = batch
            return cross_entropy(logits_of(params, x), y).sum() / 32, None
        logits = logits_of(params, CORNERS)
        return (batch * cross_entropy(logits, TARGETS)).sum() / 32, logits

    def one(params: list[Any], key: Any, lr: Any) -> Any:
        def step(carry: Any, now: Any) -> Any:
            params, state, record = carry
            number, *corrections = now
            if samples:
                bits = ((word(key, number) >> jnp.arange(64, dtype=jnp.uint64)) & np.uint64(1)).astype(FLOAT)
                batch: Any = (jnp.stack([bits[:32], bits[32:]], 1), (bits[:32] != bits[32:]).astype(FLOAT))
            else:
                batch = jnp.stack(counts(key, number))
            (loss, logits), grads = jax.value_and_grad(objective, has_aux=True)(params, batch)
            logits = logits_of(params, CORNERS) if samples else logits
            both = [update(optimizer, p, g, s, lr, corrections) for p, g, s in zip(params, grads, state, strict=True)]
            params, state = [p for p, _ in both], [s for _, s in both]
            return (params, state, measure(record, number, loss, grads, params, list(logits))), None

        state = [() if optimizer == "sgd" else (jnp.zeros_like(p),) * 2 for p in params]
        return lax.scan(step, (params, state, start(lr)), steps_of(steps))[0]

    def train(flat: Any, key: Any, lr: Any) -> Any:
        hidden, bias, output, last = jnp.split(flat, [2 * UNITS, 3 * UNITS, 4 * UNITS], axis=1)
        params = [hidden.reshape(-1, UNITS, 2), bias, output, last[:, 0]]
        return jax.vmap(one)(params, key, lr)[2]["sum"] / steps

    return jax.jit(train)


def scalarised(optimizer: str, steps: int) -> Any:
    """Return the training of many networks, a vector for each weight."""

    def total(params: list[Any], batch: list[Any]) -> Any:
        logits = []
        for x1, x2 in CORNERS:
            logit = params[4 * UNITS]
            for unit in range(UNITS):
                inputs = [params[2 * UNITS + unit]] + [params[2 * unit + i] for i, x in enumerate((x1, x2)) if x]
                logit = logit + jnp.tanh(functools.reduce(operator.add, inputs)) * params[3 * UNITS + unit]
            logits.append(logit)
        losses = [c * cross_entropy(z, y) for c, z, y in zip(batch, logits, TARGETS, strict=True)]
        loss = functools.reduce(operator.add, losses) / 32
        return loss.sum(), (loss, logits)

    def block(given: Any) -> Any:
        params, key, lr = given

        def step(carry: Any, now: Any) -> Any:
            params, state, record = carry
            number, *corrections = now
            grads, (loss, logits) = jax.grad(total, has_aux=True)(params, counts(key, number))
            both = [update(optimizer, p, g, s, lr, corrections) for p, g, s in zip(params, grads, state, strict=True)]
            params, state = [p for p, _ in both], [s for _, s in both]
            return (params, state, measure(record, number, loss, grads, params, logits)), None

        state = [() if optimizer == "sgd" else (jnp.zeros_like(lr),) * 2 for _ in params]
        return lax.scan(step, (params, state, start(lr)), steps_of(steps))[0][2]["sum"] / steps

    def train(flat: Any, key: Any, lr: Any) -> Any:
        size = min(BLOCK, len(key))
        params = [column.reshape(-1, size) for column in flat.T]
        return lax.map(block, (params, key.reshape(-1, size), lr.reshape(-1, size))).reshape(-1)

    return jax.jit(train)


PEERS = {
    "vmap": functools.partial(vmapped, samples=False),
    "vmap on 32": functools.partial(vmapped, samples=True),
    "scalarised": scalarised,
}


def main() -> None:
    """Answer each line."""
    trainings: dict[str, tuple[Any, Any]] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        if line not in trainings:
            arrays = np.load(asked["data"])
            training = PEERS[asked["peer"]](asked["optimizer"], asked["steps"])
            given = jax.device_put((arrays["parameters"], arrays["keys"], arrays["lr"]))
            jax.block_until_ready(training(*given))
            trainings[line] = training, given
        training, given = trainings[line]
        begin = time.perf_counter()
        losses = jax.block_until_ready(training(*given))
        seconds = time.perf_counter() - begin
        told = {"seconds": seconds, "losses": np.asarray(losses, float).tolist(), "version": jax.__version__}
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
