// Where things stand: layers from top to bottom, each group laid out by itself, inner ones first.

const SIZE = { leaf: 38, input: 22, block: 48, head: 26, pad: 14, gapX: 16, gapY: 26, narrow: 6 };
const FARTHEST = 40; // layers that a line may cross; farther ones are drawn as two ends
const MOST_BENDS = 60000;

// Gives every drawn item `x`, `y` (within its group), `w`, `h`, and every open group `layers`,
// which the painter walks, and `lines`.
function layOut(tree, labels) {
  const of = linksOf(tree);
  const visit = (item) => {
    if (item.type === "leaf" || !item.open) {
      sizeOf(item, labels(item));
      return;
    }
    for (const child of item.children) if (!child.hidden) visit(child);
    arrangeGroup(item, of(item), labels(item));
  };
  visit(tree.root);
  tree.root.x = tree.root.y = 0;
  tree.dirty = false;
}

function sizeOf(item, label) {
  item.w = label.width;
  item.h =
    item.type === "block" ? SIZE.block : item.maker?.kind === "input" ? SIZE.input : SIZE.leaf;
}

function arrangeGroup(item, { links, entrances, exits }, label) {
  const ports = [...entrances.values(), ...exits.values()];
  for (const each of ports) Object.assign(each, { w: 0, h: 0 });
  const drawn = item.children.filter((child) => !child.hidden);
  const vertices = [...entrances.values(), ...drawn, ...exits.values()];
  const edges = [...links.values()];
  const net = layered(vertices, edges, item);
  const head = item.parent ? SIZE.head : 0,
    pad = item.parent ? SIZE.pad : 0;
  item.w = Math.max(net.width + 2 * pad, label.width);
  item.h = net.height + 2 * pad + head;
  const shiftX = (item.w - net.width) / 2,
    shiftY = pad + head;
  for (const vertex of vertices) {
    vertex.x += shiftX;
    vertex.y += shiftY;
  }
  for (const exit of exits.values()) exit.y = item.h;
  for (const entrance of entrances.values()) entrance.y = 0;
  item.layers = net.layers.map((layer) => ({ ...layer, y: layer.y + shiftY }));
  item.lines = linesOf(net, shiftX, shiftY, item);
  item.lineAt = null;
  item.portX = new Map(ports.map((each) => [`${each.type} ${each.key}`, each.x]));
}

// --- layers --------------------------------------------------------------------------------------

function layered(vertices, edges, item) {
  const at = new Map(vertices.map((vertex, index) => [vertex, index]));
  const pairs = edges.map((edge) => ({ edge, a: at.get(edge.from), b: at.get(edge.to) }));
  const rank = ranked(vertices, pairs);
  const nodes = vertices.map((vertex, index) => ({
    vertex,
    rank: rank[index],
    w: vertex.w,
    h: vertex.h,
    up: [],
    down: [],
  }));
  const chains = bend(nodes, pairs);
  const layers = [];
  for (const node of nodes) (layers[node.rank] ??= []).push(node);
  for (let i = 0; i < layers.length; i++) layers[i] ??= [];
  order(layers);
  spread(layers);
  return { ...stacked(layers), pairs, nodes, chains };
}

// The longest way from above; what reads nothing stands right above its first reader.
function ranked(vertices, pairs) {
  const rank = new Int32Array(vertices.length);
  const after = vertices.map(() => []),
    reads = new Uint8Array(vertices.length);
  for (const pair of pairs) {
    after[pair.a].push(pair.b);
    reads[pair.b] = 1;
  }
  vertices.forEach((vertex, a) => {
    for (const b of after[a]) rank[b] = Math.max(rank[b], rank[a] + 1);
  });
  for (let a = vertices.length - 1; a >= 0; a--) {
    if (reads[a] || !after[a].length || vertices[a].type === "entrance") continue;
    rank[a] = Math.max(0, Math.min(...after[a].map((b) => rank[b])) - 1);
  }
  const last = rank.reduce(
    (most, r, i) => (vertices[i].type === "exit" ? most : Math.max(most, r)),
    0,
  );
  vertices.forEach((vertex, i) => {
    if (vertex.type === "exit") rank[i] = last + 1;
  });
  return rank;
}

