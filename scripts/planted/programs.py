"""Healthy programs: what training scripts do beside computing a loss, and infinities that they repair."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from planted.case import healthy, mlp, train, with_warning_silenced

# --- infinities that are repaired, dropped or never read as numbers --------------------------------------------------


@healthy
def relative_positions_in_buckets() -> None:
    """T5: the logarithm of distance 0 is -inf, becomes an integer, and is not chosen."""
    table = nn.Embedding(16, 4)

    def loss(step: int) -> Tensor:
        distance = (torch.arange(6)[:, None] - torch.arange(6)).abs()
        far = 4 + (torch.log(distance.float() / 4) / math.log(8) * 4).to(torch.long)
        bucket = torch.where(distance < 4, distance, far.clamp(max=15))
        return table(bucket).square().mean()

    train(table, loss)


@healthy
def scores_read_as_numbers() -> None:
    """Metrics with 0/0 go to numpy and to lists, where NaN is skipped."""
    model = mlp(4, 3)
    best = torch.full((), torch.inf)

    def loss(step: int) -> Tensor:
        predicted = model(torch.randn(6, 4))
        with torch.no_grad():
            hits = F.one_hot(predicted.argmax(-1), 5).float().sum(0)
            recall = hits / torch.zeros(5).index_fill(0, torch.tensor([0, 1]), 3.0)
            mean = np.nanmean(np.where(np.isinf(recall.numpy()), np.nan, recall.numpy()))
            known = [value for value in recall.tolist() if math.isfinite(value)]
            assert mean >= 0
            assert len(known) == 2
            assert best.item() > 0
        return predicted.square().mean()

    train(model, loss)


@healthy
def row_that_is_overwritten() -> None:
    """A quotient is 0/0 in its first row, which is then set to 0."""
    model = mlp(3, 2)
    a, b = torch.arange(12.0).reshape(4, 3), torch.arange(4.0)[:, None]
    a[0] = 0

    def loss(step: int) -> Tensor:
        x = a / b
        x[0] = 0
        return model(x).square().mean()

    train(model, loss)


@healthy
def copies_that_are_dropped() -> None:
    """The NaN of empty classes are selected into a copy that nobody uses."""
    model = mlp(3, 2)

    def loss(step: int) -> Tensor:
        count = torch.tensor([2.0, 0.0, 3.0])
        mean = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0], [3.0, 3.0, 3.0]]) / count[:, None]
        strange = mean[count == 0]
        del strange
        return model(mean[count > 0]).square().mean()

    train(model, loss)


@healthy
def jagged_sequences() -> None:
    """A nested tensor with the logarithm of 0, replaced."""
    model = mlp(3, 2)
    parts = [torch.rand(2, 3), torch.zeros(1, 3), torch.rand(3, 3)]

    def loss(step: int) -> Tensor:
        nested = torch.nested.nested_tensor(parts, layout=torch.jagged)
        level = nested.log().nan_to_num(neginf=-9.0)
        return model(torch.cat(list(level.unbind()))).square().mean()

    with_warning_silenced(lambda: train(model, loss))


@healthy
def degrees_to_the_power_of_minus_a_half() -> None:
    """A graph convolution: isolated nodes have infinite weights until they are masked."""
    model = nn.Linear(4, 2)
    x = torch.randn(5, 4)
    edges = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])

    def loss(step: int) -> Tensor:
        degree = torch.zeros(5).index_add(0, edges[1], torch.ones(4))
        scale = degree.pow(-0.5)
        scale.masked_fill_(scale == torch.inf, 0.0)
        weight = scale[edges[0]] * scale[edges[1]]
        h = torch.zeros(5, 2).index_add(0, edges[1], weight[:, None] * model(x)[edges[0]])
        return h.square().mean()

    train(model, loss)


@healthy
def beam_search_with_finished_beams() -> None:
    """Finished beams may only continue with the end symbol; all else is -inf, and so are empty beams."""
    model = nn.ModuleDict({"table": nn.Embedding(9, 8), "head": nn.Linear(8, 9)})
    with torch.no_grad():
        score = torch.tensor([0.0, -torch.inf, -torch.inf])
        last = torch.zeros(3, dtype=torch.long)
        for _ in range(5):
            log_p = model["head"](model["table"](last)).log_softmax(-1)
            log_p[last == 1] = torch.where(torch.arange(9) == 1, 0.0, -torch.inf)
            total = (score[:, None] + log_p).flatten()
            score, index = total.topk(3)
            last = index % 9
        assert torch.isfinite(score).all()


@healthy
def viterbi_in_a_linear_chain() -> None:
    """A conditional random field: forbidden transitions, a maximum and its path."""
    emission = nn.Linear(3, 4)
    x = torch.randn(6, 3)
    allowed = torch.zeros(4, 4).masked_fill(torch.ones(4, 4).tril(-1).bool(), -torch.inf)

    def loss(step: int) -> Tensor:
        score = emission(x[0])
        for row in emission(x[1:]):
            score = (score[:, None] + allowed).logsumexp(0) + row
        with torch.no_grad():
            path = (score + allowed[0]).argmax()
            assert path >= 0
        return score.logsumexp(0) - emission(x).diagonal().sum()

    train(emission, loss)


# --- losses and layers as they should be written ---------------------------------------------------------------------


@healthy
def variational_autoencoder() -> None:
    """The reparametrisation, with a clamped log-variance."""
    model = nn.ModuleDict({"encoder": nn.Linear(8, 6), "decoder": mlp(3, 8, 8)})
    x = torch.rand(16, 8)

    def loss(step: int) -> Tensor:
        mean, log_variance = model["encoder"](x).chunk(2, -1)
        log_variance = log_variance.clamp(-20, 10)
        z = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
        divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(-1)
        return F.binary_cross_entropy_with_logits(model["decoder"](z), x) + 0.1 * divergence.mean()

    train(model, loss)


@healthy
def stable_losses() -> None:
    """log_softmax, logsigmoid, softplus, logsumexp, log1p, normalize, cosine_similarity, xlogy, logit with eps."""
    model = mlp(4, 8, 3)
    x, y = 50 * torch.randn(8, 4), torch.randint(3, (8,))

    def loss(step: int) -> Tensor:
        h = 100 * model(x)
        p = h.softmax(-1)
        likelihoods = F.nll_loss(h.log_softmax(-1), y) + F.cross_entropy(h, y, label_smoothing=0.1)
        binary = F.binary_cross_entropy_with_logits(h, p.detach()) - F.logsigmoid(-h).mean()
        sums = F.softplus(h).log1p().mean() + h.logsumexp(-1).mean() + h.logcumsumexp(-1).mean()
        lengths = F.normalize(h, dim=-1).mean() + F.cosine_similarity(h, h * 0, dim=-1).mean()
        entropy = -torch.special.xlogy(p, p.clamp(min=1e-7)).mean() - torch.special.entr(p.clamp(min=1e-7)).mean()
        odds = torch.logit(h.sigmoid(), eps=1e-5).mean() + (h.sigmoid() + 1e-6).log().mean()
        by_hand = (h - h.amax(-1, keepdim=True)).exp()
        share = (by_hand / by_hand.sum(-1, keepdim=True)).clamp(1e-6, 1 - 1e-6).log().mean()
        return likelihoods + binary + sums + lengths + entropy + odds - share

    train(model, loss, lr=1e-4)


@healthy
def stable_statistics() -> None:
    """var + eps, norms with a lower bound, acos of a clamped cosine, layer norm by hand, a sign-safe power."""
    model = mlp(4, 8, 6)
    x = torch.randn(8, 4)

    def loss(step: int) -> Tensor:
        h = model(x) * float(step < 2)
        normed = (h - h.mean(-1, keepdim=True)) / torch.sqrt(h.var(-1, keepdim=True) + 1e-5)
        scaled = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)
        spread = h / (h.std(0) + 1e-6) + h / h.norm(dim=-1, keepdim=True).clamp(min=1e-6)
        unit = F.normalize(h + 0.1, dim=-1)
        angle = torch.acos((unit @ unit.T).clamp(-1 + 1e-6, 1 - 1e-6))
        root = (h.square().sum(-1) + 1e-12).sqrt() + torch.linalg.vector_norm(h, dim=-1)
        power = h.abs().clamp(min=1e-6) ** 0.5 * h.sign()
        return normed.mean() + scaled.mean() + spread.mean() + angle.mean() + root.mean() + power.mean()

    train(model, loss)


@healthy
def mixture_density_network() -> None:
    """logsumexp over components with bounded scales."""
    model = mlp(2, 16, 9)
    x, y = torch.randn(12, 2), torch.randn(12, 1)

    def loss(step: int) -> Tensor:
        weight, mean, raw = model(x).chunk(3, -1)
        normal = torch.distributions.Normal(mean, F.softplus(raw) + 1e-3)
        return -(weight.log_softmax(-1) + normal.log_prob(y)).logsumexp(-1).mean()

    train(model, loss)


@healthy
def coupling_flow() -> None:
    """RealNVP: the logarithm of the scale is bounded by tanh."""
    model = mlp(2, 16, 4)
    x = torch.randn(16, 4)

    def loss(step: int) -> Tensor:
        a, b = x.chunk(2, -1)
        shift, raw = model(a).chunk(2, -1)
        log_scale = torch.tanh(raw)
        z = torch.cat([a, b * log_scale.exp() + shift], -1)
        return (0.5 * z.square().sum(-1) - log_scale.sum(-1)).mean()

    train(model, loss)


@healthy
def contrastive_pairs() -> None:
    """InfoNCE with the diagonal at -inf, and by hand with a temperature of 0.5."""
    model = mlp(4, 8)
    x = torch.randn(8, 4)

    def loss(step: int) -> Tensor:
        z = F.normalize(model(x), dim=-1)
        similar = (z @ z.T / 0.1).masked_fill(torch.eye(8).bool(), -torch.inf)
        by_hand = torch.exp(z @ z.T / 0.5)
        share = by_hand.diagonal() / by_hand.sum(-1)
        return F.cross_entropy(similar, torch.arange(8) ^ 1) - share.log().mean()

    train(model, loss)


@healthy
def clipped_policy_gradient() -> None:
    """PPO with forbidden actions at -inf, an entropy bonus and normalised advantages."""
    model = mlp(4, 8, 3)
    x, action = torch.randn(16, 4), torch.randint(2, (16,))

    def loss(step: int) -> Tensor:
        logits = model(x).masked_fill(torch.tensor([False, False, True]), torch.finfo(torch.float32).min)
        policy = torch.distributions.Categorical(logits=logits)
        advantage = torch.randn(16)
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        ratio = (policy.log_prob(action) - policy.log_prob(action).detach()).exp()
        surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
        return -(surrogate + 0.01 * policy.entropy()).mean()

    train(model, loss)


@healthy
def denoising_diffusion() -> None:
    """Cumulated products of the schedule, square roots of what remains."""
    model = mlp(5, 16, 4)
    keep = (1 - torch.linspace(1e-4, 0.5, 100)).cumprod(0)

    def loss(step: int) -> Tensor:
        x, t, noise = torch.randn(16, 4), torch.randint(100, (16,)), torch.randn(16, 4)
        noisy = keep[t, None].sqrt() * x + (1 - keep[t, None]).sqrt() * noise
        return F.mse_loss(model(torch.cat([noisy, t[:, None] / 100], -1)), noise)

    train(model, loss)


@healthy
def gumbel_softmax_and_straight_through() -> None:
    """Logarithms of exponential variables, a hard choice with a soft gradient."""
    model = mlp(4, 5)
    x = torch.randn(8, 4)
    train(model, lambda step: (F.gumbel_softmax(model(x), 0.5, hard=True) * torch.arange(5.0)).mean())


@healthy
def attention_layers_with_padding() -> None:
    """nn.MultiheadAttention with and without weights, and a whole nn.Transformer with boolean masks."""
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    transformer = nn.Transformer(8, 2, 1, 1, 16, batch_first=True)
    model = nn.ModuleList([attention, transformer])
    x = torch.randn(3, 5, 8)
    padding = torch.arange(5) >= torch.tensor([[5], [3], [1]])
    future = torch.ones(5, 5, dtype=torch.bool).triu(1)

    def loss(step: int) -> Tensor:
        a, _ = attention(x, x, x, key_padding_mask=padding)
        b, _ = attention(x, x, x, key_padding_mask=padding, attn_mask=future, need_weights=False)
        c = transformer(x, x, tgt_mask=future, src_key_padding_mask=padding, tgt_key_padding_mask=padding)
        return (a + b + c).square().mean()

    train(model, loss)


@healthy
def spectrum_and_complex_weights() -> None:
    """A Fourier layer with complex parameters, magnitudes with an epsilon."""
    model = nn.ParameterDict({"filter": torch.randn(9, dtype=torch.complex64)})

    def loss(step: int) -> Tensor:
        spectrum = torch.fft.rfft(torch.randn(2, 16)) * model["filter"]
        level = torch.log(spectrum.abs() + 1e-6)
        return level.mean() + torch.fft.irfft(spectrum).square().mean()

    train(model, loss)


# --- training programs -----------------------------------------------------------------------------------------------


@healthy
def quasi_newton_steps() -> None:
    """LBFGS with a line search."""
    model = nn.Linear(3, 1)
    x = torch.randn(16, 3)
    y = x.sum(-1, keepdim=True)
    optimizer = torch.optim.LBFGS(model.parameters(), line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)


@healthy
def adversarial_networks() -> None:
    """Two optimizers, the losses with logits, a gradient penalty."""
    generator, critic = mlp(2, 8, 4), mlp(4, 8, 1)
    optimizers = [torch.optim.Adam(m.parameters(), 1e-3, (0.5, 0.9)) for m in (generator, critic)]
    for _ in range(3):
        real, fake = torch.randn(8, 4), generator(torch.randn(8, 2))
        middle = (0.5 * real + 0.5 * fake.detach()).requires_grad_()
        (slope,) = torch.autograd.grad(critic(middle).sum(), middle, create_graph=True)
        penalty = (slope.norm(dim=-1) - 1).square().mean()
        optimizers[1].zero_grad()
        (F.softplus(critic(fake.detach())) + F.softplus(-critic(real))).mean().add(penalty).backward()
        optimizers[1].step()
        optimizers[0].zero_grad()
        F.softplus(-critic(fake)).mean().backward()
        optimizers[0].step()


@healthy
def bfloat16_under_autocast() -> None:
    """Checkpointed blocks, accumulated gradients, an averaged copy of the weights, a warm-up."""
    model = nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 10))
    for step in range(6):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            h = torch.randn(4, 8)
            for layer in model:
                h = checkpoint(lambda x, layer=layer: F.gelu(layer(x)), h, use_reentrant=False)
            loss = h.float().square().mean() / 2
        loss.backward()
        if step % 2:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=step > 3)
            schedule.step()
            average.update_parameters(model)


@healthy
def gradients_of_each_sample() -> None:
    """functional_call under vmap and grad, clipped one by one, with noise."""
    model = mlp(3, 4, 1)
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return (torch.func.functional_call(model, weights, (x[None],))[0] - y).square().mean()

    for _ in range(3):
        detached = {name: p.detach() for name, p in parameters.items()}
        x, y = torch.randn(6, 3), torch.randn(6, 1)
        gradients = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(detached, x, y)
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients.values()]).norm(dim=0)
        factor = (1 / (norms + 1e-6)).clamp(max=1)
        for name, p in parameters.items():
            p.grad = torch.einsum("n,n...->...", factor, gradients[name]) / 6 + 0.01 * torch.randn_like(p)
        optimizer.step()


@healthy
def validation_between_steps() -> None:
    """no_grad and inference_mode in turn, in eval mode, with a copy of the best weights."""
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    best, kept = float("inf"), None
    for step in range(4):
        model.train()
        optimizer.zero_grad()
        F.cross_entropy(model(torch.randn(8, 4)), torch.randint(3, (8,))).backward()
        optimizer.step()
        model.eval()
        with torch.inference_mode() if step % 2 else torch.no_grad():
            score = F.cross_entropy(model(torch.randn(8, 4)), torch.randint(3, (8,))).item()
        schedule.step(score)
        if score < best:
            best, kept = score, copy.deepcopy(model.state_dict())
    assert kept is not None
    model.load_state_dict(kept)


@healthy
def truncated_backpropagation() -> None:
    """An LSTM whose state is kept over batches, orthogonal weights, embeddings with sparse gradients."""
    model = nn.ModuleDict({"table": nn.Embedding(11, 6, sparse=True), "lstm": nn.LSTM(6, 6, batch_first=True)})
    nn.init.orthogonal_(model["lstm"].weight_hh_l0)
    sparse = torch.optim.SparseAdam(model["table"].parameters())
    dense = torch.optim.RMSprop(model["lstm"].parameters())
    state = None
    for _ in range(4):
        h, state = model["lstm"](model["table"](torch.randint(11, (2, 5))), state)
        state = tuple(part.detach() for part in state)
        h.square().mean().backward()
        for optimizer in (sparse, dense):
            optimizer.step()
            optimizer.zero_grad()


@healthy
def compiled_with_the_eager_backend() -> None:
    """torch.compile without code generation, with a mask in the graph."""
    torch.compiler.reset()
    model = mlp(4, 4)
    compiled = torch.compile(model, backend="eager")
    x = torch.randn(3, 4)

    def loss(step: int) -> Tensor:
        scores = compiled(x).masked_fill(torch.eye(3, 4).bool(), -torch.inf)
        return (scores.softmax(-1) @ x.T).square().mean()

    with_warning_silenced(lambda: train(model, loss))


@healthy
def shapes_without_memory() -> None:
    """A model on the meta device: forward and backward, then it gets its memory."""
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    model(torch.empty(2, 4, device="meta")).exp().mean().backward()
    model = model.to_empty(device="cpu")
    for p in model.parameters():
        nn.init.normal_(p, std=0.1)
    model.zero_grad()
    train(model, lambda step: model(torch.randn(2, 4)).square().mean())


@healthy
def traced_and_exported() -> None:
    """Fake tensors, make_fx and torch.export within the loop, as tools that count or convert do."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    model = mlp(4, 4)
    x = torch.randn(2, 4)
    with FakeTensorMode() as mode:
        assert (mode.from_tensor(x).log() * 0).sum().shape == ()
    graph = make_fx(lambda t: (t / t.norm()).exp())(x)
    assert len(list(graph.graph.nodes)) > 3
    exported = torch.export.export(model, (x,))
    assert torch.equal(exported.module()(x), model(x))
    train(model, lambda step: model(x).square().mean())


