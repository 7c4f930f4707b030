// Markdown within a paragraph as nodes: code, emphasis, links. What is not markdown stays text.

import { element } from "./dom.js";

const DEEPEST = 6;
const SAFE = ["http:", "https:", "mailto:"];

const nested = (name) => (found, depth) => element(name, {}, ...inline(found[1], depth + 1));
const shown = (found) => link(found[1], [found[1]]);

// Every repetition is bounded: the text comes from a model, and again for each frame.
const PLAIN_FORMS = [
  [/\\([!-/:-@[-`{-~])/y, (found) => found[1]],
  [
    /(?<!`)(`+)(?!`)([^]{1,4000}?)(?<!`)\1(?!`)/y,
    (found) => element("code", {}, found[2].replace(/^ (.*\S.*) $/s, "$1")),
  ],
];
const FORMS = [
  ...PLAIN_FORMS,
  [/\*\*(?=\S)([^]{0,2000}?\S)\*\*(?!\*)/y, nested("strong")],
  [/\*(?=[^\s*])([^]{0,2000}?[^\s*])\*(?!\*)/y, nested("em")],
  // "snake_case" is a name.
  [/(?<![\p{L}\p{N}])__(?=\S)([^]{0,2000}?\S)__(?![\p{L}\p{N}_])/uy, nested("strong")],
  [/(?<![\p{L}\p{N}_])_(?=[^\s_])([^]{0,2000}?[^\s_])_(?![\p{L}\p{N}_])/uy, nested("em")],
  [/~~(?=\S)([^]{0,2000}?\S)~~/y, nested("s")],
  [
    /!?\[((?:[^[\]\\]|\\.){0,300})\]\(<?((?:[^\s()<>]|\([^\s()<>]{0,200}\)){0,2000})>?(?:\s[^()]{0,200})?\)/y,
    (found) => link(found[2], inline(found[1], DEEPEST)) ?? found[0],
  ],
  [/<((?:https?:|mailto:)[^\s<>]{1,2000})>/y, shown],
  // Punctuation at its end belongs to the sentence.
  [/(?<![\p{L}\p{N}])(https?:\/\/[^\s<>"`*]{0,2000}[^\s<>"`*.,;:!?'\])}_~])/uy, shown],
];

/** Nodes and strings of a text. */
export function inline(text, depth = 0) {
  const forms = depth < DEEPEST ? FORMS : PLAIN_FORMS;
  const nodes = [];
  let plain = "";
  let at = 0;
  while (at < text.length) {
    const [node, end] = ("\\`*_~[!<h".includes(text[at]) && formAt(forms, text, at, depth)) || [text[at], at + 1];
    if (typeof node === "string") {
      plain += node;
    } else {
      nodes.push(plain, node);
      plain = "";
    }
    at = end;
  }
  return [...nodes, plain].filter((node) => node !== "");
}

function formAt(forms, text, at, depth) {
  for (const [pattern, build] of forms) {
    pattern.lastIndex = at;
    const found = pattern.exec(text);
    const node = found && build(found, depth);
    if (node) return [node, at + found[0].length];
  }
  return null;
}

/** A link where one may lead, else null: the reader then sees what was written. */
function link(address, children) {
  const url = URL.parse?.(address) ?? null;
  if (!SAFE.includes(url?.protocol)) return null;
  return element("a", { href: url.href, rel: "noopener noreferrer", target: "_blank" }, ...children);
}