// Lines over several layers get a bend in each, shared by all readers of a value.
function bend(nodes, pairs) {
  const real = nodes.length,
    chains = new Map();
  const spans = pairs.reduce(
    (sum, { a, b }) => sum + Math.max(0, nodes[b].rank - nodes[a].rank - 1),
    0,
  );
  const farthest = Math.min(
    FARTHEST,
    Math.max(4, Math.floor((FARTHEST * MOST_BENDS) / Math.max(spans, MOST_BENDS))),
  );
  for (const pair of pairs) {
    const from = nodes[pair.a],
      to = nodes[pair.b];
    pair.far = to.rank - from.rank > farthest;
    if (pair.far) continue;
    const key = `${pair.a} ${pair.edge.out ?? ""}`;
    let before = from;
    const chain = chains.get(key) ?? [];
    chains.set(key, chain);
    for (let rank = from.rank + 1; rank < to.rank; rank++) {
      const step = rank - from.rank - 1;
      if (!chain[step]) {
        chain[step] = { rank, w: 0, h: 0, up: [before], down: [] };
        before.down.push(chain[step]);
        nodes.push(chain[step]);
      }
      before = chain[step];
    }
    before.down.push(to);
    to.up.push(before);
  }
  return { real, chains };
}

// --- order within layers: sweeps to the mean of neighbours, the one with the fewest crossings ----

function order(layers) {
  const number = (layer) =>
    layer.forEach((node, index) => {
      node.at = index;
    });
  layers.forEach(number);
  let best = layers.map((layer) => [...layer]),
    fewest = crossings(layers);
  const sweeps = layers.length * Math.max(...layers.map((l) => l.length), 1) > 40000 ? 3 : 8;
  for (let sweep = 0; sweep < sweeps && fewest > 0; sweep++) {
    const down = sweep % 2 === 0;
    const walk = down ? layers : [...layers].reverse();
    for (const layer of walk) {
      for (const node of layer) node.wish = mean(down ? node.up : node.down, node.at);
      layer.sort((a, b) => a.wish - b.wish || a.at - b.at);
      number(layer);
    }
    const found = crossings(layers);
    if (found < fewest) {
      fewest = found;
      best = layers.map((layer) => [...layer]);
    }
  }
  best.forEach((layer, index) => {
    layers[index] = layer;
    number(layer);
  });
}

function mean(nodes, otherwise) {
  return nodes.length ? nodes.reduce((sum, node) => sum + node.at, 0) / nodes.length : otherwise;
}

// Pairs of lines that cross between neighbouring layers, counted with a tree of sums.
function crossings(layers) {
  let found = 0;
  for (let i = 0; i + 1 < layers.length; i++) {
    const size = layers[i + 1].length,
      sums = new Int32Array(size + 1);
    let total = 0;
    for (const node of layers[i]) {
      const ends = node.down.map((to) => to.at).sort((a, b) => a - b);
      for (const end of ends) {
        let left = 0;
        for (let k = end + 1; k > 0; k -= k & -k) left += sums[k];
        found += total - left;
      }
      for (const end of ends) {
        total++;
        for (let k = end + 1; k <= size; k += k & -k) sums[k]++;
      }
    }
  }
  return found;
}

// --- places within layers -------------------------------------------------------------------------

// Nodes move to the mean of their neighbours, as far as those beside them let them.
function spread(layers) {
  for (const layer of layers) {
    let x = 0;
    for (const node of layer) {
      node.x = x + node.w / 2;
      x += node.w + SIZE.gapX;
    }
    const middle = (x - SIZE.gapX) / 2;
    for (const node of layer) node.x -= middle;
  }
  const sweeps = layers.reduce((sum, layer) => sum + layer.length, 0) > 4000 ? 8 : 24;
  for (let sweep = 0; sweep <= sweeps; sweep++) {
    const side = sweep === sweeps ? "both" : sweep % 2 === 0 ? "up" : "down";
    for (const layer of side === "down" ? [...layers].reverse() : layers) settle(layer, side);
  }
}

