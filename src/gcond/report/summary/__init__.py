"""results/README.md: what came of the paper, on one page. A sentence never says more than its interval."""
