// The glossary: a symbol in the text becomes a link to its entry in the list of symbols, whose content is shown next to
// it while the pointer or the focus is on it. The list is the only source; without scripts it is still on the page.

class Glossary {
  /** @param {string} blocks Selector of the blocks to search, each for the first occurrence of each symbol. */
  constructor(blocks) {
    this.entries = new Map();
    for (const term of document.querySelectorAll(".symbols dt")) {
      for (const name of term.textContent.split(", ")) this.entries.set(name, term.parentElement);
    }
    if (!this.entries.size) return;
    const names = [...this.entries.keys()].sort((one, other) => other.length - one.length);
    const escaped = names.map((name) => name.replace(/[()^]/g, "\\$&").replaceAll(" ", "\\s"));
    this.pattern = new RegExp(`(?<![\\w^/.=-]|\\w\\()(${escaped.join("|")})(?![\\w(^/'’-])`, "g");
    this.tip = html("div", { class: "meaning", role: "tooltip", hidden: "" });
    document.body.append(this.tip);
    this.tip.addEventListener("pointerleave", () => this.hide());
    document.addEventListener("keydown", (event) => event.key === "Escape" && this.hide());
    document.querySelectorAll(blocks).forEach((block) => this.mark(block));
  }

  /** Turn the symbols in a block into links. */
  mark(block) {
    if (!this.entries.size) return;
    const met = new Set();
    const walker = document.createTreeWalker(block, NodeFilter.SHOW_TEXT, (node) =>
      node.parentElement.closest("a, button, label, code, pre, output, summary, svg, dl")
        ? NodeFilter.FILTER_REJECT
        : NodeFilter.FILTER_ACCEPT,
    );
    const texts = [];
    while (walker.nextNode()) texts.push(walker.currentNode);
    for (const text of texts) {
      const parts = [];
      let from = 0;
      for (const found of text.data.matchAll(this.pattern)) {
        const name = found[0].replace(/\s/g, " ");
        if (met.has(name)) continue;
        met.add(name);
        parts.push(text.data.slice(from, found.index), this.link(found[0], this.entries.get(name)));
        from = found.index + found[0].length;
      }
      if (parts.length) text.replaceWith(...parts, text.data.slice(from));
    }
  }

  link(words, entry) {
    const link = html("a", { class: "term", href: `#${entry.id}`, "aria-describedby": entry.lastElementChild.id }, words);
    for (const event of ["pointerenter", "focus"]) link.addEventListener(event, () => this.show(link, entry));
    link.addEventListener("blur", () => this.hide());
    link.addEventListener("pointerleave", (event) => event.relatedTarget !== this.tip && this.hide());
    return link;
  }

  show(link, entry) {
    this.tip.textContent = `${entry.firstElementChild.textContent}: ${entry.lastElementChild.textContent}`;
    this.tip.hidden = false;
    const [at, width] = [link.getBoundingClientRect(), document.documentElement.clientWidth];
    const left = Math.max(8, Math.min(at.left, width - this.tip.offsetWidth - 8));
    this.tip.style.left = `${left + window.scrollX}px`;
    this.tip.style.top = `${at.bottom + window.scrollY}px`;
  }

  hide() {
    this.tip.hidden = true;
  }
}
