"use strict";
// Texts from files reach the page as text nodes only, never as markup.
window.addEventListener("error", (event) => { document.documentElement.dataset.error = event.message; });

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const SVG = document.querySelector("template").content.querySelector("svg").namespaceURI;

function element(tag, options = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (name in made && name !== "list") made[name] = value; else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

function shape(tag, attributes = {}, text = null) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== null) made.textContent = text;
  return made;
}

const fill = (id, ...children) => byId(id).replaceChildren(...children);
const bullets = (id, texts) => fill(id, ...texts.map((text) => element("li", {}, text)));
const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
const shown = (number) => (number === null || number === undefined ? "" : String(number));

// State: what is chosen, kept in the address after "#", so that a reload or a link shows the same.
const CHOICES = ["dataset", "model", "strategy", "seed", "status"];
const state = { scale: "", group: "", text: "", sort: "", down: "", run: "", other: "", off: "", single: "", smooth: "" };
for (const name of CHOICES) state[name] = "";

function readAddress() {
  const address = new URLSearchParams(location.hash.slice(1));
  for (const name of Object.keys(state)) state[name] = address.get(name) ?? "";
  const scales = data.scales.map((scale) => scale.name);
  if (!scales.includes(state.scale)) state.scale = busiestScale() ?? "";
}

function busiestScale() {
  const count = (name) => data.runs.filter((run) => run.scale === name).length;
  return data.scales.map((scale) => scale.name).sort((a, b) => count(b) - count(a))[0];
}

function change(changes) {
  Object.assign(state, changes);
  const address = new URLSearchParams();
  for (const [name, value] of Object.entries(state)) if (value !== "") address.set(name, value);
  history.replaceState(null, "", "#" + address);
}

// Heading.
function drawHeading() {
  const scale = data.scales.find((one) => one.name === state.scale);
  const words = scale ? `gcond runs, scale ${scale.name}${scale.evidence ? "" : " (not evidence)"}` : "gcond runs";
  document.title = words;
  byId("title").textContent = words;
  byId("origin").textContent = `Training runs of the study of gradient conflict. Made ${data.made} from ${data.source}.`;
  const own = data.runs.filter((run) => run.scale === state.scale);
  const parts = Object.keys(data.statuses).map((status) => [status, own.filter((run) => run.status === status).length]);
  const listed = parts.filter(([status, count]) => count || ["done", "running", "failed", "unfinished"].includes(status));
  byId("counts").textContent = data.runs.length
    ? `${plural(own.length, "run")} at this scale: ${listed.map(([status, count]) => `${count} ${status}`).join(", ")}.` : "0 runs.";
  const notices = [...data.remarks];
  if (scale && !scale.evidence) notices.unshift(`Scale ${scale.name} shows that the machinery works. It is not evidence about any method.`);
  else if (scale) notices.unshift("Compare only runs of the same scale, data set, model, commit and device; three seeds give effect sizes, never significance.");
  if (data.recorded) notices.push("No local runs: these are recorded results. They have validation curves, but nothing per step (no training losses, no conflict) and no pictures.");
  for (const group of data.groups.filter((one) => one.scale === state.scale)) {
    for (const notice of group.notices) notices.push(`${group.title}, ${group.model}: ${notice}`);
  }
  const noted = own.filter((run) => run.notes.length).length;
  if (noted) notices.push(`${plural(noted, "run")} with files that could be read only in part: the status column says which.`);
  bullets("notices", notices);
  fill("scales", ...(data.scales.length < 2 ? [] : data.scales.map((one) => {
    const button = element("button", { type: "button", textContent: `scale ${one.name}`, "aria-pressed": String(one.name === state.scale) });
    button.addEventListener("click", () => {
      change({ scale: one.name, group: "", run: "", other: "", off: "", ...Object.fromEntries(CHOICES.map((name) => [name, ""])) });
      drawAll();
    });
    return button;
  })));
}

