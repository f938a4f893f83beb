"""docs/tutorial.ipynb, made of docs/tutorial.md: a cell for each block of code, with the output that the page shows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1] / "docs"
PART = re.compile(
    r"```python\n(?P<code>.*?)```(?:\n\n```text\n(?P<output>.*?)```)?|(?P<prose>.+?)(?=```python|\Z)", re.DOTALL
)


def notebook(page: str) -> dict[str, Any]:
    """In nbformat 4."""
    cells: list[dict[str, Any]] = []
    for part in PART.finditer(page):
        if part["code"] is None:
            if part["prose"].strip():
                cells.append({"cell_type": "markdown", "metadata": {}, "source": lines(part["prose"].strip())})
            continue
        printed = {"output_type": "stream", "name": "stdout", "text": lines(part["output"] or "")}
        cell = {
            "cell_type": "code",
            "metadata": {},
            "execution_count": None,
            "source": lines(part["code"].rstrip("\n")),
        }
        cells.append(cell | {"outputs": [printed] if part["output"] else []})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"nbformat": 4, "nbformat_minor": 4, "metadata": {"kernelspec": kernel}, "cells": cells}


def lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def rendered(page: str) -> str:
    return json.dumps(notebook(page), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    page = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    (DOCS / "tutorial.ipynb").write_text(rendered(page), encoding="utf-8")
