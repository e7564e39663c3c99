"""The network and what it is trained with: names, formulas and random draws; no training."""
