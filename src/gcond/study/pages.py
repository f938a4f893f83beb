"""The pages of results/ and docs/experiments.md: templates of study/templates over tables. `make` writes a page.

A page computes nothing that is quoted elsewhere: numbers come from runs, findings and study/*.yaml.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from gcond.files import RECORDED, ROOT, write_text
from gcond.study import bench_page, edition_b, judge, table2, tables, toy_page
from gcond.study.methods import NOT_EVIDENCE, RATES, facts, kind, label, paper_table2
from gcond.study.table2 import Table2, effect, plus_minus

TEMPLATES = Path(__file__).with_name("templates")
ON_PAGE = {"": "", "train_tail": "training", "best_val": "validation", "best_test": "test"}  # epochs in claims.md
BEGIN, END = "<!-- finding -->", "<!-- end -->"  # of what the repository's README shows of results/README.md
BESIDE = ", recorded by this project, not run here"


def make(name: str, results: Path, **choices: Any) -> list[Path]:
    """Write the page `name` of the records in `results`; returns what was written.

    `choices`: scale, lr, seeds, datasets, None for the usual. Raises ValueError, naming the file and the command that
    makes it, where a record is missing.
    """
    if name not in NAMES:
        raise ValueError(f"`name` of a page: expected one of {', '.join(NAMES)}, found {name!r}")
    return PAGES[name](results, **_chosen(choices))


def text(artefact: Any, results: Path, **choices: Any) -> tuple[str, bool]:
    """What a terminal shows of an artefact of the catalogue, and whether that is complete: Table 2, or the findings of
    its claims; "" of the others."""
    chosen = _chosen(choices)
    if artefact.name == "table2":
        return _table2_text(results, **chosen)
    if artefact.name in edition_b.NAMES:
        table = edition_b.build(artefact.name, results / chosen.pop("scale", "mini"), **chosen)
        return "\n\n".join(plain(rows) for name in table.datasets for rows in table.printed(name)), table.complete
    if not artefact.claims:
        return "", True
    found = judge.findings(results, artefact.claims, chosen.get("scale", "mini"), chosen.get("seeds", ()))
    found = found[found.dataset.isin([*chosen.get("datasets", found.dataset), ""])]
    parts = []
    for name in artefact.claims:
        shown = map(plain, finding_tables(found[found.claim == name]))
        parts += [f"{name}: {facts('claims')[name]['text']}", *(shown if name in set(found.claim) else ["not run"])]
    return "\n\n".join(parts), set(artefact.claims) <= set(found.claim)


def _chosen(choices: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in choices.items() if value}


def render(template: str, **content: Any) -> str:
    page = _environment().get_template(f"{template}.md.j2").render(**content)
    return re.sub(r"\n{3,}", "\n\n", page).strip() + "\n"


@cache
def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(TEMPLATES)
    found = jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    found.globals["not_evidence"] = NOT_EVIDENCE
    found.filters |= {each.__name__: each for each in (grid, ends, number, effect, bench_page.span)}
    return found


# Filters.


def grid(rows: Iterable[Iterable[object]]) -> str:
    """Pipe table with aligned columns, so that it also reads well unrendered. The first row is the heading."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |" for row in cells
    )