// Table.
const percent = (value) => (value === null ? "" : `${(100 * value).toFixed(1)} %`);
const COLUMNS = [
  { key: "status", title: "status" },
  { key: "label", title: "method" },
  { key: "seed", title: "seed", number: true },
  { key: "variant", title: "variant", optional: (value) => value !== null && value !== "" },
  { key: "dataset", title: "data set" },
  { key: "model", title: "model" },
  { key: "best_val_l1", title: "best L1", number: true, digits: 4 },
  { key: "best_val_ssim", title: "best 1-SSIM", number: true, digits: 4 },
  { key: "last_val_l1", title: "last L1", number: true, digits: 4 },
  { key: "last_val_ssim", title: "last 1-SSIM", number: true, digits: 4 },
  { key: "conflict_share", title: "in conflict", number: true, optional: (value) => value !== null && value !== "", text: percent },
  { key: "mean_correction", title: "correction", number: true, optional: (value) => value !== null && value !== "", digits: 3 },
  { key: "steps", title: "steps", number: true },
  { key: "seconds", title: "seconds", number: true, text: (value) => (value === null ? "" : value >= 100 ? value.toFixed(0) : value.toFixed(1)) },
  { key: "skipped_steps", title: "skipped steps", number: true, optional: (value) => value > 0 },
  { key: "started", title: "started", text: (value) => (value ?? "").slice(0, 16).replace("T", " ") },
];
// Optional columns stand where at least one run of the scale has something to say in them.
const columns = () => COLUMNS.filter((column) => !column.optional || data.runs.some((run) => run.scale === state.scale && column.optional(run[column.key])));

function cellText(column, run) {
  const value = run[column.key];
  if (column.text) return column.text(value);
  if (column.key === "variant") return value === null ? "unknown" : value;
  if (column.key === "steps" && run.planned && run.status !== "done" && value !== null) return `${value} of ${run.planned}`;
  return value !== null && column.digits ? value.toFixed(column.digits) : shown(value);
}

// The folder's name counts as a whole only: the digits of its hash would match a seed.
const searched = (run) => [run.label, run.dataset, run.model, run.strategy, `seed ${shown(run.seed)}`, run.variant, run.status, run.reason, ...run.notes].join(" ").toLowerCase();
const choiceOf = { dataset: (run) => run.dataset, model: (run) => run.model, strategy: (run) => run.label, seed: (run) => shown(run.seed), status: (run) => run.status };

function filtered() {
  const words = state.text.toLowerCase().split(/\s+/).filter(Boolean);
  return data.runs.filter((run) => run.scale === state.scale
    && CHOICES.every((name) => state[name] === "" || choiceOf[name](run) === state[name])
    && (words.every((word) => searched(run).includes(word)) || run.folder.toLowerCase().includes(state.text.trim().toLowerCase())));
}

function sorted(runs) {
  const column = COLUMNS.find((one) => one.key === state.sort);
  if (!column) return runs;
  const sign = state.down ? -1 : 1;
  const missing = (value) => value === null || value === undefined || value === "";
  const compare = column.number ? (a, b) => a - b : (a, b) => String(a).localeCompare(String(b), "en", { numeric: true });
  return [...runs].sort((a, b) => {
    const [left, right] = [a[column.key], b[column.key]];
    if (missing(left) || missing(right)) return missing(left) - missing(right); // unknown stands last, whichever the order
    return sign * compare(left, right);
  });
}

function drawFilters() {
  const own = data.runs.filter((run) => run.scale === state.scale);
  const names = { dataset: "Data set", model: "Model", strategy: "Method", seed: "Seed", status: "Status" };
  for (const old of document.querySelectorAll("#filters select")) old.parentElement.remove();
  for (const name of CHOICES) {
    const values = [...new Set(own.map(choiceOf[name]))].filter(Boolean).sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
    const options = ["", ...values].map((value) => element("option", { value, textContent: value || "all" }));
    const select = element("select", { id: `choice-${name}` }, ...options);
    select.value = state[name];
    select.addEventListener("change", () => { change({ [name]: select.value }); drawTable(); });
    byId("filters").append(element("label", {}, names[name], select));
  }
  byId("text").value = state.text;
}

