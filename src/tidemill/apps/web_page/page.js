"use strict";
// Draws the state that /events sends. Whatever comes from data is put in as text or as a number, never as HTML.

const DAY = 86_400_000, GUTTER = 46, ALERTS_FIRST = 8, STORY_FIRST = 14, LANES_SHOWN = 8;
const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
const COLOURS = { blend: "s0", booster: "s1", learner: "s2", base_rate: "s4", constant: "b0", no_change: "b1" };
const OTHER_COLOURS = ["s3", "s5", "s1 d1", "s2 d1", "s4 d1", "s3 d1", "s5 d1", "s1 d2", "s2 d2", "s4 d2"];
const WORDS = {
  triggered: "Training is due", declined: "Trigger declined", failed: "Training failed", trained: "Trained", gated: "Refused by the gate",
  approval_asked: "Waits for approval", approved: "Approved", shadow: "Shadow", canary: "Canary", promoted: "Promoted", kept: "Kept",
  rolled_back: "Rolled back", aborted: "Aborted", frozen: "Learner frozen", thawed: "Learner thawed", excised: "Examples excised",
};
const STORY_COLOURS = { promoted: "s0", kept: "s0", shadow: "s2", trained: "s2", canary: "s1", approved: "s1", approval_asked: "s1",
  gated: "s3", aborted: "s3", failed: "s3", rolled_back: "s3", frozen: "s3" };

let state = null, range = 0, cursor = null, isAllAlerts = false, isAllStory = false, changedAt = 0, isScheduled = false, scale = null;
const toggled = new Map();      // series -> shown, where somebody chose
const open = new Set();         // keys of the details that are open
const drawn = new Map();        // part of the page -> the text it was drawn from
const at = id => document.getElementById(id);

// --- elements

function el(tag, properties, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties || {})) {
    if (name.includes("-") || name === "role" || name === "scope") made.setAttribute(name, value); else made[name] = value;
  }
  made.append(...children.filter(one => one !== null && one !== undefined));
  return made;
}
function shape(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes || {})) made.setAttribute(name, typeof value === "number" ? +value.toFixed(2) : value);
  made.append(...children);
  return made;
}
function put(id, ...children) {
  // What had the focus has it again: a screen that is redrawn must not throw a keyboard user out.
  const focused = document.activeElement && document.activeElement.dataset.key;
  at(id).replaceChildren(...children);
  if (focused) { const again = [...at(id).querySelectorAll("[data-key]")].find(one => one.dataset.key === focused); if (again) again.focus(); }
}
function folded(key, title, ...children) {
  const made = el("details", { open: open.has(key) }, el("summary", { "data-key": key }, title), ...children);
  made.addEventListener("toggle", () => made.open ? open.add(key) : open.delete(key));
  return made;
}
function facts(pairs) {
  return el("dl", { className: "facts" }, ...pairs.filter(one => one).flatMap(([name, value]) => [el("dt", null, name), el("dd", null, value)]));
}
function table(caption, columns, rows) {
  const body = rows.map(({ cells, css }) => el("tr", { className: css || "" }, el("th", { scope: "row" }, cells[0]), ...cells.slice(1).map(one => el("td", null, one))));
  return el("div", { className: "scroll" }, el("table", null, el("caption", null, caption),
    el("thead", null, el("tr", null, ...columns.map(one => el("th", { scope: "col" }, one)))), el("tbody", null, ...body)));
}

// --- words

