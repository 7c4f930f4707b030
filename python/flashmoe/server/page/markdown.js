// Markdown, as models write it, as elements. Text only ever becomes text nodes: no HTML is parsed.

import { copyButton, element } from "./dom.js";
import { inline } from "./inline.js";

const DEEPEST = 8;
const FENCE = /^( *)(`{3,}(?=[^`]*$)|~{3,})\s*(\S*)/;
const HEADING = /^ {0,3}(#{1,6}) +(.*?)[ #]*$/;
const RULE = /^ {0,3}([-*_])(?: *\1){2,} *$/;
const MARKER = /^( *)([-*+]|\d{1,9}[.)])( +|$)/;
const DELIMITERS = /^[ |:-]*-[ |:-]*$/;

/** An element that shows a growing text; blocks that did not change keep their elements. */
export class MarkdownView {
  #shown = [];

  constructor() {
    this.element = element("div", { class: "markdown" });
  }

  update(text) {
    const blocks = blocksOf(text.replace(/\r\n?/g, "\n").replaceAll("\t", "    ").split("\n"), 0);
    blocks.forEach((block, index) => this.#place(block, index));
    for (const { node } of this.#shown.splice(blocks.length)) node.remove();
  }

  #place(block, index) {
    const before = this.#shown[index];
    if (before?.raw === block.raw) return;
    // Code that grows keeps its element, or nobody could select in it.
    const grows = block.code !== undefined && before?.opening === block.opening;
    const node = grows ? before.node : block.build();
    if (grows) node.querySelector("code").textContent = block.code;
    else if (before) before.node.replaceWith(node);
    else this.element.append(node);
    this.#shown[index] = { ...block, node };
  }
}

/** Blocks of lines: `build()` makes the element of the lines `raw`. */
function blocksOf(lines, depth) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at++;
      continue;
    }
    const { end, ...block } =
      fence(lines, at) ??
      heading(lines, at) ??
      rule(lines, at) ??
      (depth < DEEPEST ? (quote(lines, at, depth) ?? list(lines, at, depth)) : null) ??
      table(lines, at) ??
      paragraph(lines, at);
    blocks.push({ ...block, raw: lines.slice(at, end).join("\n") });
    at = end;
  }
  return blocks;
}

function built(lines, depth) {
  return blocksOf(lines, depth).map((block) => block.build());
}

function fence(lines, at) {
  const open = FENCE.exec(lines[at]);
  if (!open) return null;
  const [, indent, marker, language] = open;
  let end = at + 1;
  const closes = (line) => line.length >= marker.length && line === marker[0].repeat(line.length);
  while (end < lines.length && !closes(lines[end].trim())) end++;
  const unindented = (line) => line.slice(Math.min(indent.length, indentOf(line)));
  const code = lines.slice(at + 1, end).map(unindented).join("\n");
  return { end: Math.min(end + 1, lines.length), code, opening: lines[at], build: () => codeElement(language, code) };
}

function codeElement(language, text) {
  const code = element("code", {}, text);
  const copy = copyButton("Copy", () => code.textContent);
  const head = element("div", { class: "code-head" }, element("span", {}, language || "text"), copy);
  return element("div", { class: "code" }, head, element("pre", { tabindex: "0" }, code));
}

function heading(lines, at) {
  const found = HEADING.exec(lines[at]);
  if (!found) return null;
  // The page has its own headings of the first two levels.
  return { end: at + 1, build: () => element(`h${Math.min(6, found[1].length + 2)}`, {}, ...inline(found[2])) };
}

function rule(lines, at) {
  return RULE.test(lines[at]) ? { end: at + 1, build: () => element("hr") } : null;
}

function quote(lines, at, depth) {
  let end = at;
  while (end < lines.length && lines[end].trimStart().startsWith(">")) end++;
  if (end === at) return null;
  const inner = lines.slice(at, end).map((line) => line.trimStart().replace(/^> ?/, ""));
  return { end, build: () => element("blockquote", {}, ...built(inner, depth + 1)) };
}

function list(lines, at, depth) {
  const first = markerOf(lines[at]);
  if (!first) return null;
  const goesOn = (line) => {
    const marker = line !== undefined && !RULE.test(line) && markerOf(line);
    return marker && marker.ordered === first.ordered && Math.abs(marker.indent - first.indent) < 2;
  };
  const items = [];
  let [next, end] = [at, at];
  while (goesOn(lines[next])) {
    const item = itemOf(lines, next);
    items.push(item.body);
    end = item.end;
    next = skipBlank(lines, end);
  }
  if (items.length === 0) return null;
  const build = () => {
    const children = items.map((body) => element("li", {}, ...itemNodes(body, depth + 1)));
    if (!first.ordered) return element("ul", {}, ...children);
    return element("ol", { start: first.number }, ...children);
  };
  return { end, build };
}

/** Of an item with a single paragraph, that paragraph's nodes: it needs no space of its own. */
function itemNodes(body, depth) {
  const nodes = built(body, depth);
  const single = nodes.filter((node) => node.tagName === "P").length === 1;
  return nodes.flatMap((node) => (single && node.tagName === "P" ? [...node.childNodes] : [node]));
}

function itemOf(lines, at) {
  const marker = markerOf(lines[at]);
  const body = [lines[at].slice(marker.width)];
  let end = at + 1;
  while (end < lines.length) {
    const after = skipBlank(lines, end);
    const inside = after < lines.length && indentOf(lines[after]) >= marker.indent + 2;
    if (!inside && (after > end || startsBlock(lines, end))) break;
    for (; end <= after; end++) body.push(lines[end].slice(Math.min(indentOf(lines[end]), marker.width)));
  }
  return { body, end };
}

function markerOf(line) {
  const found = MARKER.exec(line);
  if (!found) return null;
  const [, indent, mark, gap] = found;
  // Content that starts five or more columns after the marker is indented itself.
  const width = indent.length + mark.length + (gap.length > 4 ? 1 : gap.length);
  return { indent: indent.length, width, ordered: mark.length > 1, number: Number.parseInt(mark, 10) };
}

function table(lines, at) {
  const under = lines[at + 1] ?? "";
  if (!lines[at].includes("|") || !under.includes("|") || !DELIMITERS.test(under)) return null;
  const head = cells(lines[at]);
  const aligned = cells(under).map((cell) => (cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "right") : ""));
  if (aligned.length !== head.length) return null;
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|")) end++;
  const row = (texts, name) => {
    const cell = (align, column) => element(name, { class: align }, ...inline(texts[column] ?? ""));
    return element("tr", {}, ...aligned.map(cell));
  };
  const build = () => {
    const body = lines.slice(at + 2, end).map((line) => row(cells(line), "td"));
    const whole = element("table", {}, element("thead", {}, row(head, "th")), element("tbody", {}, ...body));
    return element("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Table" }, whole);
  };
  return { end, build };
}

function cells(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function paragraph(lines, at) {
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && !startsBlock(lines, end)) end++;
  const text = lines.slice(at, end).map((line) => line.trim());
  return { end, build: () => element("p", {}, ...inline(text.join("\n"))) };
}

function startsBlock(lines, at) {
  const line = lines[at];
  const simple = [FENCE, HEADING, RULE, MARKER].some((pattern) => pattern.test(line));
  return simple || line.trimStart().startsWith(">") || table(lines, at) !== null;
}

function skipBlank(lines, at) {
  while (at < lines.length && !lines[at].trim()) at++;
  return at;
}

function indentOf(line) {
  return line.length - line.trimStart().length;
}
