const WIDTH = 640, LEFT = 130, RIGHT = 20, ROW = 26;
const made = (name, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
};
const drawn = (name, attributes, text = "") => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  return element;
};
const digits = (value) => value.toLocaleString("en-US", { maximumSignificantDigits: 3, signDisplay: "exceptZero" });

// Intervals above one axis with 0 in it: left of 0 the claim is right.
function intervals(claim) {
  const ends = claim.intervals.flatMap(([, ...values]) => values).filter((value) => value !== null);
  const low = Math.min(0, ...ends), high = Math.max(0, ...ends), span = high - low || 1;
  const x = (value) => LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / span;
  const height = ROW * claim.intervals.length + 28;
  const told = claim.intervals.map(([name, middle, from, to]) => `${name}: ${digits(middle)}` + (from === null ? "" : ` (${digits(from)} to ${digits(to)})`));
  const picture = drawn("svg", { viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label": `difference in ${claim.unit || "the measure"}, ${told.join("; ")}` });
  const bottom = height - 24;
  picture.append(drawn("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: bottom, y2: bottom }),
    drawn("line", { class: "axis", x1: x(0), x2: x(0), y1: 0, y2: bottom, "stroke-dasharray": "3 3" }));
  claim.intervals.forEach(([name, middle, from, to], row) => {
    const y = ROW * row + 14;
    picture.append(drawn("text", { x: 0, y: y + 4 }, name));
    if (from !== null) picture.append(drawn("line", { x1: x(from), x2: x(to), y1: y, y2: y, "stroke-width": row ? 2 : 4 }));
    picture.append(drawn("circle", { cx: x(middle), cy: y, r: 5 }));
  });
  const marks = [...new Set([low, 0, high])].filter((mark, index, all) => mark === 0 || Math.abs(x(mark) - x(0)) > 60 || all.length === 1);
  for (const mark of marks) {
    picture.append(drawn("text", { x: x(mark), y: height - 6, "text-anchor": x(mark) > WIDTH - 60 ? "end" : x(mark) < LEFT + 30 ? "start" : "middle" },
      mark === 0 ? "0" : `${digits(mark)} ${claim.unit}`));
  }
  return picture;
}

function card(claim) {
  const cells = claim.cells;
  const box = made("section", { className: `claim ${claim.verdict.replace(" ", "-")}` }, made("h3", { textContent: cells.claim }),
    made("p", {}, made("b", { textContent: claim.verdict }), claim.reason ? `: ${claim.reason}` : ""),
    made("p", { className: "note", textContent: `${cells.source}: ${cells["the paper"]}` }));
  if (claim.intervals.length) {
    box.append(made("p", { textContent: `${cells.measure}: ${cells.less} beside ${cells.more}; difference ${cells.difference} ${claim.unit}, ${cells.over}; `
      + `a difference of ${cells["visible from"]} ${claim.unit} would have been seen.` }), intervals(claim));
  }
  const more = made("details", {}, made("summary", { textContent: "where it comes from" }), made("p", {}, made("code", { textContent: cells.command })));
  if (claim.runs.length) {
    more.append(made("p", { textContent: `${cells.hours} hours of ${claim.runs.length} runs` + (claim.commits.length ? `, commit ${claim.commits.join(", ")}` : "") }),
      made("p", { className: "note", textContent: "Folders, each with the digest of its experiment and rates:" }),
      made("pre", { textContent: claim.runs.map(([folder, hash]) => `${hash}  ${folder}`).join("\n") }));
  }
  if (data.curves[claim.ablation]) more.append(made("img", { src: data.curves[claim.ablation], alt: `error rates by epoch of ${claim.ablation}` }));
  box.append(more);
  return box;
}

document.getElementById("title").textContent = document.title = data.title;
document.getElementById("counts").append(...Object.entries(data.counts).map(([verdict, count]) => made("span", { textContent: `${count} ${verdict}` })));
for (const verdict of Object.keys(data.counts)) {
  const shown = data.claims.filter((claim) => claim.verdict === verdict);
  if (shown.length) document.getElementById("claims").append(made("h2", { textContent: verdict[0].toUpperCase() + verdict.slice(1) }), ...shown.map(card));
}
document.getElementById("notes").append(...[...data.notes, `Made on ${data.made}.`].map((note) => made("p", { className: "note", textContent: note })));
