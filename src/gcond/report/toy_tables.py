"""Columns of the recorded files of results/toy."""

_FILES = {
    "endpoints.csv": "method label start start_x1 start_x2 steps x1 x2 f1 f2 to_front stopped settings",
    "noise.csv": "estimator rho tau snr dimensions cosine micro_batches trials variance variance_low variance_high "
    "variance_theory wrong wrong_low wrong_high wrong_theory",
    "tradeoff.csv": "problem alpha run steps task value",
    "trajectories": "start step x1 x2",
}
COLUMNS = {name: columns.split() for name, columns in _FILES.items()}
TEXT = ("method", "label", "stopped", "settings", "estimator", "problem", "task")  # columns without numbers
