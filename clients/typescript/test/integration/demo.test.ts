// The demonstration page in a browser, under the policy that the server sends with it.
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { connect, type AddressInfo } from "node:net";
import { afterAll, describe, expect, test } from "vitest";
import { Browser, hasChromium } from "./chromium.js";
import { Server, atEnd, endAll, hasServer, until } from "./processes.js";

const FOLDER = new URL("../../", import.meta.url);
const FILES: Record<string, [string, string]> = {
  "/": ["text/html", "demo/index.html"],
  "/demo.css": ["text/css", "demo/demo.css"],
  "/demo.js": ["text/javascript", "demo/demo.js"],
  "/ws-guard-client.js": ["text/javascript", "dist/ws-guard-client.js"],
};

/** The policy in the server's source. */
async function policy(): Promise<string> {
  const source = await readFile(new URL("../../ws-guard-server/src/demo.rs", FOLDER), "utf8");
  const text = /POLICY: &str = "([^"]*)"/.exec(source)![1]!;
  return text.replace(/\\\n\s*/g, "");
}

/** The page and the server at one address, as with `serve --demo-page`. */
async function serve(port: number): Promise<string> {
  const headers = { "content-security-policy": await policy() };
  const http = createServer(async ({ url }, response) => {
    const [type, file] = FILES[url!] ?? [];
    if (!file) return void response.writeHead(404).end();
    response.writeHead(200, { ...headers, "content-type": type }).end(await readFile(new URL(file, FOLDER)));
  });
  http.on("upgrade", ({ url, headers }, client) => {
    const server = connect(port, "127.0.0.1");
    const fields = Object.entries(headers).map(([name, value]) => `${name}: ${String(value)}\r\n`);
    server.write(`GET ${url} HTTP/1.1\r\n${fields.join("")}\r\n`);
    server.pipe(client).pipe(server);
    for (const socket of [server, client]) socket.on("error", () => {});
  });
  await new Promise<void>((resolve) => http.listen(0, "127.0.0.1", resolve));
  atEnd(() => http.closeAllConnections());
  atEnd(() => http.close());
  return `http://127.0.0.1:${(http.address() as AddressInfo).port}/`;
}

afterAll(endAll);

describe.skipIf(!hasServer || !hasChromium())("the demonstration page", () => {
  test("follows and publishes, and keeps time in a worker", async () => {
    const server = await new Server().start();
    const browser = await Browser.at(undefined, await serve(server.port));
    const text = (id: string) => browser.value<string>(`document.getElementById("${id}")?.innerText ?? ""`);
    await until("it is connected", async () => (await text("state")) === "open");
    await until("the topic is followed", async () => (await text("messages")).includes("followed"));
    await browser.value(`(() => {
      const form = document.getElementById("publications");
      form.elements.text.value = "<b>hello</b>";
      form.requestSubmit();
    })()`);
    await until("the message is shown", async () => (await text("messages")).includes("<b>hello</b>"));
    // A server that ends and comes back has lost its history, and the page says so.
    await server.end();
    await until("it is noticed", async () => (await text("state")) !== "open");
    await server.start();
    await until("it is back", async () => (await text("detail")).startsWith("back after"));
    await until("the gap is shown", async () => (await text("messages")).includes("messages are lost"));
    const workers = await browser.ask("Target.getTargets", { filter: [{ type: "worker" }] });
    expect(workers["targetInfos"]).toHaveLength(1);
  });
});
