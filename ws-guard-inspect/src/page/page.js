
'use strict';
const data = JSON.parse(document.getElementById('data').textContent);
const $ = id => document.getElementById(id);
const NAMES = { 0: 'continuation', 1: 'text', 2: 'binary', 8: 'close', 9: 'ping', 10: 'pong' };
const SIDES = ['client', 'server'];
const name = opcode => NAMES[opcode] || 'reserved';
const time = us => new Date((data.first + us) / 1000).toISOString().slice(0, 23).replace('T', ' ') + String((data.first + us) % 1000).padStart(3, '0');
const short = us => us < 1e3 ? us + ' µs' : us < 1e6 ? (us / 1e3).toFixed(2) + ' ms' : (us / 1e6).toFixed(3) + ' s';
const colour = variable => getComputedStyle(document.documentElement).getPropertyValue('--' + variable).trim();
let palette = {};
function paint() {
  for (const key of ['ground', 'ink', 'quiet', 'line', 'mark', 'chosen', 'segment', 'segment-line', 'reserved', ...Object.values(NAMES)]) palette[key] = colour(key);
}

// Sequence numbers wrap: places in the stream are counted from the first segment of a side.
function lanes(flow) {
  const sides = [0, 1].map(() => ({ segments: [], frames: [], notes: [], length: 1, byPacket: new Map() }));
  for (const [side, us, seq, len, packet, file] of flow.segments) {
    const lane = sides[side];
    lane.base ??= seq;
    const from = lane.at === undefined ? 0 : lane.at + ((seq - lane.seq) | 0);
    [lane.at, lane.seq] = [from, seq];
    const segment = { type: 's', side, us, from, to: from + len, seq, packet, file };
    lane.segments.push(segment);
    lane.byPacket.set(packet + '/' + file, segment);
    lane.length = Math.max(lane.length, from + len);
  }
  const near = (lane, seq) => {
    const from = lane.near === undefined ? (seq - (lane.base ?? seq)) | 0 : lane.near + ((seq - lane.nearSeq) | 0);
    [lane.near, lane.nearSeq] = [from, seq];
    return from;
  };
  for (const [side, number, seq, header, length, first, packet, end, us, bytes] of flow.frames) {
    const lane = sides[side], from = near(lane, seq);
    const frame = { type: 'f', side, us, from, to: from + header + length, header, length, first, packet, end, bytes, number };
    frame.text = `frame ${frame.number}: ${name(first & 15)}, ${length} bytes${first & 64 ? ', RSV1' : ''}${first & 128 ? '' : ', more follows'}`;
    lane.frames.push(frame);
  }
  flow.notes.forEach(([side, kind, seq, offset, packet, us, text, nested, file], index) => {
    const lane = sides[side];
    const segment = lane.byPacket.get(packet + '/' + file);
    const from = !segment ? (seq - (lane.base ?? seq)) | 0 : nested ? segment.from : segment.from + ((seq - segment.seq) | 0);
    lane.notes.push({ type: 'n', side, kind, us, from, to: from + 1, packet, offset, text: (nested ? 'inside messages: ' : '') + text, index });
  });
  for (const lane of sides) {
    for (const list of [lane.segments, lane.frames, lane.notes]) list.sort((a, b) => a.from - b.from || a.us - b.us);
  }
  const all = sides.flatMap(lane => lane.frames).concat(sides.flatMap(lane => lane.notes));
  return { sides, all: all.sort((a, b) => a.us - b.us || a.packet - b.packet) };
}

const cache = new Map();
let current = 0, flow, scale = 1, start = [0, 0], range = [0, 1], chosen = null, shown = [];
function load(index) {
  if (!data.flows[index]) return;
  if (!cache.has(index)) cache.set(index, lanes(data.flows[index]));
  [current, flow, chosen] = [index, cache.get(index), null];
  $('flow').value = index;
  const report = data.flows[index].report;
  $('summary').textContent = `${report.client} → ${report.server}: ${report.summary}`;
  everything();
  search();
}
function span() {
  const times = data.flows[current].segments.map(segment => segment[1]);
  return times.length ? [times[0], Math.max(times[times.length - 1], times[0] + 1)] : [0, 1];
}
function everything() {
  const width = $('bytes').clientWidth - LEFT - 6;
  scale = Math.max(...flow.sides.map(lane => lane.length)) / width;
  [start, range] = [[0, 0], span()];
  draw();
}