const number = value => value === null || value === undefined ? "–" : value.toLocaleString("en-US").replace("-", "−");
const fixed = (value, digits = 4) => value === null || value === undefined ? "–" : value.toFixed(digits).replace("-", "−");
const signed = (value, digits = 4) => value === null || value === undefined ? "–" : (value > 0 ? "+" : "") + fixed(value, digits);
const short = value => value === null ? "–" : Math.abs(value) >= 1e6 || (value && Math.abs(value) < 1e-3) ? value.toExponential(1).replace("-", "−").replace("e+", "e") : String(+value.toPrecision(4)).replace("-", "−");
function compact(value) {
  for (const [unit, name] of [[1e9, "G"], [1e6, "M"], [1e5, "k"]]) if (value >= unit) return (value / (name === "k" ? 1e3 : unit)).toFixed(name === "k" ? 0 : 2) + "\u202f" + name;
  return number(value);
}
function day(time) { const when = new Date(time); return `${when.getUTCDate()} ${MONTHS[when.getUTCMonth()]} ${when.getUTCFullYear()}`; }
function moment(time) { const text = new Date(time).toISOString(); return day(time) + (time % DAY ? " " + text.slice(11, 16) : ""); }
function cause(text) {
  // An incident's id is <key>@<opened in ms>.
  const found = /^(.*)@(\d{11,14})$/.exec(text);
  return found ? `${found[1]} of ${moment(+found[2])}` : text;
}
const versioned = name => name === "initial" ? "no booster" : name;
const spaced = name => name.replaceAll("_", " ");
function ago(milliseconds) { const seconds = Math.round(milliseconds / 1000); return seconds < 2 ? "just now" : seconds < 120 ? `${seconds} s ago` : `${Math.round(seconds / 60)} min ago`; }

// --- the state comes in

const source = new EventSource("events");
source.addEventListener("state", event => { state = JSON.parse(event.data); changedAt = Date.now(); schedule(); });
source.addEventListener("open", () => setStatus());
source.addEventListener("error", () => setStatus());
setInterval(setStatus, 1000);
new ResizeObserver(() => { drawn.delete("chart"); schedule(); }).observe(at("chart"));

function schedule() {
  if (isScheduled) return;
  isScheduled = true;
  requestAnimationFrame(() => { isScheduled = false; if (state) draw(); });
}
function part(name, of, render) {
  const text = JSON.stringify(of);
  if (drawn.get(name) === text) return;
  drawn.set(name, text);
  render();
}
function setStatus() {
  const isOpen = source.readyState === EventSource.OPEN;
  at("dot").className = isOpen && !(state && state.trouble) ? "dot live" : "dot lost";
  let text = isOpen ? "Live" : "The connection to tidemill web is lost; trying again";
  if (state) text += (state.time === null ? " · no record yet" : ` · event time ${new Date(state.time).toISOString().slice(0, 16).replace("T", " ")}`);
  if (at("status-text").dataset.said !== text) {
    at("status-text").dataset.said = text;
    at("status-text").textContent = text;
  }
  at("status").title = state ? `last change ${ago(Date.now() - changedAt)}` : "";
}
function draw() {
  const { alerts, story, models, ticks, days, losses } = state;
  document.title = `${state.app} · Tidemill`;
  at("app").textContent = state.app;
  at("trouble").hidden = !state.trouble;
  if (at("trouble").textContent !== state.trouble) at("trouble").textContent = state.trouble;
  setStatus();
  part("tiles", [state.figures, state.records, state.predictions, state.labels, state.expired, state.lag, state.dead_letters, alerts.map(one => one.status)], drawTiles);
  part("chart", [alerts, models, ticks, days, losses, range, [...toggled]], drawChart);
  part("alerts", [alerts, isAllAlerts], drawAlerts);
  part("story", [story, isAllStory], drawStory);
  part("rollout", [ticks.at(-1)?.rollout, state.champion], drawRollout);
  part("figures", state.figures, drawFigures);
  part("topics", [state.lag_by_topic, state.dead_letters_by_topic], drawTopics);
  document.body.dataset.drawn = String(+(document.body.dataset.drawn || 0) + 1);
}

// --- headline

function figure(name) { return state.figures.find(one => one.series === name); }
function drawTiles() {
  const blend = figure("blend"), constant = figure("constant");
  const isOpen = state.alerts.filter(one => one.status !== "resolved" && one.kind !== "trigger");
  const unanswered = isOpen.filter(one => one.status === "open").length;
  const gain = blend && constant && blend.log_loss !== null && constant.log_loss !== null ? blend.log_loss - constant.log_loss : null;
  const tile = (name, value, note, css) => el("div", null, el("dt", null, name), el("dd", { className: "value " + (css || "") }, value), el("dd", { className: "note" }, note));
  put("tiles",
    tile("Log loss, served", fixed(blend && blend.log_loss), gain === null ? "no labels yet" : `${signed(gain, 3)} to constant`),
    tile("AUC, served", fixed(blend && blend.auc, 3), blend ? `of ${number(blend.n)} examples` : "no labels yet"),
    tile("Records", compact(state.records), "processed"),
    tile("Predictions", compact(state.predictions), state.predictions ? `${number(Math.max(0, state.predictions - state.labels - state.expired))} await a label` : "none yet"),
    tile("Labels", compact(state.labels), `${number(state.expired)} never came`),
    tile("Lag", compact(state.lag), "records to process"),
    tile("Dead letters", compact(state.dead_letters), state.dead_letters ? "see tidemill dlq ls" : "none", state.dead_letters ? "is-warn" : ""),
    tile("Open alerts", number(isOpen.length), isOpen.length ? `${number(unanswered)} not acknowledged` : "all is quiet", isOpen.some(one => one.severity === "page") ? "is-bad" : isOpen.length ? "is-warn" : ""));
}