function drawTable() {
  const used = columns();
  const head = element("tr");
  for (const column of used) {
    const button = element("button", { type: "button", textContent: column.title });
    button.addEventListener("click", () => {
      change({ sort: column.key, down: state.sort === column.key && !state.down ? "1" : "" });
      drawTable();
      document.querySelector(`th[data-key="${column.key}"] button`).focus();
    });
    const order = state.sort !== column.key ? "none" : state.down ? "descending" : "ascending";
    head.append(element("th", { scope: "col", className: column.number ? "number" : "", "data-key": column.key, "aria-sort": order }, button));
  }
  document.querySelector("#runs thead").replaceChildren(head);
  const rows = sorted(filtered());
  document.querySelector("#runs tbody").replaceChildren(...rows.map((run) => tableRow(run, used)));
  const all = data.runs.filter((run) => run.scale === state.scale).length;
  byId("shown").textContent = `${rows.length} of ${plural(all, "run")} shown. The filter acts on this table only, not on the curves.`;
  document.documentElement.dataset.rows = rows.length;
}

function tableRow(run, used) {
  const cells = used.map((column) => {
    const text = cellText(column, run);
    if (column.key === "status") return statusCell(run);
    if (column.key !== "label") return element("td", { className: column.number ? "number" : column.key, textContent: text });
    return element("td", { className: "method" }, element("button", { type: "button", textContent: text }));
  });
  const row = element("tr", { className: run.folder === state.run ? "chosen" : "", "data-folder": run.folder }, ...cells);
  row.addEventListener("click", () => choose(run));
  return row;
}

function statusCell(run) {
  const why = [run.status === "done" ? "" : run.reason.split("\n")[0], ...run.notes].filter(Boolean).join("; ");
  return element("td", { className: "status" },
    element("span", { className: `state ${run.status in data.statuses ? run.status : ""}`, title: data.statuses[run.status] ?? "", textContent: run.status }),
    why ? element("div", { className: "why", title: why, textContent: why }) : null);
}

function choose(run) {
  const again = state.run === run.folder;
  change({ run: again ? "" : run.folder, group: again || run.group === undefined ? state.group : String(run.group) });
  for (const row of document.querySelectorAll("#runs tbody tr")) row.classList.toggle("chosen", row.dataset.folder === state.run);
  drawDetails();
  drawCurves();
  drawPictures();
}

const chosenRun = () => data.runs.find((run) => run.folder === state.run);

function drawDetails() {
  const run = chosenRun();
  byId("details").hidden = !run;
  if (!run) return;
  const yes = { True: "yes", False: "no" };
  const facts = [
    ["folder", run.folder], ["status", `${run.status} (${data.statuses[run.status] ?? ""})`], ["reason", run.reason], ["notes", run.notes.join("\n")],
    ["variant", run.variant === null ? "unknown: it is written when the run ends" : run.variant || "none"],
    ["best epoch", shown(run.best_epoch)], ["best validation", pair(run.best_val_l1, run.best_val_ssim)], ["test, at that epoch", pair(run.best_test_l1, run.best_test_ssim)],
    ["last validation", pair(run.last_val_l1, run.last_val_ssim)], ["last test", pair(run.last_test_l1, run.last_test_ssim)],
    ["in conflict", run.conflict_share === null ? "" : `${percent(run.conflict_share)} of the ${plural(run.conflict_steps, "step")} that logged cosine/all`],
    ["started", shown(run.started)], ["seconds", shown(run.seconds)], ["peak memory, MB", shown(run.peak_memory_mb)], ["skipped steps", shown(run.skipped_steps)],
    ["commit", run.commit ? `${run.commit}${run.dirty === "True" ? " with uncommitted changes" : ""}` : ""], ["device", shown(run.device)],
    ["torch, Python", [run.torch, run.python].filter(Boolean).join(", ")], ["data made without", shown(run.missing_packages)],
  ].filter(([, value]) => value !== "");
  const list = element("dl");
  for (const [name, value] of facts) list.append(element("dt", {}, name), element("dd", {}, value));
  fill("details", element("h3", {}, `Chosen: ${run.label}, seed ${shown(run.seed) || "unknown"}`), list);
}

