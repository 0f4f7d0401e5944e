import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

test("where a browser does not know `worker-src`, the page may have its worker all the same", () => {
  for (const file of ["index.html", "dist/index.html", "../../devcore/src/page.rs", "../../tests/clients/page.mjs"]) {
    const text = readFileSync(file, "utf8");
    assert.match(text, /worker-src 'self'; child-src 'self';/, file);
  }
});

test("the style keeps to what Safari 14.0 knows", () => {
  const style = readFileSync("src/ui/style.css", "utf8").replace(/\/\*[^]*?\*\//g, "");
  // Insets by flow, and shorthands for two sides of it, came with 14.1, and so did gaps between flex items.
  assert.doesNotMatch(style, /[;{]\s*(inset|inset-(block|inline)[a-z-]*|(margin|padding)-(block|inline)):/);
  for (const rule of style.match(/\{[^{}]*display: flex[^{}]*\}/g) ?? []) assert.doesNotMatch(rule, /gap:/);
  assert.doesNotMatch(style, /[^(]:focus-visible/, "it would show nothing before 15.4");
});
