"""Table 2 of the paper as data. Source: arXiv 2509.07252, Table 2, best validation, means over three seeds;
GradDrop from Table 2 of the journal edition (DOI 10.1109/ACCESS.2026.3673372), whose other rows are the same.

The paper's column "SSIM" is 1 - SSIM, as its values and its loss show; lower is better in every column.
"""

TABLE2_COLUMNS = ("imagenet_l1", "imagenet_ssim", "ct_l1", "ct_ssim")

TABLE2_MEANS: dict[str, tuple[float, float, float, float]] = {
    "baseline": (0.41542, 0.34845, 0.16473, 0.16145),
    "cagrad": (0.42263, 0.32793, 0.17779, 0.16096),
    "graddrop": (0.42036, 0.35241, 0.17909, 0.17218),
    "gradnorm": (0.41635, 0.31818, 0.16847, 0.15930),
    "pcgrad": (0.42324, 0.34221, 0.17311, 0.16286),
    "gcond_sequential": (0.31493, 0.24485, 0.12942, 0.13118),
    "gcond_stochastic": (0.31655, 0.24704, 0.12941, 0.13111),
}

COUNTERPART = {"ct": "CT", "imagenet256": "ImageNet", "photos": "ImageNet"}  # our dataset -> the paper's


def table2_column(dataset: str, metric: str) -> dict[str, float]:
    """The paper's mean of every method for our `dataset` ("ct", …) and `metric` ("l1" or "ssim")."""
    index = TABLE2_COLUMNS.index(f"{COUNTERPART[dataset].lower()}_{metric}")
    return {strategy: means[index] for strategy, means in TABLE2_MEANS.items()}