const pair = (l1, ssim) => (l1 === null && ssim === null ? "" : `L1 ${shown(l1)}, 1-SSIM ${shown(ssim)}`);

// Curves.
const dark = matchMedia("(prefers-color-scheme: dark)");

function colourOf(series) {
  if (!dark.matches) return series.colour;
  const parts = [1, 3, 5].map((at) => parseInt(series.colour.slice(at, at + 2), 16));
  if (Math.max(...parts) < 40) return "#f0f0f0"; // black would vanish
  return `rgb(${parts.map((part) => Math.round(part + 0.35 * (255 - part))).join(",")})`;
}

// Single seeds are drawn unless there are so many methods that nobody could tell them apart, or as asked.
const MANY = 12;
const single = (group) => (state.single === "" ? group.series.length <= MANY : state.single === "1");

const off = () => new Set(state.off.split(",").filter(Boolean).map(Number));

function currentGroup() {
  const own = data.groups.map((group, index) => index).filter((index) => data.groups[index].scale === state.scale);
  if (!own.includes(Number(state.group)) || state.group === "") {
    const count = (index) => data.runs.filter((run) => run.group === index).length;
    state.group = own.length ? String([...own].sort((a, b) => count(b) - count(a))[0]) : "";
  }
  fill("group", ...own.map((index) => element("option", { value: index, textContent: `${data.groups[index].title}, ${data.groups[index].model}, scale ${data.groups[index].scale}` })));
  byId("group").value = state.group;
  return state.group === "" ? null : Number(state.group);
}

// Quantity -> [x, y], whatever way it is packed.
function points(packed, key, x) {
  const own = packed?.[key];
  if (!own) return null;
  if (Array.isArray(own)) return [x.slice(0, own.length), own];
  return [own.at.map((bin) => x[bin]), own.y];
}

function validationPoints(validation, key) {
  return validation?.[key]?.length ? [validation.step, validation[key]] : null;
}

