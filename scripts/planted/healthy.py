"""Healthy models full of masks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planted.case import healthy, mlp, train


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
