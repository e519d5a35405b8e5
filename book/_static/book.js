// The theme listens to the first of two buttons that open the menu, and on a phone the second is the one to be seen.
addEventListener("DOMContentLoaded", () => {
  for (const kind of [".primary-toggle", ".secondary-toggle"]) {
    const [heard, ...others] = document.querySelectorAll(kind);
    for (const button of others) button.addEventListener("click", () => heard.click());
  }
});

// On paper nothing unfolds: what is folded is opened for the print, and folded again.
let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  for (const details of folded) details.open = true;
});
addEventListener("afterprint", () => {
  for (const details of folded) details.open = false;
});

// What scrolls by itself, a wide formula or table, is reached and scrolled by keyboard too.
const reach = () => {
  for (const part of document.querySelectorAll("article :is(mjx-container, div.math, .cell_output)")) {
    if (part.scrollWidth > part.clientWidth + 1) part.tabIndex = 0;
    else part.removeAttribute("tabindex");
  }
};
addEventListener("load", () => Promise.resolve(window.MathJax?.startup?.promise).then(reach));
addEventListener("resize", reach);
