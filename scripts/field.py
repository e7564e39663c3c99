"""Run healthy and failing training code of other libraries under the autopsy: python scripts/field.py [NAME ...].

Needs the extra `field` (transformers, lightning, torchvision, diffusers, torch_geometric, gpytorch, kornia). Models are
made from small configurations, without weights from the network. Writes `results/autopsy/field.json` and `field.md`
unless names are given. A case whose library is missing is skipped and listed as such. Minutes on two cores.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from xor_study.autopsy import Report, autopsy
from xor_study.files import write_atomically
from xor_study.sweeps.provenance import provenance

OUT = Path(__file__).resolve().parents[1] / "results/autopsy"
CHECKS = ("each", "batched")
LIBRARIES = ("transformers", "lightning", "torchvision", "diffusers", "torch-geometric", "gpytorch", "kornia")


class Case(NamedTuple):
    """Training code.

    Attributes:
        run: does it.
        culprit: of failing code, the end of its file, a part of the culprit line, and the phase; None if it is healthy.
    """

    run: Callable[[], None]
    culprit: tuple[str, str, str] | None


CASES: dict[str, Case] = {}


def healthy(run: Callable[[], None]) -> Callable[[], None]:
    """Enter a case in which nothing may be named."""
    CASES[run.__name__] = Case(run, None)
    return run


def failing(file: str, code: str, phase: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Enter a case in which a line must be named."""

    def enter(run: Callable[[], None]) -> Callable[[], None]:
        CASES[run.__name__] = Case(run, (file, code, phase))
        return run

    return enter


