"""Draw the figures of the study as PNG and PDF: python scripts/figures.py [NAME...], the same as `xor-study figures`."""

from xor_study.study.drawing import main

if __name__ == "__main__":
    main()