// Where the first item ends behind a place: lists are sorted by where items begin.
function first(list, place) {
  let [low, high] = [0, list.length];
  while (low < high) { const middle = (low + high) >> 1; if (list[middle].from < place) low = middle + 1; else high = middle; }
  while (low > 0 && list[low - 1].to > place) low--;
  return low;
}
function canvas(id) {
  const element = $(id), ratio = devicePixelRatio || 1;
  const [width, height] = [element.clientWidth, element.clientHeight];
  if (element.width !== Math.round(width * ratio)) [element.width, element.height] = [Math.round(width * ratio), Math.round(height * ratio)];
  const context = element.getContext('2d');
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.fillStyle = palette.ground;
  context.fillRect(0, 0, width, height);
  context.font = '11px system-ui, sans-serif';
  return [context, width, height];
}
const LEFT = 64, LANE = 100, SEGMENTS = 10, FRAMES = 40, NOTES = 76;
function drawBytes() {
  const [context, width] = canvas('bytes');
  flow.sides.forEach((lane, side) => {
    const top = side * LANE + 4, x = place => LEFT + (place - start[side]) / scale;
    const end = start[side] + (width - LEFT) * scale;
    context.fillStyle = palette.quiet;
    context.fillText(SIDES[side], 6, top + SEGMENTS + 4);
    context.fillText('segments', 6, top + SEGMENTS + 16);
    context.fillText('frames', 6, top + FRAMES + 20);
    context.save();
    context.beginPath(); context.rect(LEFT, top, width - LEFT, LANE); context.clip();
    boxes(lane.segments, top + SEGMENTS, 22, () => palette.segment, segment => '#' + segment.packet, palette['segment-line']);
    boxes(lane.frames, top + FRAMES, 30, frame => palette[name(frame.first & 15)], frame => `${frame.number} ${name(frame.first & 15)} ${frame.length}`, palette.ground, true);
    context.fillStyle = palette.mark;
    let last = -9;
    for (let i = first(lane.notes, start[side]); i < lane.notes.length && lane.notes[i].from < end; i++) {
      const at = Math.round(x(lane.notes[i].from));
      if (at > last + 1) { context.beginPath(); context.moveTo(at, top + NOTES - 4); context.lineTo(at - 4, top + NOTES + 6); context.lineTo(at + 4, top + NOTES + 6); context.fill(); last = at; }
    }
    context.fillStyle = palette.quiet;
    context.fillText(`${Math.max(0, Math.round(start[side]))}`, LEFT + 2, top + NOTES + 18);
    const label = `${Math.round(Math.min(end, lane.length))} of ${lane.length} bytes`;
    context.fillText(label, width - context.measureText(label).width - 6, top + NOTES + 18);
    context.restore();
    function boxes(list, y, height, fill, label, edge, header) {
      let last = -1;
      for (let i = first(list, start[side]); i < list.length && list[i].from < end; i++) {
        const item = list[i], [left, right] = [Math.max(x(item.from), LEFT - 2), Math.min(x(item.to), width + 2)];
        const [from, to] = [Math.floor(left), Math.max(Math.floor(left) + 1, Math.floor(right))];
        if (to <= last && item !== chosen) continue;
        last = to;
        context.fillStyle = item === chosen ? palette.chosen : fill(item);
        context.fillRect(from, y, to - from, height);
        if (to - from > 3) { context.strokeStyle = edge; context.strokeRect(from + .5, y + .5, to - from - 1, height - 1); }
        if (header && item.header / scale > 2) {
          context.fillStyle = 'rgba(0,0,0,.28)';
          context.fillRect(from, y, Math.min(item.header / scale, to - from), height);
        }
        const text = to - from > 24 ? label(item) : '';
        if (text && context.measureText(text).width < to - from - 6) {
          context.fillStyle = item === chosen ? '#fff' : palette.ink;
          context.fillText(text, from + 4, y + height / 2 + 4);
        }
      }
    }
  });
}
function drawTime() {
  const [context, width, height] = canvas('time');
  const x = us => LEFT + (us - range[0]) / (range[1] - range[0]) * (width - LEFT - 8);
  flow.sides.forEach((lane, side) => {
    const top = 6 + side * 44, seen = new Set();
    context.fillStyle = palette.quiet;
    context.fillText(SIDES[side], 6, top + 22);
    for (const frame of lane.frames) {
      const at = Math.round(x(frame.us)), key = at * 16 + (frame.first & 15);
      if (at < LEFT || at > width || seen.has(key)) continue;
      seen.add(key);
      context.fillStyle = palette[name(frame.first & 15)];
      const control = (frame.first & 15) > 7;
      context.fillRect(at, top + (control ? 0 : 14), control ? 3 : 2, control ? 36 : 22);
    }
    context.fillStyle = palette.mark;
    for (const note of lane.notes) {
      const at = Math.round(x(note.us));
      if (at < LEFT || seen.has('n' + at)) continue;
      seen.add('n' + at);
      context.beginPath(); context.arc(at, top + 40, 2.5, 0, 7); context.fill();
    }
  });
  if (chosen) { context.fillStyle = palette.chosen; context.fillRect(x(chosen.us), 0, 1.5, height - 14); }
  context.fillStyle = palette.quiet;
  context.fillText(time(Math.round(range[0])), LEFT, height - 4);
  const label = '+' + short(Math.round(range[1] - range[0]));
  context.fillText(label, width - context.measureText(label).width - 8, height - 4);
}
let waiting = false;
function draw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; drawBytes(); drawTime(); });
}