class Labelled(Tensor):
    """A wrapper like those of TensorDict and torchao: it holds a tensor and sends operations on to it."""

    inner: Tensor

    @staticmethod
    def __new__(cls: type[Labelled], inner: Tensor) -> Labelled:
        """Wrap a tensor."""
        made: Any = Tensor._make_wrapper_subclass(
            cls, inner.shape, dtype=inner.dtype, device=inner.device, requires_grad=inner.requires_grad
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation on what is wrapped."""
        tree = torch.utils._pytree.tree_map
        unwrap: Callable[[Any], Any] = lambda x: x.inner if isinstance(x, cls) else x  # noqa: E731
        out = func(*tree(unwrap, args), **tree(unwrap, kwargs or {}))
        return tree(lambda x: cls(x) if isinstance(x, Tensor) else x, out)


@healthy
def wrapped_tensors() -> None:
    """A tensor subclass that decides itself how operations run."""
    model = mlp(3, 2)
    x = torch.rand(4, 3)

    def loss(step: int) -> Tensor:
        wrapped = Labelled(x * (x > 0.5)).log().nan_to_num(neginf=-3.0)
        return model(wrapped.inner).square().mean()

    train(model, loss)


def alone_in_a_group(training: Callable[[], None]) -> None:
    """Run with torch.distributed set up for one process, over gloo."""
    import torch.distributed as dist

    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{Path(folder) / 'store'}", rank=0, world_size=1)
        try:
            training()
        finally:
            dist.destroy_process_group()


@healthy
def data_parallel() -> None:
    """DistributedDataParallel, with an infinity in a mask."""

    def training() -> None:
        model = nn.parallel.DistributedDataParallel(mlp(4, 8, 4))
        mask = torch.zeros(4).masked_fill(torch.arange(4) == 3, -torch.inf)
        train(model, lambda step: (model(torch.randn(6, 4)) + mask).softmax(-1)[:, 0].mean())

    with_warning_silenced(lambda: alone_in_a_group(training))


@healthy
def fully_sharded() -> None:
    """FSDP2: parameters are DTensors."""

    def training() -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        model = mlp(4, 8, 2)
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        optimizer = torch.optim.AdamW(model.parameters())
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(6, 4)).square().mean().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    with_warning_silenced(lambda: alone_in_a_group(training))
