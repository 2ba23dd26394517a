import {byId, element, iconOf} from "./dom.js";

const [WIDTH, HEIGHT] = [160, 100]; // the units of the pad, which has this aspect ratio
const EARSHOT = 75; // a dot this far from the listener has no weight; every place of the pad has one this far away
const MARGIN = 10;
const STEP = 4; // of an arrow key
export const WEIGHT_STEP = 5; // of the sliders, too; the nearest dot has this weight where none is within earshot
const ARROWS = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
const DEGREES = Array.from({length: 72}, (_, i) => (i * Math.PI) / 36);

/**
 * Texts as dots, and a listener among them: the closer a dot is, the larger the weight of its text, from 0 to 100. It
 * dispatches `move` when the user has moved something. A dot with a negative weight lies where it is not heard.
 */
export class LivePad extends EventTarget {
  #dots = []; // {x, y, weight, element, line, label}
  #listener = {x: WIDTH / 2 - EARSHOT / 2, y: HEIGHT / 2};
  #place = byId("live-pad");
  #lines = svg("svg", {viewBox: `0 0 ${WIDTH} ${HEIGHT}`, "aria-hidden": "true"});
  #earshot = svg("circle", {r: EARSHOT});

  constructor() {
    super();
    this.#lines.append(this.#earshot);
    const node = this.#handle("listener", iconOf("listen"), this.#listener);
    node.setAttribute("aria-label", "Listener");
    this.#listener.element = node;
    this.#place.append(this.#lines, node);
    this.#place.addEventListener("pointerdown", (event) => this.#onPointer(event));
    this.#show();
  }

