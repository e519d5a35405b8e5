// The scoreboard, filtered: each claim's card says by its classes which chapter measures it ("of-…") and what its word is
// on each track ("scenes-…", "imagenet-…"). Three lists choose among them; without scripts all cards are shown.
"use strict";
addEventListener("DOMContentLoaded", () => {
  const place = document.querySelector(".scoreboard-filter");
  if (!place) return;
  const cards = [...document.querySelectorAll(".claim")];
  const sections = [...document.querySelectorAll("article section section")].filter((s) => s.querySelector(".claim"));

  const list = (name, any, options) => {
    const select = document.createElement("select");
    select.append(new Option(any, ""), ...options.map(([value, text]) => new Option(text, value)));
    select.id = `filter-${name.toLowerCase()}`;
    const label = document.createElement("label");
    label.htmlFor = select.id;
    label.append(name);
    select.addEventListener("change", filter);
    const pair = document.createElement("span");
    pair.append(label, " ", select);
    place.append(pair);
    return select;
  };

  const filter = () => {
    const tracks = track.value ? [track.value] : options.tracks.map(([value]) => value);
    for (const card of cards) {
      const has = (name) => card.classList.contains(name);
      card.hidden = Boolean(
        (chapter.value && !has(`of-${chapter.value}`)) ||
        (verdict.value && !tracks.some((t) => has(`${t}-${verdict.value}`)))
      );
    }
    for (const section of sections) section.hidden = !section.querySelector(".claim:not([hidden])");
    said.textContent = `${cards.filter((card) => !card.hidden).length} of ${cards.length} claims`;
  };

  const options = JSON.parse(place.dataset.options);
  const verdict = list("Verdict", "any", options.verdicts);
  const track = list("Track", "either", options.tracks);
  const chapter = list("Chapter", "all", options.chapters);
  const said = document.createElement("span");
  said.setAttribute("role", "status");
  place.append(said);
  filter();

  // A link to a claim leads to it, whatever is filtered.
  addEventListener("hashchange", () => {
    for (const select of [verdict, track, chapter]) select.value = "";
    filter();
    document.getElementById(location.hash.slice(1))?.scrollIntoView();
  });
});