def plain(rows: Sequence[Sequence[str]]) -> str:
    """The rows for a terminal: columns two blanks apart, without Markdown's marks."""
    cells = [[value.replace("*", "") for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)


def _cell(value: object) -> str:
    """Without what Markdown would take for a bar or a tag: labels come from data sets and errors too."""
    text = "" if isinstance(value, float) and math.isnan(value) else str(value)
    return re.sub(r"<(?=[a-zA-Z/!?])", "&lt;", text.replace("|", "\\|")).replace("\n", " ")


def number(value: float) -> str:
    return "–" if math.isnan(value) else f"{round(value, 3) + 0.0:g}"


def ends(pair: Iterable[float]) -> str:
    """ "0.052 to 1"; one number where both are the same."""
    first, last = map(number, pair)
    return first if first == last else f"{first} to {last}"


# Pages.


def _table1(results: Path, **_: Any) -> list[Path]:
    """GCond's zones, of the samples that gcond.study.zones takes from the resolver."""
    folder = results / "table1"
    samples, sides = (tables.read_csv(folder / name, "table1") for name in ("zones.csv", "thresholds.csv"))
    power = facts("paper")["table1"]["remap_power"]

    def of(table: pd.DataFrame, logic: str) -> pd.DataFrame:
        own = table[(table.logic == logic) & ((table.remap_power == power) | (logic == "step"))]
        return own.assign(angle=own.angle * 180 / math.pi)

    zones = {logic: dict(iter(of(samples, logic).groupby("zone"))) for logic in ("smooth", "step")}
    return _write(folder / "table1.md", "table1", zones=zones, sides={logic: of(sides, logic) for logic in zones},
                  paper=facts("paper")["table1"])  # fmt: skip


def _table5(results: Path, **_: Any) -> list[Path]:
    """The settings that gcond.study.settings composes, beside the paper's."""
    folder, table = results / "table5", facts("paper")["table5"]
    composed = tables.read_csv(folder / "composed.csv", "table5", dtype=str, keep_default_na=False)
    ours = composed.pivot(index="setting", columns="strategy", values="value")
    methods, titles = table["methods"], table["titles"]
    if wrong := set(ours.index) ^ set(titles) or set(ours) ^ set(methods):
        raise ValueError(f"{folder / 'composed.csv'} has too much or too little: {', '.join(sorted(wrong))}")
    theirs = pd.DataFrame({name: {key: paper_setting(key, name) for key in titles} for name in methods})
    ours, labels = ours.loc[list(titles), methods], composed.drop_duplicates("strategy").set_index("strategy").label
    differs = pd.DataFrame({name: [not same(*pair) for pair in zip(ours[name], theirs[name], strict=True)]
                            for name in methods}, index=list(titles))  # fmt: skip
    common = [key for key in titles if set(table["settings"][key]) == {"all"}]
    return _write(folder / "table5.md", "table5", ours=ours, theirs=theirs, differs=differs, labels=labels,
                  titles=titles, common=common, why=table["why"])  # fmt: skip


def paper_setting(setting: str, method: str) -> str:
    """The paper's value in Table 5, "-" where it gives the method none."""
    values = facts("paper")["table5"]["settings"][setting]
    family = values.get("gcond") if method.startswith("gcond") else None
    return str(values.get(method, family or values.get("all", "-")))


def same(ours: str, theirs: str) -> bool:
    """Equal as numbers, part by part, or as texts."""
    pairs = list(zip(ours.split("/"), theirs.split("/"), strict=False))
    try:
        alike = all(math.isclose(float(a), float(b), rel_tol=1e-9) for a, b in pairs)
    except ValueError:
        return ours == theirs
    return alike and ours.count("/") == theirs.count("/")


def _toy(results: Path, **_: Any) -> list[Path]:
    return _write(results / "toy" / "toy.md", "toy", **toy_page.content(*toy_page.read(results / "toy")))


def _table2(results: Path, scale: str = "mini", lr: str | float = "own", **choices: Any) -> list[Path]:
    """As Markdown, LaTeX and CSV."""
    table = table2.build(results / scale, lr=lr, **choices)
    rate = lr if isinstance(lr, str) else tables.written(lr)
    base = results / scale / ("table2" if lr == "own" else f"table2_lr{rate}")
    command = f"gcond study table table2 --scale {scale}" + ("" if lr == "own" else f" --lr {rate}")
    command += "".join(f" --{name} {','.join(map(str, values))}" for name, values in choices.items())
    markdown, csv, tex = (base.with_suffix(suffix) for suffix in (".md", ".csv", ".tex"))
    write_text(csv, table.cells.to_csv(index=False, float_format="%.8g", lineterminator="\n"))
    write_text(tex, latex(table, command))
    rate = RATES.get(str(tables.rate(table.runs, rate)), f"learning rate {rate}")
    shown = [(table, ""), *([(beside, BESIDE)] if (beside := _beside(results, scale, lr=lr, **choices)) else [])]
    return [*_write(markdown, "table2", table=table, shown=shown, scale=scale, command=command, rate=rate), csv, tex]


def _table2_text(results: Path, scale: str = "mini", lr: str | float = "own", **choices: Any) -> tuple[str, bool]:
    own = table2.build(results / scale, lr=lr, **choices)
    parts = [f"{table.title(name)}{remark}: validation, best epoch, {len(table.seeds)} seeds\n\n"
             f"{plain(table.rows(name, ['best_val']))}\n"
             for table, remark in ((own, ""), (_beside(results, scale, lr=lr, **choices), BESIDE)) if table
             for name in table.datasets]  # fmt: skip
    return "\n".join(parts), own.complete


def _beside(results: Path, scale: str, **choices: Any) -> Table2 | None:
    """Table 2 of what this project recorded, to stand below a user's own; it counts for nothing."""
    recorded = RECORDED / scale
    if results.resolve() == RECORDED.resolve() or not (recorded / "runs.csv").exists():
        return None
    try:
        return table2.build(recorded, **choices)
    except ValueError:  # nothing with these seeds, data sets or rate
        return None


def latex(table: Table2, command: str) -> str:
    """Validation at the best epoch, ours beside the paper's; needs the packages booktabs and multirow."""
    own = table.cells[table.cells.epoch == "best_val"]
    where = pd.MultiIndex.from_arrays([own.dataset.map(table.title), own.measure.map(facts("methods")["measures"])])
    here = [plus_minus(*each) for each in zip(own["mean"], own.sd, strict=True)]
    paper = [plus_minus(*each) for each in zip(own.paper, own.paper_sd, strict=True)]
    cells = pd.DataFrame({"here": here, "paper": paper}).set_index([where, own.label.rename("method")])
    wide = cells.unstack([0, 1]).reorder_levels([1, 2, 0], axis="columns")
    wide = wide.loc[own.label.unique(), [(*each, side) for each in where.unique() for side in cells]]
    text = wide.to_latex(escape=True, multicolumn_format="c").replace("±", r"$\pm$")
    return f"% Generated by {command}; do not edit.\n{text}"


def _claims(results: Path, **_: Any) -> list[Path]:
    """findings.csv, and for each scale Table 2 and a page of every claim that was run there."""
    written, claims = [judge.write(results)], facts("claims")
    found = judge.read(written[0])
    for scale, own in found.groupby("scale", sort=False):
        if not (results / str(scale) / "runs.csv").exists():  # of benchmarks, toys and tests; their pages have them
            continue
        shown = own[own.epoch.isin(judge.DECIDING)] if scale in NOT_EVIDENCE else own
        parts = {name: finding_tables(rows) for name, rows in shown.groupby("claim", sort=False)}
        lacking = {name: sorted({one.get("label", "") for one in claim.get("contrasts", ())} - {"", *own.label})
                   for name, claim in claims.items()}  # fmt: skip
        stand = {row["claim"]: row["verdict"] for row in judge.verdicts(claims, own).to_dict("records")}
        absent = {name: claim for name, claim in claims.items() if name not in parts and judge.has_scale(claim)}
        written += _write(results / str(scale) / "claims.md", "claims", scale=scale, claims=claims, verdicts=stand,
                          tables=parts, lacking=lacking, absent=absent)  # fmt: skip
        written += _tables2(results, str(scale))
        labelled = set(tables.runs(results / str(scale)).query("labels == 'dataset'").dataset.map(kind))
        written += [path for name in edition_b.NAMES if facts("paper")[name]["kind"] in labelled
                    for path in _edition_b(name, results, str(scale))]  # fmt: skip
    return written


def _tables2(results: Path, scale: str) -> list[Path]:
    """Table 2 at the scale's learning rate and at the paper's, where several methods have the paper's three seeds; of
    the seeds that most methods have."""
    runs = tables.of_paper_model(tables.runs(results / scale))
    runs = runs[table2.in_lineup(runs) & (runs.seed != tables.TUNING_SEED)]
    rates: dict[str | float, pd.DataFrame] = {"own": tables.at_rate(runs, "own")}
    rates[tables.PAPER_LR] = tables.at_rate(runs[~runs.own_lr], tables.PAPER_LR)
    written = []
    for lr, ran in rates.items():
        methods = ran.groupby("seed").strategy.nunique()
        seeds = [int(seed) for seed in methods[2 * methods > ran.strategy.nunique()].index]
        if (ran.groupby("strategy").seed.nunique() >= 3).sum() > 1:
            written += _table2(results, scale, lr, **({"seeds": seeds} if len(seeds) < len(methods) else {}))
    return written


def _edition_b(name: str, results: Path, scale: str = "mini", **choices: Any) -> list[Path]:
    return _write(results / scale / f"{name}.md", "b_table", name=name, about=facts("paper")[name], scale=scale,
                  table=edition_b.build(name, results / scale, **choices))  # fmt: skip


def finding_tables(found: pd.DataFrame) -> list[list[list[str]]]:
    """Comparisons, then levels of single arms: a row each below a heading, a column a measure and epoch.

    Losses at the last epoch, intervals over patients, single parts of the network, and levels at other rates than the
    paper's where that was run, stand in findings.csv alone.
    """
    found = found[found.epoch.isin(ON_PAGE) & found.group.isin(["", "all"])]
    pairs, levels = found[found.theirs != ""], found[found.theirs == ""]
    what = levels.dataset + levels.label
    levels = levels[(levels.lr == "paper") | ~what.isin(what[levels.lr == "paper"])]
    return [_finding_rows(own) for own in (pairs, levels) if len(own)]


def _finding_rows(found: pd.DataFrame) -> list[list[str]]:
    records = found.to_dict("records")
    what = [", ".join(filter(None, (measured(row), ON_PAGE[row["epoch"]]))) for row in records]
    marks = {judge.HOLDS: " ✓", judge.CONTRADICTED: " ✗"}  # what the effect says of the claim
    cells = found.assign(what=what, cell=[effect(row) + marks.get(row["verdict"], "") for row in records],
                         dataset=found.dataset.map(_data), n=found.n.astype(str),
                         compared=[compared(row) for row in records])  # fmt: skip
    index = ["dataset", "compared", *(name for name in ("model", "lr", "mode") if found[name].nunique() > 1), "n"]
    wide = cells.pivot_table("cell", index, "what", "first", sort=False).fillna("")
    return [[*index, *wide.columns], *([*place, *row] for place, row in zip(wide.index, wide.to_numpy(), strict=True))]


def measured(row: dict[str, Any]) -> str:
    return str(facts("methods")["measures"].get(row["measure"], row["measure"].replace("_", " ")))


def compared(row: dict[str, Any]) -> str:
    """ "as published: GCond stochastic - Baseline"."""
    ours = label(row["ours"]) if row["ours"] or not row["theirs"] else "all trained encoders"  # of linear probes
    arms = ours + (f" - {label(row['theirs'])}" if row["theirs"] else "")
    return f"{row['label']}: {arms}" if row["label"] else arms


def _readme(results: Path, **_: Any) -> list[Path]:
    """One screen of what was found, two pages of it, its details, every claim, and what smaller runs said; the screen's
    first paragraph and table stand in the README of the repository, too.

    Its sentences are about what this project recorded: there is no such page of a user's own results.
    """
    if results.resolve() != RECORDED.resolve():
        return []
    found, claims, known = judge.read(results / "findings.csv"), facts("claims"), facts("headlines")
    table = known["table"]

    def named(name: str) -> dict[str, Any]:
        """A sentence, or "ROW COLUMN" of the table."""
        row, _, column = name.partition(" ")
        cell = table["where"] | known["columns"][column] | known["rows"][row] if column else {}
        return finding(cell or known["sentences_of"] | known["sentences"][name], found)

    def spread(name: str) -> dict[str, Any]:
        """How many findings a sentence is about, and their lowest and highest effect."""
        effects = findings(known["sentences_of"] | known["sentences_about_several"][name], found).effect
        return {"n": len(effects), "lowest": f"{effects.min():+.1f}", "highest": f"{effects.max():+.1f}"}

    seeds, rows = first_table(found)
    runs = {folder.parent.name: len(tables.read(folder.parent)) for folder in sorted(results.glob("*/runs.csv"))}
    stand = [row | {"what": _decided_by(row)} for row in judge.verdicts(claims, found).to_dict("records")]
    content = {"table": table, "rows": rows, "seeds": seeds,
               **{name: _printed(known[name], _lines(known[name], found)) for name in ("opposed", "half")},
               "runs": runs, "claims": claims, "verdicts": stand,
               "trivial": lambda dataset: _against_predictors(results, table["where"]["scale"], dataset),
               "scales": [scale for scale in judge.SCALES if (results / scale / "claims.md").exists()],
               "paper": {measure: _paper_gap("ct", measure) for measure in ("l1", "ssim")},
               "say": lambda name: effect(named(name)).replace("*", ""),
               "n": lambda name: named(name)["n"], "spread": spread,
               "level": lambda name, digits=1: f"{named(name)['effect']:.{digits}f}"}  # fmt: skip
    content["says"] = _environment().from_string(table["says"]).render(**content)
    root = results.resolve().parent / "README.md"
    before, _, after = root.read_text(encoding="utf-8").partition(BEGIN)
    write_text(root, f"{before}{BEGIN}\n\n{render('finding', **content)}\n{END}{after.partition(END)[2]}")
    first = {"readme": results / "README.md", "verdicts": results / "claims.md", "history": results / "history.md",
             **{name: ROOT / "docs" / f"{name}.md" for name in ("findings", "details")}}  # fmt: skip
    return [root, *(path for template, to in first.items() for path in _write(to, template, **content))]


def _decided_by(row: dict[str, Any]) -> str:
    if not row["n"]:
        return ""
    known = {"": "", "own": "", "paper": ", at 2e-4", "best": ", at best rates"}
    rate = known.get(row["lr"], f", at {row['lr']}")
    return f"{_data(row['dataset'])} {measured(row)}{rate}: {compared(row)}".strip()


def _data(dataset: str) -> str:
    return {"ct": "CT"}.get(kind(dataset), kind(dataset))


def first_table(found: pd.DataFrame) -> tuple[dict[str, int], list[list[str]]]:
    """The fewest seeds of a cell by kind of data, and the printed cells of the table of study/headlines.yaml below a
    heading and the paper's numbers."""
    table, columns = facts("headlines")["table"], facts("headlines")["columns"]
    lines = _lines(table, found)
    counted = [(kind(each["dataset"]), each["n"]) for cells in lines.values() for each in cells if each.get("n")]
    seeds = {name: min(n for other, n in counted if other == name) for name, _ in counted}
    where = [table["where"] | columns[name] for name in table["columns"]]
    paper = [f"*{_paper_gap(column['dataset'], column['paper'])}*" if "paper" in column else "" for column in where]
    heading, *rows = _printed(table, lines)
    return seeds, [heading, ["*the paper: GCond sequential, 256 pixels, validation*", *paper], *rows]


def _lines(table: Mapping[str, Any], found: pd.DataFrame) -> dict[str, list[dict[str, Any]]]:
    """The findings of a table's rows by title; empty where a row has nothing to say in a column."""
    known = facts("headlines")
    return {row["title"]: [finding(table["where"] | known["columns"][name] | row, found)
                           if name in row.get("columns", [name]) else {} for name in table["columns"]]
            for row in map(known["rows"].get, table["rows"])}  # fmt: skip


def _printed(table: Mapping[str, Any], lines: Mapping[str, Sequence[dict[str, Any]]]) -> list[list[str]]:
    titles = [facts("headlines")["columns"][name]["title"] for name in table["columns"]]
    rows = [[title, *((effect(each) or "not run") if each else "" for each in cells)] for title, cells in lines.items()]
    return [[table["heading"], *titles], *rows]


def _paper_gap(dataset: str, measure: str) -> str:
    return f"{paper_table2(dataset, measure)['gcond_sequential'].gap:+.1f}"


def findings(where: dict[str, Any], found: pd.DataFrame) -> pd.DataFrame:
    """Those that study/headlines.yaml names; a list names several, null all."""
    for column, value in (facts("headlines")["each"] | where).items():
        if column in found and value is not None:
            found = found[found[column].isin(value if isinstance(value, list) else [value])]
    return found


def finding(where: dict[str, Any], found: pd.DataFrame) -> dict[str, Any]:
    """The finding that study/headlines.yaml names; n = 0 where it was not run. ValueError where several are."""
    rows = findings(where, found)
    if len(rows) > 1:
        raise ValueError(f"study/headlines.yaml: expected one finding of {where}, found {len(rows)}")
    nothing = dict.fromkeys(found, "") | where | dict.fromkeys(("effect", "low", "high"), math.nan) | {"n": 0}
    return dict(rows.iloc[0]) if len(rows) else nothing


def _against_predictors(results: Path, scale: str, dataset: str) -> dict[str, int]:
    """How many runs of the paper's loss and of K = 4 that are compared have a lower L1 than the best predictor without
    training."""
    runs, guesses = tables.of_paper_model(tables.runs(results / scale)), tables.predictors(results / scale)
    other = runs.setting.str.contains("loss|accumulation") | (runs.seed == tables.TUNING_SEED)
    own = runs[(runs.dataset == dataset) & ~other]
    best = guesses[guesses.dataset == dataset]
    below = {part: int((own[f"best_{part}_l1"] < best[f"{part}_l1"].min()).sum()) for part in ("val", "test")}
    return {"runs": len(own), **below}


def _experiments(results: Path, **_: Any) -> list[Path]:
    """docs/experiments.md: what is recorded of every artefact, and where its answer stands; of what this project
    recorded, as `_readme` is."""
    if results.resolve() != RECORDED.resolve():
        return []
    from gcond.study import experiments  # matplotlib, which no other page needs

    return _write(ROOT / "docs" / "experiments.md", "experiments", **experiments.content(results))


def _write(path: Path, template: str, **content: Any) -> list[Path]:
    write_text(path, render(template, **content))
    return [path]


def _bench(results: Path, **_: Any) -> list[Path]:
    """Costs of steps, arbitration, memory and data, of the rows that bench/*.py record."""
    return _write(results / "bench.md", "bench", **bench_page.tables(results))


PAGES: dict[str, Callable[..., list[Path]]] = {
    "bench": _bench, "claims": _claims, "experiments": _experiments, "readme": _readme,
    "table1": _table1, "table2": _table2, "table5": _table5, "toy": _toy,
    **{name: partial(_edition_b, name) for name in edition_b.NAMES},
}  # fmt: skip
NAMES = tuple(PAGES)
