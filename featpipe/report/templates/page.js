"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const make = (tag, name, text) => {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const source = (row) => "data:image/webp;base64," + data.pictures[row];
  const className = (label) => (label < 0 ? "no label" : data.classes[label]);

  for (const image of all("img[data-row]")) image.src = source(image.dataset.row);

  // A figure of an image; whatever was named by somebody is text, never markup.
  const figure = (row, lines) => {
    const [id] = data.items[row];
    const made = make("figure", "picture");
    if (row in data.pictures) {
      const image = make("img");
      image.alt = id;
      image.src = source(row);
      made.append(image);
    } else made.append(make("span", "no-picture", "no picture"));
    const caption = make("figcaption");
    for (const line of lines) caption.append(make("span", "", line));
    const name = make("bdi", "id", id);
    name.title = id;
    caption.append(name);
    made.append(caption);
    return made;
  };

  // Tables sort by the buttons of their heads; what is not known stays last.
  for (const table of all("table.sortable")) {
    const heads = all("thead th", table);
    heads.forEach((head, column) => {
      const button = head.querySelector("button");
      button.addEventListener("click", () => {
        const now = head.getAttribute("aria-sort");
        const order = now === "none" ? button.dataset.first : now === "ascending" ? "descending" : "ascending";
        for (const other of heads) other.setAttribute("aria-sort", other === head ? order : "none");
        const value = (row) => row.cells[column].dataset.value;
        const body = table.tBodies[0];
        const rows = [...body.rows];
        const numeric = rows.every((row) => value(row) === "" || !Number.isNaN(Number(value(row))));
        const sign = order === "ascending" ? 1 : -1;
        rows.sort((a, b) => {
          const [one, two] = [value(a), value(b)];
          if (one === "" || two === "") return (one === "") - (two === "");
          return sign * (numeric ? Number(one) - Number(two) : one.localeCompare(two));
        });
        body.append(...rows);
      });
    });
  }

  // The pictures behind a cell.
  const dialog = document.getElementById("behind");
  const show = (title, some) => {
    document.getElementById("behind-title").textContent = title;
    dialog.querySelector(".gallery").replaceChildren(
      ...some.map(([row, lines]) => {
        const item = make("li");
        item.append(figure(row, lines));
        return item;
      }),
    );
    dialog.showModal();
    dialog.scrollTop = 0;
  };
  dialog.querySelector(".close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
  for (const button of all("button[data-cell]")) {
    button.addEventListener("click", () => {
      const route = button.closest(".closer").dataset.route;
      const [is, said] = button.dataset.cell.split("-").map(Number);
      const rows = data.cells[route][button.dataset.cell];
      const count = Number(button.dataset.count);
      const some = rows.length < count ? `${rows.length} of ${count}` : `${count}`;
      const how = is === said ? ", recognised" : ` taken for ${className(said)}`;
      show(
        `${className(is)}${how}: ${some}`,
        rows.map(([row, sure]) => [row, [`${Math.round(100 * sure)} % sure`]]),
      );
    });
  }

  const which = document.getElementById("which");
  if (which) {
    const choose = () => {
      for (const one of all(".closer")) one.hidden = one.dataset.route !== which.value;
    };
    which.addEventListener("change", choose);
    choose(); // a browser may remember what was chosen
  }

  // On paper everything is open.
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = all("details:not([open])");
    for (const one of opened) one.open = true;
  });
  addEventListener("afterprint", () => {
    for (const one of opened) one.open = false;
  });

  const map = document.getElementById("points");
  if (!map) return;
  const frame = map.querySelector("svg");
  const tip = map.querySelector(".tip");
  const cursor = map.querySelector(".cursor");
  const says = document.getElementById("map-says");
  const off = new Set();
  let at = null;

  const describe = (row) => {
    const [, label, said] = data.items[row];
    const lines = [className(label)];
    if (said >= 0 && said !== label) lines.push(`taken for ${className(said)}`);
    return lines;
  };
  const visible = () => data.points.filter(([row]) => !off.has(data.items[row][1]));
  const select = (point, aloud) => {
    at = point;
    tip.hidden = !point;
    cursor.setAttribute("cx", point ? point[1] : -99);
    cursor.setAttribute("cy", point ? point[2] : -99);
    if (!point) return;
    const [row, x, y] = point;
    const lines = describe(row);
    tip.replaceChildren(figure(row, lines));
    const scale = frame.clientWidth / frame.viewBox.baseVal.width;
    const left = x * scale + 20 + tip.offsetWidth > map.clientWidth ? x * scale - 20 - tip.offsetWidth : x * scale + 20;
    const top = Math.min(y * scale - 20, map.clientHeight - tip.offsetHeight - 6);
    tip.style.left = `${Math.max(4, Math.min(left, map.clientWidth - tip.offsetWidth - 4))}px`;
    tip.style.top = `${Math.max(4, top)}px`;
    if (aloud) says.textContent = [...lines, data.items[row][0]].join(", ");
  };
  const nearest = (event) => {
    const box = frame.getBoundingClientRect();
    const scale = frame.viewBox.baseVal.width / box.width;
    const [x, y] = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
    let [found, least] = [null, (28 * scale) ** 2];
    for (const point of visible()) {
      const far = (point[1] - x) ** 2 + (point[2] - y) ** 2;
      if (far < least) [found, least] = [point, far];
    }
    return found;
  };
  map.addEventListener("pointermove", (event) => select(nearest(event), false));
  map.addEventListener("pointerdown", (event) => select(nearest(event), true));
  map.addEventListener("pointerleave", (event) => {
    if (event.pointerType === "mouse") select(null, false);
  });
  map.addEventListener("focus", () => {
    if (!at && map.matches(":focus-visible")) select(visible()[0] || null, true);
  });
  map.addEventListener("blur", () => select(null, false));
  const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  map.addEventListener("keydown", (event) => {
    if (event.key === "Escape") select(null, false);
    if (event.key === "Enter" && at) {
      event.preventDefault();
      show(className(data.items[at[0]][1]), [[at[0], describe(at[0])]]);
    }
    const way = ways[event.key];
    if (!way) return;
    event.preventDefault();
    let [found, least] = [null, Infinity];
    for (const point of visible()) {
      if (!at || point === at) continue;
      const [dx, dy] = [point[1] - at[1], point[2] - at[2]];
      const along = dx * way[0] + dy * way[1];
      const aside = Math.abs(dx * way[1]) + Math.abs(dy * way[0]);
      if (along > 0 && aside <= 2 * along && along + 2 * aside < least) [found, least] = [point, along + 2 * aside];
    }
    if (found || !at) select(found || visible()[0] || null, true);
  });
  for (const button of all("button[data-layer]")) {
    button.addEventListener("click", () => {
      const layer = Number(button.dataset.layer);
      const on = button.getAttribute("aria-pressed") === "false";
      button.setAttribute("aria-pressed", String(on));
      if (on) off.delete(layer);
      else off.add(layer);
      for (const path of all("path[data-layer]", map))
        if (Number(path.dataset.layer) === layer) path.classList.toggle("off", !on);
      select(null, false);
    });
  }
})();
