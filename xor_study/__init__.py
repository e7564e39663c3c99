"""Why did the XOR network train to NaN? A reproduction and ablation in PyTorch."""

from importlib.metadata import PackageNotFoundError, version

from xor_study.engines import train
from xor_study.engines.results import Progress, Result
from xor_study.errors import StudyError
from xor_study.model.network import XORNetwork
from xor_study.training.spec import RunSpec

try:
    __version__ = version("xor-study")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0.0.0"

__all__ = ["Progress", "Result", "RunSpec", "StudyError", "XORNetwork", "__version__", "train"]
