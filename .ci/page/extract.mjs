// The home page, taken out of ecolinky.py (ECOLINKY_PY, or two folders above) or read
// from a file of its own (PAGE_HTML).  As a program it writes the page's script to a
// file, for eslint:  node extract.mjs page.js

import { readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

const BEGIN = 'HOME_PAGE = r"""';
const END = '"""';

function here(path) {
  return fileURLToPath(new URL(path, import.meta.url));
}

function between(text, begin, end) {
  const start = text.indexOf(begin);
  const stop = text.indexOf(end, start + begin.length);
  if (start < 0 || stop < 0) throw new Error(`no ${begin} ... ${end}`);
  return text.slice(start + begin.length, stop);
}

export const PROGRAM = process.env.ECOLINKY_PY || here("../../ecolinky.py");

export function readPage() {
  if (process.env.PAGE_HTML) return readFileSync(process.env.PAGE_HTML, "utf8");
  return between(readFileSync(PROGRAM, "utf8"), BEGIN, END);
}

export function scriptOf(page) {
  return between(page, "<script>\n", "</script>");
}

if (process.argv[1] === here("extract.mjs")) {
  const target = process.argv[2] || here("page.js");
  writeFileSync(target, scriptOf(readPage()));
  console.log("wrote " + target);
}