function zoom(factor, at) {
  const width = $('bytes').clientWidth - LEFT;
  const most = Math.max(...flow.sides.map(lane => lane.length)) / (width - 6);
  const next = Math.min(most, Math.max(.02, scale * factor));
  start = start.map(place => place + (at ?? width / 2) * (scale - next));
  scale = next;
  move(0, 0);
}
function move(by, sides = [0, 1]) {
  const width = ($('bytes').clientWidth - LEFT) * scale;
  for (const side of [0, 1]) {
    const place = start[side] + ([].concat(sides).includes(side) ? by : 0);
    start[side] = Math.max(0, Math.min(place, Math.max(0, flow.sides[side].length - width * .5)));
  }
  draw();
}
// Both sides at a time.
function go(us, keep) {
  const width = ($('bytes').clientWidth - LEFT) * scale;
  flow.sides.forEach((lane, side) => {
    if (keep === side) return;
    const segment = lane.segments.find(segment => segment.us >= us) || lane.segments[lane.segments.length - 1];
    if (segment) start[side] = segment.from - width / 3;
  });
  move(0);
}

function choose(item, jump) {
  chosen = item;
  if (!item) return;
  if (jump) {
    const width = $('bytes').clientWidth - LEFT, size = item.type === 'n' ? 60 : item.to - item.from;
    if (size / scale < 40 || size / scale > width) scale = Math.max(.05, size * 4 / width);
    start[item.side] = item.from - width * scale / 3;
    if (item.us < range[0] || item.us > range[1]) range = span();
    go(item.us, item.side);
  }
  show(item);
  rows();
  draw();
}
function show(item) {
  const lane = flow.sides[item.side], side = SIDES[item.side], parts = [];
  const inside = (list, from, to) => { const found = []; for (let i = first(list, from); i < list.length && list[i].from < to; i++) if (list[i].to > from) found.push(list[i]); return found; };
  if (item.type === 'n') parts.push(`${item.kind}: ${item.text}`);
  const frame = item.type === 'f' ? item : item.type === 'n' ? inside(lane.frames, item.from, item.from + 1)[0] : null;
  const segments = item.type === 's' ? [item] : inside(lane.segments, frame ? frame.from : item.from, frame ? frame.to : item.to);
  if (frame) parts.push(`${side}, ${frame.text}`, `${time(frame.us)}, packet ${frame.packet} to ${frame.end}`);
  else parts.push(`${side}, ${item.type === 's' ? `segment of ${item.to - item.from} bytes, sequence number ${item.seq}, ` : ''}packet ${item.packet}, ${time(item.us)}`);
  if (frame) parts.push(`in ${segments.length} segment${segments.length > 1 ? 's' : ''}: ` + segments.slice(0, 20).map(segment => `packet ${segment.packet} bytes ${Math.max(0, frame.from - segment.from)}–${Math.min(segment.to, frame.to) - segment.from}`).join(', ') + (segments.length > 20 ? ', …' : ''));
  if (item.type === 's') {
    const frames = inside(lane.frames, item.from, item.to), begin = frames.filter(frame => frame.from > item.from);
    parts.push(`carries ${frames.length} frame${frames.length > 1 ? 's' : ''}` + (frames.length ? `, ${frames[0].number} to ${frames[frames.length - 1].number}` : ''));
    if (begin.length) parts.push('a reader cuts at ' + begin.slice(0, 60).map(frame => frame.from - item.from).join(', ') + (begin.length > 60 ? ', …' : ''));
  }
  const detail = $('detail');
  detail.textContent = parts.join('\n') + '\n\n';
  if (frame && frame.bytes) detail.append(table(frame, item.side));
  else if (frame) detail.append('Its bytes were not captured.');
}
function explain(frame, side, bytes) {
  const bits = byte => byte.toString(2).padStart(8, '0'), rows = [], key = frame.header - (bytes[1] & 128 ? 4 : 0);
  const rsv = [[64, 'RSV1: compressed'], [32, 'RSV2'], [16, 'RSV3']].filter(([bit]) => bytes[0] & bit).map(([, text]) => '; ' + text).join('');
  rows.push([0, 1, `${bits(bytes[0])}  ${bytes[0] & 128 ? 'FIN: the message ends here' : 'no FIN: more fragments follow'}${rsv}; opcode 0x${(bytes[0] & 15).toString(16)}, ${name(bytes[0] & 15)}`]);
  const masked = bytes[1] & 128, right = !!masked === !side, low = bytes[1] & 127;
  rows.push([1, 2, `${bits(bytes[1])}  ${masked ? 'masked' : 'not masked'}, ${right ? `as all that ${SIDES[side]}s send` : 'which is a violation (RFC 6455, 5.1)'}; ${low < 126 ? 'length of the payload: ' + low : `length ${low}: the next ${low === 126 ? 2 : 8} bytes have it`}`]);
  if (key > 2) rows.push([2, key, `length of the payload in ${(key - 2) * 8} bits: ${frame.length}`]);
  if (masked) rows.push([key, frame.header, 'masking key']);
  for (let at = frame.header; at < bytes.length; at += 8) {
    const plain = bytes.slice(at, at + 8).map((byte, i) => masked ? byte ^ bytes[key + (at - frame.header + i) % 4] : byte);
    rows.push([at, Math.min(at + 8, bytes.length), 'payload: ' + [...plain].map(byte => byte > 31 && byte < 127 ? String.fromCharCode(byte) : '.').join('')]);
  }
  return rows;
}
function table(frame, side) {
  const bytes = Uint8Array.from(atob(frame.bytes), c => c.charCodeAt(0)), table = document.createElement('table');
  for (const [from, to, text] of explain(frame, side, bytes)) {
    const row = table.insertRow();
    for (const cell of [from, [...bytes.slice(from, to)].map(byte => byte.toString(16).padStart(2, '0')).join(' '), text]) row.insertCell().textContent = cell;
  }
  const whole = frame.header + frame.length;
  if (bytes.length < whole) { const row = table.insertRow(); row.insertCell(); row.insertCell(); row.insertCell().textContent = `${bytes.length} of ${whole} bytes are in this page`; }
  return table;
}

