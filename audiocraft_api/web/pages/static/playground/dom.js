/** Create an element with properties; `on…` functions become listeners, names with a dash become attributes. */
export function element(name, properties = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key.includes("-") || key === "role" || key === "for") node.setAttribute(key, value);
    else node[key] = value;
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** Create a button that shows an icon of `icons.svg` and, unless `iconOnly`, its label. */
export function button(label, onclick, {icon, iconOnly = false, className = "quiet", ...rest} = {}) {
  const content = icon ? [iconOf(icon)] : [];
  if (!iconOnly) content.push(element("span", {textContent: label}));
  const hints = iconOnly ? {"aria-label": label, title: label} : {};
  return element("button", {type: "button", className, onclick, ...hints, ...rest}, ...content);
}

/** Create an icon. Screen readers skip it. */
export function iconOf(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  svg.append(useOf(name));
  return svg;
}

/** Show another icon in a button. */
export function setIcon(target, name) {
  target.querySelector("svg.icon").replaceChildren(useOf(name));
}

function useOf(name) {
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#icon-${name}`);
  return use;
}

/** Offer a file to the user under `filename`. */
export function saveFile(blob, filename) {
  const url = URL.createObjectURL(blob);
  element("a", {href: url, download: filename}).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/** Return the element with this ID. */
export const byId = (id) => document.getElementById(id);