def train(parameters: Iterator[nn.Parameter], loss: Callable[[], Tensor], steps: int = 2) -> None:
    """Do what every training loop does."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def language_model(config: Any, kind: str = "AutoModelForCausalLM", length: int = 12) -> None:
    """Train a language model on symbols with padding."""
    import transformers

    model = getattr(transformers, kind).from_config(config)
    ids = torch.randint(4, 90, (3, length))
    mask = torch.ones_like(ids)
    mask[1, length // 2 :] = 0
    train(model.parameters(), lambda: model(input_ids=ids, attention_mask=mask, labels=ids).loss)


@healthy
def gpt2() -> None:
    """Causal attention, tied embeddings."""
    from transformers import GPT2Config

    language_model(GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=2, n_positions=32))


@healthy
def llama() -> None:
    """Rotary positions, RMS norm, grouped queries."""
    from transformers import LlamaConfig

    language_model(LlamaConfig(vocab_size=96, num_key_value_heads=1, **SIZES))


@healthy
def llama_in_bfloat16() -> None:
    """Under autocast."""
    with torch.autocast("cpu", torch.bfloat16):
        llama()


@healthy
def mixtral() -> None:
    """A mixture of experts, with its auxiliary loss."""
    from transformers import MixtralConfig

    language_model(
        MixtralConfig(vocab_size=96, num_key_value_heads=1, num_local_experts=4, output_router_logits=True, **SIZES)
    )


@healthy
def bert() -> None:
    """Masked language modelling."""
    from transformers import BertConfig

    language_model(BertConfig(vocab_size=96, **SIZES), "AutoModelForMaskedLM")


@healthy
def mpnet() -> None:
    """Relative positions: log(0), cast to integers, thrown away by where."""
    from transformers import MPNetConfig

    language_model(MPNetConfig(vocab_size=96, **SIZES), "AutoModelForMaskedLM")


@healthy
def t5() -> None:
    """Relative positions of an encoder and a decoder."""
    from transformers import T5Config

    config = T5Config(vocab_size=96, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0)
    language_model(config, "AutoModelForSeq2SeqLM")


@healthy
def bart() -> None:
    """Cross attention."""
    from transformers import BartConfig

    sizes = {f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in _PARTS.items()}
    language_model(BartConfig(vocab_size=96, d_model=32, max_position_embeddings=64, **sizes), "AutoModelForSeq2SeqLM")


_PARTS = {"layers": 2, "attention_heads": 2, "ffn_dim": 48}


@healthy
def vit() -> None:
    """Image classification."""
    from transformers import ViTConfig, ViTForImageClassification

    model = ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, num_labels=5, **SIZES))
    images, labels = torch.randn(3, 3, 32, 32), torch.randint(0, 5, (3,))
    train(model.parameters(), lambda: model(pixel_values=images, labels=labels).loss)


@healthy
def whisper() -> None:
    """Speech: convolutions before the encoder."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    sizes = {f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in _PARTS.items()}
    config = WhisperConfig(
        vocab_size=96, d_model=32, max_source_positions=50, num_mel_bins=16, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None, **sizes,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    sound, labels = torch.randn(2, 16, 100), torch.randint(3, 96, (2, 7))
    train(model.parameters(), lambda: model(input_features=sound, labels=labels).loss)


@healthy
def wav2vec2_ctc() -> None:
    """Speech with connectionist temporal classification."""
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    config = Wav2Vec2Config(
        vocab_size=20, conv_dim=(16, 16), conv_stride=(5, 2), conv_kernel=(10, 3), num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2, mask_time_prob=0.0, **SIZES,
    )  # fmt: skip
    model = Wav2Vec2ForCTC(config)
    sound, labels = torch.randn(2, 800), torch.randint(1, 20, (2, 5))
    train(model.parameters(), lambda: model(input_values=sound, labels=labels).loss)


@healthy
def detr() -> None:
    """Detection with a Hungarian matching, on a small backbone of torchvision's kind."""
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    backbone = ResNetConfig(
        hidden_sizes=[16, 32, 32, 64], depths=[1, 1, 1, 1], embedding_size=16, out_features=["stage4"]
    )
    config = DetrConfig(
        backbone_config=backbone, use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, d_model=32,
        encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, num_queries=5,
        encoder_ffn_dim=32, decoder_ffn_dim=32, num_labels=3,
    )  # fmt: skip
    model = DetrForObjectDetection(config)
    labels = [{"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.3]])} for _ in range(2)]
    images = torch.randn(2, 3, 64, 64)
    train(model.parameters(), lambda: model(pixel_values=images, labels=labels).loss)


@healthy
def generation() -> None:
    """Sampling and beam search: masks of -inf over logits."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=32, n_layer=1, n_head=2, n_positions=32)).eval()
    model.generation_config.pad_token_id = 0
    ids = torch.randint(4, 90, (2, 5))
    model.generate(ids, max_new_tokens=5, do_sample=True, top_k=5, top_p=0.9)
    model.generate(ids, max_new_tokens=5, num_beams=3, no_repeat_ngram_size=2)


@healthy
def hf_trainer() -> None:
    """HF's Trainer with gradient accumulation and an evaluation."""
    import transformers

    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=96, n_embd=32, n_layer=1, n_head=2, n_positions=32)
    )
    rows = [{"input_ids": (ids := torch.randint(4, 90, (8,))), "labels": ids} for _ in range(12)]
    with tempfile.TemporaryDirectory() as folder:
        options = transformers.TrainingArguments(
            folder, max_steps=3, per_device_train_batch_size=2, gradient_accumulation_steps=2, report_to=[],
            eval_strategy="steps", eval_steps=2, save_strategy="no", disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        transformers.Trainer(model, options, train_dataset=rows, eval_dataset=rows[:4]).train()


def lightning_fit(precision: str) -> None:
    """Fit a small module with Lightning's Trainer."""
    import lightning
    from torch.utils.data import DataLoader, TensorDataset

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Embedding(50, 8), nn.Linear(8, 3)

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            x, y = batch
            return nn.functional.cross_entropy(self.head(self.body(x).mean(1)).float(), y)

        def validation_step(self, batch: list[Tensor], index: int) -> None:
            self.log("val_loss", self.training_step(batch, index))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), 1e-3)

    data = DataLoader(TensorDataset(torch.randint(0, 20, (32, 5)), torch.randint(0, 3, (32,))), batch_size=8)
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", precision=precision, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Module(), data, data)


