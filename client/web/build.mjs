// Builds the page into `dist`, or its unit tests into `target/page/test` (`node build.mjs test`).
// The same inputs give the same bytes: `./test page` builds into another directory and compares.

import { build } from "esbuild";
import { createHash } from "node:crypto";
import { copyFileSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const shared = { bundle: true, legalComments: "none", charset: "utf8", logLevel: "warning", absWorkingDir: here(".") };

async function page(out) {
  rmSync(out, { recursive: true, force: true });
  mkdirSync(out, { recursive: true });
  // Safari 14.0 knows destructuring; what esbuild minds is one odd use of it, which is not made here.
  const common = { ...shared, outdir: out, minify: true, target: ["safari14", "chrome90"], supported: { destructuring: true } };
  await build({ ...common, entryPoints: { app: "src/app.ts", worker: "src/worker.ts" }, format: "iife" });
  await build({ ...common, entryPoints: { style: "src/ui/style.css" } });
  copyFileSync(here("icon.svg"), `${out}/icon.svg`);
  writeFileSync(`${out}/index.html`, await index());
  const sum = (name) => createHash("sha256").update(readFileSync(`${out}/${name}`)).digest("hex");
  const lines = readdirSync(out).sort().map((name) => `${sum(name)}  ${name}\n`);
  writeFileSync(`${out}/hashes.txt`, lines.join(""));
}

/** The page's one file with words beside the scripts: they come from where all words stand. */
async function index() {
  const { outputFiles } = await build({ ...shared, entryPoints: ["src/ui/text.ts"], format: "esm", write: false });
  const { noScripts, pick } = await import(`data:text/javascript;base64,${Buffer.from(outputFiles[0].contents).toString("base64")}`);
  const words = { title: pick([]).text.title, noScript: noScripts().join(" ") };
  const escaped = (text) => text.replace(/[&<>]/g, (char) => `&#${char.charCodeAt(0)};`);
  return readFileSync(here("index.html"), "utf8").replace(/\{\{(\w+)\}\}/g, (_, name) => escaped(words[name]));
}

async function tests() {
  const out = here("../../target/page/test");
  rmSync(out, { recursive: true, force: true });
  const entryPoints = readdirSync(here("test")).filter((name) => name.endsWith(".test.ts")).map((name) => `test/${name}`);
  await build({ ...shared, entryPoints, outdir: out, platform: "node", format: "esm", outExtension: { ".js": ".mjs" } });
}

if (process.argv[2] === "test") await tests();
else await page(process.argv[2] ?? here("dist"));