function drawCurves() {
  const index = currentGroup();
  byId("plot-section").hidden = index === null;
  if (index === null) return;
  const group = data.groups[index];
  const runs = data.runs.filter((run) => run.group === index);
  bullets("group-notices", group.notices);
  byId("single").checked = single(group);
  byId("smooth").value = state.smooth;
  drawLegend(group);
  byId("reading").textContent = "Thick: mean over the finished seeds of a method, wherever all of them have the point (n in the legend). Thin: single seeds; thin and dotted: runs that have not finished, which are in no mean. "
    + (group.width > 1 ? `Quantities per optimizer step are drawn as means over ${group.width} steps (at most ${data.points} points a line); a cosine too, so a single step's extremes do not show. ` : "Quantities per optimizer step are drawn as logged. ")
    + "All numbers have 4 significant digits.";

  const keys = [...new Set(runs.flatMap((run) => Object.keys(run.points)))];
  const order = ["all", "encoder", "body", "head"];
  const ranked = (prefix) => keys.filter((key) => key.startsWith(prefix)).sort((a, b) => {
    const [left, right] = [a, b].map((key) => order.indexOf(key.slice(prefix.length)));
    return (left < 0 ? 99 : left) - (right < 0 ? 99 : right) || a.localeCompare(b);
  });
  const taskNames = { l1: "L1", ssim: "1 - SSIM" };
  const groupNames = { all: "all shared parameters" };
  const names = (key) => { const part = key.split("/")[1]; return taskNames[part] ?? groupNames[part] ?? part; };
  const sections = [
    ["Validation", "", [["val_l1", "validation L1", { reference: group.trivial.val_l1 }], ["val_ssim", "validation 1 - SSIM", { reference: group.trivial.val_ssim }]], true],
    ["Training losses", "", ranked("loss/").map((key) => [key, `training loss ${names(key)}`, {}])],
    ["Conflict: cosine between task gradients, before resolution", "The smallest over pairs of tasks and, for methods that resolve every micro-batch, over the window. Sequential task gradients share their samples, stochastic ones do not: their cosines are different quantities. Joint methods (Baseline) gather task gradients at a few steps only.", ranked("cosine/").map((key) => [key, `cosine, ${names(key)}`, { zero: true }])],
    ["Cosine between the resolved task gradients", "", ranked("cosine_resolved/").map((key) => [key, `resolved cosine, ${names(key)}`, { zero: true }])],
    ["Correction", "Norm of (update - plain sum of the task gradients) over norm of the sum. Resolved: share of steps in which the update is not the plain sum.", ["correction", "resolved"].filter((key) => keys.includes(key)).map((key) => [key, key, { zero: true }])],
    ["Projections in each zone (GCond)", "", ["weak", "main", "critical"].map((zone) => `zone/${zone}`).filter((key) => keys.includes(key)).map((key) => [key, `${names(key)} zone, projections per step`, { zero: true }])],
  ];
  const drawn = [];
  fill("plots", ...sections.flatMap(([title, words, plots, isValidation]) => {
    const figures = plots.map(([key, label, options]) => {
      const lines = linesOf(group, runs, key, isValidation);
      if (!lines.some((line) => line.y.some((value) => value !== null))) return null;
      const figure = element("figure", {}, element("figcaption", {}, `${label}${key === label || isValidation ? "" : ` (${key})`}`));
      drawn.push([figure, lines, { ...options, label }]);
      return figure;
    }).filter(Boolean);
    const missing = title === "Validation" || title === "Training losses" ? [element("p", { className: "small" }, "Nothing was recorded.")] : [];
    if (!figures.length) return missing.length ? [element("h3", {}, title), ...missing] : [];
    return [element("h3", {}, title), ...(words ? [element("p", { className: "small" }, words)] : []), element("div", { className: "grid" }, ...figures)];
  }));
  for (const one of drawn) plot(...one);
  document.documentElement.dataset.plots = drawn.length;
  document.documentElement.dataset.lines = document.querySelectorAll("#plots path.curve").length;
}

function linesOf(group, runs, key, isValidation) {
  const hidden = off();
  const find = (one) => (isValidation ? validationPoints(one.validation, key) : points(one.points, key, group.x));
  const lines = [];
  const span = isValidation ? 1 : group.width;
  const smooth = (y) => (isValidation || !state.smooth ? y : runningMean(y, Number(state.smooth)));
  for (const run of runs) {
    const chosen = run.folder === state.run;
    if (!chosen && (hidden.has(run.series) || !single(group))) continue;
    const found = find(run);
    if (!found) continue;
    const series = group.series[run.series];
    const unfinished = run.status !== "done";
    if (!chosen && !unfinished && series.n === 1) continue; // its mean is the same line
    lines.push({ x: found[0], y: smooth(found[1]), series: run.series, colour: colourOf(series), dash: unfinished ? "1 3" : series.dash, width: chosen ? 3 : 0.9, opacity: chosen ? 1 : unfinished ? 0.8 : 0.4,
      span, isValidation, name: `${series.label}\nseed ${shown(run.seed)}${unfinished ? `, ${run.status}` : ""}` });
  }
  group.series.forEach((series, index) => {
    const found = hidden.has(index) ? null : find(series);
    if (!found) return;
    const name = series.n === 1 ? `seed ${series.seeds.join("")}` : `mean of ${series.n} seeds (${series.seeds.join(", ")})`;
    lines.push({ x: found[0], y: smooth(found[1]), series: index, colour: colourOf(series), dash: series.dash, width: 2.2, opacity: 1, span, name: `${series.label}\n${name}` });
  });
  return lines.sort((a, b) => a.width - b.width); // the chosen run on top, the single seeds below
}

