// Bundles the client into one file, which is checked in: dist/ws-guard-client.js.
import { build } from "esbuild";

/** The bundle's text. */
export async function bundle() {
  const { outputFiles } = await build({
    entryPoints: [new URL("src/index.ts", import.meta.url).pathname],
    bundle: true,
    minify: true,
    format: "esm",
    target: "es2022",
    charset: "utf8",
    legalComments: "none",
    write: false,
  });
  return outputFiles[0].text;
}

/** Where it is checked in. */
export const BUNDLE = new URL("dist/ws-guard-client.js", import.meta.url);

if (process.argv[1] === new URL(import.meta.url).pathname) {
  const { writeFile } = await import("node:fs/promises");
  await writeFile(BUNDLE, await bundle());
}