// --- the charts on one time axis

function colourOf(name) {
  if (COLOURS[name]) return COLOURS[name];
  const others = Object.keys(state.losses).filter(one => !COLOURS[one]);
  return OTHER_COLOURS[others.indexOf(name) % OTHER_COLOURS.length];
}
// The latest label repeated has a log loss ten times that of the rest, so it is shown on demand.
const isShown = name => toggled.has(name) ? toggled.get(name) : name in COLOURS ? name !== "no_change" : Object.keys(state.losses).length <= 10;

function spanOfTime() {
  const { days, ticks, time } = state;
  const starts = [days[0], ticks.length ? ticks[0].time - stepOfTicks() : undefined].filter(one => one !== undefined);
  const ends = [days.length ? days.at(-1) + DAY : undefined, ticks.at(-1)?.time].filter(one => one !== undefined);
  const end = ends.length ? Math.max(...ends) : (time || 0) + DAY, start = starts.length ? Math.min(...starts) : end - 7 * DAY;
  return { start: range ? Math.max(start, end - range * DAY) : start, end: Math.max(end, start + 1) };
}
function stepOfTicks() {
  const times = state.ticks.map(one => one.time);
  return times.length > 1 ? Math.min(...times.slice(1).map((time, index) => time - times[index])) : DAY;
}
function momentsOf({ start, end }) {
  return [...new Set([...state.ticks.map(one => one.time), ...state.days.map(one => one + DAY)])].filter(one => one > start && one <= end).sort((one, other) => one - other);
}
function niceSteps(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map(one => one * power).find(one => one >= rough);
  const steps = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step / 1e6; value += step) steps.push(+value.toFixed(10));
  return steps;
}
function timeSteps({ start, end }, width) {
  const days = (end - start) / DAY, room = Math.max(2, Math.floor(width / 80)), steps = [];
  if (days > 75) {
    const from = new Date(start), each = Math.max(1, Math.ceil(days / 30.4 / room));
    for (let month = from.getUTCFullYear() * 12 + from.getUTCMonth(); ; month += each) {
      const time = Date.UTC(Math.floor(month / 12), month % 12, 1);
      if (time > end) return steps;
      if (time >= start) steps.push([time, MONTHS[((month % 12) + 12) % 12] + (month % 12 < each || !steps.length ? " " + Math.floor(month / 12) : "")]);
    }
  }
  const units = days < 2 ? [3_600_000, 2 * 3_600_000, 6 * 3_600_000, 12 * 3_600_000] : [DAY, 2 * DAY, 7 * DAY, 14 * DAY, 28 * DAY];
  const unit = units.find(one => (end - start) / one <= room) || units.at(-1);
  for (let time = Math.ceil(start / unit) * unit; time <= end; time += unit) steps.push([time, unit < DAY ? new Date(time).toISOString().slice(11, 16) : day(time).split(" ").slice(0, 2).join(" ")]);
  return steps;
}

