"""Titles and captions of the figures: what is drawn, how it is read, and what n is."""

from __future__ import annotations

TITLES = {
    "symptom": "Output of Axon 0.6.1's training loop",
    "mechanism": "Loss and outcomes of the network with Axon 0.6.1's defects",
    "anatomy": "The last steps of a run that goes to NaN",
    "suspects": "Sufficiency and necessity of each suspect",
    "remedies": "What each remedy does to the failing and to the sound network",
    "learning_rate": "Outcomes by learning rate",
    "heatmaps": "Outcomes by learning rate and initializer, loss and activation",
    "loss_curves": "Loss over time",
    "precision": "Logits at which a loss without guards goes to NaN",
    "boundaries": "Predictions of trained networks around the unit square",
    "gradients": "Gradient norm, largest logit and saturation over time",
    "monitors": "Early warnings of NaN",
    "importance": "Shares of the variance of success",
    "time_to_solve": "Steps until XOR is solved",
    "why_half": "Why about half of the broken runs go to NaN",
    "width_two": "Which activations solve XOR with two hidden units",
}
"""Title of each figure of the study, in its files' metadata."""

CAPTIONS = {
    "symptom": "Output of Axon 0.6.1's training loop: the mean of all losses so far, never reset, so one NaN stays. "
    "Above: median and quartiles of the runs that are not NaN yet, and one run that is NaN within the first epoch. "
    "Below: the share that is NaN, with Wilson's 95 % interval. n: runs, one per seed.",
    "mechanism": "(a) Loss of the batch over time with the losses of Axon 0.6.1 and 0.7.0: median and quartiles of the "
    "runs whose loss is finite; hollow marks are losses of the real Axon, the dotted line is the theory's plateau. "
    "(b) Outcomes with each single repair of Axon 0.6.1, by optimizer and learning rate; lines are Wilson's 95 % "
    "intervals of the share NaN. n: runs per curve and per bar, one per seed.",
    "anatomy": "The last steps of one run with Axon 0.6.1's loss. (a) Logit z of each corner (x1, x2); below the "
    "dotted line e^-z is infinite in float32. (b) Absolute gradient of the corner that breaks first, with the "
    "factors whose product it is; marks at the upper edge are infinite. n: one run.",
    "suspects": "For each level of each suspect: the probability that it makes the sound network go to NaN "
    "(sufficiency), and that the failing network would not have gone to NaN without it (necessity), and would have "
    "solved XOR. Dots are paired by seed; lines are 95 % intervals.",
    "remedies": "Each remedy applied to the failing and to the sound network, grouped by its effect on the failing "
    "one. Shares are of runs; steps are the median difference to the same seeds without the remedy, negative if it "
    "solves XOR sooner. Lines are 95 % intervals.",
    "learning_rate": "Share of runs (a) that solve XOR, by optimizer, and (b) that go to NaN, by network, over the "
    "learning rate; bands are Wilson's 95 % intervals. n: runs per point, one per seed.",
    "heatmaps": "Shares of runs that solve XOR (left) and that go to NaN (right) with SGD, over the learning rate and "
    "three other settings; hatched cells were not run. n: runs per cell, one per seed.",
    "loss_curves": "Loss of the batch over time, (a) of the sound network and (b) with Axon 0.6.1's loss: median and "
    "quartiles of the runs whose loss is finite. n: runs per curve, one per seed.",
    "precision": "Distribution of the largest logit in the batch of runs that go to NaN with a loss without guards, at "
    "the NaN and one step before, by precision. The dotted line is the logit from which p rounds to 1: p log 2 or "
    "(p + 1) log 2 of p significant bits. n: runs in which a probability is 1 at the NaN.",
    "boundaries": "Predictions of trained networks around the unit square, the line at 0.5; (f) is the article's own "
    "picture. One network each.",
    "gradients": "Norm of the gradient (a), largest absolute logit (b), and share of saturated hidden outputs (c) over "
    "time: medians and quartiles of the runs where they are finite. n: runs per curve, one per seed.",
    "monitors": "Early warnings. (a), (b) Share of the runs that go to NaN, or that go to NaN or stay broken, with an "
    "alarm before, against the share of all other runs with an alarm, over all thresholds. (c) to (e) Thresholds are "
    "tuned on the study mechanism, on half of cells and seeds, and judged on the other half: bars are Wilson's 95 % "
    "intervals in (c) and (d), quartiles in (e); dashed lines in (d) are the share of all runs that go to NaN.",
    "importance": "Share of the variance of success that each factor explains on sound networks, alone and with "
    "others, in a complete factorial design; bootstrap intervals over seeds. n: runs.",
    "time_to_solve": "Share of runs that have not solved XOR yet: Kaplan and Meier's estimate with 95 % intervals; "
    "runs that have not solved it when training ends are censored there. n: runs per curve, one per seed.",
    "why_half": "Why about half of the broken runs go to NaN. (a) Where one step leads for the article's network, with "
    "the median of the measured K: it climbs on, freezes (diverged) between the mask and the edge of e^u, or goes to "
    "NaN. (b) Shares of NaN that the theory predicts and that runs have, with Wilson's 95 % intervals of the runs; "
    "nothing is fitted. n: runs per cell.",
    "width_two": "Share of networks with two hidden units that solve XOR, by hidden activation, with Wilson's 95 % "
    "intervals. A single unit whose activation falls and rises can represent XOR. n: runs per activation.",
}
"""The caption of each figure of the study: how it is read, not what it shows."""

SWEEP_TITLES = {
    "rates": "Outcomes by learning rate",
    "heatmap": "Outcomes by two settings",
    "losses": "Loss over time",
    "time_to_solve": "Steps until XOR is solved",
    "importance": "Shares of the variance of success",
    "outcomes": "Outcomes of each cell",
}
"""Title of each figure of a sweep."""

SWEEP_CAPTIONS = {
    "rates": "Shares of runs that solve XOR (a) and that go to NaN (b) over {x}{by}; bands are Wilson's 95 % "
    "intervals. n: runs per point{pooled}.",
    "heatmap": "Shares of runs that solve XOR (left) and that go to NaN (right) over {x} and {y}; hatched cells were "
    "not run. n: runs per cell{pooled}.",
    "losses": "Loss of the batch over time: median and quartiles of the runs whose loss is finite, by {y}. n: runs per "
    "line{pooled}.",
    "time_to_solve": "Share of runs that have not solved XOR yet, by {y}: Kaplan and Meier's estimate with 95 % "
    "intervals; runs that have not solved it when training ends are censored there. n: runs per line{pooled}.",
    "importance": "Share of the variance of success that each setting explains, alone and with others; bootstrap "
    "intervals over seeds. n: runs.",
}
"""The caption of each figure of a sweep, to be filled with the names of its settings."""