@healthy
def lightning_32() -> None:
    """Lightning: closures in the optimizer's step, validation in inference mode."""
    lightning_fit("32-true")


@healthy
def lightning_bfloat16() -> None:
    """Lightning under autocast."""
    lightning_fit("bf16-mixed")


@failing("field.py", "trainer.fit(", "optimizer")
def lightning_float16_with_adam() -> None:
    """Adam's eps of 1e-8 is 0 in float16 (Lightning-AI/pytorch-lightning issue 20619)."""
    lightning_fit("16-true")


@healthy
def resnet() -> None:
    """torchvision's ResNet-18 in training mode."""
    from torchvision.models import resnet18

    model = resnet18(num_classes=5)
    images, labels = torch.randn(4, 3, 64, 64), torch.randint(0, 5, (4,))
    train(model.parameters(), lambda: nn.functional.cross_entropy(model(images), labels))


def region_proposals(boxes: Tensor) -> None:
    """Train torchvision's region proposal network on one image with these boxes, shape (n, 4)."""
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.image_list import ImageList
    from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

    backbone = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU())
    counts = {"training": 50, "testing": 50}
    anchors = AnchorGenerator(((16, 32),), ((0.5, 1.0, 2.0),))
    rpn = RegionProposalNetwork(anchors, RPNHead(16, 6), 0.7, 0.3, 64, 0.5, counts, counts, 0.7)
    images = torch.rand(1, 3, 64, 64)

    def loss() -> Tensor:
        _, losses = rpn(ImageList(images, [(64, 64)]), {"0": backbone(images)}, [{"boxes": boxes}])
        return torch.stack(list(losses.values())).sum()

    train(nn.Sequential(backbone, rpn).parameters(), loss)


@healthy
def detector() -> None:
    """torchvision's region proposals with two boxes."""
    region_proposals(torch.tensor([[5.0, 5.0, 30.0, 30.0], [40.0, 20.0, 60.0, 50.0]]))


@failing("torchvision/models/detection/_utils.py", "torch.log", "forward")
def detector_with_an_empty_box() -> None:
    """A box of no width: log(0) in the targets (pytorch/vision issues 1120 and 2144)."""
    region_proposals(torch.zeros(1, 4))


@healthy
def diffusers_unet() -> None:
    """A denoising U-Net with attention and its noise schedule."""
    from diffusers import DDPMScheduler, UNet2DModel

    model = UNet2DModel(
        sample_size=16, in_channels=1, out_channels=1, block_out_channels=(16, 32), layers_per_block=1,
        norm_num_groups=8, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    schedule, images = DDPMScheduler(), torch.randn(2, 1, 16, 16)

    def loss() -> Tensor:
        noise, times = torch.randn_like(images), torch.randint(0, 1000, (2,))
        guess = model(schedule.add_noise(images, noise, times), times).sample
        return nn.functional.mse_loss(guess, noise)

    train(model.parameters(), loss)


@healthy
def graph_convolution() -> None:
    """torch_geometric's GCN and GAT on a graph with an isolated node: degree ** -0.5 is infinite and replaced."""
    from torch_geometric.nn import GATConv, GCNConv

    first, second = GCNConv(4, 8, add_self_loops=False), GATConv(8, 3)
    edges, x = torch.tensor([[0, 1, 2, 0], [1, 0, 0, 2]]), torch.randn(4, 4)
    train(
        nn.ModuleList([first, second]).parameters(),
        lambda: nn.functional.cross_entropy(second(first(x, edges).relu(), edges), torch.tensor([0, 1, 2, 0])),
    )


@healthy
def gaussian_process() -> None:
    """gpytorch's exact regression: Cholesky decompositions and conjugate gradients."""
    import gpytorch

    x = torch.linspace(0, 1, 20)
    y = torch.sin(6 * x)
    likelihood = gpytorch.likelihoods.GaussianLikelihood()

    class Regression(gpytorch.models.ExactGP):
        def __init__(self) -> None:
            super().__init__(x, y, likelihood)
            self.mean = gpytorch.means.ConstantMean()
            self.kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())

        def forward(self, points: Tensor) -> Any:
            return gpytorch.distributions.MultivariateNormal(self.mean(points), self.kernel(points))

    model = Regression()
    objective = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
    train(model.parameters(), lambda: -objective(model(x), y), steps=3)


