// Okabe and Ito's colors, told apart with every kind of color vision; those of a dark page are lighter.
const PALETTES = {
  light: ["#0072B2", "#C24E00", "#007D5C", "#A8487F", "#8A6500", "#2A7FAE", "#5E5E00", "#A0003C"],
  dark: ["#56B4E9", "#FF8F4A", "#2FC79A", "#E39AC3", "#F0B93A", "#9AD4F5", "#C9C445", "#FF7AA8"],
};
const DASHES = ["solid", "dash", "dot", "dashdot"];  // beyond the colors
const RAINBOW = ["#e6194b", "#f58231", "#ffd700", "#3cb44b", "#00bcd4", "#3f51f5", "#8a2be2"];
const LOGARITHMIC = [0.1, 0.2, 0.5, 1, 2, 3, 5, 10, 20, 30, 50, 70, 100, 200, 300, 500, 1000];
const FIRST = 8;  // the character whose neighbours are shown first: at the start of a sentence all states are equal
const WIDE_RANGE = 4;  // largest by smallest rate, from which the axis is logarithmic
const SENTENCES = 8;  // shown at once
const NARROW = matchMedia("(max-width: 719px)");
const MARKS = { circle: "●", square: "■", diamond: "◆", "triangle-up": "▲", "triangle-down": "▼", cross: "✚", star: "★", pentagon: "⬟", hexagram: "✶", x: "✕" };
const redraws = [];  // called when the theme changes

// Elements.

