// The live page. It reads the open API with the viewer's own token (kept in this tab), hears
// of changes over the event stream, and says when what it shows is stale.

const $ = (id) => document.getElementById(id);
const settings = document.body.dataset;
let token = sessionStorage.getItem("token") ?? "";

class SignInNeeded extends Error {}

async function call(path, options = {}) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const answer = await fetch(path, { ...options, headers });
  if (answer.status === 401) throw new SignInNeeded();
  if (!answer.ok) {
    const problem = await answer.json().catch(() => ({}));
    throw new Error(problem.detail ?? `${path}: ${answer.status}`);
  }
  return answer;
}

const read = async (path) => (await call(path)).json();

// --- what a figure looks like ---

const number = new Intl.NumberFormat("en");
const unknown = "–";

const count = (k) => (k?.value == null ? unknown : number.format(Number(k.value)));
const percent = (k) => (k?.value == null ? unknown : (Number(k.value) * 100).toFixed(1) + " %");

function money(set) {
  if (!set) return unknown;
  const format = new Intl.NumberFormat("en", { style: "currency", currency: set.currency });
  const digits = format.resolvedOptions().maximumFractionDigits;
  return format.format(set.turnoverIncl.num / 10 ** digits);
}

function element(tag, attributes = {}, ...children) {
  const e = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) e.setAttribute(name, value);
  e.append(...children);
  return e;
}

function figures(kpis) {
  const rows = [
    ["Visitors", count(kpis?.visitors), kpis?.visitors.quality === "noCounter" ? "no counter" : ""],
    ["Sales", count(kpis?.salesTransactions), ""],
    ["Conversion", percent(kpis?.conversion), kpis?.conversion.quality === "overOne" ? "more customers than visitors" : ""],
    ["Turnover incl. VAT", money(kpis?.currencies[0]), ""],
  ];
  return rows.map(([name, value, remark]) => {
    const dd = element("dd", {}, value);
    if (remark) dd.append(" ", element("small", {}, remark));
    return element("div", {}, element("dt", {}, name), dd);
  });
}

function deviceLine(device) {
  let state = device.state || "not heard yet";
  let style = device.state === "online" ? "" : "open";
  if (device.drawer && device.state === "online") {
    state = `drawer ${device.drawer}`;
    style = device.drawer === "open" ? "open" : "";
  }
  const line = element("li", device.hint ? { title: device.hint } : {}, element("span", {}, device.device), element("span", { class: style }, state));
  return line;
}

function card(store, kpis, devices) {
  return element("article", { "aria-label": store.name || store.id },
    element("header", {}, element("h2", {}, store.name || store.id), element("span", { class: "quiet" }, store.id)),
    element("dl", { class: "figures" }, ...figures(kpis)),
    element("ul", { class: "devices", "aria-label": "Devices" }, ...(devices.length ? devices.map(deviceLine) : [element("li", { class: "quiet" }, "no devices")])));
}

// --- reading ---

// today is the store's date; its business day begins at the cut-off.
function today(store) {
  const [hours, minutes] = (store.cutOff || "00:00").split(":").map(Number);
  const shifted = new Date(Date.now() - (hours * 60 + minutes) * 60000);
  return new Intl.DateTimeFormat("sv-SE", { timeZone: store.zone }).format(shifted);
}

async function refresh() {
  const stores = (await read("/v1/stores")).items;
  const days = [...new Set(stores.map(today))];
  const byDay = new Map(await Promise.all(days.map(async (day) => [day, await read(`/v1/kpis?day=${day}`)])));
  const devices = await Promise.all(stores.map((s) => read(`/v1/stores/${s.id}/devices`)));
  const cards = stores.map((store, i) => {
    const found = byDay.get(today(store)).stores.find((s) => s.store === store.id);
    return card(store, found?.kpis, devices[i].items);
  });
  $("empty").hidden = stores.length > 0;
  $("stores").replaceChildren(...cards);
  // The chain's figures are of one day; stores on either side of a midnight have their own.
  $("chain").replaceChildren(...(days.length === 1 ? [element("dl", { class: "figures" }, ...figures(byDay.get(days[0]).total))] : []));
}

let waiting = false;
let again = false;
// update refreshes at most every half second, however many events come.
async function update() {
  if (waiting) {
    again = true;
    return;
  }
  waiting = true;
  try {
    await refresh();
    $("error").hidden = true;
  } catch (cause) {
    if (cause instanceof SignInNeeded) return askForToken();
    $("error").textContent = `The relay could not be read: ${cause.message}`;
    $("error").hidden = false;
  } finally {
    setTimeout(() => {
      waiting = false;
      if (again) {
        again = false;
        update();
      }
    }, 500);
  }
}

// --- hearing ---

function live(state, words) {
  $("live").className = `state ${state}`;
  $("live").textContent = words;
}

async function listen() {
  for (let pause = 1000; ; pause = Math.min(2 * pause, 15000)) {
    try {
      const answer = await call("/v1/events");
      live("good", "live");
      update();
      pause = 1000;
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        if (value.includes("data:")) update();
      }
    } catch (cause) {
      if (cause instanceof SignInNeeded) return askForToken();
    }
    live("bad", `stale since ${new Date().toLocaleTimeString("en-GB")}, reconnecting`);
    await new Promise((resolve) => setTimeout(resolve, pause * (0.5 + Math.random())));
  }
}

async function prove() {
  const answer = await fetch(settings.proof).catch(() => null);
  const box = $("proof");
  box.hidden = false;
  if (answer?.ok) {
    const { line, holds } = await answer.json();
    box.textContent = line;
    box.className = holds ? "" : "bad";
  } else {
    box.textContent = "the proof has ended";
    box.className = "bad";
  }
  setTimeout(prove, 1000);
}

// --- signing in ---

function askForToken() {
  live("", "sign in");
  $("sign-in").hidden = false;
  $("token").focus();
}

$("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  sessionStorage.setItem("token", token);
  $("sign-in").hidden = true;
  listen();
});

if (settings.proof) prove();
if (token || settings.signedIn === "true") listen();
else askForToken();