function settle(layer, side) {
  const wish = layer.map((node) => {
    const near = side === "both" ? [...node.up, ...node.down] : node[side];
    const weight = near.reduce((sum, other) => sum + pull(other), 0);
    return weight ? near.reduce((sum, other) => sum + pull(other) * other.x, 0) / weight : node.x;
  });
  // Least squares with least distances: neighbours that push each other become one pool.
  const pools = [];
  let offset = 0;
  layer.forEach((node, index) => {
    if (index) offset += apart(layer[index - 1], node);
    const weight = firmness(node);
    let pool = { sum: (wish[index] - offset) * weight, weight, count: 1 };
    while (pools.length && pools.at(-1).sum / pools.at(-1).weight > pool.sum / pool.weight) {
      const last = pools.pop();
      pool = {
        sum: last.sum + pool.sum,
        weight: last.weight + pool.weight,
        count: last.count + pool.count,
      };
    }
    pools.push(pool);
  });
  let index = 0,
    x = 0;
  for (const pool of pools) {
    for (let k = 0; k < pool.count; k++, index++) {
      if (index) x += apart(layer[index - 1], layer[index]);
      layer[index].x = pool.sum / pool.weight + x;
    }
  }
}

// How much a neighbour counts: large blocks hold on to each other, so that a chain of them is straight.
function pull(node) {
  return node.vertex?.type === "block" ? 3 * node.vertex.leaves : node.vertex ? 3 : 1;
}

// How much a node insists on its place: what stands beside a large block makes room for it.
function firmness(node) {
  return node.vertex?.type === "block" ? node.vertex.leaves ** 2 : node.vertex ? 2 : 3;
}

function apart(a, b) {
  return (a.w + b.w) / 2 + (a.vertex?.w && b.vertex?.w ? SIZE.gapX : SIZE.narrow);
}

function stacked(layers) {
  let left = Infinity,
    right = -Infinity,
    y = 0;
  for (const layer of layers)
    for (const node of layer) {
      left = Math.min(left, node.x - node.w / 2);
      right = Math.max(right, node.x + node.w / 2);
    }
  if (left > right) left = right = 0;
  const made = layers.map((layer) => {
    const height = layer.reduce((most, node) => Math.max(most, node.h), 0);
    const top = y;
    y += height + (height ? SIZE.gapY : SIZE.gapY / 2);
    for (const node of layer) {
      node.x -= left;
      node.top = top;
      node.bottom = top + height;
      if (node.vertex) Object.assign(node.vertex, { x: node.x - node.w / 2, y: top });
    }
    const items = layer.filter((node) => node.vertex && node.w).map((node) => node.vertex);
    return { y: top, h: height, items, lines: [] };
  });
  return { layers: made, width: right - left, height: Math.max(0, y - SIZE.gapY) };
}

// --- lines ----------------------------------------------------------------------------------------

// Pieces from layer to layer, listed with the layer from which they come; far lines as two ends.
function linesOf(net, shiftX, shiftY, item) {
  const lines = net.pairs.map((pair) => ({ ...pair.edge, far: pair.far, points: [] }));
  net.pairs.forEach((pair, index) => {
    const from = net.nodes[pair.a],
      to = net.nodes[pair.b],
      line = lines[index];
    const chain = pair.far ? [] : (net.chains.chains.get(`${pair.a} ${pair.edge.out ?? ""}`) ?? []);
    const startX = end(from, pair.edge.out, "exit", shiftX),
      endX = end(to, pair.edge.into, "entrance", shiftX);
    line.points.push(startX, from.vertex.y + from.h, startX, from.bottom + shiftY);
    for (const knot of chain.slice(0, to.rank - from.rank - 1)) {
      line.points.push(knot.x + shiftX, knot.top + shiftY, knot.x + shiftX, knot.bottom + shiftY);
    }
    line.points.push(endX, to.vertex.y);
    if (from.vertex.type === "entrance") line.points[1] = 0;
    if (to.vertex.type === "exit") line.points[line.points.length - 1] = item.h;
    line.first = from.rank;
    line.last = to.rank;
  });
  return lines;
}

// Where a line meets a vertex: an open group has a place for each value.
function end(node, value, type, shiftX) {
  const { vertex } = node;
  const within = value && vertex.open ? vertex.portX.get(`${type} ${value}`) : undefined;
  return within === undefined ? node.x + shiftX : vertex.x + within;
}
