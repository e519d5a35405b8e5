// Figures that answer: each element of class "explorer" holds its numbers (helpers/explorers.py packs them), and is
// drawn here on a canvas. A pointer or the arrow keys choose a cell, and a line below says what it is.
"use strict";
(() => {
  const element = (name, attributes, ...children) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  };

  // base64 of deflated 16-bit whole numbers, all low bytes before all high ones
  const unpack = async (text, steps) => {
    const deflated = new Blob([Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))]);
    const stream = deflated.stream().pipeThrough(new DecompressionStream("deflate"));
    const halves = new Uint8Array(await new Response(stream).arrayBuffer()), count = halves.length / 2;
    return Array.from({ length: count }, (_, i) => {
      const whole = ((halves[i] | (halves[count + i] << 8)) << 16) >> 16; // with its sign
      return whole === -32768 ? NaN : whole / steps;
    });
  };

  const digits = (value, places) => value.toFixed(places).replace("-", "−");

  // A row of buttons of which one is pressed.
  const choice = (label, names, choose) => {
    const row = element("div", { class: "explorer-choice", role: "group", "aria-label": label });
    names.forEach((name, i) => {
      const button = element("button", { type: "button", "aria-pressed": String(i === 0) }, name);
      button.addEventListener("click", () => {
        for (const other of row.children) other.setAttribute("aria-pressed", String(other === button));
        choose(i);
      });
      row.append(button);
    });
    return row;
  };

  const heatMaps = async (root, data) => {
    const views = await Promise.all(data.views.map(async (view) => ({
      ...view,
      values: await unpack(view.values, data.steps),
      errors: await unpack(view.errors, data.steps),
    })));
    const canvas = element("canvas", { tabindex: "0", role: "img", width: "10", height: "10" });
    const words = element("p", { class: "explorer-words", "aria-live": "polite" });
    let view = views[0], row = 0, column = 0, chosen = false;

    const at = (i, j) => view.values[i * view.columns.length + j];
    const best = (i) => {
      let found = -1;
      view.columns.forEach((_, j) => {
        const itself = view.x === view.y && view.rows[i] === view.columns[j];
        if (!itself && !Number.isNaN(at(i, j)) && (found < 0 || at(i, j) > at(i, found))) found = j;
      });
      return found;
    };

    const draw = () => {
      const ratio = window.devicePixelRatio || 1, wide = canvas.clientWidth || 320;
      const cell = wide / view.columns.length, high = cell * view.rows.length;
      canvas.style.height = `${high}px`;
      canvas.width = Math.round(wide * ratio);
      canvas.height = Math.round(high * ratio);
      const pen = canvas.getContext("2d");
      pen.scale(ratio, ratio);
      const top = (i) => high - (i + 1) * cell; // depth grows upwards, as in the printed figure
      view.rows.forEach((_, i) => view.columns.forEach((__, j) => {
        const value = Math.min(1, Math.max(0, at(i, j)));
        pen.fillStyle = Number.isNaN(value) ? "#888" : data.colours[Math.round(value * (data.colours.length - 1))];
        pen.fillRect(j * cell, top(i), cell + 0.5, cell + 0.5);
      }));
      if (!chosen) return;
      const frame = (j, colour, dash) => {
        pen.setLineDash(dash);
        for (const [width, ink] of [[4, "#000"], [2, colour]]) {
          pen.lineWidth = width;
          pen.strokeStyle = ink;
          pen.strokeRect(j * cell + 1, top(row) + 1, cell - 2, cell - 2);
        }
      };
      if (best(row) >= 0) frame(best(row), "#fff", [3, 2]);
      frame(column, "#ff9f40", []);
    };

    const say = () => {
      if (!chosen) {
        words.textContent = "Point at a cell, or choose one with the arrow keys. A dashed frame marks the best match of its row.";
        return;
      }
      const k = row * view.columns.length + column, match = best(row);
      const value = Number.isNaN(view.values[k]) ? "no value" : `CKA ${digits(view.values[k], 3)} ± ${digits(view.errors[k], 3)}`;
      const found = match < 0 ? "" : ` Best match of this row${view.x === view.y ? ", itself apart" : ""}: ${view.columns[match]}, ${digits(at(row, match), 3)}.`;
      words.textContent = `${view.y} ${view.rows[row]} with ${view.x} ${view.columns[column]}: ${value} (standard error).${found}`;
    };

    const choose = (i, j) => {
      row = Math.min(view.rows.length - 1, Math.max(0, i));
      column = Math.min(view.columns.length - 1, Math.max(0, j));
      chosen = true;
      draw();
      say();
    };

    const point = (event) => {
      const box = canvas.getBoundingClientRect();
      const i = view.rows.length - 1 - Math.floor(((event.clientY - box.top) / box.height) * view.rows.length);
      choose(i, Math.floor(((event.clientX - box.left) / box.width) * view.columns.length));
    };
    canvas.addEventListener("pointermove", point);
    canvas.addEventListener("pointerdown", point);
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowUp: [1, 0], ArrowDown: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1] }[event.key];
      if (!step) return;
      event.preventDefault();
      choose(row + (chosen ? step[0] : 0), column + (chosen ? step[1] : 0));
    });

    const show = (i) => {
      view = views[i];
      row = column = 0;
      chosen = false;
      canvas.setAttribute("aria-label", `${view.heading}: columns ${view.x}, rows ${view.y}, from the first layer at the lower left`);
      draw();
      say();
    };
    root.replaceChildren(choice("Which heat-map", views.map((v) => v.heading), show), canvas, words);
    show(0);
    new ResizeObserver(draw).observe(canvas);
  };

  // Maps over patches. On the left the picture, in which a pointer or the arrow keys choose the patch that asks; on
  // the right its map, of which a pointer, or the arrow keys with Shift, read a value.
  const tokenMaps = async (root, data) => {
    const values = await unpack(data.values, data.steps);
    const [rows, columns] = data.grid, tokens = rows * columns, gap = 0.04;
    const pictures = data.pictures.map((address) => Object.assign(new Image(), { src: address, onload: () => draw() }));
    const chosen = data.choices.map(() => 0);
    const canvas = element("canvas", { tabindex: "0", role: "img", width: "10", height: "10" });
    const words = element("p", { class: "explorer-words", "aria-live": "polite" });
    let query = Math.floor(rows / 2) * columns + Math.floor(columns / 2), key = -1;

    const map = (asking) => {
      let place = 0;
      data.choices.forEach(([, options], axis) => { place = place * options.length + chosen[axis]; });
      const start = (place * tokens + asking) * tokens;
      return values.slice(start, start + tokens);
    };
    const apart = (i, j) =>
      data.patch * Math.hypot(Math.floor(i / columns) - Math.floor(j / columns), (i % columns) - (j % columns));
    const distance = (asking) => {
      const weights = map(asking);
      const total = weights.reduce((sum, weight) => sum + weight, 0);
      return weights.reduce((sum, weight, j) => sum + weight * apart(asking, j), 0) / total;
    };
    const all = [...Array(tokens).keys()];
    const mean = (of) => all.reduce((sum, i) => sum + of(i), 0) / tokens;
    const uniform = mean((i) => mean((j) => apart(i, j)));

    const draw = () => {
      const ratio = window.devicePixelRatio || 1, wide = canvas.clientWidth || 320;
      const side = (wide * (1 - gap)) / 2, cell = side / columns, right = side + wide * gap, high = cell * rows;
      canvas.style.height = `${high}px`;
      canvas.width = Math.round(wide * ratio);
      canvas.height = Math.round(high * ratio);
      const pen = canvas.getContext("2d");
      pen.scale(ratio, ratio);
      pen.imageSmoothingEnabled = false;
      if (pictures[chosen[0]].complete) pen.drawImage(pictures[chosen[0]], 0, 0, side, high);
      const shown = map(query), top = Math.max(...shown.filter((value) => !Number.isNaN(value)));
      shown.forEach((value, j) => {
        const step = Math.round((Math.max(0, value) / top) * (data.colours.length - 1));
        pen.fillStyle = Number.isNaN(value) ? "#888" : data.colours[step] || data.colours[0];
        pen.fillRect(right + (j % columns) * cell, Math.floor(j / columns) * cell, cell + 0.5, cell + 0.5);
      });
      const frame = (left, j, colour) => {
        for (const [width, ink] of [[4, "#000"], [2, colour]]) {
          pen.lineWidth = width;
          pen.strokeStyle = ink;
          pen.strokeRect(left + (j % columns) * cell + 1, Math.floor(j / columns) * cell + 1, cell - 2, cell - 2);
        }
      };
      frame(0, query, "#fff");
      frame(right, query, "#fff");
      if (key >= 0) frame(right, key, "#ff9f40");
    };

    const at = (j) => `row ${Math.floor(j / columns)}, column ${j % columns}`;
    const say = () => {
      const shown = map(query);
      const best = shown.reduce((found, value, j) => (found < 0 || value > shown[found] ? j : found), -1);
      const read = key < 0 ? "" : ` To ${at(key)}: ${digits(shown[key], 3)}.`;
      const far = !data.distance ? "" :
        ` Mean distance from this patch ${digits(distance(query), 1)} px, over all patches of this picture ` +
        `${digits(mean(distance), 1)} px; looking everywhere alike would give ${digits(uniform, 1)} px.`;
      words.textContent =
        `${data.label}, from the patch in ${at(query)} (counted from 0): most, ${digits(shown[best], 3)}, to ${at(best)}.${read}${far}`;
    };
    const show = () => { draw(); say(); };

    const point = (event) => {
      const box = canvas.getBoundingClientRect();
      const x = (event.clientX - box.left) / box.width, y = (event.clientY - box.top) / box.height;
      const left = x < 0.5, across = (left ? x : x - 0.5 - gap / 2) / ((1 - gap) / 2);
      if (across < 0 || across >= 1 || y < 0 || y >= 1) return;
      const found = Math.floor(y * rows) * columns + Math.floor(across * columns);
      if (left) [query, key] = [found, -1];
      else key = found;
      show();
    };
    canvas.addEventListener("pointermove", point);
    canvas.addEventListener("pointerdown", point);
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1] }[event.key];
      if (!step) return;
      event.preventDefault();
      const from = event.shiftKey && key >= 0 ? key : query;
      const row = Math.min(rows - 1, Math.max(0, Math.floor(from / columns) + step[0]));
      const column = Math.min(columns - 1, Math.max(0, (from % columns) + step[1]));
      if (event.shiftKey) key = row * columns + column;
      else [query, key] = [row * columns + column, -1];
      show();
    });

    const sliders = data.choices.map(([name, options], axis) => {
      const slider = element("input", { type: "range", min: "0", max: String(options.length - 1), value: "0" });
      const said = element("output", {}, options[0]);
      slider.setAttribute("aria-valuetext", options[0]);
      slider.addEventListener("input", () => {
        chosen[axis] = Number(slider.value);
        said.textContent = options[chosen[axis]];
        slider.setAttribute("aria-valuetext", options[chosen[axis]]);
        show();
      });
      return element("label", {}, `${name} `, slider, " ", said);
    });
    const row = element("div", { class: "explorer-choice" }, ...sliders);
    canvas.setAttribute("aria-label", `${data.label}: the picture on the left, the map of the chosen patch on the right`);
    root.replaceChildren(row, canvas, words);
    show();
    new ResizeObserver(draw).observe(canvas);
  };

  // Maps over pixels: buttons choose a network, a slider one of its places; a pointer or the arrow keys read a pixel.
  const fieldMaps = async (root, data) => {
    const views = await Promise.all(
      data.views.map(async (view) => ({ ...view, values: await unpack(view.values, data.steps) }))
    );
    const canvas = element("canvas", { tabindex: "0", role: "img", width: "10", height: "10" });
    const words = element("p", { class: "explorer-words", "aria-live": "polite" });
    const slider = element("input", { type: "range", min: "0", value: "0" });
    const said = element("output", {});
    let view = views[0], place = 0, pixel = null; // pixel: [row, column]

    const at = (i, j) => view.values[(place * view.size[0] + i) * view.size[1] + j];
    const draw = () => {
      const [rows, columns] = view.size, ratio = window.devicePixelRatio || 1;
      const cell = (canvas.clientWidth || 320) / columns;
      canvas.style.height = `${cell * rows}px`;
      canvas.width = Math.round(cell * columns * ratio);
      canvas.height = Math.round(cell * rows * ratio);
      const pen = canvas.getContext("2d");
      pen.scale(ratio, ratio);
      for (let i = 0; i < rows; i++) for (let j = 0; j < columns; j++) {
        pen.fillStyle = data.colours[Math.round(Math.sqrt(at(i, j)) * (data.colours.length - 1))];
        pen.fillRect(j * cell, i * cell, cell + 0.5, cell + 0.5);
      }
      for (const [width, ink] of [[4, "#000"], [2, "#fff"]]) {
        pen.lineWidth = width;
        pen.strokeStyle = ink;
        pen.beginPath();
        pen.arc(view.column[place] * cell, view.row[place] * cell, view.radius[place] * cell, 0, 2 * Math.PI);
        pen.stroke();
        if (pixel && ink === "#fff") pen.strokeStyle = "#ff9f40";
        if (pixel) pen.strokeRect(pixel[1] * cell, pixel[0] * cell, cell, cell);
      }
    };
    const show = () => {
      const depth = `depth ${digits(view.depth[place], 2)}`;
      said.textContent = depth;
      slider.setAttribute("aria-valuetext", `${view.places[place]}, ${depth}`);
      const read = pixel && ` In row ${pixel[0]}, column ${pixel[1]}: ${digits(at(...pixel), 3)} of the largest value.`;
      words.textContent =
        `${data.label} of ${view.heading}, ${view.places[place]} (${depth}): ` +
        `half of its mass lies within ${digits(view.radius[place], 1)} px of its centre, the ring.${read || ""}`;
      draw();
    };
    const read = (row, column) => {
      const inside = (n, most) => Math.min(most - 1, Math.max(0, n));
      pixel = [inside(row, view.size[0]), inside(column, view.size[1])];
      show();
    };
    const point = (event) => {
      const box = canvas.getBoundingClientRect();
      const across = (event.clientX - box.left) / box.width, down = (event.clientY - box.top) / box.height;
      read(Math.floor(down * view.size[0]), Math.floor(across * view.size[1]));
    };
    canvas.addEventListener("pointermove", point);
    canvas.addEventListener("pointerdown", point);
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1] }[event.key];
      if (!step) return;
      event.preventDefault();
      const [row, column] = pixel || [Math.floor(view.row[place]) - step[0], Math.floor(view.column[place]) - step[1]];
      read(row + step[0], column + step[1]);
    });
    slider.addEventListener("input", () => {
      place = Number(slider.value);
      show();
    });
    const choose = (i) => {
      view = views[i];
      [place, pixel] = [0, null];
      slider.max = String(view.places.length - 1);
      slider.value = "0";
      canvas.setAttribute("aria-label", `${data.label} of ${view.heading}, in pixels of the image`);
      show();
    };
    const depth = element("div", { class: "explorer-choice" }, element("label", {}, "Place ", slider, " ", said));
    root.replaceChildren(choice("Which network", views.map((v) => v.heading), choose), depth, canvas, words);
    choose(0);
    new ResizeObserver(draw).observe(canvas);
  };

  const kinds = { "heat-maps": heatMaps, "token-maps": tokenMaps, "field-maps": fieldMaps };
  addEventListener("DOMContentLoaded", () => {
    if (!window.DecompressionStream) return; // a browser from before 2023: the sentence stays
    for (const root of document.querySelectorAll(".explorer")) {
      root.setAttribute("role", "group");
      kinds[root.dataset.kind](root, JSON.parse(root.dataset.explorer));
    }
  });
})();
