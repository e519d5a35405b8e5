// Figures that a page shows smaller than they are: a click on one, or its button, opens it at its full size. Escape, a
// click or the button closes it again, and the focus returns to where it was.
"use strict";
addEventListener("DOMContentLoaded", () => {
  const dialog = document.createElement("dialog");
  dialog.className = "picture";
  dialog.setAttribute("aria-label", "The figure at its full size");
  const close = document.createElement("button");
  close.type = "button";
  close.textContent = "Close";
  const frame = document.createElement("div"); // scrolls by itself; the arrow keys move it
  frame.tabIndex = 0;
  frame.setAttribute("role", "region");
  frame.setAttribute("aria-label", "Figure, which scrolls");
  dialog.append(close, frame);
  dialog.addEventListener("click", () => dialog.close());

  const open = (image) => {
    const full = image.cloneNode();
    full.removeAttribute("id");
    full.style.width = `${own(image)}px`;
    frame.replaceChildren(full);
    dialog.showModal();
    close.focus();
  };

  // Pixels of CSS that a figure is wide by itself: one of twice the pixels says so.
  const own = (image) => Number(image.getAttribute("width")) || parseFloat(image.style.width) || image.naturalWidth;

  const images = [...document.querySelectorAll("article figure img, article .cell_output img")];
  const watcher = new ResizeObserver((entries) => entries.forEach(({ target }) => fit(target)));
  const fit = (image) => {
    const smaller = image.clientWidth > 0 && own(image) > 1.1 * image.clientWidth;
    image.classList.toggle("enlarges", smaller);
    image.nextElementSibling.hidden = !smaller;
  };
  if (images.length) document.body.append(dialog);
  images.forEach((image, i) => {
    if (image.closest("a")) return;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "enlarge";
    button.hidden = true;
    button.textContent = "Full size";
    const number = image.closest("figure")?.querySelector(".caption-number")?.textContent.trim();
    button.setAttribute("aria-label", `Full size: ${number || `picture ${i + 1}`}`);
    button.addEventListener("click", () => open(image));
    image.addEventListener("click", () => {
      if (!image.classList.contains("enlarges")) return;
      button.focus(); // to which the focus returns
      open(image);
    });
    image.after(button);
    image.addEventListener("load", () => fit(image));
    watcher.observe(image);
  });
});
