const COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8B8000", "#7f7f7f"];
const RAINBOW = ["#e6194b", "#f58231", "#ffd700", "#3cb44b", "#00bcd4", "#3f51f5", "#8a2be2"];
const LOGARITHMIC = [0.1, 0.2, 0.5, 1, 2, 3, 5, 10, 20, 30, 50, 70, 100, 200, 300, 500, 1000];
const FIRST = 8;  // the character whose neighbours are shown first: at a sentence's begin all states are one
const redraws = [];  // called when the theme changes

// Small things.

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== false && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function section(id, title, ...notes) {
  const made = element("section", { id }, element("h2", {}, title), ...notes.map((note) => element("p", { class: "note" }, note)));
  document.getElementById("sections").append(made);
  document.getElementById("contents").append(element("a", { href: "#" + id }, title));
  return made;
}

function chooser(label, options, act) {
  const select = element("select", { "aria-label": label, onchange: () => act() });
  const fill = (values) => {
    const before = select.value;
    select.replaceChildren(...values.map(([value, text]) => element("option", { value }, text)));
    if (values.some(([value]) => String(value) === before)) select.value = before;
  };
  fill(options);
  return { part: element("label", {}, label, select), select, fill };
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

function radios(label, name, options, act) {
  const inputs = options.map(([value, text], place) =>
    element("label", {}, element("input", { type: "radio", name, value, ...(place ? {} : { checked: "" }), onchange: act }), text));
  const part = element("fieldset", { "aria-label": label }, label, ...inputs);
  return { part, get value() { return part.querySelector("input:checked").value; } };
}

function css(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }

function layout(more = {}) {
  const axis = { gridcolor: css("--line"), linecolor: css("--line"), zeroline: false };
  const { xaxis = {}, yaxis = {}, ...rest } = more;
  return {
    paper_bgcolor: css("--paper"), plot_bgcolor: css("--paper"), font: { color: css("--ink"), size: 13 },
    margin: { l: 56, r: 12, t: 34, b: 88 }, legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom" }, hoverlabel: { namelength: -1 },
    xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...rest,
  };
}

// Plotly reads some marks and entities in its texts: ours have none.
function plain(text) { return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;"); }

function draw(place, traces, more, toolbar = "hover") {
  Plotly.react(place, traces, layout(more), { responsive: true, displaylogo: false, displayModeBar: toolbar, modeBarButtonsToRemove: ["select2d", "lasso2d"] });
}

function rainbow(part) {
  const at = Math.min(Math.max(part, 0), 1) * (RAINBOW.length - 1), low = Math.min(Math.floor(at), RAINBOW.length - 2);
  const channel = (color, number) => parseInt(color.slice(1 + 2 * number, 3 + 2 * number), 16);
  const mixed = [0, 1, 2].map((number) => Math.round(channel(RAINBOW[low], number) * (low + 1 - at) + channel(RAINBOW[low + 1], number) * (at - low)));
  return `rgb(${mixed.join(",")})`;
}

function table(place, one) {
  place.append(element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": one.title }, element("table", {},
    element("thead", {}, element("tr", {}, ...one.head.map((cell) => element("th", { scope: "col" }, cell)))),
    element("tbody", {}, ...one.rows.map((row) => element("tr", {}, ...row.map((cell) => element("td", {}, cell))))))));
  for (const note of one.notes ?? []) place.append(element("p", { class: "note" }, note));
}

const mean = (values) => values.reduce((sum, one) => sum + one, 0) / values.length;

// Error rates per epoch.

