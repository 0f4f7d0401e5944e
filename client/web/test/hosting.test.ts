import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { noScripts, pick } from "../src/ui/text";

const policyOf = (file: string): string | undefined => /http-equiv="Content-Security-Policy" content="([^"]*)"/.exec(readFileSync(file, "utf8"))?.[1];

test("where a browser does not know `worker-src`, the page may have its worker all the same", () => {
  assert.match(policyOf("index.html") ?? "", /worker-src 'self'; child-src 'self';/);
});

test("what may run and how it looks is named by its hash", () => {
  const built = readFileSync("dist/index.html", "utf8");
  const hash = (text: string): string => `'sha256-${createHash("sha256").update(text).digest("base64")}'`;
  const inside = (element: string): string[] => [...built.matchAll(new RegExp(`<${element}>([^]*?)</${element}>`, "g"))].map((match) => hash(match[1] as string));
  const policy = policyOf("index.html")?.replace("{{scripts}}", inside("script").join(" ")).replace("{{style}}", inside("style").join(" "));
  assert.equal(policyOf("dist/index.html"), policy);
  assert.deepEqual([inside("script").length, inside("style").length], [2, 1]);
  // What would end a script before its end, or hide its end.
  assert.doesNotMatch(built.slice(15), /<!--|<!\[CDATA/);
});

test("the words that stand without a script come from where all words stand", () => {
  const [source, built] = [readFileSync("index.html", "utf8"), readFileSync("dist/index.html", "utf8")];
  assert.doesNotMatch(source.replace(/\{\{\w+\}\}/g, ""), /<(title|noscript)>[^<]/);
  assert.deepEqual([/<title>(.*)<\/title>/.exec(built)?.[1], /<noscript>(.*)<\/noscript>/.exec(built)?.[1]], [pick(["en"]).text.title, noScripts().join(" ")]);
});

test("the style keeps to what Safari 14.0 knows", () => {
  const style = readFileSync("src/ui/style.css", "utf8").replace(/\/\*[^]*?\*\//g, "");
  // Insets by flow, and shorthands for two sides of it, came with 14.1, and so did gaps between flex items.
  assert.doesNotMatch(style, /[;{]\s*(inset|inset-(block|inline)[a-z-]*|(margin|padding)-(block|inline)):/);
  for (const rule of style.match(/\{[^{}]*display: flex[^{}]*\}/g) ?? []) assert.doesNotMatch(rule, /gap:/);
  assert.doesNotMatch(style, /[^(]:focus-visible/, "it would show nothing before 15.4");
});
