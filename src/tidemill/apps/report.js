"use strict";
// The values under the pointer, or under the arrow keys. Names are put in as text, never as HTML.
for (const field of document.querySelectorAll("[data-tips]")) {
  const { at, when, rows } = JSON.parse(document.getElementById(field.dataset.tips).textContent);
  const tip = field.querySelector(".tip"), cross = field.querySelector(".cross");
  let now = at.length;
  const element = (tag, css, text) => Object.assign(document.createElement(tag), { className: css, textContent: text });
  const show = index => {
    now = Math.max(0, Math.min(at.length - 1, index));
    const lines = rows.filter(row => row[2][now] !== null)
      .map(row => { const line = element("div", row[1], ""); line.append(element("i", "", ""), element("span", "", row[0]), element("b", "", row[2][now])); return line; });
    tip.replaceChildren(element("strong", "", when[now]), ...lines);
    cross.style.left = at[now] / 10 + "%";
    tip.style.left = at[now] > 500 ? "auto" : `calc(${at[now] / 10}% + 10px)`;
    tip.style.right = at[now] > 500 ? `calc(${100 - at[now] / 10}% + 10px)` : "auto";
    tip.hidden = cross.hidden = false;
  };
  const hide = () => { tip.hidden = cross.hidden = true; };
  field.addEventListener("pointermove", event => {
    const box = field.getBoundingClientRect(), x = 1000 * (event.clientX - box.left) / box.width;
    show(at.reduce((best, one, index) => Math.abs(one - x) < Math.abs(at[best] - x) ? index : best, 0));
  });
  field.addEventListener("pointerleave", hide);
  field.addEventListener("blur", hide);
  field.addEventListener("keydown", event => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) { event.preventDefault(); show(now + step); } else if (event.key === "Escape") hide();
  });
}
