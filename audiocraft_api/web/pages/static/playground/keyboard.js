const TYPING = "input:not([type=range]):not([type=checkbox]), textarea, select, [contenteditable]";
const PRESSING = "button, summary, a, [role=tab]";

/** Connect the keys of the page: Space, J, K, L, arrows, digits. They are ignored while the user types. */
export function connectKeys({player, playNumber, moveFocus}) {
  addEventListener("keydown", (event) => {
    const {key, target} = event;
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    if (target.closest?.(`${TYPING}, dialog`)) return;
    if (key === " " && target.closest?.(PRESSING)) return;
    const isRange = target.matches?.("input[type=range]");
    const action = {
      " ": () => player.toggle(),
      k: () => player.toggle(),
      j: () => player.seek(player.position - 5),
      l: () => player.seek(player.position + 5),
      ArrowLeft: () => !isRange && player.seek(player.position - 1),
      ArrowRight: () => !isRange && player.seek(player.position + 1),
      ArrowUp: () => !isRange && moveFocus(-1),
      ArrowDown: () => !isRange && moveFocus(1),
    }[key.length === 1 ? key.toLowerCase() : key];
    if (/^[1-9]$/.test(key)) playNumber(Number(key));
    else if (action) {
      if (action() !== false) event.preventDefault();
    }
  });
}
