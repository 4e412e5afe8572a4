// Runs the script of a report on a page of stubs, and prints what a reader would see. Arguments: the script, the data.
"use strict";
const fs = require("fs");
class Element {
  constructor(tag) {
    Object.assign(this, { tagName: tag.toUpperCase(), children: [], own: "", value: "", hidden: true, attributes: {}, heard: {} });
    Object.assign(this, { offsetTop: 0, offsetHeight: 1, clientHeight: 100, scrollTop: 0, style: { setProperty() {} } });
  }
  get textContent() { return this.own + this.children.map((c) => (typeof c === "string" ? c : c.textContent)).join(""); }
  set textContent(text) { this.own = text; this.children = []; }
  append(...parts) { this.children.push(...parts); }
  replaceChildren(...parts) { this.own = ""; this.children = parts; }
  setAttribute(name, value) { this.attributes[name] = value; }
  removeAttribute(name) { delete this.attributes[name]; }
  addEventListener(name, listener) { this.heard[name] = listener; }
  focus() { document.activeElement = this; }
  blur() {}
}
const ids = {};
const document = new Element("document");
document.createElement = (tag) => new Element(tag);
document.getElementById = (id) => (ids[id] ??= new Element(id === "search" ? "input" : "div"));
document.getElementById("paths-data").textContent = fs.readFileSync(process.argv[3], "utf8");
new Function("document", fs.readFileSync(process.argv[2], "utf8"))(document);

const seen = () => ({
  count: ids.count.textContent,
  shown: ids.list.children.length,
  selected: ids.list.children.findIndex((item) => item.attributes["aria-selected"] === "true"),
  detail: ids.detail.textContent,
});
const press = (key) => document.heard.keydown({ key, target: ids.list, preventDefault() {} });
const out = { hidden: ids.browser.hidden, start: seen() };
press("j");
out.next = seen();
press("k");
out.back = seen();
ids.change.value = "better";
ids.change.heard.change();
out.better = seen();
ids.change.value = "worse";
ids.change.heard.change();
out.worse = seen();
ids.change.value = "";
ids.search.value = "no such words anywhere";
ids.search.heard.input();
out.nothing = { ...seen(), list: ids.list.textContent };
console.log(JSON.stringify(out));
