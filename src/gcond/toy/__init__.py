"""Problems small enough to be drawn: where each strategy goes, and why. Results: `python -m gcond.toy`."""
