import { expect, test } from "vitest";
import { Track } from "../src/track.js";

const at = (offset: number, epoch = "a") => ({ epoch, offset });

test("what follows is next, what was there is known, what is further is past a gap", () => {
  const track = new Track(at(4));
  expect(track.receive(at(4))).toBe("known");
  expect(track.receive(at(5))).toBe("next");
  expect(track.receive(at(3))).toBe("known");
  expect(track.receive(at(7))).toBe("gap");
  expect(track.position).toEqual(at(5));
});

test("the epoch may change while offsets go on, and both parts are known again", () => {
  const track = new Track(at(4));
  expect(track.receive(at(5, "b"))).toBe("next");
  expect(track.receive(at(6, "b"))).toBe("next");
  for (const [offset, epoch] of [[3, "a"], [4, "a"], [5, "b"], [6, "b"]] as const) {
    expect(track.receive(at(offset, epoch))).toBe("known");
  }
});

test("a history that was written anew is no duplicate", () => {
  const track = new Track(at(105));
  expect(track.receive(at(103, "b"))).toBe("gap");
});

test("without history everything is next", () => {
  const track = new Track();
  expect([track.receive({}), track.receive({})]).toEqual(["next", "next"]);
  expect(track.position).toBeUndefined();
});

test("few epochs are remembered, the latest ones", () => {
  const track = new Track(at(0, "0"));
  for (let n = 1; n <= 50; n++) expect(track.receive(at(n, `${n}`))).toBe("next");
  expect(track.receive(at(50, "50"))).toBe("known");
  expect(track.receive(at(1, "1"))).toBe("gap");
});
