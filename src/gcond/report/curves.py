"""Colours, dashes and markers of the dashboard's curves."""

# Okabe and Ito's colours, safe for colour-blind readers; an olive in place of their yellow, which is too pale.
LOOKS = {
    "baseline": ("#000000", "-", "o"),
    "baseline_integrated": ("#000000", "--", "o"),
    "cagrad": ("#E69F00", "-", "s"),
    "graddrop": ("#999999", "-", "s"),
    "gradnorm": ("#CC79A7", "-", "s"),
    "pcgrad": ("#7A7A1E", "-", "s"),
    "gcond_sequential": ("#0072B2", "-", "^"),
    "gcond_stochastic": ("#D55E00", "-", "^"),
    "gcond_pure": ("#56B4E9", "-", "v"),
    "gcond_lion": ("#009E73", "-", "v"),
}