const ROW = 20;
function search() {
  const query = $('search').value.trim().toLowerCase();
  const larger = query.match(/>\s*(\d+)/), words = query.replace(/>\s*\d+\s*(bytes)?/, '').split(/\s+/).filter(Boolean);
  const matches = item => {
    if (larger && !(item.type === 'f' && item.length > +larger[1])) return false;
    const text = `${item.type === 'n' ? item.kind + ' ' : ''}${item.text} ${SIDES[item.side]} packet ${item.packet} `.toLowerCase();
    return words.every((word, i) => /^\d+$/.test(word) ? new RegExp((i ? words[i - 1] + ' ' : '\\b') + word + '\\b').test(text) : text.includes(word));
  };
  const some = flow.sides.some(lane => lane.notes.length);
  shown = flow.all.filter(query ? matches : item => !some || item.type === 'n');
  const notes = shown.filter(item => item.type === 'n').length;
  $('count').textContent = `${notes} findings${query || !some ? `, ${shown.length - notes} frames` : ' (search finds frames as well)'}`;
  $('list').scrollTop = 0;
  rows();
}
function link(item) { return `#${current}/${item.type}/${item.side}/${item.type === 'f' ? item.number : item.type === 'n' ? item.index : item.packet}`; }
function rows() {
  const list = $('list'), from = Math.max(0, Math.floor(list.scrollTop / ROW) - 5), children = [];
  const space = document.createElement('div');
  space.style.height = shown.length * ROW + 'px';
  children.push(space);
  for (let i = from; i < Math.min(shown.length, from + 40); i++) {
    const item = shown[i], row = document.createElement('a'), kind = document.createElement('b');
    row.style.top = i * ROW + 'px';
    row.href = link(item);
    row.className = item === chosen ? 'chosen' : '';
    row.append(`#${item.packet} ${SIDES[item.side]} `);
    if (item.type === 'n') { kind.textContent = item.kind + ' '; row.append(kind); }
    row.append(item.text);
    children.push(row);
  }
  list.replaceChildren(...children);
}
function follow() {
  const [index, type, side, number] = location.hash.slice(1).split('/');
  if (data.flows[+index] && +index !== current) load(+index);
  const lane = flow.sides[+side], list = lane && { f: lane.frames, n: lane.notes, s: lane.segments }[type];
  const item = list && list.find(item => (type === 'f' ? item.number : type === 'n' ? item.index : item.packet) === +number);
  if (item) choose(item, item !== chosen);
}