// Text in backticks is code; backslashes of Markdown go.
function rich(text) {
  return String(text).replace(/\\([|<`[])/g, "$1").split("`").map((part, number) => (number % 2 ? element("code", {}, part) : part));
}

function section(id, title, ...notes) {
  const made = element("section", { id, "aria-labelledby": `${id}-title` }, element("h2", { id: `${id}-title` }, title), ...notes.map((note) => element("p", { class: "note" }, note)));
  document.getElementById("sections").append(made);
  document.getElementById("contents").append(element("a", { href: "#" + id }, title));
  return made;
}

function chooser(label, options, act, wide = false) {
  const select = element("select", { "aria-label": label, onchange: () => act() });
  const part = element("label", wide ? { class: "wide" } : {}, label, select);
  const fill = (values) => {
    const before = select.value;
    select.replaceChildren(...values.map(([value, text]) => element("option", { value }, text)));
    if (values.some(([value]) => String(value) === before)) select.value = before;
    part.hidden = values.length < 2;
  };
  fill(options);
  return { part, select, fill };
}

// Whose layers, neighbours or alignments are shown: said of a single network too.
function networks(runs, act) {
  const made = chooser("network", runs.map((one, number) => [number, one.name]), act, true);
  made.part.hidden = false;
  return made;
}

function slider(label, act) {
  const input = element("input", { type: "range", min: 0, value: 0, step: 1, "aria-label": label });
  const output = element("output", {});
  const parts = { part: element("label", {}, label, input, output), input, names: [] };
  parts.show = () => { output.textContent = parts.names[input.value] ?? ""; input.setAttribute("aria-valuetext", output.textContent); };
  parts.fill = (names) => { parts.names = names; input.max = names.length - 1; if (+input.value > names.length - 1) input.value = 0; parts.show(); };
  input.addEventListener("input", () => { parts.show(); act(); });
  return parts;
}

function radios(label, name, options, act, chosen = options[0][0]) {
  const inputs = options.map(([value, text]) =>
    element("label", {}, element("input", { type: "radio", name, value, ...(value === chosen ? { checked: "" } : {}), onchange: act }), text));
  const part = element("fieldset", {}, element("legend", {}, label), ...inputs);
  return { part, get value() { return part.querySelector("input:checked").value; } };
}

function copier(label, text) {
  const button = element("button", { type: "button", onclick: async () => {
    const area = element("textarea", { "aria-hidden": "true" });
    area.value = text();
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy") || (await navigator.clipboard?.writeText(area.value).then(() => true, () => false));
    area.remove();
    button.focus();
    button.textContent = copied ? "copied" : "copying is not allowed here";
    setTimeout(() => { button.textContent = label; }, 2000);
  } }, label);
  return button;
}

// Plots.

function css(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }
function dark() { return document.documentElement.dataset.theme === "dark"; }
function color(number) { const palette = PALETTES[dark() ? "dark" : "light"]; return palette[number % palette.length]; }
function dash(number) { return DASHES[Math.floor(number / PALETTES.light.length) % DASHES.length]; }

function layout(more = {}) {
  const axis = { gridcolor: css("--line"), linecolor: css("--line"), zeroline: false, automargin: true };
  const { xaxis = {}, yaxis = {}, title, ...rest } = more;
  return {
    paper_bgcolor: css("--paper"), plot_bgcolor: css("--paper"), font: { color: css("--ink"), size: 13, family: getComputedStyle(document.body).fontFamily }, showlegend: false,
    margin: { l: 56, r: 12, t: 34, b: 44 }, hoverlabel: { namelength: -1 },
    xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...rest,
    ...(title ? { title: { x: 0, xref: "paper", xanchor: "left", ...title } } : {}), // the toolbar is on the right
  };
}

// Plotly reads some marks and entities in its texts: ours have none.
function plain(text) { return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;"); }

// A plot is drawn when it comes near the window, since sixteen t-SNE pictures take seconds; and before the page is printed.
const near = new IntersectionObserver((entries) => entries.forEach(({ target, isIntersecting }) => {
  target.near = isIntersecting;
  if (isIntersecting) target.drawWaiting?.();
}), { rootMargin: "600px" });
addEventListener("beforeprint", () => document.querySelectorAll(".plot").forEach((place) => place.drawWaiting?.()));

function draw(place, traces, more, toolbar = "hover") {
  place.drawWaiting = () => {
    delete place.drawWaiting;
    Plotly.react(place, traces, layout(more), { responsive: true, displaylogo: false, displayModeBar: toolbar, modeBarButtonsToRemove: ["select2d", "lasso2d"] });
  };
  if (place.near) place.drawWaiting(); else near.observe(place);
}

function swatch(stroke, style = "solid") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  made.setAttribute("width", 26); made.setAttribute("height", 10); made.setAttribute("aria-hidden", "true");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
  const dashes = { dash: "7 4", dot: "2 3", dashdot: "7 3 2 3" }[style];
  for (const [key, value] of Object.entries({ x1: 0, x2: 26, y1: 5, y2: 5, stroke, "stroke-width": 3, ...(dashes ? { "stroke-dasharray": dashes } : {}) })) line.setAttribute(key, value);
  made.append(line);
  return made;
}

function rainbow(part) {
  const at = Math.min(Math.max(part, 0), 1) * (RAINBOW.length - 1), low = Math.min(Math.floor(at), RAINBOW.length - 2);
  const channel = (value, number) => parseInt(value.slice(1 + 2 * number, 3 + 2 * number), 16);
  const mixed = [0, 1, 2].map((number) => Math.round(channel(RAINBOW[low], number) * (low + 1 - at) + channel(RAINBOW[low + 1], number) * (at - low)));
  return "#" + mixed.map((one) => one.toString(16).padStart(2, "0")).join("");
}

// Black or white, whichever has the higher contrast with a color.
function onColor(background) {
  const [r, g, b] = [0, 1, 2].map((number) => { const value = parseInt(background.slice(1 + 2 * number, 3 + 2 * number), 16) / 255; return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4; });
  const luminance = 0.2126 * r + 0.7152 * g + 0.0722 * b;
  return (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) ? "#000000" : "#ffffff";
}

const mean = (values) => values.reduce((sum, one) => sum + one, 0) / values.length;

// Tables: a column of numbers is on the right.

const NUMBER = /^(?:[-+−<> ]*[\d.,]+(?: %)?(?: ± [\d.,]+)?(?: to [-+−]?[\d.,]+)?|inf|–|)$/;

// A hyphen before a number is a minus sign; an interval is written with "to".
function typeset(cell) { return String(cell).replace(/^([-+−]?[\d.]+) … ([-+−]?[\d.]+)$/, "$1 to $2").replace(/(^|to )-(?=\d)/g, "$1−"); }

function table(place, one) {
  const known = one.head.map((_, column) => !column || one.rows.some((row) => !["–", ""].includes(row[column])));
  const chosen = (row) => row.filter((_, column) => known[column]);
  one = { ...one, head: chosen(one.head), rows: one.rows.map((row) => chosen(row).map(typeset)) };
  const numeric = one.head.map((_, column) => !one.text && one.rows.some((row) => /\d/.test(row[column])) && one.rows.every((row) => NUMBER.test(row[column])));
  const kind = (cell, column) => (numeric[column] ? { class: "number" } : String(cell).length > 40 ? { class: "long" } : {});
  const scroll = element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `${one.title}, table` }, element("table", {},
    element("thead", {}, element("tr", {}, ...one.head.map((cell, column) => element("th", { scope: "col", ...kind("", column) }, ...rich(cell))))),
    element("tbody", {}, ...one.rows.map((row) => element("tr", {}, ...row.map((cell, column) => element("td", kind(cell, column), ...rich(cell))))))));
  const hint = element("p", { class: "hint", hidden: "" }, "The table is wider than the window: scroll it to the right.");
  place.append(hint, scroll);
  new ResizeObserver(() => {
    hint.hidden = scroll.scrollWidth <= scroll.clientWidth;
    if (hint.hidden && scroll.scrollHeight <= scroll.clientHeight) scroll.removeAttribute("tabindex"); else scroll.tabIndex = 0;
  }).observe(scroll);
  for (const note of one.notes ?? []) place.append(element("p", { class: "note" }, ...rich(note)));
}

// The first screen: verdicts; behind the curves the runs, what differs between them, and their commands.

function verdicts(all) {
  const place = section("summary", "Result");
  const items = all.verdicts.map((one) => element("li", { class: one.kind }, element("b", {}, one.lead.replace(/(\w)-(\w)/g, "$1\u2011$2")), one.text.replace(/p ([<=]) /g, "p\u00a0$1\u00a0")));
  const list = (some) => element("ul", { class: "verdicts" }, ...some);
  place.append(list(items.slice(0, all.shown)));
  if (items.length > all.shown)
    place.append(element("details", {}, element("summary", {}, `${items.length - all.shown} more comparisons`), list(items.slice(all.shown))));
  place.append(element("p", { class: "note" }, ...all.summary.map((part) => element("span", {}, part)), element("a", { href: "#runs" }, "how to make the runs again")));
}

function runs(all) {
  const place = section("runs", "Runs and commands");
  table(place, all.facts);
  if (all.differences) {
    place.append(element("h3", {}, all.differences.title));
    table(place, all.differences);
  }
  place.append(element("h3", {}, "Commands"));
  const text = (one) => one.lines.join("\n");
  for (const one of all.commands.filter((one) => one.lines.length))
    place.append(element("details", {}, element("summary", {}, one.run), element("pre", {}, text(one)), copier("copy", () => text(one))));
  if (!all.commands.some((one) => one.lines.length)) place.append(element("p", { class: "note" }, "The run folders hold no configuration, so that their commands are unknown."));
  place.append(element("p", { class: "note" }, `Page written on ${all.written}. It does not follow runs that are still training: write it again, or watch them in W&B.`));
}

// Error rates, losses and norms per epoch.

function curves(all, training) {
  const place = section("curves", "Curves");
  const rates = all ? all.metrics.map((one) => [one, one.toUpperCase().replace("_", " ")]) : [];
  // Rates that differ little are on a linear axis at first, as in the figures for print.
  function wide() {
    const first = all ? all.runs.flatMap((run) => Object.values(run.rates).flatMap((metrics) => Object.values(metrics[all.metrics[0]]).flat())) : training[0].runs.flatMap((run) => Object.values(run.seeds).flat());
    const values = first.map(([, value]) => value).filter((value) => value > 0);
    return Math.max(...values) >= WIDE_RANGE * Math.min(...values);
  }
  const metric = chooser("shown", [...rates, ...training.map((one, number) => [`training ${number}`, one.name])], show);
  const scale = radios("axis", "scale", [["log", "logarithmic"], ["linear", "linear"]], show, wide() ? "log" : "linear");
  const legend = element("div", { class: "legend" }), note = element("p", { class: "note" });
  const plots = element("div", { class: "plots" });
  place.append(element("div", { class: "controls" }, metric.part, scale.part), legend, plots, note);
  const names = [...new Set([...(all?.runs ?? []).map((run) => run.name), ...training.flatMap((one) => one.runs.map((run) => run.name))])];

  // Panels of what is chosen: a title, a unit, and points of each run and seed.
  function chosen() {
    const value = metric.select.value;
    if (value.startsWith("training ")) {
      const one = training[+value.split(" ")[1]];
      return { unit: one.name, digits: 3, panels: [{ title: one.name, runs: one.runs, paper: [] }] };
    }
    return { unit: `${value.toUpperCase().replace("_", " ")} (%)`, digits: 2, panels: all.subsets.map((subset) => ({
      title: subset,
      runs: all.runs.map((run) => ({ name: run.name, seeds: Object.fromEntries(Object.entries((run.rates[subset] ?? {})[value] ?? {}).map(([seed, points]) => [seed, points.map(([epoch, rate]) => [epoch, 100 * rate])])) })),
      paper: (all.paper ?? []).filter((one) => one.subset === subset && one.metric === value),
    })) };
  }

  function show() {
    const { unit, digits, panels } = chosen();
    // Epochs of the paper that ours have not come to would leave ours a corner of the panel.
    const trained = Math.max(...panels.flatMap((panel) => panel.runs.flatMap((run) => Object.values(run.seeds).flat().map(([epoch]) => epoch))));
    const later = panels.some((panel) => panel.paper.some((one) => one.points.some(([epoch]) => epoch > trained)));
    for (const panel of panels)
      panel.paper = panel.paper.map((one) => ({ ...one, points: one.points.filter(([epoch]) => epoch <= trained) })).filter((one) => one.points.length);
    const every = panels.flatMap((panel) => [...panel.runs.flatMap((run) => Object.values(run.seeds).flat()), ...panel.paper.flatMap((one) => one.points)]);
    const log = scale.value === "log", values = every.map(([, value]) => value).filter((value) => !log || value > 0);
    const [low, high] = values.length ? [Math.min(...values), Math.max(...values)] : [0.1, 1];  // all rates may be 0
    const range = log ? [Math.log10(low) - 0.04, Math.log10(high) + 0.04] : [Math.min(0, low), high * 1.05 || 1];
    const last = Math.max(...every.map(([epoch]) => epoch)), first = Math.min(...every.map(([epoch]) => epoch));
    const several = panels.some((panel) => panel.runs.some((run) => Object.keys(run.seeds).length > 1));
    const papers = panels.some((panel) => panel.paper.length);
    note.textContent = [several ? "Lines are means over seeds; a band reaches from the lowest to the highest seed." : "", papers ? "Open circles with dotted lines are the paper's." : "", !later ? "" : papers ? `The paper's rates after epoch ${trained} are left out.` : "The paper's rates begin after the last epoch of these runs, and are left out."].join(" ").trim();
    legend.replaceChildren(...names.filter((name) => panels.some((panel) => panel.runs.some((run) => run.name === name && Object.keys(run.seeds).length))).map((name) => {
      const seeds = Math.max(...panels.flatMap((panel) => panel.runs.filter((run) => run.name === name).map((run) => Object.keys(run.seeds).length)));
      return element("span", {}, swatch(color(names.indexOf(name)), dash(names.indexOf(name))), name + (seeds > 1 ? ` (${seeds} seeds)` : ""));
    }));
    while (plots.children.length > panels.length) { Plotly.purge(plots.lastChild); plots.lastChild.remove(); }
    while (plots.children.length < panels.length) plots.append(element("div", { class: "plot", role: "group" }));
    panels.forEach((panel, number) => {
      const traces = [], ends = [];
      for (const run of panel.runs) {
        const seeds = Object.values(run.seeds), at = names.indexOf(run.name);
        const epochs = [...new Set(seeds.flatMap((one) => one.map(([epoch]) => epoch)))].sort((a, b) => a - b);
        if (!epochs.length) continue;
        const points = epochs.map((epoch) => seeds.flatMap((one) => one.filter(([other]) => other === epoch).map(([, value]) => value)));
        if (seeds.length > 1)
          traces.push({ x: [...epochs, ...[...epochs].reverse()], y: [...points.map((one) => Math.max(...one)), ...[...points].reverse().map((one) => Math.min(...one))],
            fill: "toself", fillcolor: color(at) + "33", line: { width: 0 }, hoverinfo: "skip", type: "scatter", mode: "lines" });
        traces.push({ x: epochs, y: points.map(mean), name: plain(run.name), mode: epochs.length > 25 ? "lines" : "lines+markers", line: { color: color(at), dash: dash(at) },
          hovertemplate: `${plain(run.name)}, epoch %{x}: %{y:.${digits}f}<extra></extra>` });
        ends.push(`${run.name} ${mean(points.at(-1)).toFixed(digits)}`);
      }
      for (const one of panel.paper)
        traces.push({ x: one.points.map(([epoch]) => epoch), y: one.points.map(([, rate]) => rate), mode: "lines+markers", marker: { symbol: "circle-open", size: 8 },
          line: { color: color(Math.max(0, names.indexOf(one.name))), dash: "dot", width: 1.5 }, hovertemplate: `${plain(one.name)}, paper, epoch %{x}: %{y:.2f}<extra></extra>` });
      plots.children[number].setAttribute("aria-label", `${unit}, ${panel.title}, over epochs; at the end ${ends.join(", ")}`);
      draw(plots.children[number], traces, { title: { text: plain(panel.title), font: { size: 15 } },
        xaxis: { title: { text: "epoch" }, range: [first - 0.03 * (last - first || 1), last + 0.03 * (last - first || 1)], ...(last - first > 20 ? {} : { dtick: 1 }), tickformat: "d" },
        yaxis: { title: { text: plain(unit) }, type: scale.value, range, ...(log && unit.endsWith("(%)") ? { tickvals: LOGARITHMIC } : log ? { dtick: "D2" } : {}) } });
    });
  }
  redraws.push(show);
  show();
}

// Sentences: word edits of two runs.

function sentences(pairs) {
  const place = section("sentences", "Sentences", "Transcripts of the run and of the baseline, word by word.");
  const pair = chooser("comparison", pairs.map((one, number) => [number, `${one.run} against ${one.baseline}, ${one.subset}`]), fill, true);
  const order = chooser("order", [["improved", "most improved first"], ["harmed", "most harmed first"], ["errors", "most errors first"], ["name", "by name"]], () => show());
  const speaker = chooser("speaker", [], () => show());
  const kind = chooser("errors of the run", [["any", "any or none"], ["wrong", "substitutions"], ["missing", "deletions"], ["added", "insertions"]], () => show());
  const search = element("input", { type: "search", "aria-label": "words in the reference", placeholder: "words", oninput: () => show() });
  const note = element("p", { class: "note" }), count = element("p", { class: "note", role: "status" }), list = element("div", {});
  const more = element("button", { type: "button", onclick: () => show(list.children.length + SENTENCES) }, "show more");
  place.append(element("div", { class: "controls" }, pair.part, order.part, speaker.part, kind.part, element("label", {}, "with", search)),
    element("div", { class: "legend" }, element("span", {}, element("mark", {}, "substituted")), element("span", {}, element("del", {}, "deleted")), element("span", {}, element("ins", {}, "inserted"))), note, count, list, more);
  const current = () => pairs[pair.select.value];
  const KINDS = { any: () => true, wrong: ([replaced]) => replaced.some(([, word]) => word !== null), missing: ([replaced]) => replaced.some(([, word]) => word === null), added: ([, inserted]) => inserted.length > 0 };
  const ORDERS = { improved: (a, b) => a[6] - a[5] - b[6] + b[5], harmed: (a, b) => b[6] - b[5] - a[6] + a[5], errors: (a, b) => b[6] - a[6], name: (a, b) => (a[0] < b[0] ? -1 : 1) };
  function fill() {
    speaker.fill([["", "all"], ...[...new Set(current().sentences.map((row) => row[1]))].filter(Boolean).sort().map((one) => [one, one])]);
    note.textContent = [current().note, current().seeds ? `Numbers of errors are means over seeds; the texts are of seed ${[...new Set(current().seeds)].join(" and ")}.` : ""].join(" ").trim();
    show();
  }
  function edited(reference, [replaced, inserted]) {
    const words = reference.split(/\s+/).filter(Boolean), at = new Map(replaced), before = new Map(inserted), parts = [];
    for (let index = 0; index <= words.length; index++) {
      if (before.has(index)) parts.push(element("ins", {}, before.get(index)), " ");
      if (index === words.length) break;
      const word = at.has(index) ? at.get(index) : undefined;
      parts.push(word === undefined ? words[index] : word === null ? element("del", {}, words[index]) : element("mark", {}, word), " ");
    }
    return parts;
  }
  function show(limit = SENTENCES) {
    const wanted = search.value.trim().toLowerCase();
    const rows = current().sentences.filter((row) => (!speaker.select.value || row[1] === speaker.select.value) && KINDS[kind.select.value](row[4]) && row[2].toLowerCase().includes(wanted)).sort(ORDERS[order.select.value]);
    list.replaceChildren(...rows.slice(0, limit).map(([id, who, reference, baseline, run, baselineErrors, errors]) => element("div", { class: "edits" },
      element("b", {}, `${baselineErrors} → ${errors} errors`), ` in ${reference.split(/\s+/).filter(Boolean).length} words; ${id}${who ? `, speaker ${who}` : ""}`,
      element("dl", {}, element("dt", {}, "reference"), element("dd", {}, reference),
        element("dt", {}, current().baseline), element("dd", {}, ...edited(reference, baseline)), element("dt", {}, current().run), element("dd", {}, ...edited(reference, run))))));
    count.textContent = `${Math.min(limit, rows.length)} of ${rows.length} sentences`;
    more.hidden = rows.length <= limit;
  }
  fill();
}

// Layers: t-SNE and measurements.

function layers(runs) {
  const place = section("layers", "Layers (t-SNE)", "Frames of one sentence, each layer projected by itself, all oriented alike. By order: from red at the start to violet at the end. By phone: a color for each class, a shape for each phone of a class.");
  const run = networks(runs, fill);
  const speaker = chooser("speaker", [], fill);
  const sentence = chooser("sentence", [], show, true);
  const view = radios("view", "view", [["all", "all layers"], ["one", "one layer"]], show, NARROW.matches ? "one" : "all");
  const layer = slider("layer", show);
  const kind = radios("labels", "labels", [["order", "order"], ["phone", "phone"]], show);
  const rest = element("input", { type: "checkbox", onchange: show });
  const strip = element("div", { class: "strip", tabindex: 0, role: "group" });
  const legend = element("div", { class: "legend" }), grid = element("div", { class: "square" }), limits = element("p", { class: "note" });
  place.append(element("div", { class: "controls" }, run.part, speaker.part, sentence.part, view.part, layer.part, kind.part, element("label", {}, rest, "all sentences behind")), strip, legend, grid, limits);
  for (const { labels, speakers } of runs)
    for (const { layers } of Object.values(speakers))
      for (const points of Object.values(layers))
        for (const key of ["character", "phone"]) points[key] = points[key].map((number) => labels[number]);
  const current = () => runs[run.select.value];
  const style = (phone) => current().phones[phone] ?? { ipa: "?", phone_class: "other", color: css("--faint"), shape: "circle-open" };
  const spoken = (phone) => (!phone ? "?" : style(phone).ipa === phone ? phone : `${style(phone).ipa} (${phone})`);
  function fill() {
    speaker.fill(current().order.map((one) => [one, one]));
    const chosen = current().speakers[speaker.select.value];
    sentence.fill(chosen.utterances.map((one, number) => [number, `${one.id}: ${one.text}`]));
    layer.fill(current().layers);
    limits.textContent = current().note;
    show();
  }
  const rowsOf = (points) => points.utterance.map((one, row) => [one, row]).filter(([one]) => one === +sentence.select.value).map(([, row]) => row);
  function along(points, rows, of) {
    const key = kind.value === "order" ? "character" : "phone", runs = [];
    rows.forEach((row, number) => {
      if (!number || points[key][row] !== points[key][rows[number - 1]]) runs.push({ label: points[key][row], frames: 0, middle: number });
      runs.at(-1).frames += 1;
    });
    return runs.map(({ label, frames, middle }) => {
      const background = kind.value === "order" ? rainbow((middle + frames / 2) / rows.length) : style(label).color;
      const text = kind.value === "order" ? (label === "_" ? "␣" : label) : label ? style(label).ipa : "";
      return element("span", { style: `background: ${background}; color: ${onColor(background)}; flex-grow: ${frames}`, title: kind.value === "order" ? false : label }, text);
    });
  }
  function show() {
    const single = view.value === "one", chosen = current().speakers[speaker.select.value];
    const names = single ? [current().layers[layer.input.value]] : current().layers;
    layer.part.hidden = !single;
    grid.classList.toggle("single", single);
    while (grid.children.length > names.length) { Plotly.purge(grid.lastChild.querySelector(".plot")); grid.lastChild.remove(); }
    while (grid.children.length < names.length) grid.append(element("figure", {}, element("figcaption", {}), element("div", { class: "plot", role: "group" })));
    names.forEach((name, number) => {
      const [caption, plot] = grid.children[number].children;
      caption.textContent = name;
      plot.setAttribute("aria-label", `t-SNE of ${name} of ${current().name}, colored by ${kind.value}`);
      frames(plot, chosen, chosen.layers[name], single);
    });
    const points = chosen.layers[names[0]], mine = rowsOf(points);
    strip.replaceChildren(...along(points, mine, chosen));
    strip.setAttribute("aria-label", `${kind.value === "order" ? "characters" : "phones"} along the sentence: ${chosen.utterances[+sentence.select.value].text}`);
    const present = new Set(mine.map((row) => points.phone[row]).filter(Boolean)), byClass = new Map();
    for (const [phone, one] of Object.entries(current().phones)) if (present.has(phone)) byClass.set(one.phone_class, [...(byClass.get(one.phone_class) ?? []), phone]);
    legend.replaceChildren(...(kind.value === "order" ? [] : [...byClass].map(([name, phones]) => element("span", {}, element("b", {}, name), ...phones.map((phone) => {
      const mark = element("span", { style: `color: ${style(phone).color}`, "aria-hidden": "true" }, MARKS[style(phone).shape]);
      return element("span", { class: "phone" }, mark, spoken(phone));
    })))));
  }
  function frames(plot, chosen, points, large) {
    const mine = rowsOf(points), traces = [], size = large ? 10 : 7;
    const label = (row) => `${plain(chosen.utterances[points.utterance[row]].id)}<br>${points.start[row].toFixed(2)} to ${(points.start[row] + points.length).toFixed(2)} s<br>character ${plain(points.character[row] || "?")}<br>phone ${plain(spoken(points.phone[row]))}`;
    const pick = (rows) => ({ x: rows.map((row) => points.x[row]), y: rows.map((row) => points.y[row]), text: rows.map(label), hovertemplate: "%{text}<extra></extra>", mode: "markers", type: "scatter" });
    const others = rest.checked ? points.x.map((_, row) => row).filter((row) => points.utterance[row] !== +sentence.select.value) : [];
    if (rest.checked) traces.push({ ...pick(others), marker: { color: css("--line"), size: 4 }, name: "other sentences" });
    traces.push({ ...pick(mine), mode: "lines", line: { color: css("--line"), width: 1 }, hoverinfo: "skip", hovertemplate: undefined });
    const order = kind.value === "order";
    const marker = order
      ? { color: mine.map((_, number) => rainbow(number / Math.max(1, mine.length - 1))), size, line: { color: css("--faint"), width: 0.5 } }
      : { color: mine.map((row) => style(points.phone[row]).color), symbol: mine.map((row) => style(points.phone[row]).shape), size, line: { color: css("--paper"), width: 0.5 } };
    traces.push({ ...pick(mine), marker, name: "frames" });
    // Both axes have the same scale, and the longer one fills the square.
    const [x, y] = ["x", "y"].map((axis) => { const all = [...mine, ...others].map((row) => points[axis][row]); return [Math.min(...all), Math.max(...all)]; });
    const half = 0.55 * Math.max(x[1] - x[0], y[1] - y[0], 1e-3), range = ([low, high]) => [(low + high) / 2 - half, (low + high) / 2 + half];
    const bare = { showticklabels: false, showgrid: false, zeroline: false, ticks: "" };
    const starts = large && !order ? mine.filter((row, number) => points.phone[row] && (!number || points.phone[row] !== points.phone[mine[number - 1]])) : [];
    const annotations = starts.map((row) => ({ x: points.x[row], y: points.y[row], text: plain(style(points.phone[row]).ipa), showarrow: false, xshift: 10, yshift: 10, font: { size: 13 } }));
    draw(plot, traces, { xaxis: { ...bare, range: range(x) }, yaxis: { ...bare, range: range(y) }, margin: { l: 0, r: 0, t: 0, b: 0 }, annotations }, large ? "hover" : false);
  }
  redraws.push(show);
  fill();
}

const FIGURES = {
  purity: ["phone purity", "share of neighbours", "share of the nearest frames of other sentences that have the same phone."],
  order: ["order correlation", "rank correlation", "rank correlation between distance in time and in space, within sentences."],
  silence: ["spread of silence", "share of that of all", "root mean square distance of silent frames from their center, relative to that of all frames."],
  probe: ["phone accuracy of a linear probe", "share of frames", "ridge regression, tested on sentences that it was not fitted to."],
};

function figures(runs) {
  const place = section("figures", "Measurements of layers");
  const run = networks(runs, show);
  const legend = element("div", { class: "legend" }), plots = element("div", { class: "plots" }), note = element("p", { class: "note" });
  place.append(element("div", { class: "controls" }, run.part), legend, plots, note);
  // Layer names without the beginning that all of them share.
  function short(names) {
    const parts = names[0].split(".");
    let shared = 0;
    while (names.length > 1 && shared < parts.length - 1 && names.every((name) => name.split(".").length > shared + 1 && name.split(".")[shared] === parts[shared])) shared++;
    return names.map((name) => name.split(".").slice(shared).join("."));
  }
  function show() {
    const current = runs[run.select.value], bounded = current.curves.some((one) => one.intervals.some((pair) => pair[0] !== null));
    const looks = { original: { color: css("--ink"), dash: "solid", symbol: "circle", name: "the layer's own space" }, tsne: { color: css("--faint"), dash: "dash", symbol: "square", name: "plane of t-SNE" }, chance: { color: css("--faint"), dash: "dot", symbol: "x", name: "chance" } };
    legend.replaceChildren(...Object.values(looks).map((one) => element("span", {}, swatch(one.color, one.dash), one.name)));
    note.textContent = (bounded ? "Means over speakers with 95 % intervals (bootstrap). " : "No intervals: all frames are of one speaker. ") + current.figures.map((name) => `${FIGURES[name][0][0].toUpperCase()}${FIGURES[name][0].slice(1)}: ${FIGURES[name][2]}`).join(" ");
    plots.replaceChildren(...current.figures.map((figure) => {
      const plot = element("div", { class: "plot", role: "group", "aria-label": `${FIGURES[figure][0]} along the layers` });
      const shown = current.curves.filter((one) => one.figure === figure || (figure === "purity" && one.figure === "chance" && one.space === "original"));
      queueMicrotask(() => draw(plot, shown.map((one) => {
        const look = looks[one.figure === "chance" ? "chance" : one.space];
        return { x: short(one.layers), y: one.means, mode: "lines+markers", line: { color: look.color, dash: look.dash }, marker: { symbol: look.symbol, size: 7 }, hovertemplate: `%{x}, ${look.name}: %{y:.3f}<extra></extra>`,
          error_y: one.intervals[0][0] === null ? undefined : { type: "data", symmetric: false, color: look.color, array: one.intervals.map((pair, at) => pair[1] - one.means[at]), arrayminus: one.intervals.map((pair, at) => one.means[at] - pair[0]) } };
      }), { title: { text: FIGURES[figure][0], font: { size: 15 } }, xaxis: { tickangle: -30 }, yaxis: { title: { text: FIGURES[figure][1] }, rangemode: "tozero" } }, false));
      return plot;
    }));
  }
  redraws.push(show);
  show();
}

// Neighbours of decoder states.

function neighbours(runs) {
  const place = section("neighbours", "Decoder neighbours", "Choose a character: the decoder states nearest to its own, in other sentences, and how many characters right before are the same. Arrow keys move along the sentence.");
  const run = networks(runs, fill);
  const sentence = chooser("sentence", [], () => { chosen = first(); show(); }, true);
  const layer = slider("layer", show);
  const text = element("div", { class: "sentence", role: "toolbar", "aria-label": "characters of the sentence" });
  const list = element("ol", { class: "neighbours", "aria-live": "polite" });
  const totals = element("div", {}), limits = element("p", { class: "note" });
  let printed = "";
  place.append(element("div", { class: "controls" }, run.part, sentence.part, layer.part), limits, text, list, copier("copy in the paper's notation", () => printed), totals);
  let chosen = 0;
  const current = () => runs[run.select.value];
  const first = () => Math.min(FIRST, current().begins[+sentence.select.value + 1] - current().begins[+sentence.select.value] - 1);
  function fill() {
    limits.textContent = current().note;
    sentence.fill(current().sentences.slice(0, current().asked).map((one, number) => [number, `${one.id}: ${one.text}`]));
    layer.fill(current().layers.map((one) => one.name));
    totals.replaceChildren(element("h3", {}, current().table.title));
    table(totals, current().table);
    chosen = first();
    show();
  }
  function shown(row) {
    const all = current(), of = all.sentence[row], begin = all.begins[of], end = all.begins[of + 1], at = row - begin;
    const characters = all.characters.slice(begin, end), letters = characters.map((one) => (one === "_" ? " " : one));
    const before = letters.slice(Math.max(0, at - 24), at).join(""), after = letters.slice(at + 1, at + 13).join("");
    return [(at > 24 ? "…" : "") + before, characters[at], after + (at + 13 < letters.length ? "…" : ""), all.sentences[of].id];
  }
  function show() {
    const all = current(), of = +sentence.select.value, begin = all.begins[of], end = all.begins[of + 1];
    text.replaceChildren(...all.characters.slice(begin, end).map((one, at) => element("button", {
      type: "button", "aria-pressed": String(at === chosen), tabindex: at === chosen ? 0 : -1, "aria-label": one === "_" ? "space" : one,
      onclick: () => { chosen = at; show(); text.children[at].focus(); },
    }, one === "_" ? "\u00a0" : one)));
    const row = begin + chosen, found = all.layers[layer.input.value];
    const notation = ([before, letter, after]) => `${before}<<${letter}>>${after}`.trim();
    printed = [notation(shown(row)), ...found.places[row].map((other, rank) => `${rank + 1}. ${notation(shown(other))} (${found.counts[row][rank]})`)].join("\n");
    list.replaceChildren(...found.places[row].map((other, rank) => {
      const [before, letter, after, id] = shown(other);
      return element("li", {}, element("code", {}, before, element("b", {}, letter), after), element("br"),
        element("small", {}, `${id}; ${found.counts[row][rank]} matching before; distance ${found.distances[row][rank].toFixed(2)}`));
    }));
  }
  text.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    chosen = Math.min(Math.max(chosen + step, 0), text.children.length - 1);
    show();
    text.children[chosen].focus();
  });
  fill();
}

