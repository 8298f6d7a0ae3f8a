import { readFile } from "node:fs/promises";
import { gzipSync } from "node:zlib";
import { expect, test } from "vitest";
// @ts-expect-error: it is plain JavaScript.
import { BUNDLE, bundle } from "../build.mjs";

const file = (path: string) => readFile(new URL(path, import.meta.url), "utf8");

test("the bundle has at most 5 KB, compressed", async () => {
  expect(gzipSync(await (bundle() as Promise<string>), { level: 9 }).length).toBeLessThanOrEqual(5000);
});

test("the checked-in bundle is fresh: npm run build", async () => {
  const fresh = (await readFile(BUNDLE as URL, "utf8")) === (await bundle());
  expect(fresh).toBe(true);
});

test("the package depends on nothing, and has the version of all others", async () => {
  const own = JSON.parse(await file("../package.json")) as { [field: string]: unknown };
  expect(own["dependencies"] ?? {}).toEqual({});
  const cargo = await file("../../../Cargo.toml");
  expect(/^version = "(.*)"$/m.exec(cargo)?.[1]).toBe(own["version"]);
});
