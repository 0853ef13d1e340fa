// Of all pages, before their own script.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);

const theme = document.getElementById("theme");
function wear(name) {
  document.documentElement.dataset.theme = name;
  theme.textContent = name === "dark" ? "light" : "dark";
  theme.setAttribute("aria-label", `use ${theme.textContent} colors`);
}
wear(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
theme.addEventListener("click", () => wear(theme.textContent));

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== false && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}
