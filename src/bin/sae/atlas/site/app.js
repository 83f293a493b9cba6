// The pages of an atlas. What is shown comes from files of data beside this one, which call atlas.index, atlas.chunk and
// atlas.prompts; nothing of it is ever taken for markup.
"use strict";

const atlas = (() => {
  const view = document.getElementById("view");
  const told = document.getElementById("told");
  const shownAtFirst = 5;
  let data = null, count = null, max = null, label = null;
  const chunks = new Map(), waiting = new Map();
  let prompts = null;
  // What the list of features was left at.
  const list = { query: "", key: "count", down: true, top: 0 };

  // ---- small things ---------------------------------------------------------------------------------------------------

  function el(tag, properties, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(properties || {})) {
      if (name === "class") node.className = value;
      else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (name in node) node[name] = value;
      else node.setAttribute(name, value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  }

  function svg(tag, attributes, text) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (text !== undefined) node.textContent = text;
    return node;
  }

  const whole = (n) => n.toLocaleString("en-US");
  function short(x) {
    if (x === 0 || !Number.isFinite(x)) return String(x);
    const size = Math.abs(x);
    return size >= 1e5 || size < 1e-3 ? x.toExponential(2) : String(Number(x.toPrecision(4)));
  }
  const percent = (x) => (x === 0 ? "0 %" : 100 * x >= 0.01 ? (100 * x).toPrecision(3) + " %" : (100 * x).toExponential(1) + " %");
  const shownToken = (text) => text.replace(/\n/g, "↵\n").replace(/\t/g, "⇥\t").replace(/\r/g, "␍");

  function numbers(text, Type) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    return new Type(bytes.buffer);
  }

  // The colour of an activation, of the largest.
  function colour(node, value, largest) {
    if (!value || !(largest > 0)) return;
    const share = Math.min(1, Math.abs(value) / largest);
    node.style.backgroundColor = `rgb(var(${value > 0 ? "--hot" : "--cold"}) / ${(0.12 + 0.68 * share).toFixed(3)})`;
  }

  function load(file) {
    const script = el("script", { src: file });
    script.addEventListener("load", () => script.remove());
    script.addEventListener("error", () => {
      script.remove();
      view.replaceChildren(el("h1", {}, "Not there"), el("p", {}, `${file} could not be read; it belongs to these pages.`));
    });
    document.head.append(script);
  }

  // ---- charts ---------------------------------------------------------------------------------------------------------

  // Bars over numbered places, drawn to a logarithmic height; ticks are places with texts.
  function bars(title, heights, ticks, tip) {
    const [width, height, base, left] = [480, 150, 128, 34];
    const highest = Math.max(1, ...heights);
    const scale = (h) => (h > 0 ? ((Math.log10(h) + 0.3) / (Math.log10(highest) + 0.3)) * 112 : 0);
    const chart = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
    const step = (width - left - 20) / Math.max(1, heights.length);
    for (let power = 1; power <= highest; power *= 10) {
      const y = base - scale(power);
      if (power === 1 || power * 10 > highest) {
        chart.append(svg("line", { x1: left, x2: width, y1: y, y2: y }));
        chart.append(svg("text", { x: left - 4, y: y + 4, "text-anchor": "end" }, power >= 1e4 ? power.toExponential(0) : power));
      }
    }
    heights.forEach((h, i) => {
      if (!(h > 0)) return;
      const bar = svg("rect", { class: "bar", x: left + i * step + 0.5, width: Math.max(1, step - 1), y: base - scale(h), height: scale(h) });
      bar.append(svg("title", {}, tip(i, h)));
      chart.append(bar);
    });
    for (const [place, text] of ticks) {
      chart.append(svg("text", { x: left + place * step, y: base + 15, "text-anchor": "middle" }, text));
    }
    return chart;
  }

  // Latents by log₁₀ of their density, in bins of a quarter; those that are never active apart.
  function densities() {
    const each = 4;
    const lowest = Math.floor(Math.log10(1 / Math.max(1, data.tokens)) * each);
    const heights = new Array(Math.max(1, -lowest)).fill(0);
    for (const n of count) {
      if (n > 0) heights[Math.min(heights.length - 1, Math.floor(Math.log10(n / data.tokens) * each) - lowest)]++;
    }
    const ticks = [];
    for (let power = Math.ceil(lowest / each); power <= 0; power++) ticks.push([power * each - lowest, "10" + superscript(power)]);
    const edge = (i) => short(10 ** ((i + lowest) / each));
    return bars("Latents by density", heights, ticks, (i, h) => `density ${edge(i)} to ${edge(i + 1)}: ${whole(h)} latents`);
  }

  const superscript = (n) => String(n).replace(/./g, (c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)]);

  // ---- the index ------------------------------------------------------------------------------------------------------

  function facts(pairs) {
    return el("dl", { class: "facts" }, ...pairs.filter(([, value]) => value !== null).map(([name, value]) =>
      el("div", {}, el("dt", {}, name), el("dd", {}, value))));
  }

  function showIndex() {
    document.title = data.title;
    const active = count.reduce((sum, n) => sum + n, 0);
    const dead = count.reduce((sum, n) => sum + (n === 0), 0);
    const search = el("input", { type: "search", id: "search", value: list.query, placeholder: "Search: words of a label, or a latent's number",
      "aria-label": "Search features", oninput: () => { list.query = search.value; list.top = 0; refresh(); } });
    const found = el("p", { class: "soft", id: "found", role: "status" });
    const rows = el("div", { id: "rows" });
    const heading = (key, text, kind) => el("button", { class: kind, "data-key": key, onclick: () => {
      list.down = list.key === key ? !list.down : key === "count" || key === "max";
      list.key = key; list.top = 0; refresh();
    } }, text);
    const head = el("div", { class: "head" }, heading("latent", "latent", ""), heading("label", "label", ""),
      heading("count", "density", "number"), heading("max", "max", "number last"));
    view.replaceChildren(
      el("h1", {}, data.title),
      el("p", { class: "soft" }, [data.model, data.hook].filter(Boolean).join(", ")),
      facts([["tokens seen", whole(data.tokens)], ["latents", whole(data.n)], ["L0", data.tokens ? short(active / data.tokens) : "–"],
        ["never active", `${whole(dead)} (${percent(dead / data.n)})`], ["FVU", data.fvu === null ? null : short(data.fvu)],
        ["labelled", label.size ? whole(label.size) : null]]),
      el("h2", {}, "Density: on what share of tokens latents are active"), densities(),
      el("h2", {}, "Features"), search, found, el("div", { id: "list" }, head, rows));
    const refresh = () => fill(rows, head, found);
    refresh();
  }

  function matching() {
    const query = list.query.trim().toLowerCase();
    let found = Array.from({ length: data.n }, (_, i) => i);
    if (/^\d+$/.test(query)) found = found.filter((i) => String(data.first + i).startsWith(query) || (label.get(i) || "").toLowerCase().includes(query));
    else if (query) {
      const words = query.split(/\s+/);
      found = [...label].filter(([, text]) => { text = text.toLowerCase(); return words.every((word) => text.includes(word)); }).map(([i]) => i);
    }
    const sign = list.down ? -1 : 1;
    const text = (i) => label.get(i) || "";
    const by = { latent: (a, b) => a - b, count: (a, b) => count[a] - count[b], max: (a, b) => max[a] - max[b],
      // What has no label comes last either way.
      label: (a, b) => (text(a) === "") - (text(b) === "") ? sign * ((text(a) === "") - (text(b) === "")) : text(a).localeCompare(text(b)) }[list.key];
    return found.sort((a, b) => sign * by(a, b) || a - b);
  }

  // Of all rows only those in sight are there.
  function fill(rows, head, found) {
    const all = matching();
    const room = el("div", { class: "all" });
    found.textContent = all.length === data.n ? `${whole(all.length)} features` : `${whole(all.length)} of ${whole(data.n)} features`;
    for (const button of head.children) {
      const sorted = button.dataset.key === list.key ? (list.down ? "descending" : "ascending") : "none";
      button.setAttribute("aria-label", `${button.dataset.key === "count" ? "density" : button.dataset.key}, sorted: ${sorted}`);
      button.textContent = (button.dataset.key === "count" ? "density" : button.dataset.key) + { ascending: " ▲", descending: " ▼", none: "" }[sorted];
    }
    const size = 2.25 * parseFloat(getComputedStyle(document.documentElement).fontSize);
    room.style.height = `${all.length * size}px`;
    const row = (place) => {
      const i = all[place];
      const node = el("a", { href: `#/f/${data.first + i}`, "data-place": place },
        el("span", {}, String(data.first + i)), el("span", {}, label.get(i) || ""),
        el("span", { class: "number" }, percent(count[i] / Math.max(1, data.tokens))), el("span", { class: "number last" }, short(max[i])));
      node.style.top = `${place * size}px`;
      return node;
    };
    let shown = [-1, -1];
    const draw = () => {
      const first = Math.max(0, Math.floor(rows.scrollTop / size) - 8);
      const last = Math.min(all.length, Math.ceil((rows.scrollTop + (rows.clientHeight || 640)) / size) + 8);
      list.top = rows.scrollTop;
      if (first === shown[0] && last === shown[1]) return;
      const focused = document.activeElement && document.activeElement.dataset ? document.activeElement.dataset.place : undefined;
      shown = [first, last];
      const nodes = [];
      for (let place = first; place < last; place++) nodes.push(row(place));
      room.replaceChildren(...nodes);
      if (focused !== undefined) focus(Number(focused), false);
    };
    const focus = (place, scroll) => {
      place = Math.max(0, Math.min(all.length - 1, place));
      if (scroll) {
        if (place * size < rows.scrollTop) rows.scrollTop = place * size;
        else if ((place + 1) * size > rows.scrollTop + rows.clientHeight) rows.scrollTop = (place + 1) * size - rows.clientHeight;
        draw();
      }
      const node = room.querySelector(`[data-place="${place}"]`);
      if (node) node.focus({ preventScroll: true });
    };
    const page = () => Math.max(1, Math.floor(rows.clientHeight / size) - 1);
    rows.onkeydown = (event) => {
      const at = Number((event.target.dataset || {}).place);
      const to = { ArrowDown: at + 1, ArrowUp: at - 1, PageDown: at + page(), PageUp: at - page(), Home: 0, End: all.length - 1 }[event.key];
      if (to === undefined || Number.isNaN(at)) return;
      event.preventDefault();
      focus(to, true);
    };
    rows.onscroll = draw;
    rows.replaceChildren(room);
    rows.scrollTop = list.top;
    draw();
  }

  // ---- a feature ------------------------------------------------------------------------------------------------------

  function showFeature(latent) {
    const i = latent - data.first;
    if (!(Number.isInteger(i) && i >= 0 && i < data.n)) {
      return view.replaceChildren(el("h1", {}, "No such feature"), el("p", {}, `Latents are ${data.first} to ${data.first + data.n - 1}.`));
    }
    document.title = `${latent}${label.has(i) ? " · " + label.get(i) : ""} – ${data.title}`;
    const body = el("div", { id: "feature", "data-latent": latent, "data-ready": "no" }, el("p", { class: "soft" }, "…"));
    const go = (to, text) => el("button", { disabled: to < data.first || to >= data.first + data.n, onclick: () => { location.hash = `#/f/${to}`; } }, text);
    view.replaceChildren(
      el("h1", {}, label.get(i) || `Feature ${latent}`),
      el("p", { class: "soft" }, [`latent ${latent}`, data.model, data.hook].filter(Boolean).join(", ")),
      el("div", { class: "bar-of-buttons" }, go(latent - 1, "‹ previous"), go(latent + 1, "next ›")), body);
    withChunk(Math.floor(i / data.chunk), (chunk) => {
      if (document.getElementById("feature") !== body) return;
      fillFeature(body, chunk.features[i % data.chunk], chunk.tokens);
    });
  }

  function fillFeature(body, feature, texts) {
    const n = Math.max(1, data.tokens);
    const [a1, a2, a3, a4] = feature.sums.map((sum) => sum / n);
    const power = (a, b, c) => (b > 0 ? short(a / b ** c) : "–");
    const parts = [
      facts([["active on", percent(feature.count / n)], ["tokens", whole(feature.count)], ["largest", short(feature.max)],
        ["smallest", short(feature.min)]]),
      el("div", { class: "panels" },
        el("section", {}, el("h2", {}, "Activations (both axes logarithmic)"), activationHistogram(feature)),
        el("section", {}, el("h2", {}, "Moments, over all tokens"), table(["", ""], [["E[a > 0]", short(feature.count / n)], ["E[a]", short(a1)],
          ["E[a²]", short(a2)], ["skew E[a³]/E[a²]^1.5", power(a3, a2, 1.5)], ["kurtosis E[a⁴]/E[a²]²", power(a4, a2, 2)]]))),
      group("Top windows", feature.top, feature, texts),
      el("div", { class: "panels" }, feature.lens ? lens(feature.lens) : null,
        feature.near ? el("section", {}, el("h2", {}, "Nearest decoder directions"), table(["latent", "cosine"], feature.near.map(([other, cosine]) =>
          [el("a", { href: `#/f/${other}` }, `${other} ${label.get(other - data.first) || ""}`), short(cosine)]))) : null),
      el("h2", {}, "Windows by interval of activation"),
      ...feature.intervals.map(([from, to, windows]) => group(`${short(from)} to ${short(to)}`, windows, feature, texts, "h3")),
      feature.intervals.length ? null : el("p", { class: "none" }, "none"),
      group("Drawn at random from all activations", feature.random, feature, texts)];
    body.replaceChildren(...parts.filter(Boolean));
    body.dataset.ready = "yes";
  }

  function activationHistogram(feature) {
    const bins = feature.histogram;
    if (bins.length === 0) return el("p", { class: "none" }, "never active");
    // Four bins are an octave; empty ones between them are not told.
    const place = (x) => Math.round(4 * Math.log2(bins[0][0] > 0 ? x / bins[0][0] : 1) * 1e6) / 1e6;
    const slot = (from) => Math.round(place(from));
    const heights = new Array(slot(bins[bins.length - 1][0]) + 1).fill(0), edges = [];
    for (const [from, to, n] of bins) { heights[slot(from)] += n; edges[slot(from)] = [from, to]; }
    const ticks = [[0, short(bins[0][0])], [heights.length, short(bins[bins.length - 1][1])]];
    return bars("Histogram of activations", heights, ticks, (i, h) => `${short(edges[i][0])} to ${short(edges[i][1])}: ${whole(h)} tokens`);
  }

  function table(names, rows) {
    const cells = (tag, row) => row.map((cell, i) => el(tag, { class: i ? "number" : "" }, cell));
    return el("table", {}, names.some(Boolean) ? el("tr", {}, ...cells("th", names)) : null, ...rows.map((row) => el("tr", {}, ...cells("td", row))));
  }

  function lens({ up, down, histogram, from, to }) {
    const tokens = (pairs) => table(["token", "logit"], pairs.map(([text, value]) => [el("span", { class: "token" }, shownToken(text)), short(value)]));
    return el("section", {}, el("h2", {}, "Logit lens: W_dec · unembedding"), bars("Histogram of logits", histogram,
      [[0, short(from)], [histogram.length, short(to)]], (i, h) => `${whole(h)} tokens`),
      el("div", { class: "panels" }, el("div", {}, el("h3", {}, "raised"), tokens(up)), el("div", {}, el("h3", {}, "lowered"), tokens(down))));
  }

  function group(title, windows, feature, texts, heading = "h2") {
    const largest = Math.max(Math.abs(feature.max), Math.abs(feature.min));
    const shown = el("div", {});
    const more = el("button", { onclick: () => { shown.append(...windows.slice(shown.children.length).map(draw)); more.remove(); } });
    const draw = (window) => {
      const text = el("p", { class: "text" });
      const on = new Map(window.x);
      window.t.forEach((token, i) => {
        const value = on.get(i) || 0, place = window.p - window.a + i;
        const node = el("span", { class: i === window.a ? "token at" : "token" }, shownToken(texts[token] ?? ` ${token} `));
        node.title = node.dataset.told = `${short(i === window.a ? window.v : value)} at position ${place}, token ${token}`;
        colour(node, i === window.a ? window.v : value, largest);
        text.append(node);
      });
      return el("div", { class: "window" }, el("div", { class: "soft" }, `${short(window.v)} · document ${window.d}, position ${window.p}`), text);
    };
    shown.append(...windows.slice(0, shownAtFirst).map(draw));
    if (windows.length > shownAtFirst) more.textContent = `${windows.length - shownAtFirst} more`;
    return el("section", {}, el(heading, {}, title), windows.length ? shown : el("p", { class: "none" }, "none"),
      windows.length > shownAtFirst ? more : null);
  }

  // ---- prompts --------------------------------------------------------------------------------------------------------

  function showPrompt(number, latent, token) {
    if (!prompts) {
      view.replaceChildren(el("h1", {}, "Prompts"), el("p", { class: "soft" }, "…"));
      return load("data/prompts.js");
    }
    const prompt = prompts[number];
    if (!prompt) return view.replaceChildren(el("h1", {}, "No such prompt"));
    document.title = `Prompt ${number + 1} – ${data.title}`;
    const at = (n, f, t) => `#/prompt/${n}` + (f === null ? "" : `/${f}`) + (t === null ? "" : `${f === null ? "/-" : ""}/${t}`);
    const go = (to, text) => el("button", { disabled: to < 0 || to >= prompts.length, onclick: () => { location.hash = at(to, latent, null); } }, text);
    const text = el("p", { class: "text", id: "prompt" });
    const largest = latent === null ? 0 : max[latent - data.first];
    prompt.tokens.forEach((shown, i) => {
      const value = latent === null ? 0 : (prompt.on[i].find(([f]) => f === latent) || [0, 0])[1];
      const pick = () => { location.replace(at(number, latent, i)); };
      const node = el("span", { class: i === token ? "token picked" : "token", role: "button", tabIndex: 0, "data-token": i, onclick: pick,
        onkeydown: (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); pick(); } } }, shownToken(shown));
      node.dataset.told = latent === null ? `token ${i}` : `${short(value)} at token ${i}`;
      if (latent === null) colour(node, prompt.on[i].length ? 0.35 * Math.min(1, prompt.on[i].length / 64) : 0, 1);
      else colour(node, value, largest);
      text.append(node);
    });
    view.replaceChildren(
      el("h1", {}, `Prompt ${number + 1} of ${prompts.length}`),
      el("p", { class: "soft" }, latent === null ? "Pick a token to see its features; pick a feature to colour the text by it."
        : el("span", {}, "coloured by ", el("a", { href: `#/f/${latent}` }, `feature ${latent} ${label.get(latent - data.first) || ""}`))),
      el("div", { class: "bar-of-buttons" }, go(number - 1, "‹ previous"), go(number + 1, "next ›"),
        el("button", { disabled: latent === null, onclick: () => { location.replace(at(number, null, token)); } }, "no colour")),
      text, el("div", { id: "on-token" }, ...onToken(prompt, number, token, at)));
    const picked = text.querySelector(".picked");
    if (picked) picked.focus({ preventScroll: true });
  }

  function onToken(prompt, number, token, at) {
    if (token === null || !prompt.on[token]) return [];
    const share = (f, value) => Math.abs(value) / (max[f - data.first] || Infinity);
    const rows = (pairs) => pairs.map(([f, value]) => [el("span", {}, el("a", { href: at(number, f, token) }, String(f)), " ",
      el("a", { href: `#/f/${f}` }, label.get(f - data.first) || "page")), `${short(value)} (${percent(share(f, value))})`]);
    const on = prompt.on[token];
    const byShare = [...on].sort((a, b) => share(...b) - share(...a));
    const heads = ["feature", "activation (of its largest)"];
    return [el("h2", {}, "Features on ", el("span", { class: "token" }, shownToken(prompt.tokens[token]))),
      on.length ? el("div", { class: "panels" }, el("section", {}, el("h3", {}, "by activation"), table(heads, rows(on.slice(0, 12)))),
        el("section", {}, el("h3", {}, "by share of the largest"), table(heads, rows(byShare.slice(0, 12))))) : el("p", { class: "none" }, "none")];
  }

  // ---- getting about --------------------------------------------------------------------------------------------------

  function withChunk(number, then) {
    if (chunks.has(number)) return then(chunks.get(number));
    const first = !waiting.has(number);
    waiting.set(number, then);
    if (first) load(`data/f/${number}.js`);
  }

  function route() {
    const [kind, ...rest] = location.hash.replace(/^#\/?/, "").split("/");
    const number = (text) => (/^\d+$/.test(text || "") ? Number(text) : null);
    told.textContent = "";
    // Before the page gets shorter, so that nothing is moved by that.
    if (kind) window.scrollTo(0, 0);
    if (kind === "f") showFeature(number(rest[0]) ?? -1);
    else if (kind === "prompt" && data.prompts) showPrompt(number(rest[0]) ?? -1, number(rest[1]), number(rest[2]));
    else showIndex();
  }

  const tell = (event) => {
    const text = event.target.dataset && event.target.dataset.told;
    if (text) told.textContent = text;
  };

  return {
    index(given) {
      data = given;
      count = numbers(given.count, Float64Array);
      max = numbers(given.max, Float32Array);
      label = new Map(given.labels);
    },
    chunk(number, given) {
      chunks.set(number, given);
      // A page looked at long ago can be loaded again.
      if (chunks.size > 64) chunks.delete(chunks.keys().next().value);
      const then = waiting.get(number);
      waiting.delete(number);
      if (then) then(given);
    },
    prompts(given) {
      prompts = given;
      route();
    },
    start() {
      document.getElementById("title").textContent = data.title;
      document.getElementById("to-prompts").classList.toggle("off", !data.prompts);
      window.addEventListener("hashchange", route);
      for (const event of ["pointerover", "click", "focusin"]) view.addEventListener(event, tell);
      route();
    },
  };
})();
