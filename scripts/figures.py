"""Draw the figures of the study as PNG and PDF: python scripts/figures.py [NAME...], as `xor-study figures` does."""

from xor_study.study.drawing import main

if __name__ == "__main__":
    main()