function curves(all) {
  const place = section("curves", "Error rates per epoch", "Mean over seeds; the band is from the least to the greatest of them.");
  const metric = chooser("rate", all.metrics.map((one) => [one, one.toUpperCase().replace("_", " ")]), show);
  const scale = radios("axis", "scale", [["log", "logarithmic"], ["linear", "linear"]], show);
  const plots = element("div", { class: "plots" });
  place.append(element("div", { class: "controls" }, metric.part, scale.part), plots);
  const panels = all.subsets.map((subset) => { const plot = element("div", { class: "plot", role: "img", "aria-label": `error rates on ${subset}` }); plots.append(plot); return plot; });
  function show() {
    all.subsets.forEach((subset, number) => {
      const traces = [];
      all.runs.forEach((run, place) => {
        const seeds = (run.rates[subset] ?? {})[metric.select.value] ?? {};
        const epochs = [...new Set(Object.values(seeds).flatMap((one) => one.map(([epoch]) => epoch)))].sort((a, b) => a - b);
        if (!epochs.length) return;
        const at = epochs.map((epoch) => Object.values(seeds).flatMap((one) => one.filter(([other]) => other === epoch).map(([, rate]) => 100 * rate)));
        const color = COLORS[place % COLORS.length];
        if (Object.keys(seeds).length > 1)
          traces.push({ x: [...epochs, ...[...epochs].reverse()], y: [...at.map((one) => Math.max(...one)), ...[...at].reverse().map((one) => Math.min(...one))],
            fill: "toself", fillcolor: color + "33", line: { width: 0 }, hoverinfo: "skip", showlegend: false, type: "scatter", mode: "lines" });
        traces.push({ x: epochs, y: at.map(mean), name: plain(run.name), mode: "lines+markers", line: { color: color },
          hovertemplate: `${plain(run.name)}, epoch %{x}: %{y:.2f} %<extra></extra>` });
      });
      draw(panels[number], traces, { title: { text: plain(subset), font: { size: 15 } }, xaxis: { title: { text: "epoch" }, dtick: all.epochs > 20 ? undefined : 1 },
        yaxis: { title: { text: "%" }, type: scale.value, ...(scale.value === "log" ? { tickvals: LOGARITHMIC } : {}) } });
    });
  }
  redraws.push(show);
  show();
}

// Layers: t-SNE and numbers.