function drawChart() {
  const box = at("chart"), width = Math.max(280, Math.floor(box.clientWidth)), span = spanOfTime();
  const x = time => GUTTER + (width - GUTTER - 6) * (time - span.start) / (span.end - span.start);
  const root = shape("svg", { role: "img", "aria-hidden": "true", width });
  let top = 0;
  scale = { span, x, width, moments: momentsOf(span) };
  drawRanges();
  drawLegend();
  drawKeys();
  top = drawLosses(root, top, x, span, width);
  top = drawModels(root, top, x, span, width);
  top = drawIncidents(root, top, x, span, width);
  top = drawDrift(root, top, x, span, width);
  top = drawEvidence(root, top, x, span, width);
  for (const [time, text] of scale.moments.length ? timeSteps(span, width - GUTTER) : []) {
    root.prepend(shape("path", { class: "grid", d: `M${x(time).toFixed(1)} 6V${top}` }));
    const anchor = x(time) > width - 30 ? "end" : x(time) < GUTTER + 14 ? "start" : "middle";
    root.append(shape("text", { x: x(time), y: top + 15, "text-anchor": anchor }, text));
  }
  top += 22;
  const cross = shape("path", { class: "cross", id: "cross" });
  root.append(cross);
  root.setAttribute("height", top);
  root.setAttribute("viewBox", `0 0 ${width} ${top}`);
  scale.bottom = top - 22;
  box.replaceChildren(root);
  drawMoment();
}
function caption(root, top, text, note) {
  root.append(shape("text", { x: 0, y: top + 12 }, shape("tspan", { class: "title" }, text), shape("tspan", { dx: 8 }, note)));
  return top + 20;
}
function drawLosses(root, top, x, span, width) {
  top = caption(root, top, "Log loss by day", "lower is better");
  const height = width < 500 ? 170 : 220, bottom = top + height, { days, losses } = state;
  const shown = Object.keys(losses).filter(isShown);
  const inside = days.map((one, index) => [one, index]).filter(([one]) => one + DAY > span.start && one < span.end);
  const values = shown.flatMap(name => inside.map(([, index]) => losses[name][index])).filter(one => one !== null);
  if (!values.length) { root.append(shape("text", { x: GUTTER + 8, y: top + 30 }, shown.length ? "No example yet: run tidemill monitor." : days.length ? "No series is chosen." : "No example yet: run tidemill monitor.")); return top + 50; }
  let low = Math.min(...values), high = Math.max(...values);
  const pad = Math.max(.01, (high - low) * .06);
  low -= pad; high += pad;
  const y = value => bottom - height * (value - low) / (high - low);
  for (const value of niceSteps(low, high, 4)) {
    root.append(shape("path", { class: "grid", d: `M${GUTTER} ${y(value).toFixed(1)}H${width}` }), shape("text", { x: GUTTER - 7, y: y(value) + 4, "text-anchor": "end" }, String(value)));
  }
  for (const { spans } of state.models) for (const one of spans) if (one.role === "champion" && one.from > span.start) root.append(shape("path", { class: "mark", d: `M${x(one.from).toFixed(1)} ${top}V${bottom}` }));
  for (const name of [...shown].reverse()) {
    let path = "", isDown = false;
    for (const [time, index] of inside) {
      const value = losses[name][index];
      if (value === null) { isDown = false; continue; }
      path += `${isDown ? "L" : "M"}${x(time + DAY / 2).toFixed(1)} ${y(value).toFixed(1)}`;
      isDown = true;
    }
    root.append(shape("path", { class: `line ${colourOf(name)}${inside.length > width / 8 ? " dense" : ""}`, d: inside.length === 1 ? path + "h.1" : path, "stroke-linecap": "round" }));
  }
  return bottom + 14;
}
function drawBars(root, top, rows, x, span, width) {
  // A row's name stands above its first bar; where there is no room it ends with its last one.
  for (const { name, bars, at: time } of rows) {
    const place = Math.max(GUTTER, x(Math.max(time, span.start))), long = name.length * 6.4, isRight = place + long > width - 6;
    const last = Math.max(...bars.map(one => x(one.to === null ? span.end : Math.min(one.to, span.end))));
    for (const { from, to, css } of bars) {
      const begin = Math.max(GUTTER, x(Math.max(from, span.start))), end = Math.min(width - 6, x(to === null ? span.end : Math.min(to, span.end)));
      if (end >= GUTTER && from <= span.end && (to === null || to >= span.start)) root.append(shape("rect", { class: css, x: begin, y: top + 15, width: Math.max(3, end - begin), height: 8, rx: 1.5 }));
    }
    root.append(shape("text", { class: "label", x: isRight ? Math.min(width - 6, Math.max(last, GUTTER + long)) : place, y: top + 11, "text-anchor": isRight ? "end" : "start" }, name));
    top += 27;
  }
  return top;
}
function drawModels(root, top, x, span, width) {
  top = caption(root, top, "Models", "who served, and who was tried");
  const lanes = state.models.filter(lane => lane.ended === null || lane.ended >= span.start).filter(lane => lane.spans.length === 0 || lane.spans.some(one => one.to === null || one.to >= span.start)).slice(-LANES_SHOWN);
  if (!lanes.length) { root.append(shape("text", { x: GUTTER, y: top + 12 }, "No booster yet: the learner serves alone.")); return top + 28; }
  const characters = Math.floor((width - GUTTER) / 7);
  const rows = lanes.map(lane => {
    const name = versioned(lane.version) + (lane.ending ? ` – ${lane.ending} ${day(lane.ended)}` : "");
    const from = lane.spans.length ? lane.spans[0].from : lane.trained ?? lane.ended;
    const bars = lane.spans.map(one => ({ from: one.from, to: one.to, css: one.role }));
    return { name: name.slice(0, characters), bars: bars.length ? bars : [{ from, to: from, css: "probation" }], at: from };
  });
  return drawBars(root, top, rows, x, span, width) + 4;
}
function drawIncidents(root, top, x, span, width) {
  const shown = state.alerts.filter(one => one.kind !== "trigger" && (one.resolved === null || one.resolved >= span.start));
  const byKey = new Map();
  for (const one of shown) byKey.set(one.key, [...(byKey.get(one.key) || []), one]);
  top = caption(root, top, "Alerts", shown.length ? "from opening to resolution" : "none in this time");
  const keys = [...byKey].sort((one, other) => Math.max(...other[1].map(each => each.resolved ?? Infinity)) - Math.max(...one[1].map(each => each.resolved ?? Infinity))).slice(0, LANES_SHOWN);
  const rows = keys.map(([key, found]) => ({ name: key.slice(0, Math.floor((width - GUTTER) / 7)), at: Math.min(...found.map(one => one.opened)), bars: found.map(one => ({ from: one.opened, to: one.resolved, css: one.severity + (one.status === "open" ? "" : " faded") })) }));
  rows.sort((one, other) => one.at - other.at);
  top = drawBars(root, top, rows, x, span, width) + 4;
  if (byKey.size > rows.length) { root.append(shape("text", { x: GUTTER, y: top + 8 }, `and ${byKey.size - rows.length} more, listed below`)); top += 18; }
  return top;
}
// Few days make large PSIs by chance, so what is not certain never looks like drift.
const levelOf = tick => tick.effect === null ? "blank" : !tick.moved ? (tick.effect >= .25 ? "uneasy" : "calm") : tick.effect >= 1 ? "torn" : "drift";
const driftOf = ({ effect, subject, moved, judged }) => moved ? `${moved} of ${judged} columns moved, most of all ${subject}: PSI ${effect.toFixed(2)}` : `no drift is certain, largest PSI ${effect.toFixed(2)}: ${subject}`;
function drawDrift(root, top, x, span, width) {
  top = caption(root, top, "Drift", "worst PSI of a column, by tick");
  const step = stepOfTicks();
  for (const tick of state.ticks) {
    if (tick.time <= span.start) continue;
    const begin = Math.max(GUTTER, x(tick.time - step)), end = x(tick.time);
    root.append(shape("rect", { class: levelOf(tick), x: begin, y: top, width: Math.max(1, end - begin - (end - begin > 4 ? 1 : 0)), height: 22 },
      shape("title", {}, `${moment(tick.time)}: ${tick.effect === null ? "no window yet" : driftOf(tick)}`)));
  }
  if (!state.ticks.length) root.append(shape("text", { x: GUTTER, y: top + 14 }, "No tick yet."));
  return top + 36;
}
function drawEvidence(root, top, x, span, width) {
  top = caption(root, top, "Concept", "e-value of the loss; an alert above the line");
  const ticks = state.ticks.filter(one => one.time > span.start && one.e_value !== null), height = 70, bottom = top + height;
  if (!ticks.length) { root.append(shape("text", { x: GUTTER, y: top + 14 }, "No tick yet.")); return top + 30; }
  const threshold = ticks.at(-1).threshold || 1;
  const log = value => Math.log10(Math.max(1, value));
  const high = Math.max(log(threshold) * 1.25, ...ticks.map(one => log(one.e_value))) || 1;
  const y = value => bottom - height * log(value) / high;
  root.append(shape("path", { class: "axis", d: `M${GUTTER} ${bottom}H${width}` }));
  root.append(shape("text", { x: GUTTER - 7, y: bottom + 4, "text-anchor": "end" }, "≤ 1"));
  root.append(shape("path", { class: "limit", d: `M${GUTTER} ${y(threshold).toFixed(1)}H${width}` }));
  root.append(shape("text", { x: GUTTER - 7, y: y(threshold) + 4, "text-anchor": "end" }, short(threshold)));
  root.append(shape("path", { class: "line s3", d: ticks.map((one, index) => `${index ? "L" : "M"}${x(one.time).toFixed(1)} ${y(one.e_value).toFixed(1)}`).join("") + (ticks.length === 1 ? "h.1" : ""), "stroke-linecap": "round" }));
  return bottom + 6;
}
function drawRanges() {
  put("ranges", ...[[28, "28 days"], [90, "90 days"], [0, "All"]].map(([days, name]) => {
    const made = el("button", { type: "button", "aria-pressed": String(range === days), "data-key": `range ${days}` }, name);
    made.addEventListener("click", () => { range = days; cursor = null; schedule(); });
    return made;
  }));
}
function drawLegend() {
  put("legend", ...Object.keys(state.losses).map(name => {
    const line = shape("svg", { viewBox: "0 0 20 6", "aria-hidden": "true" }, shape("path", { class: "line " + colourOf(name), d: "M0 3H20" }));
    const made = el("button", { type: "button", "aria-pressed": String(isShown(name)), "data-key": `series ${name}` }, line, el("span", null, spaced(name)), el("b", { "data-series": name }, ""));
    made.addEventListener("click", () => { toggled.set(name, !isShown(name)); schedule(); });
    return made;
  }));
}
function drawKeys() {
  const key = (css, text) => el("span", null, shape("svg", { viewBox: "0 0 14 9" }, shape("rect", { class: css, x: .75, y: .75, width: 12.5, height: 7.5, rx: 1.5 })), text);
  put("keys", key("champion", "champion"), key("shadow", "shadow"), key("canary", "canary"), key("probation", "probation"), key("calm", "PSI < 0.25"), key("uneasy", "≥ 0.25, may be chance"), key("drift", "drift"), key("torn", "drift, PSI ≥ 1"));
}

