"""`python -m xor_study`: the same as the command `xor-study`."""

from xor_study.run import main

if __name__ == "__main__":
    main()