@failing("kornia/geometry/liegroup/so3.py", "", "backward")
def rotation_at_the_identity() -> None:
    """kornia's So3.exp at 0 (kornia issue 4404; repaired in 0.9, where this case is healthy)."""
    from kornia.geometry.liegroup import So3

    omega = nn.Parameter(torch.zeros(1, 3))
    points = torch.randn(30, 3)
    train(iter([omega]), lambda: (points @ So3.exp(omega).matrix()[0].T - points[:, [1, 0, 2]]).square().mean())


def distributed(wrap: Callable[[nn.Module], nn.Module]) -> None:
    """Train a wrapped network in one process over gloo."""
    import torch.distributed as dist

    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            net = wrap(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
            x = torch.randn(3, 4)
            train(net.parameters(), lambda: net(x).square().mean())
        finally:
            dist.destroy_process_group()


@healthy
def ddp() -> None:
    """DistributedDataParallel."""
    distributed(nn.parallel.DistributedDataParallel)


@healthy
def fsdp2() -> None:
    """fully_shard: parameters are DTensors."""

    def wrap(net: nn.Module) -> nn.Module:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        return fully_shard(net, mesh=init_device_mesh("cpu", (1,)))

    distributed(wrap)


def verdict(case: Case, checks: Any) -> str:
    """Return what the autopsy makes of a case: "exact", "silent", the wrong line, or how it ended."""
    torch.manual_seed(0)
    report: Report | None = None
    try:
        with autopsy(checks=checks) as report:
            case.run()
    except ImportError as error:
        return f"skipped: {error.name or error} is missing"
    except Exception as error:
        traceback.print_exc()
        return f"ended by {type(error).__name__}"
    assert report is not None
    if [note for note in report.notes if "internal error" in note]:
        return report.notes[0]
    first = report.first
    if first is None:
        return "silent"
    if case.culprit is not None:
        file, code, phase = case.culprit
        if (first.filename or "").endswith(file) and code in first.code and phase == first.phase:
            return "exact"
    return f"names {Path(first.filename or '?').name}:{first.lineno} ({first.phase})"


def main() -> int:
    """Run the cases, print a line for each, write the table; return 1 if one is not as it should be."""
    warnings.filterwarnings("ignore")
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    unknown = set(sys.argv[1:]) - set(CASES)
    if unknown:
        print(f"error: no such case: {', '.join(sorted(unknown))}", file=sys.stderr)
        return 1
    rows = []
    for name in sys.argv[1:] or CASES:
        case = CASES[name]
        row = {"case": name.replace("_", " "), "should be": "exact" if case.culprit else "silent"}
        row |= {checks: verdict(case, checks) for checks in CHECKS}
        rows.append(row)
        print(" | ".join(row.values()), flush=True)
    if not sys.argv[1:]:
        _write(rows)
    return int(any(row[checks] != row["should be"] for row in rows for checks in CHECKS))


def _write(rows: list[dict[str, str]]) -> None:
    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            versions[library] = "missing"
    command = "python scripts/field.py"
    record = {"command": command, "made_with": provenance(), "libraries": versions, "cases": rows}
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    made = ", ".join(f"{library} {version}" for library, version in versions.items())
    for suffix, text in (("json", json.dumps(record, indent=1) + "\n"), ("md", f"`{command}`, {made}\n\n{table}")):
        write_atomically(OUT / f"field.{suffix}", lambda stream, text=text: stream.write(text.encode()))


if __name__ == "__main__":
    sys.exit(main())
