"""What mkdocs builds the site of: the pages where they stand in the repository, the files that they link to, the API.

Relative links then mean on the site what they mean in the repository.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import gcond
from gcond.strategy import Estimator, Resolver, Update

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\]\(([^)#\s]+)")
EXAMPLE = re.compile(r"^\[(examples/\w+\.py)\]\(\S+\)$", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The repository's pages in the place of those of `docs/` alone."""
    paths = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    paths += [path for folder in ("docs", "results") for path in (ROOT / folder).rglob("*.md")]
    for page in list(paths):
        targets = [page.parent / each for each in LINK.findall(page.read_text(encoding="utf-8")) if ":" not in each]
        paths += [target.resolve() for target in targets if target.is_file()]
    kept = [each for each in files if each.src_uri == "site.css" or not (ROOT / "docs" / each.src_uri).exists()]
    for path in dict.fromkeys(paths):
        kept.append(File.generated(config, str(path.relative_to(ROOT)), abs_src_path=str(path)))
    for kind, names in _exported().items():
        text = "\n\n".join([f"# {kind.capitalize()}", *(f"::: gcond.strategy.{name}" for name in names)])
        kept.append(File.generated(config, f"api/{kind}.md", content=text))
    return Files(kept)


def on_page_markdown(markdown: str, **_: object) -> str:
    """A link to an example that stands alone in its paragraph has the file's text below it."""
    return EXAMPLE.sub(
        lambda link: f"{link[0]}\n\n```python\n{(ROOT / link[1]).read_text(encoding='utf-8')}```", markdown
    )


def _exported() -> dict[str, list[str]]:
    """The names that `gcond` exports, by the page that describes them."""
    pages: dict[str, list[str]] = {}
    for name in gcond.strategy.__all__:
        each = getattr(gcond.strategy, name)
        bases = each.__mro__ if isinstance(each, type) else ()
        kinds = {Estimator: "estimators", Resolver: "resolvers", Update: "updates", Exception: "errors"}
        page = next((page for base, page in kinds.items() if base in bases), "conductor")
        if page == "conductor" and (hasattr(each, "gather") or name == "merged_batchnorm"):
            page = "processes"
        if name in ("Conflict", "Resolution"):
            page = "resolvers"
        pages.setdefault(page, []).append(name)
    first = ("GradientConductor", "Estimator", "Resolver", "Update")
    for names in pages.values():
        names.sort(key=lambda name: (name not in first, name.lower()))
    return pages
