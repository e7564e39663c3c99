"""`python -m xor_study.autopsy`: the same as the command `xor-study autopsy`."""

import sys

from xor_study.run import autopsy

if __name__ == "__main__":
    autopsy(sys.argv[1:])
