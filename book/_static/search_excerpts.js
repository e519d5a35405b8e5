// Excerpts beneath what the search has found: cut from the words of all pages, which the build has written into
// page_words.js (helpers/building/excerpts.py), as Sphinx cuts them from pages that it fetches.
"use strict";
DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false; // it would fetch them all
addEventListener("DOMContentLoaded", () => {
  const [, stems, , terms] = Search._parseQuery(new URLSearchParams(location.search).get("q") || "");
  Search.htmlToText = (name, anchor) => {
    const [text, sections] = Search.pages[name] || ["", {}];
    return text.slice(...(sections[anchor.slice(1)] || []));
  };
  const show = (item) => {
    const [address, anchor = ""] = item.querySelector("a").getAttribute("href").split("#");
    if (item.querySelector(":scope > span")) return; // an entry of the library, which says where it is
    const name = address.slice(0, -DOCUMENTATION_OPTIONS.LINK_SUFFIX.length);
    const excerpt = Search.makeSearchSummary(name, stems, `#${anchor}`);
    if (!excerpt) return;
    item.append(excerpt);
    if (SPHINX_HIGHLIGHT_ENABLED) terms.forEach((term) => _highlightText(item, term, "highlighted"));
  };
  const results = document.getElementById("search-results");
  results.querySelectorAll("li").forEach(show);
  new MutationObserver((changes) => {
    for (const { addedNodes } of changes) for (const node of addedNodes) if (node.nodeName === "LI") show(node);
  }).observe(results, { childList: true, subtree: true });
});