  /** Add a dot where it has a weight, as far from the others as it can be; or at a place that it had before. */
  add(weight, place = null) {
    const dot = {weight, line: svg("line", {}), label: element("span", {className: "dot-label"})};
    dot.number = element("span", {className: "dot-number"});
    dot.element = this.#handle("dot", dot.number, dot);
    dot.element.append(dot.label);
    const others = this.#dots.filter((other) => distance(other, this.#listener) > 1);
    const nearest = (point) => Math.min(WIDTH, ...others.map((other) => distance(point, other)));
    Object.assign(dot, place ?? this.#around(weight, nearest));
    this.#dots.push(dot);
    this.#lines.append(dot.line);
    this.#place.append(dot.element);
    this.#show();
    return dot;
  }

  remove(dot) {
    this.#dots = this.#dots.filter((other) => other !== dot);
    dot.line.remove();
    dot.element.remove();
  }

  /** Move a dot to where it has a weight, in its direction if that is on the pad. */
  setWeight(dot, weight) {
    dot.weight = weight;
    const {x, y} = this.#listener;
    const length = distance(dot, this.#listener) || 1;
    const towards = [(dot.x - x) / length, (dot.y - y) / length];
    Object.assign(
      dot,
      this.#around(weight, (point) => (point.x - x) * towards[0] + (point.y - y) * towards[1]),
    );
    this.#show();
  }

  /** Name a dot, and say what part its text has in the music, from 0 to 1, also in words. */
  describe(dot, {name, text, share, words}) {
    dot.number.textContent = name.replace(/\D/g, "");
    dot.label.textContent = text;
    dot.element.classList.toggle("off", share <= 0);
    dot.element.style.setProperty("--share", `${100 * Math.max(0, share)}%`);
    dot.line.style.opacity = Math.max(0, share);
    dot.element.setAttribute("aria-label", `${name} on the pad`);
    dot.element.setAttribute("aria-valuetext", words);
    const mix = this.#dots.map((one) => one.element.getAttribute("aria-valuetext"));
    this.#listener.element.setAttribute("aria-valuetext", mix.map((part, i) => `text ${i + 1}: ${part}`).join(", "));
  }

  /** Where the listener is, to be set again later. */
  get listener() {
    return {x: this.#listener.x, y: this.#listener.y};
  }

  set listener(place) {
    Object.assign(this.#listener, place);
    this.#show();
  }

  /** Return the place on the pad with a weight that has the highest score. */
  #around(weight, score) {
    const radius = EARSHOT * (1 - Math.max(0, weight) / 100);
    const {x, y} = this.#listener;
    const places = DEGREES.map((angle) => ({x: x + radius * Math.cos(angle), y: y + radius * Math.sin(angle)}));
    const isOnPad = (place) => distance(place, onPad(place)) < 1e-6;
    const possible = places.filter(isOnPad);
    return possible.reduce((best, place) => (score(place) > score(best) ? place : best), possible[0]);
  }

  #handle(className, content, thing) {
    const node = element("div", {className, role: "slider", tabIndex: 0}, content);
    node.setAttribute("aria-valuemin", "0");
    node.setAttribute("aria-valuemax", "100");
    node.addEventListener("keydown", (event) => {
      const arrow = ARROWS[event.key];
      if (!arrow) return;
      event.preventDefault();
      this.#moveTo(thing, {x: thing.x + STEP * arrow[0], y: thing.y + STEP * arrow[1]});
    });
    return node;
  }

  /** Drag a dot, or with the empty pad the listener. */
  #onPointer(event) {
    event.preventDefault();
    const thing = this.#dots.find((dot) => dot.element.contains(event.target)) ?? this.#listener;
    thing.element.focus();
    this.#place.setPointerCapture(event.pointerId);
    const move = ({clientX, clientY}) => {
      const {left, top, width, height} = this.#place.getBoundingClientRect();
      this.#moveTo(thing, {x: (WIDTH * (clientX - left)) / width, y: (HEIGHT * (clientY - top)) / height});
    };
    const stop = () => this.#place.removeEventListener("pointermove", move);
    if (thing === this.#listener) move(event);
    this.#place.addEventListener("pointermove", move);
    for (const end of ["pointerup", "pointercancel"]) this.#place.addEventListener(end, stop, {once: true});
  }

  #moveTo(thing, place) {
    Object.assign(thing, onPad(place));
    const moved = thing === this.#listener ? this.#dots.filter(({weight}) => weight >= 0) : [thing];
    for (const dot of moved) {
      const weight = 100 * (1 - distance(dot, this.#listener) / EARSHOT);
      dot.weight = Math.max(0, WEIGHT_STEP * Math.round(weight / WEIGHT_STEP));
    }
    if (this.#dots.length && this.#dots.every(({weight}) => weight <= 0)) {
      const near = this.#dots.reduce((a, b) => (distance(a, this.#listener) <= distance(b, this.#listener) ? a : b));
      near.weight = WEIGHT_STEP;
    }
    this.#show();
    this.dispatchEvent(new Event("move"));
  }

  #show() {
    const {x: x1, y: y1} = this.#listener;
    setAttributes(this.#earshot, {cx: x1, cy: y1});
    for (const {x, y, weight, element: node, line} of [this.#listener, ...this.#dots]) {
      node.style.left = `${(100 * x) / WIDTH}%`;
      node.style.top = `${(100 * y) / HEIGHT}%`;
      node.classList.toggle("low", y > 0.7 * HEIGHT);
      node.dataset.side = x < WIDTH / 4 ? "left" : x > (3 * WIDTH) / 4 ? "right" : "middle";
      node.setAttribute("aria-valuenow", String(Math.max(0, Math.round(weight ?? x))));
      if (line) setAttributes(line, {x1, y1, x2: x, y2: y});
    }
  }
}

const distance = (a, b) => Math.hypot(a.x - b.x, a.y - b.y);

const onPad = ({x, y}) => ({
  x: Math.max(MARGIN, Math.min(WIDTH - MARGIN, x)),
  y: Math.max(MARGIN, Math.min(HEIGHT - MARGIN, y)),
});

function svg(name, attributes) {
  return setAttributes(document.createElementNS("http://www.w3.org/2000/svg", name), attributes);
}

function setAttributes(node, attributes) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}
