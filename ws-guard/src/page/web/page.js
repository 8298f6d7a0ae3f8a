"use strict";
(() => {
  const KEPT = 300;
  const AGAIN = 5000;
  const LATE = 6000;
  const id = (name) => document.getElementById(name);
  const number = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
  const short = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
  const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });

  const count = (value) => number.format(value);
  const rate = (value) => (value < 10 ? short.format(value) : number.format(value));
  const ms = (value) => (value === null ? "–" : short.format(value));
  const time = (text) => clock.format(new Date(text));
  const span = (seconds) => {
    const s = Math.max(0, Math.round(seconds));
    if (s < 120) return `${s} s`;
    if (s < 7200) return `${Math.floor(s / 60)} min`;
    return s < 172800 ? `${Math.floor(s / 3600)} h` : `${Math.floor(s / 86400)} d`;
  };
  const plural = (n, one, many) => `${count(n)} ${n === 1 ? one : many}`;

  // Text is only ever text: nothing of it becomes markup.
  const put = (node, text) => { if (node.textContent !== text) node.textContent = text; };
  const make = (tag, name, text) => {
    const node = document.createElement(tag);
    if (name) node.className = name;
    if (text !== undefined) node.textContent = text;
    return node;
  };

  // Children by key: what is focused, open or scrolled stays so.
  const keyed = (parent, items, key, build, fill) => {
    const known = new Map([...parent.children].map((child) => [child.dataset.key, child]));
    let at = parent.firstElementChild;
    for (const item of items) {
      const name = String(key(item));
      let child = known.get(name);
      known.delete(name);
      if (!child) {
        child = build(item);
        child.dataset.key = name;
      }
      if (child === at) at = at.nextElementSibling;
      else parent.insertBefore(child, at);
      fill(child, item);
    }
    for (const child of known.values()) child.remove();
  };

  // Rows of cells: the first heads its row; numbers are to the right.
  const rows = (body, items, key, cells, empty) => {
    const width = body.parentElement.tHead.rows[0].cells.length;
    if (!items.length) {
      if (body.dataset.empty !== empty) {
        const cell = make("td", "quiet", empty);
        cell.colSpan = width;
        const row = make("tr");
        row.append(cell);
        body.replaceChildren(row);
        body.dataset.empty = empty;
      }
      return;
    }
    if (body.dataset.empty) {
      body.replaceChildren();
      delete body.dataset.empty;
    }
    const build = (item) => {
      const row = make("tr");
      cells(item).forEach((cell, i) => {
        const node = make(i === 0 ? "th" : "td", cell.kind);
        if (i === 0) node.scope = "row";
        if (cell.begin) node.append(cell.begin());
        row.append(node);
      });
      return row;
    };
    keyed(body, items, key, build, (row, item) => cells(item).forEach((cell, i) => {
      if (cell.update) cell.update(row.cells[i]);
      else put(row.cells[i], cell.text);
    }));
  };
  const text = (value) => ({ text: value, kind: "" });
  const long = (value) => ({ text: value, kind: "text" });
  const figure = (value) => ({ text: value, kind: "number" });

  let points = [];
  let source = null;
  let paused = false;
  let latest = null;
  let heard = 0;

  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const charts = {
    rates: { plot: null, series: [["pings", "--pings"], ["defused", "--defused"], ["dropped", "--dropped"]] },
    beats: { plot: null, series: [["p50_ms", "--median"], ["p99_ms", "--p99"]] },
  };
  const columns = (chart) => [points.map((p) => p.time), ...chart.series.map(([field]) => points.map((p) => p[field]))];
  const draw = (name) => {
    const chart = charts[name], box = id(name);
    if (chart.plot) chart.plot.destroy();
    const axis = { stroke: color("--quiet"), grid: { stroke: color("--line"), width: 1 }, ticks: { stroke: color("--line") } };
    chart.plot = new uPlot({
      width: Math.max(240, box.clientWidth), height: 190, legend: { show: false },
      cursor: { drag: { x: false, y: false } },
      scales: { y: { range: (_, low, high) => [0, high > 0 ? high * 1.1 : 1] } },
      axes: [axis, { ...axis, size: 60, values: (_, ticks) => ticks.map((tick) => short.format(tick)) }],
      series: [{}, ...chart.series.map(([field, shade], i) => ({
        label: field, stroke: color(shade), width: 2, dash: [[], [6, 3], [2, 3]][i], points: { show: false },
      }))],
    }, columns(chart), box);
  };
  const redraw = () => Object.keys(charts).forEach(draw);

  const showPoints = () => {
    for (const chart of Object.values(charts)) if (chart.plot) chart.plot.setData(columns(chart));
    const p = points[points.length - 1];
    if (!p) return;
    put(id("rates-text"), `Pings ${rate(p.pings)} a second (line); defused ${rate(p.defused)} (dashes); packets dropped ${rate(p.dropped)} (dots)`);
    put(id("beats-text"), p.p50_ms === null ? "Heartbeats: no connection has one yet"
      : `Heartbeats in ms: median ${ms(p.p50_ms)} (line), 99th percentile ${ms(p.p99_ms)} (dashes)`);
    const rowsOf = points.slice(-10).reverse();
    rows(id("points"), rowsOf, (q) => q.time, (q) => [
      text(clock.format(new Date(q.time * 1000))), figure(rate(q.pings)), figure(rate(q.defused)), figure(rate(q.dropped)),
      figure(ms(q.p50_ms)), figure(ms(q.p99_ms)),
    ], "Nothing yet");
  };

  const showHealth = (now) => {
    const worst = now.health.length ? now.health[0].level : "good";
    const words = { good: "All well", look: "Needs a look", bad: "In trouble" };
    id("state").className = worst;
    put(id("word"), words[worst] + (now.throttled ? ` · ${plural(now.throttled, "client", "clients")} throttled` : ""));
    document.title = `${words[worst]} – ws-guard`;
    keyed(id("health"), now.health, (note) => note.text, () => make("li"), (item, note) => {
      item.className = note.level;
      put(item, note.text);
    });
    const p = now.policy;
    put(id("about"), `Version ${now.version}, up ${span(now.uptime_seconds)}; ${p.action} over ${p.max_ping_rate} pings in ${p.window_seconds} s, ${plural(p.ports, "port", "ports")}`);
    const tiles = [
      ["Connections", count(now.connections_open)], ["paced", count(now.connections_paced)],
      ["Clients seen", count(now.sources)], ["throttled", count(now.throttled)],
      ["Pings a second", now.point ? rate(now.point.pings) : "–"], ["defused a second", now.point ? rate(now.point.defused) : "–"],
      ["Heartbeat median, ms", ms(now.all_servers.p50_ms)], ["Heartbeat p99, ms", ms(now.all_servers.p99_ms)],
    ];
    keyed(id("tiles"), tiles, (tile) => tile[0], (tile) => {
      const box = make("div");
      box.append(make("dt", "", tile[0]), make("dd"));
      return box;
    }, (box, tile) => put(box.lastElementChild, tile[1]));
  };

  const story = (client) => ({
    kind: "",
    begin: () => {
      const details = make("details");
      details.append(make("summary"), make("ol"));
      return details;
    },
    update: (cell) => {
      const details = cell.firstElementChild, lines = client.story;
      put(details.firstElementChild, lines.length ? plural(lines.length, "event", "events") : "nothing kept");
      keyed(details.lastElementChild, lines, (line) => line.seq, () => make("li"), (item, line) => put(item, `${time(line.time)} ${line.kind}: ${line.text}`));
    },
  });

  const showClients = (now) => {
    const at = new Date(now.time);
    const state = (c) => [c.banned ? "banned" : c.throttled ? "throttled" : "", c.paced ? "paced" : "", c.manual ? "by an operator" : ""].filter(Boolean).join(", ") || "free again";
    const free = (c) => (!c.throttled ? "–" : c.until ? span((new Date(c.until) - at) / 1000) : "on release");
    rows(id("clients"), now.clients, (c) => `${c.name} ${c.port}`, (c) => [
      text(c.port ? `${c.name}, port ${c.port}` : c.name), text(state(c)), figure(count(c.pings_in_window)), figure(count(c.pings_total)),
      figure(count(c.defused_total)), figure(count(c.dropped_total)), figure(count(c.connections)), figure(count(c.paced)), figure(free(c)), story(c),
    ], "No client is throttled or paced");
    put(id("clients-note"), (now.clients_more ? `And ${count(now.clients_more)} more that are throttled: see \`ws-guard throttled\`. ` : "")
      + (now.addresses ? "" : "Names stand for addresses, which show with --page-addresses; `ws-guard throttled` has them."));
    const many = now.servers.map((s) => ({ ...s, server: s.server || "all others" }));
    rows(id("servers"), many, (s) => s.server, (s) => [
      text(s.server), figure(count(s.connections)), figure(count(s.paced)), figure(count(s.beating)), figure(ms(s.p50_ms)), figure(ms(s.p99_ms)), figure(ms(s.slowest_ms)),
    ], "No connection is open");
  };

  const showConnections = (now) => {
    const known = now.connections;
    id("companion").hidden = !known;
    if (!known) return;
    const at = new Date(now.time);
    rows(id("connections"), known.rows, (c) => c.id, (c) => [
      text(String(c.id)), text(c.client), text(c.state), figure(span((at - new Date(c.opened)) / 1000)), figure(ms(c.heartbeat_rtt_ms)),
      figure(count(c.message_queue_size)), figure(count(c.messages_in)), figure(count(c.messages_out)), figure(count(c.pings_in)), figure(count(c.pings_ignored)),
      text(c.cause ? `${c.cause}${c.code ? ` (${c.code})` : ""}` : "–"),
    ], known.failed || "None");
    put(id("connections-note"), "Those that need a look come first, then the newest; at most 50. `ws-guard connections` has all.");
  };

  const showEvents = (now) => {
    rows(id("events"), now.events, (e) => e.seq, (e) => [text(time(e.time)), text(e.kind), long(e.text)], "None since the daemon started");
    put(id("events-note"), "The latest 40. `ws-guard events -f` follows them.");
  };

  const show = (now) => {
    showHealth(now);
    showPoints();
    showClients(now);
    showConnections(now);
    showEvents(now);
  };

  const fresh = () => {
    const late = !paused && Date.now() - heard > LATE;
    document.body.classList.toggle("old", late);
    if (late && heard) {
      id("state").className = "bad";
      put(id("word"), `Not connected since ${clock.format(new Date(heard))}`);
    }
  };

  const close = () => {
    if (source) source.close();
    source = null;
  };
  const open = () => {
    close();
    const stream = new EventSource("/page/live");
    source = stream;
    stream.addEventListener("history", (event) => {
      points = JSON.parse(event.data);
    });
    stream.addEventListener("picture", (event) => {
      const now = JSON.parse(event.data);
      heard = Date.now();
      latest = now;
      const last = points[points.length - 1];
      if (now.point && (!last || now.point.time > last.time)) points.push(now.point);
      else if (now.point && last.time === now.point.time) points[points.length - 1] = now.point;
      if (points.length > KEPT) points.shift();
      if (!paused) show(now);
      document.body.classList.remove("old");
    });
    // The browser tries again by itself, but not where there was no place.
    stream.onerror = () => {
      if (stream.readyState === EventSource.CLOSED && source === stream) setTimeout(() => { if (source === stream) open(); }, AGAIN);
    };
  };

  id("pause").addEventListener("click", () => {
    paused = !paused;
    id("pause").setAttribute("aria-pressed", String(paused));
    if (!paused && latest) show(latest);
  });
  // A page that is not seen needs no place.
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  let resize = 0;
  addEventListener("resize", () => { cancelAnimationFrame(resize); resize = requestAnimationFrame(redraw); });
  redraw();
  open();
  setInterval(fresh, 1000);
})();
