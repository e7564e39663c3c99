"""Names of the settings and of their values in words, as labels and titles print them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from xor_study.analysis.axon import BROKEN, NEWEST
from xor_study.errors import typed

KEY_WORDS = {
    "lr": "learning rate",
    "init": "initializer",
    "gain": "gain",
    "bias": "bias",
    "activation.hidden": "hidden activation",
    "activation.output": "output activation",
    "clip": "gradient clipping",
    "clip.bound": "clipping bound",
    "hidden": "hidden units",
    "batch": "batch size",
    "dtype": "precision",
    "optimizer.beta1": r"$\beta_1$",
    "optimizer.beta2": r"$\beta_2$",
    "optimizer.rho": r"$\rho$",
    "optimizer.alpha": r"$\alpha$",
    "optimizer.eps": r"optimizer's $\epsilon$",
    "loss.eps": r"loss's $\epsilon$",
    "loss.delta": r"$\delta$",
    "loss.logits_visible": "loss sees logits",
    "loss.clip_gradient": "gradient of the clip",
    "loss.sigmoid_gradient": "gradient of the sigmoid",
}
"""What a key of the command line is called; others by `key_words`."""

WORDS = {
    "sgd": "SGD",
    "adam": "Adam",
    "adamw": "AdamW",
    "polaris_adam": "Adam (Axon's)",
    "nadam": "NAdam",
    "radam": "RAdam",
    "rmsprop": "RMSprop",
    "adagrad": "Adagrad",
    "adadelta": "Adadelta",
    "lecun_uniform": "LeCun uniform",
    "lecun_normal": "LeCun normal",
    "glorot_uniform": "Glorot uniform",
    "glorot_normal": "Glorot normal",
    "he_uniform": "He uniform",
    "he_normal": "He normal",
    "torch_default": "PyTorch's default",
    "binary_cross_entropy": "binary cross-entropy",
    "binary_cross_entropy_with_logits": "cross-entropy on logits",
    "binary_cross_entropy_naive": "cross-entropy, unguarded",
    "binary_cross_entropy_clipped": "cross-entropy, clipped",
    "axon_binary_cross_entropy": "Axon's cross-entropy",
    "axon_0_6_1": "Axon 0.6.1",
    "axon_0_7_0": "Axon 0.7.0",
    "huber": "Huber",
    "relu": "ReLU",
    "leaky_relu": "leaky ReLU",
    "elu": "ELU",
    "celu": "CELU",
    "selu": "SELU",
    "gelu": "GELU",
    "silu": "SiLU",
    "mish": "Mish",
    "nx_sigmoid": "Nx's sigmoid",
    "nonfinite": "NaN",
}
"""What a choice or an outcome is called where it is more than its name with blanks."""

_OTHERWISE = {
    ("init", "full"): "constant",
    ("clip", "none"): "no clipping",
    ("clip", "value"): "clipping by value",
    ("clip", "norm"): "clipping by norm",
    ("batch", "full"): "full",
}
"""Values that mean something else with another key."""

RUN_KEYS = ("optimizer", "lr", "loss", "seed")
"""What the title of a run names."""

_PLAIN = ("lr", "gain", "bias", "hidden", "batch", "dtype", "epochs", "iterations", "seed")
"""Keys whose values say nothing without them."""


def key_words(key: str) -> str:
    """Return what a key of the command line is called.

    Example:
        >>> key_words("lr"), key_words("optimizer.weight_decay")
        ('learning rate', 'weight decay')
    """
    return KEY_WORDS.get(key) or key.rpartition(".")[2].replace("_", " ")


def value_words(value: Any, key: str = "") -> str:
    """Return what a value is called.

    Args:
        value: of a field: Python's or NumPy's; a missing one is "default".
        key: of the field, where a name means several things.

    Example:
        >>> value_words("binary_cross_entropy"), value_words(0.01), value_words("full", "batch")
        ('binary cross-entropy', '0.01', 'full')
    """
    if pd.isna(value):
        return "default"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | float | np.number):
        return f"{value:g}" if isinstance(value, float | np.floating) else typed(value)
    return _OTHERWISE.get((key, str(value))) or WORDS.get(str(value)) or str(value).replace("_", " ")


def setting_words(values: Mapping[Any, Any]) -> str:
    """Return what some settings are called, those that are missing left out.

    Args:
        values: by key.

    Example:
        >>> setting_words({"optimizer": "sgd", "lr": 0.01, "activation.hidden": "relu"})
        'SGD, learning rate 0.01, ReLU'
    """
    return ", ".join(_setting(str(key), value) for key, value in values.items() if not pd.isna(value))


def _setting(key: str, value: Any) -> str:
    words = value_words(value, key)
    if key == "hidden":
        return f"{words} hidden units"
    if key in _PLAIN or ("." in key and not key.startswith("activation.")):
        return f"{key_words(key)} {words}"
    return f"{words} output" if key == "activation.output" else words


def term_words(term: str) -> str:
    r"""Return what a term of an analysis of variance is called.

    Example:
        >>> term_words("optimizer x lr")
        'optimizer $\\times$ learning rate'
    """
    return (
        "three or more" if term == "higher order" else r" $\times$ ".join(key_words(key) for key in term.split(" x "))
    )


def sentence_words(text: str) -> str:
    """Return a text in which each setting as one types it, and each name of a choice, is replaced by its words.

    Example:
        >>> sentence_words("SGD 0.1, relu"), sentence_words("activation.hidden=relu lr=0.1")
        ('SGD 0.1, ReLU', 'ReLU, learning rate 0.1')
    """
    typed_settings = re.findall(r"([a-z][\w.]*)=(\S+)", text)
    if typed_settings and len(typed_settings) == len(text.split()):
        return ", ".join(_setting(key, value) for key, value in typed_settings)
    short = WORDS | {"lr": "rate"}
    return re.sub(r"[a-z]\w*", lambda match: short.get(match[0], match[0].replace("_", " ")), text)


def count_words(counts: Any) -> str:
    """Return how many runs each of some cells has, as "n = 100" or "n = 100 to 1,000".

    Args:
        counts: whole numbers, at least one.
    """
    low, high = int(min(counts)), int(max(counts))
    return f"n = {low:,}" if low == high else f"n = {low:,} to {high:,}"


def run_title(run: Mapping[Any, Any]) -> str:
    """Return what a run is and how it ended.

    Args:
        run: by key, as a row of `runs.csv`.

    Example:
        >>> run_title({"optimizer": "sgd", "lr": 0.01, "loss": "huber", "seed": 3, "outcome": "nonfinite"})
        'SGD, learning rate 0.01, Huber, seed 3: NaN'
    """
    named = {key: run[key] for key in RUN_KEYS}
    for version, values in {"Axon 0.6.1": BROKEN, "Axon 0.7.0": NEWEST}.items():
        if all(run.get(key) == value for key, value in values.items()):
            named["loss"] = version
    return f"{setting_words(named)}: {value_words(run['outcome'])}"