// --- the moment under the pointer, or under the arrow keys

function drawMoment() {
  const { moments, x, bottom } = scale, box = at("chart");
  const time = cursor !== null && moments.includes(cursor) ? cursor : moments.at(-1);
  at("cross").setAttribute("d", cursor !== null && time ? `M${x(time).toFixed(1)} 6V${bottom}` : "");
  box.setAttribute("aria-valuemin", 0);
  box.setAttribute("aria-valuemax", Math.max(0, moments.length - 1));
  box.setAttribute("aria-valuenow", Math.max(0, moments.indexOf(time)));
  if (time === undefined) { box.setAttribute("aria-valuetext", "no data yet"); at("moment").textContent = ""; return; }
  const start = Math.floor((time - 1) / DAY) * DAY, index = state.days.indexOf(start), tick = state.ticks.find(one => one.time === time);
  // The newest tick may have no label yet: then the newest day that has one is shown.
  const known = index < 0 && cursor === null ? state.days.length - 1 : index;
  for (const one of at("legend").querySelectorAll("b")) one.textContent = known < 0 ? "–" : fixed(state.losses[one.dataset.series][known], 3);
  const serving = state.models.find(lane => lane.spans.some(one => one.role === "champion" && one.from < time && (one.to === null || one.to >= time)));
  const words = [`${cursor === null ? "Newest: " : ""}${moment(tick && time % DAY ? time : start)}`];
  if (serving) words.push(serving.version === "initial" ? "no booster yet" : `${serving.version} serves`);
  if (tick) {
    words.push(`${number(tick.events)} predictions, ${number(tick.examples)} labels`);
    if (tick.effect !== null) words.push(driftOf(tick));
    if (tick.e_value !== null) words.push(`e-value ${short(tick.e_value)} of ${short(tick.threshold)}`);
    if (tick.is_learner_bad) words.push("learner worse than booster and constant");
  }
  const loss = index < 0 || !state.losses.blend ? null : state.losses.blend[index];
  at("moment").replaceChildren(el("strong", null, words[0]), words.length > 1 ? " · " + words.slice(1).join(" · ") : "");
  box.setAttribute("aria-valuetext", words.join(", ") + (loss === null ? "" : `, log loss of the blend ${fixed(loss, 3)}`));
}
function move(to) {
  cursor = to;
  drawMoment();
}
at("chart").addEventListener("pointermove", event => {
  if (!scale || !scale.moments.length) return;
  const place = event.clientX - at("chart").getBoundingClientRect().left;
  // A cell lies before its moment, so the first moment behind the pointer is meant.
  move(scale.moments.find(one => scale.x(one) >= place) ?? scale.moments.at(-1));
});
at("chart").addEventListener("pointerleave", () => { if (scale && document.activeElement !== at("chart")) move(null); });
at("chart").addEventListener("blur", () => { if (scale) move(null); });
at("chart").addEventListener("keydown", event => {
  if (!scale || !scale.moments.length) return;
  const now = cursor === null ? scale.moments.length - 1 : scale.moments.indexOf(cursor);
  const to = { ArrowLeft: now - 1, ArrowDown: now - 1, ArrowRight: now + 1, ArrowUp: now + 1, PageDown: now - 7, PageUp: now + 7, Home: 0, End: scale.moments.length - 1 }[event.key];
  if (event.key === "Escape") move(null);
  if (to === undefined) return;
  event.preventDefault();
  move(scale.moments[Math.max(0, Math.min(scale.moments.length - 1, to))]);
});

