// A way to the server that can be cut, silenced and closed.
import { connect, createServer, type AddressInfo, type Server, type Socket } from "node:net";

export class Gate {
  readonly #pairs = new Set<[Socket, Socket]>();
  readonly #server: Server;
  mode: "open" | "refuse" | "silent" = "open";

  private constructor(target: () => number) {
    this.#server = createServer((client) => this.#accept(client, target()));
  }

  static async before(target: () => number): Promise<Gate> {
    const gate = new Gate(target);
    await new Promise<void>((resolve) => gate.#server.listen(0, "127.0.0.1", 4096, resolve));
    return gate;
  }

  get url(): string {
    return `ws://127.0.0.1:${(this.#server.address() as AddressInfo).port}/`;
  }

  get open(): number {
    return this.#pairs.size;
  }

  /** End all connections here and there. */
  cut(): void {
    for (const [client, server] of this.#pairs) {
      client.resetAndDestroy();
      server.destroy();
    }
  }

  /** Let nothing through on the connections there are, and tell nobody. */
  silence(): void {
    for (const [client, server] of this.#pairs) {
      client.unpipe(server);
      server.unpipe(client);
      client.resume();
      server.destroy();
    }
  }

  close(): void {
    this.#server.close();
    this.cut();
  }

  #accept(client: Socket, port: number): void {
    client.on("error", () => {});
    if (this.mode === "refuse") return void client.resetAndDestroy();
    if (this.mode === "silent") return;
    client.setNoDelay();
    const server = connect(port, "127.0.0.1").setNoDelay();
    const pair: [Socket, Socket] = [client, server];
    this.#pairs.add(pair);
    let silenced = false;
    server.on("unpipe", () => (silenced = true));
    server.on("error", () => {});
    client.pipe(server, { end: false });
    server.pipe(client, { end: false });
    server.on("close", () => silenced || client.destroy());
    client.on("close", () => {
      server.destroy();
      this.#pairs.delete(pair);
    });
  }
}
