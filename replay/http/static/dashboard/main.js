/** The page: which view an address shows, and the keys that lead from one to another. */
import { Activity } from "./activity.js";
import { GenerationPage } from "./generation.js";
import { ListPage } from "./list.js";
import { announce, fromTemplate, setText } from "./page.js";
import { StartForm } from "./start.js";

const CONNECTION = {
  connecting: "Connecting…",
  "catching-up": "Connecting…",
  live: "Connected",
  reconnecting: "Reconnecting…",
  lost: "Not connected",
};

const content = document.getElementById("content");
const connection = document.getElementById("connection");
const activity = new Activity();
const form = new StartForm((id) => go(`/g/${encodeURIComponent(id)}`));
let list = null; // kept while a generation is shown: the way back costs nothing and leads to the same place
let shown = null;
let routed = null;

function route() {
  routed = location.pathname;
  const [, id] = /^\/g\/([^/]+)\/?$/.exec(location.pathname) ?? [];
  if (id === undefined) {
    list ??= new ListPage(activity, () => form.open());
    display(list);
  } else display(new GenerationPage(decode(id), activity, missing));
}

function display(view) {
  shown?.hide();
  shown = view;
  content.replaceChildren(view.element);
  document.title = view.title;
  view.show();
}

function missing(id) {
  const { root, parts } = fromTemplate("missing-page");
  setText(parts.text, `“${id}” was never started here, or was deleted, or has expired.`);
  display({ element: root, title: "No such generation · replay", show: () => scrollTo(0, 0), hide() {} });
  announce("No such generation");
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // no id of ours has a percent sign: the node will say that there is none
  }
}

function go(path) {
  history.pushState(null, "", path);
  route();
  if (!content.contains(document.activeElement)) content.querySelector("h1").focus({ preventScroll: true });
}

/** Links to our own pages change the view only; with a modifier key they are the browser's, as all others are. */
function followLink(event) {
  const link = event.target.closest("a[href]");
  if (!link || event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  const path = link.getAttribute("href");
  if (path !== "/" && !path.startsWith("/g/")) return;
  event.preventDefault();
  if (path !== location.pathname) go(path);
}

function press(event) {
  const typing = event.target.closest("input, textarea, select, dialog");
  if (event.defaultPrevented || event.metaKey || event.ctrlKey || event.altKey || typing) return;
  if (event.key === "Escape" && shown !== list) go("/");
  else if (event.key === "n") openForm(event);
  else if (event.key === "/" && shown === list) search(event);
  else if (shown === list && STEPS[event.key]) step(event, STEPS[event.key]);
}

const STEPS = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 };

/** From one generation of the list to the next; arrows scroll until one of them has the focus. */
function step(event, by) {
  const links = [...content.querySelectorAll(".row:not([hidden]) .row-link")];
  const index = links.indexOf(document.activeElement);
  if (index < 0 && event.key.startsWith("Arrow")) return;
  event.preventDefault();
  links[Math.min(links.length - 1, Math.max(0, index + by))]?.focus();
}

function openForm(event) {
  event.preventDefault(); // the key would be typed into the form
  form.open();
}

function search(event) {
  event.preventDefault();
  content.querySelector("input[type=search]").focus();
}

activity.listen({
  entered: (state) => {
    connection.dataset.state = state;
    setText(connection, CONNECTION[state]);
  },
});
document.getElementById("new").addEventListener("click", () => form.open());
document.addEventListener("click", followLink);
document.addEventListener("keydown", press);
// The skip link changes the address too, but not what it shows.
addEventListener("popstate", () => location.pathname !== routed && route());
history.scrollRestoration = "manual";
route();