// Centred mean over `count` points, those that are undefined left out.
function runningMean(values, count) {
  const half = (count - 1) / 2;
  return values.map((value, at) => {
    if (value === null) return null;
    const near = values.slice(Math.max(0, at - half), at + half + 1).filter((one) => one !== null);
    return Number((near.reduce((sum, one) => sum + one, 0) / near.length).toPrecision(4));
  });
}

function drawLegend(group) {
  const hidden = off();
  fill("legend", ...group.series.map((series, index) => {
    const swatch = shape("svg", { width: 26, height: 8, "aria-hidden": "true" });
    swatch.append(shape("line", { x1: 0, x2: 26, y1: 4, y2: 4, stroke: colourOf(series), "stroke-width": 2.4, "stroke-dasharray": series.dash }));
    const count = `n = ${series.n}${series.others ? `, ${series.others} not finished` : ""}`;
    const button = element("button", { type: "button", "aria-pressed": String(!hidden.has(index)) }, swatch, series.label, element("span", { className: "n" }, count));
    const dim = (on) => () => {
      for (const mark of document.querySelectorAll("#plots [data-series]")) mark.classList.toggle("dim", on && mark.dataset.series !== String(index));
    };
    for (const event of ["pointerenter", "focus"]) button.addEventListener(event, dim(!hidden.has(index)));
    for (const event of ["pointerleave", "blur"]) button.addEventListener(event, dim(false));
    button.addEventListener("click", () => {
      const now = off();
      if (!now.delete(index)) now.add(index);
      change({ off: [...now].join(",") });
      drawCurves();
      byId("legend").children[index].focus();
    });
    return button;
  }));
}

function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at += 1) found.push(Number((at * step).toPrecision(12)));
  return found;
}

