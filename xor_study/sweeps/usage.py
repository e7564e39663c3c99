"""What `xor-study --help` prints: one screen, and the lists of choices behind `--help choices`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from xor_study.errors import StudyError, show
from xor_study.model.activations import HIDDEN_ACTIVATIONS, OUTPUT_ACTIVATIONS
from xor_study.model.catalogue import Catalogue, Preset
from xor_study.sweeps.settings import CONFIG_DIR, LOGS
from xor_study.training.spec import GROUPS, LARGEST

_TEXT = """\
Train the XOR network of the article, once or thousands of times, and find out why training goes to NaN.

usage: xor-study [KEY=VALUE ...]                 train one network
       xor-study -m [KEY=VALUE,VALUE,... ...]    train every combination, as a sweep that can be resumed
       xor-study COMMAND [...]                   (each has --help)

  show FOLDER          print the table of a sweep again (--figure: and draw it; --format latex, csv, ...)
  compare A B          compare the outcomes of two sweeps, paired by seed; in one: --by KEY, --effects
  unlock FOLDER        free what dead or stopped processes hold in the folder of a sweep
  figures [FOLDER]     draw the figures of a sweep, or of the study
  autopsy SCRIPT       run any training script, and name the operation that first makes inf or NaN
  postmortem [K=V]     explain step by step why one run fails, and what prevents it
  reproduce            run the whole study again and compare it with the committed results
  conformance [FILE]   replay recorded training of the real Axon (--versions: which are affected)

The network and its training (KEY=VALUE; with -m also lists a,b,c, range(start,stop,step), glob(*),
logspace(1e-4,1,9); 'zip(lr=1,2; gain=1,2)', 'ofat(lr=1,2; gain=3)', 'sobol(lr=1e-4..1 log, gain=1..9; n=8)')
{fields}

How it is run
{settings}

Examples
  xor-study optimizer=adam lr=0.01 seed=3 hydra.run.dir=my_folder
  xor-study -m optimizer=sgd,adam lr=0.001,0.01,0.1,1 seed='range(0,20)'
  xor-study -m study=mechanism dry_run=true                         what would run, and about how long

--help choices: all names, parameters; --cfg job: the composed configuration; --hydra-help: Hydra's flags;
--config-dir FOLDER: your own studies, and +experiment=NAME; -sc install=bash: tab completion; --version
"""

_MEANINGS = {
    "optimizer": "a name; its parameters are optimizer.momentum, optimizer.beta1, ...",
    "lr": "learning rate; null: the optimizer's own, 0.01 for sgd and 0.001 for adam",
    "init": "a name",
    "gain": "factor of the initial weights",
    "bias": "is added to the initial biases",
    "loss": "a name; axon_0_6_1, axon_0_7_0: as these versions compute it",
    "activation": "HIDDEN_OUTPUT; or activation.hidden=, activation.output= alone",
    "clip": "none, or gradient clipping by value or norm, to clip.bound",
    "hidden": "width of the hidden layer, 1 to 1024",
    "batch": "random samples a step, or full: the four corners once each",
    "epochs": "a run takes epochs x iterations steps",
    "iterations": "steps in an epoch",
    "dtype": f"{', '.join(LARGEST)}: what everything is computed in",
    "seed": "of weights and batches; shared by pairs; or until(width=0.05, max=2000)",
    "study": "a named grid, for -m",
    "engine": "plain (torch.optim), vmap, lanes (compiled); auto: lanes, else vmap",
    "device": "cpu, cuda or cuda:N",
    "threads": "of engine lanes; null: one on each core",
    "log": f"{', '.join(LOGS)}: mean loss of each epoch, or the running mean as Axon prints it",
    "shards": "jobs of a sweep for hydra/launcher=joblib, submitit_slurm, ...; null: none",
    "format": "of a sweep's table of runs: csv, or parquet (a tenth of the size)",
    "dry_run": "true: say what would run, and about how long, and run nothing",
    "note": "in your words, kept with the results",
}
"""What each key is for, in the order in which they are printed."""

_FIELDS = 15
"""How many of them are of the network and its training."""


def text(topics: Sequence[str] = ()) -> str:
    """Return the help that fits on one screen.

    Raises:
        StudyError: if help on anything is asked for; the only topic is another function's.
    """
    if topics:
        raise StudyError(f"--help {show(topics[0])}: the only topic is choices; see xor-study --help")
    defaults = _defaults()
    lines = [f"  {f'{key}={show(defaults[key])}':<29} {meaning}" for key, meaning in _MEANINGS.items()]
    return _TEXT.format(fields="\n".join(lines[:_FIELDS]), settings="\n".join(lines[_FIELDS:])).rstrip()


def _defaults() -> dict[str, Any]:
    """Return the default of each key, from the configuration."""
    config: dict[str, Any] = yaml.safe_load((CONFIG_DIR / "config.yaml").read_text())
    groups = [entry for entry in config["defaults"] if isinstance(entry, dict)]
    return config | {key: value for entry in groups for key, value in entry.items()}


def choices() -> str:
    """Return all names that can be chosen, with their parameters' defaults and what they compute."""
    studies = sorted((CONFIG_DIR / "study").glob("*.yaml"))
    sections = {f"{group}=": list(_entries(group, catalogue)) for group, catalogue in GROUPS.items()}
    sections |= {
        "activation.hidden=": list(_entries("activation", HIDDEN_ACTIVATIONS)),
        "activation.output=": list(_entries("activation", OUTPUT_ACTIVATIONS)),
        "study= (with -m)": [f"  {path.stem}: {_first_sentence(path.read_text())}" for path in studies],
    }
    return "\n\n".join("\n".join([title, *lines]) for title, lines in sections.items())


def _entries(group: str, catalogue: Catalogue[Any]) -> Iterator[str]:
    for name in catalogue:
        yield f"  {name}: {catalogue.summary(name)}"
        parameters = catalogue.parameters(name).values()
        if parameters:
            yield "      " + " ".join(f"{group}.{one.name}={show(one.default)}" for one in parameters)
    for name, preset in catalogue.presets.items():
        yield f"  {name}: {_preset(group, preset)}"


def _preset(group: str, preset: Preset) -> str:
    values = " ".join(f"{group}.{name}={show(value)}" for name, value in preset.parameters.items())
    return f"short for {group}={preset.name} {values}"


def _first_sentence(content: str) -> str:
    """Return the first sentence of the comment at the top of a file."""
    comment = itertools.takewhile(lambda line: line.startswith("#"), content.splitlines())
    return " ".join(line.removeprefix("#").strip() for line in comment).partition(". ")[0].rstrip(".")