function pointer(id, drag, click) {
  const element = $(id);
  let down = null;
  element.addEventListener('pointerdown', event => { down = [event.offsetX, event.offsetY, event.offsetX]; element.setPointerCapture(event.pointerId); });
  element.addEventListener('pointermove', event => { if (down) { drag && drag(event.offsetX - down[2], down, event); down[2] = event.offsetX; } });
  element.addEventListener('pointerup', event => { const from = down; down = null; if (from) click(event.offsetX, event.offsetY, from); });
}
pointer('bytes', (by, down) => move(-by * scale, down[1] < LANE ? 0 : 1), (x, y, down) => {
  if (Math.abs(x - down[0]) > 3) return;
  const side = y < LANE + 4 ? 0 : 1, lane = flow.sides[side], place = start[side] + (x - LEFT) * scale, row = y - side * LANE - 4;
  const list = row < FRAMES - 4 ? lane.segments : row < NOTES - 6 ? lane.frames : lane.notes;
  const reach = list === lane.notes ? 6 * scale : scale, i = first(list, place - reach);
  if (list[i] && list[i].from <= place + reach) { choose(list[i]); history.replaceState(null, '', link(list[i])); }
});
const moment = x => range[0] + (x - LEFT) / ($('time').clientWidth - LEFT - 8) * (range[1] - range[0]);
pointer('time', null, (x, y, down) => {
  if (Math.abs(x - down[0]) > 4) { const times = [moment(down[0]), moment(x)].sort((a, b) => a - b); range = [times[0], Math.max(times[1], times[0] + 10)]; draw(); } else go(moment(x));
});
$('time').addEventListener('dblclick', () => { range = span(); draw(); });
$('bytes').addEventListener('wheel', event => { event.preventDefault(); if (event.deltaX) move(event.deltaX * scale); else zoom(event.deltaY > 0 ? 1.25 : .8, event.offsetX - LEFT); }, { passive: false });
$('bytes').addEventListener('keydown', event => {
  const step = ($('bytes').clientWidth - LEFT) * scale / 4;
  const action = { '+': () => zoom(.5), '=': () => zoom(.5), '-': () => zoom(2), ArrowLeft: () => move(-step), ArrowRight: () => move(step), Home: everything }[event.key];
  if (action) { event.preventDefault(); action(); }
});
$('in').onclick = () => zoom(.5); $('out').onclick = () => zoom(2); $('all').onclick = everything;
$('search').oninput = search; $('list').onscroll = rows; $('flow').onchange = () => { history.replaceState(null, '', location.pathname + location.search); load(+$('flow').value); };
addEventListener('hashchange', follow); addEventListener('resize', draw);
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => { paint(); draw(); });

paint();
$('title').textContent = data.title + (data.left_out ? `; ${data.left_out} segments, frames and findings are left out: choose with --flow` : '');
data.flows.forEach((flow, index) => {
  const option = document.createElement('option'), report = flow.report;
  option.value = index;
  option.textContent = `${report.client} → ${report.server}, ${report.frames_client}/${report.frames_server} frames, ${report.looks_like}`;
  $('flow').append(option);
});
for (const [code, text] of [...Object.entries(NAMES), [3, 'reserved'], ['f', 'found']]) {
  const entry = document.createElement('span'), box = document.createElement('i');
  box.className = 'k' + code;
  entry.append(box, text);
  $('legend').append(entry);
}
$('legend').append('dark part of a frame: its header');
if (data.flows.length) { load(0); follow(); } else $('summary').textContent = 'There is no WebSocket connection in the capture.';