function layers(runs) {
  const place = section("layers", "Layers", "Frames of one speaker by t-SNE, each layer by itself, turned alike. The frames of one sentence are shown: in the order of time from red to violet, or by phone.");
  const run = chooser("network", runs.map((one, number) => [number, one.name]), fill);
  const speaker = chooser("speaker", [], fill);
  const sentence = chooser("sentence", [], show);
  const layer = slider("layer", show);
  const kind = radios("colors", "labels", [["order", "order"], ["phone", "phone"]], show);
  const rest = element("input", { type: "checkbox", onchange: show });
  const strip = element("div", { class: "strip", tabindex: 0, role: "img", "aria-label": "characters along the sentence" });
  const plot = element("div", { class: "plot", style: "height: 540px", role: "img", "aria-label": "t-SNE of a layer" });
  place.append(element("div", { class: "controls" }, run.part, speaker.part, sentence.part, layer.part, kind.part, element("label", {}, rest, "all sentences behind")), strip, plot);
  const numbers = element("div", { class: "plots" });
  const limits = element("p", { class: "note" });
  for (const { labels, speakers } of runs)
    for (const { layers } of Object.values(speakers))
      for (const points of Object.values(layers))
        for (const key of ["character", "phone"]) points[key] = points[key].map((number) => labels[number]);
  place.append(limits, element("h2", {}, "Numbers along the layers"), element("p", { class: "note" },
    "Purity: share of the nearest frames of other sentences with the same phone. Order: rank correlation of distance in time and in space, within sentences. Silence: its spread by that of all frames. Probe: accuracy of a linear classifier on sentences it has not seen. Mean over speakers with 95 % interval."), numbers);
  const current = () => runs[run.select.value];
  function fill() {
    speaker.fill(current().order.map((one) => [one, one]));
    const chosen = current().speakers[speaker.select.value];
    sentence.fill(chosen.utterances.map((one, number) => [number, `${one.id}: ${one.text}`]));
    sentence.select.style.maxWidth = "min(100%, 420px)";
    layer.fill(current().layers);
    limits.textContent = current().note;
    show();
  }
  function show() {
    const chosen = current().speakers[speaker.select.value], name = current().layers[layer.input.value];
    const points = chosen.layers[name], utterance = +sentence.select.value;
    const mine = points.utterance.map((one, row) => [one, row]).filter(([one]) => one === utterance).map(([, row]) => row);
    const label = (row) => `${plain(chosen.utterances[points.utterance[row]].id)}<br>${points.start[row].toFixed(2)} to ${(points.start[row] + points.length).toFixed(2)} s<br>character ${plain(points.character[row] || "?")}<br>phone ${plain(points.phone[row] || "?")}`;
    const pick = (rows) => ({ x: rows.map((row) => points.x[row]), y: rows.map((row) => points.y[row]), text: rows.map(label), hovertemplate: "%{text}<extra></extra>", mode: "markers", type: "scatter" });
    const traces = [];
    if (rest.checked) {
      const others = points.x.map((_, row) => row).filter((row) => points.utterance[row] !== utterance);
      traces.push({ ...pick(others), marker: { color: css("--line"), size: 4 }, name: "other sentences" });
    }
    const part = (number) => number / Math.max(1, mine.length - 1);
    traces.push({ ...pick(mine), mode: "lines", line: { color: css("--line"), width: 1 }, hoverinfo: "skip", hovertemplate: undefined, showlegend: false });
    if (kind.value === "order") {
      traces.push({ ...pick(mine), marker: { color: mine.map((_, number) => rainbow(part(number))), size: 9 }, name: "frames", showlegend: false });
    } else {
      for (const phone of [...new Set(mine.map((row) => points.phone[row]))])
        traces.push({ ...pick(mine.filter((row) => points.phone[row] === phone)), name: plain(phone || "?"), marker: { color: current().colors[phone] ?? css("--faint"), size: 9, symbol: phone === "SIL" ? "x" : "circle" } });
    }
    draw(plot, traces, { title: { text: plain(`${current().name}, ${name}`), font: { size: 15 } }, xaxis: { showticklabels: false }, yaxis: { showticklabels: false, scaleanchor: "x" }, margin: { l: 12, r: 12, t: 34, b: kind.value === "phone" || rest.checked ? 70 : 12 } });
    strip.replaceChildren(...mine.map((row, number) => element("span", { style: `background: ${kind.value === "order" ? rainbow(part(number)) : current().colors[points.phone[row]] ?? css("--line")}` },
      points.character[row] && (number === 0 || points.character[row] !== points.character[mine[number - 1]]) ? points.character[row] : "")));
    numbers.replaceChildren(...current().figures.map((figure) => {
      const plot = element("div", { class: "plot", role: "img", "aria-label": figure });
      queueMicrotask(() => draw(plot, current().curves.filter((one) => one.figure === figure || (figure === "purity" && one.figure === "chance" && one.space === "original")).map((one) => ({
        x: one.layers, y: one.means, name: one.figure === "chance" ? "chance" : { original: "original space", tsne: "t-SNE" }[one.space], mode: "lines+markers",
        line: one.figure === "chance" ? { color: css("--faint"), dash: "dot" } : { color: COLORS[one.space === "tsne" ? 1 : 0] },
        error_y: one.intervals[0][0] === null ? undefined : { type: "data", symmetric: false, array: one.intervals.map((pair, place) => pair[1] - one.means[place]), arrayminus: one.intervals.map((pair, place) => one.means[place] - pair[0]) },
      })), { title: { text: figure, font: { size: 15 } } }, false)); // small: a toolbar would lie over the title
      return plot;
    }));
  }
  redraws.push(show);
  fill();
}

// Neighbours of decoder states.

