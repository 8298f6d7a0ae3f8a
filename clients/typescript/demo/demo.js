// A small page to try the client on; the server is where the page comes from.
import { Client } from "./ws-guard-client.js";

/** How many lines the page keeps. */
const LINES = 200;

const part = (id) => document.getElementById(id);
// The page's own query may have what the server wants to know, such as a user or a token.
const client = new Client(`./${location.search}`);
const followed = new Map();
let lost;

function line(kind, ...texts) {
  const item = document.createElement("li");
  item.className = kind;
  for (const text of [new Date().toLocaleTimeString(), ...texts]) {
    const span = document.createElement("span");
    span.textContent = text;
    item.append(span);
  }
  part("messages").prepend(item);
  part("messages").children[LINES]?.remove();
}

client.on("state", ({ state, delay, end }) => {
  part("state").textContent = part("state").dataset.state = state;
  let detail = "";
  if (state === "waiting") {
    lost ??= performance.now();
    detail = `${end?.reason || end?.code || ""}, again in ${Math.round(delay)} ms`;
  } else if (state === "open" && lost !== undefined) {
    detail = `back after ${Math.round(performance.now() - lost)} ms`;
    lost = undefined;
  } else if (state === "closed") {
    detail = end?.reason || String(end?.code ?? "");
  }
  if (state !== "connecting") part("detail").textContent = detail;
});
client.on("message", ({ topic, data, position }) => {
  line("message", topic, position ? `#${position.offset}` : "", typeof data === "string" ? data : JSON.stringify(data));
});
client.on("gap", ({ topic, from, to }) => {
  const range = from && to ? `after #${from.offset}, on from #${to.offset}` : "while away";
  line("gap", topic, `messages are lost ${range}`);
});
client.on("missed", (count) => line("gap", "", `${count} publications were dropped: this page reads too slowly`));
client.on("error", ({ message, remedy }) => line("gap", "", remedy ? `${message}: ${remedy}` : message));

function follow(topic) {
  followed.get(topic)?.unsubscribe();
  const subscription = client.subscribe(topic, () => {});
  followed.set(topic, subscription);
  subscription.ready.then(
    () => line("note", topic, "followed"),
    () => followed.delete(topic),
  );
}

function showPending() {
  part("pending").textContent = client.pending > 0 ? `${client.pending} waiting` : "";
}

part("topics").addEventListener("submit", (event) => {
  event.preventDefault();
  follow(event.target.elements.topic.value);
});
part("publications").addEventListener("submit", (event) => {
  event.preventDefault();
  const { text } = event.target.elements;
  const published = client.publish(part("topics").elements.topic.value, text.value);
  text.value = "";
  showPending();
  published.catch(({ message }) => line("gap", "", message)).finally(showPending);
});
follow(part("topics").elements.topic.value);
