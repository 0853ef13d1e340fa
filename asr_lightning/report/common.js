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