// Alignments with audio.

function alignments(runs) {
  const place = section("alignments", "Alignments", "Attention weights or emission probabilities of each token over time, and posteriors of the CTC output. The line moves with the audio.");
  const run = networks(runs, fill);
  const utterance = chooser("utterance", [], show, true);
  const map = chooser("map", [], show);
  const player = element("audio", { controls: "", preload: "metadata", "aria-label": "recording" });
  const plot = element("div", { class: "plot", role: "group" });
  const legend = element("div", { class: "legend" }), limits = element("p", { class: "note" });
  place.append(element("div", { class: "controls" }, run.part, utterance.part, map.part), limits, player, legend, plot);
  const current = () => runs[run.select.value].utterances[utterance.select.value];
  function fill() {
    limits.textContent = runs[run.select.value].note;
    utterance.fill(runs[run.select.value].utterances.map((one, number) => [number, `${one.id}: ${one.text}`]));
    show();
  }
  function cursor(seconds) { return [{ type: "line", x0: seconds, x1: seconds, yref: "paper", y0: 0, y1: 1, line: { color: css("--worse"), width: 2 } }]; }
  const visible = (label) => label.replace(/[_▁]/g, "␣");
  function show() {
    const one = current();
    map.fill(one.maps.map((two, number) => [number, two.name]));
    if (player.dataset.of !== run.select.value + "/" + one.id) { player.dataset.of = run.select.value + "/" + one.id; player.src = "data:audio/flac;base64," + one.audio; }
    const chosen = one.maps[map.select.value] ?? one.maps[0], bytes = Uint8Array.from(atob(chosen.weights), (letter) => letter.charCodeAt(0));
    const [rows, columns] = chosen.shape, step = one.seconds / columns;
    const x = Array.from({ length: columns }, (_, column) => (column + 0.5) * step);
    const values = Array.from({ length: rows }, (_, row) => Array.from(bytes.subarray(row * columns, (row + 1) * columns), (value) => chosen.most * value / 255));
    const more = { xaxis: { title: { text: "time (s)" }, range: [0, one.seconds] }, shapes: cursor(player.currentTime || 0) };
    const labels = chosen.labels.map(visible), posteriors = chosen.kind === "posteriors";
    plot.setAttribute("aria-label", `${chosen.name} of ${one.id}: ${one.text}`);
    plot.style.height = `${posteriors ? 400 : Math.min(1400, Math.max(280, 15 * rows + 90))}px`;
    const look = (row) => (row ? { color: color(row - 1), dash: dash(row - 1) } : { color: css("--faint"), dash: "solid" });
    legend.replaceChildren(...(posteriors ? labels.map((label, row) => element("span", {}, swatch(look(row).color, look(row).dash), label)) : []));
    if (posteriors) {
      // Emitted tokens stand above their frames; word boundaries have a row of their own.
      const annotations = (chosen.emitted ?? []).map(([frame, token]) => ({ x: x[frame], y: token === "_" || token === "▁" ? 1.12 : 1.04, text: plain(visible(token)), showarrow: false, font: { size: 12 } }));
      draw(plot, values.map((y, row) => ({ x, y, name: plain(labels[row]), mode: "lines", line: look(row), hovertemplate: `${plain(labels[row])} at %{x:.2f} s: %{y:.2f}<extra></extra>` })),
        { ...more, annotations, margin: { l: 56, r: 12, t: 12, b: 44 }, yaxis: { title: { text: "probability" }, range: [0, annotations.length ? 1.18 : 1.02], tickvals: [0, 0.2, 0.4, 0.6, 0.8, 1] } });
    } else {
      draw(plot, [{ type: "heatmap", x, y: labels.map((_, row) => row), z: values, colorscale: dark() ? [[0, "#16181b"], [0.5, "#b0532f"], [1, "#ffe08a"]] : [[0, "#ffffff"], [0.5, "#5b8fd0"], [1, "#08204a"]],
        customdata: labels.map((label) => Array(columns).fill(plain(label))), hovertemplate: "%{customdata} at %{x:.2f} s: %{z:.2f}<extra></extra>", showscale: true,
        colorbar: { title: { text: chosen.kind === "emission" ? "probability" : "weight", side: "right" }, thickness: 12, len: 1, outlinewidth: 0 } }],
      { ...more, margin: { l: 56, r: 12, t: 12, b: 44 }, yaxis: { title: { text: "token" }, autorange: "reversed", showgrid: false, tickvals: labels.map((_, row) => row), ticktext: labels.map(plain), tickfont: { size: labels.length > 85 ? 8 : 12 } } });
    }
  }
  player.addEventListener("timeupdate", () => plot.drawWaiting || Plotly.relayout(plot, { shapes: cursor(player.currentTime) }));
  redraws.push(show);
  fill();
}

// The page: the verdict at once, the rest when Plotly and the larger part of the data have been read.

if (data.summary) verdicts(data.summary);

function drawSections(parts) {
  if (data.curves || data.training.length) curves(data.curves, data.training);
  if (data.summary) runs(data.summary);
  data.tables.forEach((one, number) => table(section(`table${number + 1}`, one.title), one));
  if (parts.sentences.length) sentences(parts.sentences);
  if (parts.layers.length) { layers(parts.layers); figures(parts.layers); }
  if (parts.neighbours.length) neighbours(parts.neighbours);
  if (parts.alignments.length) alignments(parts.alignments);
}

theme.addEventListener("click", () => redraws.forEach((one) => one()));
