const LEFT = 118, RIGHT = 14, ROW = 26, BETWEEN = 84; // pixels; marks nearer to each other than the last are left out
const drawn = (name, attributes, text = "") => {
  const shape = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) shape.setAttribute(key, value);
  shape.textContent = text;
  return shape;
};
const minus = (text) => String(text).replace(/(^|[\s(])-(?=\d)/g, "$1−"); // a hyphen before a number
const digits = (value) => minus(value.toLocaleString("en-US", { maximumSignificantDigits: 3, signDisplay: "exceptZero" }));
const sentence = (...parts) => parts.filter(Boolean).map(minus).join(" ");

// Intervals above one axis with 0 in it: left of 0 the claim is right.
function intervals(claim) {
  const width = Math.min(640, document.documentElement.clientWidth - 76);
  const ends = claim.intervals.flatMap(([, ...values]) => values).filter((value) => value !== null);
  const low = Math.min(0, ...ends), high = Math.max(0, ...ends), span = high - low || 1;
  const x = (value) => LEFT + (width - LEFT - RIGHT) * (value - low) / span;
  const height = ROW * claim.intervals.length + 30;
  const told = claim.intervals.map(([name, middle, from, to]) => `${name}: ${digits(middle)}` + (from === null ? "" : ` (${digits(from)} to ${digits(to)})`));
  const picture = drawn("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img",
    "aria-label": `difference in ${claim.unit || "the measure"}, left of 0 as claimed; ${told.join("; ")}` });
  const bottom = height - 24;
  picture.append(drawn("line", { class: "axis", x1: LEFT, x2: width - RIGHT, y1: bottom, y2: bottom }),
    drawn("line", { class: "axis", x1: x(0), x2: x(0), y1: 0, y2: bottom, "stroke-dasharray": "3 3" }));
  claim.intervals.forEach(([name, middle, from, to], row) => {
    const y = ROW * row + 14;
    picture.append(drawn("text", { x: 0, y: y + 4 }, name));
    if (from !== null) picture.append(drawn("line", { x1: x(from), x2: x(to), y1: y, y2: y, "stroke-width": row ? 2 : 4 }));
    picture.append(drawn("circle", { cx: x(middle), cy: y, r: 5 }));
  });
  const marks = [0];
  for (const mark of [low, high]) if (marks.every((other) => Math.abs(x(mark) - x(other)) > BETWEEN)) marks.push(mark);
  for (const mark of marks) {
    const anchor = x(mark) > width - 40 ? "end" : x(mark) < LEFT + 20 ? "start" : "middle";
    picture.append(drawn("text", { x: x(mark), y: height - 6, "text-anchor": anchor }, mark === 0 ? "0" : sentence(digits(mark), claim.unit)));
  }
  return picture;
}

function card(claim) {
  const cells = claim.cells;
  const box = element("section", { class: `claim ${claim.verdict.replace(" ", "-")}` }, element("h3", {}, cells.claim),
    element("p", {}, element("b", {}, claim.verdict), claim.reason ? `: ${claim.reason}` : ""),
    element("p", { class: "note" }, `${cells.source}: ${cells["the paper"]}`));
  if (claim.intervals.length) {
    box.append(element("p", {}, sentence(`${cells.measure}: ${cells.lower} beside ${cells.higher}; difference ${cells.difference}`, claim.unit) + `, ${cells.over}.`),
      intervals(claim), element("p", { class: "note" }, "Left of 0: as claimed." + (cells["visible from"] === "–" ? ""
        : ` True differences smaller than ${sentence(cells["visible from"], claim.unit)} would mostly have been missed.`)));
  }
  const more = element("details", {}, element("summary", {}, "where it comes from"), element("p", {}, element("code", {}, cells.command)));
  more.append(element("p", {}, `${cells.hours} hours` + (claim.commits.length ? `, commit ${claim.commits.join(", ")}` : "")),
    element("pre", {}, claim.values.map(([name, values]) => `${name}: ${minus(values)}`).join("\n")),
    element("p", { class: "note" }, "Folders of the runs and of what they needed, each with the digest of its experiment, rates, transcripts and logs:"),
    element("pre", {}, claim.runs.map(([folder, hash]) => `${hash}  ${folder}`).join("\n")));
  if (claim.curve && data.curves[claim.ablation])
    more.append(element("p", { class: "note" }, "As of the last results of the ablation:"),
      element("img", { src: data.curves[claim.ablation], alt: `error rates by epoch of ${claim.ablation}`, loading: "lazy" }));
  box.append(more);
  return box;
}

// Claims without runs, a line each, below the commands that would decide them.
function waiting(claims) {
  return [...new Set(claims.map((claim) => claim.cells.command))].map((command) => element("div", { class: "waiting" }, element("p", {}, element("code", {}, command)),
    element("ul", {}, ...claims.filter((claim) => claim.cells.command === command).map((claim) => element("li", {}, `${claim.cells.claim} (${claim.cells.source})`)))));
}

document.getElementById("title").textContent = document.title = data.title;
document.getElementById("counts").append(...Object.entries(data.counts).map(([verdict, count]) => element("span", {}, `${count} ${verdict}`)));
for (const verdict of Object.keys(data.counts)) {
  const shown = data.claims.filter((claim) => claim.verdict === verdict);
  const [without, others] = [shown.filter((claim) => !claim.runs.length), shown.filter((claim) => claim.runs.length)];
  if (shown.length) document.getElementById("claims").append(element("h2", {}, verdict[0].toUpperCase() + verdict.slice(1)), ...others.map(card), ...waiting(without));
}
document.getElementById("notes").append(...[...data.notes, data.made].map((note) => element("p", { class: "note" }, note)));
