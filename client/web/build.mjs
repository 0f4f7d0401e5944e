// Builds the page into `dist`, or its unit tests into `target/page/test` (`node build.mjs test`).
// The same inputs give the same bytes: `./test page` builds into another directory and compares.

import { build } from "esbuild";
import { createHash } from "node:crypto";
import { copyFileSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { resolve } from "node:path";
import { fileURLToPath } from "node:url";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const shared = { bundle: true, legalComments: "none", charset: "utf8", logLevel: "warning", absWorkingDir: here(".") };

async function page(out) {
  rmSync(out, { recursive: true, force: true });
  mkdirSync(out, { recursive: true });
  // Safari 14.0 knows destructuring; what esbuild minds is one odd use of it, which is not made here.
  const common = { ...shared, minify: true, target: ["safari14", "chrome90"], supported: { destructuring: true }, write: false };
  const built = async (options) => (await build({ ...common, ...options })).outputFiles[0].text.trimEnd();
  const first = await built({ entryPoints: ["src/first.ts"], format: "iife", globalName: "first" });
  const app = await built({ entryPoints: ["src/app.ts"], format: "iife", plugins: [fromFirst], footer: { js: done } });
  const styles = await built({ entryPoints: ["src/ui/style.css"] });
  writeFileSync(`${out}/worker.js`, `${await built({ entryPoints: ["src/worker.ts"], format: "iife" })}\n`);
  copyFileSync(here("icon.svg"), `${out}/icon.svg`);
  writeFileSync(`${out}/index.html`, await index({ first, app, styles }));
  const sum = (name) => createHash("sha256").update(readFileSync(`${out}/${name}`)).digest("hex");
  const lines = readdirSync(out).sort().map((name) => `${sum(name)}  ${name}\n`);
  writeFileSync(`${out}/hashes.txt`, lines.join(""));
}

/** What the first script brought is no global of the page for its life. */
const done = "first = undefined;";

/** Modules that the page's first script brings are taken from it by the rest, not brought twice. */
const fromFirst = {
  name: "from-first",
  setup(build) {
    const text = readFileSync(here("src/first.ts"), "utf8");
    const names = new Map([...text.matchAll(/^export \* as (\w+) from "\.\/(.*)";$/gm)].map(([, name, file]) => [here(`src/${file}`), `first.${name}`]));
    names.set(here("src/first"), "first");
    build.onResolve({ filter: /^\.\.?\// }, ({ path, resolveDir }) => {
      const name = names.get(resolve(resolveDir, path));
      return name && { path: name, namespace: "first" };
    });
    build.onLoad({ filter: /.*/, namespace: "first" }, ({ path }) => ({ contents: `module.exports = ${path};` }));
  },
};

/**
 * The page in one file: on a thin link every file more is a round trip. What may run and how it looks is named by its hash. The
 * words beside the scripts come from where all words stand.
 */
async function index({ first, app, styles }) {
  const { outputFiles } = await build({ ...shared, entryPoints: ["src/ui/text.ts"], format: "esm", write: false });
  const { noScripts, pick } = await import(`data:text/javascript;base64,${Buffer.from(outputFiles[0].contents).toString("base64")}`);
  const escaped = (text) => text.replace(/[&<>]/g, (char) => `&#${char.charCodeAt(0)};`);
  const hash = (text) => `'sha256-${createHash("sha256").update(text).digest("base64")}'`;
  const parts = { title: escaped(pick([]).text.title), noScript: escaped(noScripts().join(" ")), first, app, styles };
  const policy = { scripts: `${hash(first)} ${hash(app)}`, style: hash(styles) };
  return readFileSync(here("index.html"), "utf8").replace(/\{\{(\w+)\}\}/g, (_, name) => ({ ...parts, ...policy })[name]);
}

async function tests() {
  const out = here("../../target/page/test");
  rmSync(out, { recursive: true, force: true });
  const entryPoints = readdirSync(here("test")).filter((name) => name.endsWith(".test.ts")).map((name) => `test/${name}`);
  await build({ ...shared, entryPoints, outdir: out, platform: "node", format: "esm", outExtension: { ".js": ".mjs" } });
}

if (process.argv[2] === "test") await tests();
else await page(process.argv[2] ?? here("dist"));