function neighbours(runs) {
  const place = section("neighbours", "Decoder neighbours", "Choose a character: the decoder states nearest to its own, in other sentences, and how many characters right before are the same. Arrow keys go along the sentence.");
  const run = chooser("network", runs.map((one, number) => [number, one.name]), fill);
  const sentence = chooser("sentence", [], () => { chosen = first(); show(); });
  const layer = slider("layer", show);
  const text = element("div", { class: "sentence", role: "toolbar", "aria-label": "characters of the sentence" });
  const list = element("ol", { class: "neighbours", "aria-live": "polite" });
  const totals = element("div", {}), limits = element("p", { class: "note" });
  place.append(element("div", { class: "controls" }, run.part, sentence.part, layer.part), limits, text, list, totals);
  let chosen = 0;
  const current = () => runs[run.select.value];
  const first = () => Math.min(FIRST, current().begins[+sentence.select.value + 1] - current().begins[+sentence.select.value] - 1);
  function fill() {
    limits.textContent = current().note;
    sentence.fill(current().sentences.slice(0, current().asked).map((one, number) => [number, `${one.id}: ${one.text}`]));
    sentence.select.style.maxWidth = "min(100%, 420px)";
    layer.fill(current().layers.map((one) => one.name));
    totals.replaceChildren();
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
    list.replaceChildren(...found.places[row].map((other, rank) => {
      const [before, letter, after, id] = shown(other);
      return element("li", {}, element("code", {}, before, element("b", {}, letter), after), element("br"),
        element("small", {}, `${id}; ${found.counts[row][rank]} matching before; distance ${found.distances[row][rank]}`));
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
  const place = section("alignments", "Alignments", "Where a network looks, or where it emits, token by token over seconds; posteriors of its CTC output. The line moves with the audio.");
  const run = chooser("network", runs.map((one, number) => [number, one.name]), fill);
  const utterance = chooser("utterance", [], show);
  const map = chooser("map", [], show);
  const player = element("audio", { controls: "", preload: "metadata" });
  const plot = element("div", { class: "plot", style: "height: 560px", role: "img", "aria-label": "alignment" });
  const limits = element("p", { class: "note" });
  place.append(element("div", { class: "controls" }, run.part, utterance.part, map.part), limits, player, plot);
  const current = () => runs[run.select.value].utterances[utterance.select.value];
  function fill() {
    limits.textContent = runs[run.select.value].note;
    utterance.fill(runs[run.select.value].utterances.map((one, number) => [number, `${one.id}: ${one.text}`]));
    utterance.select.style.maxWidth = "min(100%, 420px)";
    show();
  }
  function cursor(seconds) { return [{ type: "line", x0: seconds, x1: seconds, yref: "paper", y0: 0, y1: 1, line: { color: "#D55E00", width: 2 } }]; }
  function show() {
    const one = current();
    map.fill(one.maps.map((two, number) => [number, two.name]));
    if (player.dataset.of !== run.select.value + "/" + one.id) { player.dataset.of = run.select.value + "/" + one.id; player.src = "data:audio/flac;base64," + one.audio; }
    const chosen = one.maps[map.select.value] ?? one.maps[0], bytes = Uint8Array.from(atob(chosen.weights), (letter) => letter.charCodeAt(0));
    const [rows, columns] = chosen.shape, step = one.seconds / columns;
    const x = Array.from({ length: columns }, (_, column) => (column + 0.5) * step);
    const values = Array.from({ length: rows }, (_, row) => Array.from(bytes.subarray(row * columns, (row + 1) * columns), (value) => chosen.most * value / 255));
    const more = { xaxis: { title: { text: "seconds" }, range: [0, one.seconds] }, shapes: cursor(player.currentTime || 0) };
    const labels = chosen.labels.map((label) => (label === "_" ? "␣" : plain(label)));
    if (chosen.kind === "posteriors") {
      draw(plot, values.map((y, row) => ({ x, y, name: labels[row], mode: "lines", line: { color: row ? COLORS[(row - 1) % COLORS.length] : css("--faint") } })), { ...more, yaxis: { title: { text: "probability" }, range: [0, 1.02] } });
    } else {
      draw(plot, [{ type: "heatmap", x, y: labels.map((_, row) => row), z: values, colorscale: document.documentElement.dataset.theme === "dark" ? [[0, "#16181b"], [0.5, "#b0532f"], [1, "#ffe08a"]] : [[0, "#ffffff"], [0.5, "#5b8fd0"], [1, "#08204a"]],
        customdata: labels.map((label) => Array(columns).fill(label)), hovertemplate: "%{customdata} at %{x:.2f} s: %{z:.2f}<extra></extra>", showscale: false }],
      { ...more, yaxis: { autorange: "reversed", tickvals: labels.map((_, row) => row), ticktext: labels, tickfont: { size: labels.length > 50 ? 8 : 11 } } });
    }
  }
  player.addEventListener("timeupdate", () => Plotly.relayout(plot, { shapes: cursor(player.currentTime) }));
  redraws.push(show);
  fill();
}

// The page.

theme.addEventListener("click", () => redraws.forEach((one) => one()));

if (data.curves) curves(data.curves);
data.tables.forEach((one, number) => table(section(`table${number + 1}`, one.title), one));
if (data.layers.length) layers(data.layers);
if (data.neighbours.length) neighbours(data.neighbours);
if (data.alignments.length) alignments(data.alignments);
