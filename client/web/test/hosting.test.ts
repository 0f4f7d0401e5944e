import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { noScripts, pick } from "../src/ui/text";

const policyOf = (file: string): string | undefined => /http-equiv="Content-Security-Policy" content="([^"]*)"/.exec(readFileSync(file, "utf8"))?.[1];

test("where a browser does not know `worker-src`, the page may have its worker all the same", () => {
  assert.match(policyOf("index.html") ?? "", /worker-src 'self'; child-src 'self';/);
});

test("devcore serves the page with the page's own policy, and with what only a header can say", () => {
  const source = readFileSync("../../devcore/src/page.rs", "utf8");
  const served = /const POLICY: &str = "([^"]*)"/.exec(source)?.[1]?.replace(/\\\n\s*/g, "");
  assert.equal(served, `${policyOf("index.html")}; frame-ancestors 'none'`);
  assert.equal(policyOf("dist/index.html"), policyOf("index.html"));
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