function plot(figure, lines, { label, reference = null, zero = false }) {
  const width = Math.max(260, figure.clientWidth), height = Math.round(Math.min(260, Math.max(200, width * 0.58)));
  const margin = { left: 52, right: 10, top: 8, bottom: 34 };
  const xs = lines.flatMap((line) => line.x.filter((_, at) => line.y[at] !== null));
  const ys = lines.flatMap((line) => line.y.filter((value) => value !== null));
  if (reference !== null && reference !== undefined) ys.push(reference);
  if (zero) ys.push(0);
  const bounds = (values) => values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
  let [left, right] = bounds(xs), [low, high] = bounds(ys);
  if (left === right) { left -= 1; right += 1; }
  if (zero && low === 0 && high === 0) high = 1;
  if (high - low < 1e-9 * Math.max(1, Math.abs(high))) { const room = Math.max(Math.abs(high) * 0.1, 0.01); low -= room; high += room; }
  const room = 0.04 * (high - low);
  low -= room; high += room;
  const toX = (value) => margin.left + ((value - left) / (right - left)) * (width - margin.left - margin.right);
  const toY = (value) => height - margin.bottom - ((value - low) / (high - low)) * (height - margin.top - margin.bottom);

  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": `${label}: ${plural(lines.length, "line")}` });
  for (const at of ticks(low, high, 5)) {
    svg.append(shape("line", { class: at === 0 ? "zero" : "tick", x1: margin.left, x2: width - margin.right, y1: toY(at), y2: toY(at) }));
    svg.append(shape("text", { class: "axis", x: margin.left - 6, y: toY(at) + 4, "text-anchor": "end" }, String(at)));
  }
  for (const at of ticks(left, right, width < 400 ? 5 : 6).filter(Number.isInteger)) {
    svg.append(shape("line", { class: "tick", x1: toX(at), x2: toX(at), y1: height - margin.bottom, y2: height - margin.bottom + 4 }));
    svg.append(shape("text", { class: "axis", x: toX(at), y: height - margin.bottom + 15, "text-anchor": "middle" }, String(at)));
  }
  svg.append(shape("text", { class: "axis", x: (margin.left + width - margin.right) / 2, y: height - 4, "text-anchor": "middle" }, "optimizer step"));
  if (reference !== null && reference !== undefined) {
    svg.append(shape("line", { class: "trivial", x1: margin.left, x2: width - margin.right, y1: toY(reference), y2: toY(reference) }));
  }
  for (const line of lines) {
    let path = "", pen = "M", alone = true;
    line.places = [];
    line.y.forEach((value, at) => {
      if (value === null) { if (pen === "L" && alone) path += "h0.01"; pen = "M"; return; } // an undefined number interrupts the line
      const place = [toX(line.x[at]), toY(value), at];
      line.places.push(place);
      alone = pen === "M";
      path += `${pen}${place[0].toFixed(1)} ${place[1].toFixed(1)}`;
      pen = "L";
    });
    if (pen === "L" && alone) path += "h0.01";
    const attributes = { class: "curve", "data-series": line.series, d: path, fill: "none", stroke: line.colour, "stroke-width": line.width, "stroke-opacity": line.opacity, "stroke-linejoin": "round", "stroke-linecap": "round" };
    if (line.dash) attributes["stroke-dasharray"] = line.dash;
    svg.append(shape("path", attributes));
    if (line.width > 1 && line.places.length <= 20) for (const [x, y] of line.places) svg.append(shape("circle", { cx: x, cy: y, r: 2.4, fill: line.colour, "data-series": line.series }));
  }
  if (reference !== null && reference !== undefined) {
    svg.append(shape("text", { class: "axis over", x: width - margin.right - 2, y: toY(reference) - 4, "text-anchor": "end" }, `best without training: ${reference}`));
  }
  const mark = shape("circle", { r: 4.5, fill: "none", "stroke-width": 2, visibility: "hidden" });
  svg.append(mark);
  const leave = () => { byId("hint").hidden = true; mark.setAttribute("visibility", "hidden"); };
  const look = (event) => {
    const box = svg.getBoundingClientRect();
    const [x, y] = [(event.clientX - box.left) * (width / box.width), (event.clientY - box.top) * (height / box.height)];
    let best = null, distance = 40 ** 2;
    for (const line of lines) {
      for (const place of line.places) {
        const away = (place[0] - x) ** 2 + (place[1] - y) ** 2 - (line.width > 1 ? 9 : 0); // thick lines win where lines meet
        if (away < distance) [best, distance] = [[line, place], away];
      }
    }
    if (!best) return leave();
    const [line, [px, py, at]] = best;
    mark.setAttribute("cx", px); mark.setAttribute("cy", py); mark.setAttribute("stroke", line.colour); mark.setAttribute("visibility", "visible");
    const smoothed = state.smooth && !line.isValidation ? `, smoothed over ${state.smooth} points` : "";
    const where = line.span > 1 ? `mean over ${line.span} steps around ${line.x[at]}` : `step ${line.x[at]}`;
    const hint = byId("hint");
    hint.textContent = `${line.name}\n${where}${smoothed}: ${line.y[at]}`;
    hint.hidden = false;
    hint.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - hint.offsetWidth - 6))}px`;
    hint.style.top = `${event.clientY + 18 + hint.offsetHeight > innerHeight ? event.clientY - hint.offsetHeight - 12 : event.clientY + 18}px`;
  };
  svg.addEventListener("pointermove", look);
  svg.addEventListener("pointerdown", look);
  svg.addEventListener("pointerleave", leave);
  figure.querySelector("svg")?.remove();
  figure.append(svg);
}

// Reconstructions: two places, so that two runs can be compared.
function drawPictures() {
  const own = data.runs.filter((run) => run.scale === state.scale && run.picture);
  byId("picture-section").hidden = !data.runs.length;
  bullets("left-out", data.pictures_left_out);
  if (!own.length) {
    fill("pictures", element("p", {}, "No run at this scale has a picture here. Runs on photographs write them at the end of an epoch; runs on CT only when asked, since heads show faces."));
    return;
  }
  const first = own.find((run) => run.folder === state.run) ?? own.find((run) => run.group === Number(state.group)) ?? null;
  const second = own.find((run) => run.folder === state.other) ?? own.find((run) => first && run !== first && run.group === first.group && run.seed === first.seed) ?? null;
  fill("pictures", picture(own, first, "run"), ...(own.length > 1 ? [picture(own, second, "other")] : []));
  const asked = chosenRun();
  if (asked && !asked.picture) byId("pictures").prepend(element("p", { className: "all" }, `The chosen run (${asked.folder}) has no picture here.`));
}

function picture(own, run, role) {
  const names = own.map((one) => element("option", { value: one.folder, textContent: `${one.label}, ${one.dataset}, ${one.model}, seed ${shown(one.seed)}${one.variant ? `, ${one.variant}` : ""}` }));
  const select = element("select", { "aria-label": role === "run" ? "Run" : "Run to compare with" }, element("option", { value: "", disabled: role === "run", textContent: role === "run" ? "choose a run…" : "compare with…" }), ...names);
  select.value = run ? run.folder : "";
  select.addEventListener("change", () => {
    if (role === "other") { change({ other: select.value }); drawPictures(); return; }
    state.run = "";
    choose(own.find((one) => one.folder === select.value));
  });
  if (!run) return element("div", {}, select);
  const shot = run.picture;
  const image = element("img", { src: shot.data, alt: `Reconstructions of ${run.folder}` });
  image.addEventListener("load", () => { image.className = image.naturalWidth > 400 ? "smooth" : ""; });
  const words = [shot.step === null ? `step and epoch not known (${shot.caption_error})` : `epoch ${shot.epoch}, step ${shot.step}`, run.status === "done" ? "" : run.status, shot.note].filter(Boolean).join("; ");
  return element("div", {}, select, element("div", { className: "frame" },
    element("div", { className: "columns" }, ...shot.columns.map((name) => element("span", {}, name))), image, element("p", { className: "small" }, words)));
}

function drawAll() {
  drawHeading();
  byId("empty").hidden = data.runs.length > 0;
  byId("table-section").hidden = !data.runs.length;
  drawFilters();
  drawTable();
  drawDetails();
  drawCurves();
  drawPictures();
  document.documentElement.dataset.drawn = "yes";
}

byId("text").addEventListener("input", () => { change({ text: byId("text").value }); drawTable(); });
byId("group").addEventListener("change", () => { change({ group: byId("group").value, off: "" }); drawCurves(); drawPictures(); });
byId("single").addEventListener("change", () => { change({ single: byId("single").checked ? "1" : "0" }); drawCurves(); });
byId("smooth").addEventListener("change", () => { change({ smooth: byId("smooth").value }); drawCurves(); });
byId("all").addEventListener("click", () => { change({ off: "" }); drawCurves(); });
byId("none").addEventListener("click", () => { change({ off: data.groups[Number(state.group)].series.map((_, index) => index).join(",") }); drawCurves(); });
dark.addEventListener("change", drawCurves);
window.addEventListener("hashchange", () => { readAddress(); drawAll(); });
let lastWidth = innerWidth, waiting = 0;
window.addEventListener("resize", () => {
  if (innerWidth === lastWidth) return;
  lastWidth = innerWidth;
  clearTimeout(waiting);
  waiting = setTimeout(drawCurves, 150);
});
readAddress();
drawAll();