// --- lists

function drawAlerts() {
  const shown = state.alerts.filter(one => one.kind !== "trigger"), isOpen = shown.filter(one => one.status !== "resolved");
  const list = isAllAlerts ? shown : shown.slice(0, Math.max(ALERTS_FIRST, isOpen.length));
  const cards = list.map(one => {
    const told = one.told > 1 ? ` · told ${one.told} times` : "", isDone = one.status === "resolved";
    return el("article", { className: `alert ${one.severity}` + (isDone ? " done" : ""), "aria-label": `${one.status} alert: ${one.summary}` },
      el("div", { className: "row" }, el("span", { className: "chip" }, one.severity.toUpperCase()), el("span", null, one.status + (one.by ? ` by ${one.by}` : "")), el("span", null, one.key)),
      el("h3", null, one.summary),
      el("p", { className: "soft" }, `Opened ${moment(one.opened)}` + (one.resolved === null ? told : ` · resolved ${moment(one.resolved)}${told}`)),
      one.culprits.length ? el("ul", { className: "culprits", "aria-label": "Culprits, worst first" }, ...one.culprits.map(each => el("li", { title: each }, each))) : null,
      isDone || !one.action ? null : el("p", null, one.action),
      folded(one.id, "Evidence", facts([
        ...one.evidence.map(([name, value]) => [spaced(name), short(value)]),
        ["window", `${moment(one.window[0])} to ${moment(one.window[1])}`],
        one.offsets[0] >= 0 ? ["examples log", `offsets ${one.offsets[0]} to ${one.offsets[1]}`] : null,
        ["champion", versioned(one.champion) || "none"], isDone ? ["action", one.action] : null, ["runbook", one.runbook], ["id", one.id], acknowledging(one)])));
  });
  const more = shown.length > list.length || isAllAlerts && shown.length > ALERTS_FIRST;
  put("alert-list", ...(cards.length ? cards : [el("p", { className: "none" }, "No alert so far.")]), more ? moreButton("alerts", isAllAlerts, shown.length, () => { isAllAlerts = !isAllAlerts; schedule(); }) : "");
}
function acknowledging({ id, status }) {
  // A command to copy: only where nothing of the id means anything to a shell.
  return status === "open" && /^[\w./@:+-]+$/.test(id) ? ["acknowledge", el("code", null, `tidemill alerts ack ${state.config} ${id}`)] : null;
}
function moreButton(what, isAll, count, act) {
  const made = el("button", { type: "button", className: "more", "data-key": `more ${what}` }, isAll ? "Show fewer" : `Show all ${number(count)}`);
  made.addEventListener("click", act);
  return made;
}
function drawStory() {
  const newest = [...state.story].reverse(), list = isAllStory ? newest : newest.slice(0, STORY_FIRST);
  const items = list.map((one, index) => el("li", { className: STORY_COLOURS[one.kind] || "" },
    el("div", { className: "row" }, el("b", null, WORDS[one.kind] || one.kind), one.version ? el("code", null, one.version) : null, el("time", { dateTime: new Date(one.time).toISOString() }, moment(one.time))),
    one.cause ? el("p", null, `Because of ${cause(one.cause)}`) : null,
    one.verdict ? el("p", null, one.verdict) : null,
    one.evidence.length || one.parent ? folded(`story ${newest.length - index}`, "Evidence", facts([one.parent ? ["instead of", versioned(one.parent)] : null, ...one.evidence.map(([name, value]) => [spaced(name), short(value)]), one.offsets[0] >= 0 ? ["examples log", `offsets ${one.offsets[0]} to ${one.offsets[1]}`] : null])) : null));
  if (!items.length) items.push(el("li", null, el("p", null, "Nothing yet: the trainer has not had to act.")));
  if (newest.length > STORY_FIRST) items.push(el("li", null, moreButton("story", isAllStory, newest.length, () => { isAllStory = !isAllStory; schedule(); })));
  put("story", ...items);
}
function drawRollout() {
  const found = state.ticks.at(-1)?.rollout;
  if (!found || found.lower === null || found.upper === null) { put("rollout"); return; }
  const reach = Math.max(Math.abs(found.lower), Math.abs(found.upper), 1e-4) * 1.1, x = value => 150 + 140 * value / reach;
  const picture = shape("svg", { viewBox: "0 0 300 30", role: "img", "aria-label": `difference of loss ${signed(found.mean)}, between ${signed(found.lower)} and ${signed(found.upper)}` },
    shape("path", { class: "axis", d: "M150 0V18" }), shape("path", { class: "interval", d: `M${x(found.lower).toFixed(1)} 9H${x(found.upper).toFixed(1)}` }),
    shape("circle", { class: "shadow", cx: x(found.mean), cy: 9, r: 4 }), shape("text", { x: 10, y: 28 }, "worse"), shape("text", { x: 150, y: 28, "text-anchor": "middle" }, "0"), shape("text", { x: 290, y: 28, "text-anchor": "end" }, "better"));
  put("rollout", el("div", { className: "rollout" }, el("p", null, el("b", null, versioned(found.other) || "the former champion"), ` beside ${versioned(state.champion) || "no booster"}: ${found.verdict}, ${number(found.examples)} examples`),
    el("p", { className: "soft" }, `saves ${signed(found.mean, 5)} nats an event, surely between ${signed(found.lower, 5)} and ${signed(found.upper, 5)}`), picture));
}
function drawFigures() {
  const constant = figure("constant");
  const rows = state.figures.map(one => ({ css: one.series === "blend" ? "served" : "", cells: [spaced(one.series) + (one.series === "blend" ? " (served)" : ""), number(one.n), fixed(one.log_loss), constant && one !== constant && one.log_loss !== null && constant.log_loss !== null ? signed(one.log_loss - constant.log_loss) : "–", fixed(one.auc)] }));
  put("figures", rows.length ? table("Figures by series since the beginning", ["series", "examples", "log loss", "to constant", "AUC"], rows) : el("p", { className: "none" }, "No prediction has met its label yet."));
}
function drawTopics() {
  const names = [...new Set([...Object.keys(state.lag_by_topic), ...Object.keys(state.dead_letters_by_topic)])].sort();
  const rows = names.map(name => ({ cells: [name, number(state.lag_by_topic[name] ?? 0), number(state.dead_letters_by_topic[name] ?? 0)] }));
  put("topics", rows.length ? table("Lag and dead letters by topic", ["topic", "lag", "dead letters"], rows) : el("p", { className: "none" }, "No topic is read yet."));
}
