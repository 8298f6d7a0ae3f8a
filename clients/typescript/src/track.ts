import { positionOf, type Position } from "./protocol.js";

/** How many epochs are remembered. They change rarely. */
const EPOCHS = 8;

/** What a message is, compared with those before: the next, one that was there, or past a gap. */
export type Verdict = "next" | "known" | "gap";

/** Position in one topic's history: which of its messages were delivered. */
export class Track {
  #position: Position | undefined;
  /** The highest offset delivered of each epoch. */
  readonly #seen = new Map<string, number>();

  constructor(position?: Position) {
    this.restart(position);
  }

  get position(): Position | undefined {
    return this.#position;
  }

  /** Judge a message, and move on if it is the next. The epoch may change while offsets go on. */
  receive(message: Partial<Position>): Verdict {
    const position = positionOf(message);
    if (!position) return "next";
    if (position.offset <= (this.#seen.get(position.epoch) ?? -1)) return "known";
    if (this.#position && position.offset !== this.#position.offset + 1) return "gap";
    this.#move(position);
    return "next";
  }

  /** Go on from another position. */
  restart(position?: Position): void {
    this.#seen.clear();
    this.#position = undefined;
    if (position) this.#move(position);
  }

  /** Whether this is where it is. */
  isAt(position: Position | undefined): boolean {
    const { epoch, offset } = this.#position ?? {};
    return epoch === position?.epoch && offset === position?.offset;
  }

  #move(position: Position): void {
    this.#position = position;
    this.#seen.set(position.epoch, position.offset);
    if (this.#seen.size > EPOCHS) this.#seen.delete(this.#seen.keys().next().value!);
  }
}
