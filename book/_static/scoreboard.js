// The scoreboard, filtered and sorted: each claim's card says by its classes which chapter measures it ("of-…") and what
// its word is on each track ("scenes-…", "imagenet-…"). Three lists choose among the cards and a fourth orders them, on one
// list without the papers' sections; without scripts all cards are shown in the papers' order.
"use strict";
addEventListener("DOMContentLoaded", () => {
  const place = document.querySelector(".scoreboard-filter");
  if (!place) return;
  const cards = [...document.querySelectorAll(".claim")];
  const sections = [...document.querySelectorAll("article section section")].filter((s) => s.querySelector(".claim"));

  const list = (name, any, options, changed = () => filter()) => {
    const select = document.createElement("select");
    select.append(new Option(any, ""), ...options.map(([value, text]) => new Option(text, value)));
    select.id = `filter-${name.toLowerCase()}`;
    const label = document.createElement("label");
    label.htmlFor = select.id;
    label.append(name);
    select.addEventListener("change", changed);
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
    if (order.value.startsWith("verdict")) sort(); // the track that was chosen may be another
    said.textContent = `${cards.filter((card) => !card.hidden).length} of ${cards.length} claims`;
  };

  // Where each card stands among its section's, so that it can go back there.
  const marks = cards.map((card) => {
    const mark = document.createComment("");
    card.before(mark);
    return mark;
  });
  const sorted = document.createElement("div");
  sections[0].before(sorted);
  const options = JSON.parse(place.dataset.options);
  const orders = [["claim", "claim"], ["chapter", "chapter"], ["verdict", "verdict"]];
  for (const [value, name] of options.tracks) orders.push([`verdict-${value}`, `verdict on ${name}`]);

  const claim = (card) => card.id.match(/^claim-([a-z]*)(\d*)/).slice(1); // letter and number
  const rank = (card, names) => names.findIndex((name) => card.classList.contains(name));
  const keys = (card) => {
    const [kind, from] = order.value.split("-");
    if (kind === "chapter") return [rank(card, options.chapters.map(([value]) => `of-${value}`))];
    if (kind !== "verdict") return [];
    const tracks = from ? [from] : track.value ? [track.value] : options.tracks.map(([value]) => value);
    return tracks.map((t) => rank(card, options.verdicts.map(([value]) => `${t}-${value}`)));
  };
  const compare = (a, b) => {
    const [one, other] = [keys(a), keys(b)];
    const first = one.findIndex((key, i) => key !== other[i]);
    if (first >= 0) return one[first] - other[first];
    const [[letter, number], [otherLetter, otherNumber]] = [claim(a), claim(b)];
    return letter.localeCompare(otherLetter) || number - otherNumber;
  };
  const sort = () => {
    if (order.value) sorted.append(...[...cards].sort(compare));
    else cards.forEach((card, i) => marks[i].after(card));
  };

  const verdict = list("Verdict", "any", options.verdicts);
  const track = list("Track", "either", options.tracks);
  const chapter = list("Chapter", "all", options.chapters);
  const order = list("Order", "the papers’", orders, () => { sort(); filter(); });
  const said = document.createElement("span");
  said.setAttribute("role", "status");
  place.append(said);
  filter();

  // A link to a claim leads to it, whatever is filtered.
  addEventListener("hashchange", () => {
    for (const select of [verdict, track, chapter, order]) select.value = "";
    sort();
    filter();
    document.getElementById(location.hash.slice(1))?.scrollIntoView();
  });
});
