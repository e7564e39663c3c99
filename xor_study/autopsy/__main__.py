"""`python -m xor_study.autopsy [key=value ...]`: the postmortem of one of our runs, as `xor-study autopsy`."""

from xor_study.postmortem.cli import main

if __name__ == "__main__":
    main()
