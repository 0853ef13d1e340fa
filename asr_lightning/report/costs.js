const speeds = new Map(data.speeds);
const fewest = Math.min(...speeds.keys());
const field = (name) => document.getElementById(name);

function shown(value, digits = 1) {
  return value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

function table(place, lines) {
  place.replaceChildren(...lines.map((line, row) => {
    const made = document.createElement("tr");
    made.append(...line.map((text, column) => Object.assign(document.createElement(row ? "td" : "th"), {
      textContent: text, className: lines.slice(1).every((other) => /^[\d.,]+( to [\d.,]+)?$|^–$/.test(other[column])) ? "number" : "",
    })));
    return made;
  }));
}

function speed(devices, efficiency) {
  return speeds.get(devices) ?? devices * speeds.get(fewest) / fewest * (devices > fewest ? efficiency : 1);
}

function estimate() {
  if (!field("inputs").checkValidity()) return;
  const [hours, epochs, efficiency] = ["hours", "epochs", "efficiency"].map((name) => Number(field(name).value));
  const priced = field("price").value !== "", price = Number(field("price").value);
  const lines = [["devices", "from", "audio s/s", "hours", "days", "device-hours", ...(priced ? ["money"] : [])]];
  for (const devices of field("devices").value.split(/[\s,]+/).filter(Boolean).map(Number)) {
    const wall = hours * epochs / speed(devices, efficiency);
    lines.push([String(devices), speeds.has(devices) ? "measured" : "estimate", shown(speed(devices, efficiency)), shown(wall), shown(wall / 24),
      shown(wall * devices), ...(priced ? [shown(wall * devices * price, 2)] : [])]);
  }
  table(field("costs"), lines);
}

field("kind").textContent = {
  CPU: "Measured on a CPU. A device is a process on a CPU like this one; these numbers say nothing about GPUs.",
  GPU: "Measured on GPUs. Other GPUs have other speeds.",
}[data.kind] ?? "The runs do not say on what they were trained: these numbers hold for devices like theirs only.";
field("efficient").textContent = "Efficiency is the share of the linear speed-up that is left on numbers of devices above "
  + `${fewest} that were not measured: ` + (data.measured ? "here that of the runs with the most devices." : "here an assumption, which no run has confirmed.");
table(field("runs"), [["run", "device", "processes", "batch s", "precision", "epochs", "audio s/s", "slowest to fastest", "folder"],
  ...data.runs.map((run) => [run.run, run.device, String(run.processes), run.batch || "–", run.precision, String(run.epochs), shown(run.speed),
    `${shown(run.least)} to ${shown(run.most)}`, run.folder])]);
for (const name of ["hours", "epochs", "price"]) field(name).value = data.inputs[name] ?? "";
field("devices").value = data.inputs.devices.join(", ");
field("efficiency").value = Number(data.inputs.efficiency.toFixed(3));
field("inputs").addEventListener("input", estimate);
estimate();
