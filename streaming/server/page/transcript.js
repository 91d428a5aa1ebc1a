// What was recognised: finals in black, and under them the partial that is under way in grey.

const finals = document.getElementById("finals");
const partial = document.getElementById("partial");
const hint = document.getElementById("hint");

export const transcript = {
  /** Texts of the finals, a line each. */
  get text() {
    return [...finals.querySelectorAll(".segment span")].map((span) => span.textContent).join("\n");
  },

  partial({ text, start_s }) {
    following(() => {
      fill(partial, text, start_s);
      partial.hidden = !text;
      hint.hidden = hint.hidden || Boolean(text);
    });
  },

  final({ text, start_s }) {
    following(() => {
      partial.hidden = true;
      if (!text) return;
      const segment = document.createElement("p");
      segment.className = "segment";
      segment.append(document.createElement("time"), document.createElement("span"));
      segment.lastChild.dir = "auto";
      fill(segment, text, start_s);
      finals.append(segment);
      hint.hidden = true;
    });
  },

  /** A line between what was there and a stream that begins. */
  divide() {
    if (finals.lastElementChild?.className === "segment") finals.append(document.createElement("hr"));
  },

  /** Empties it; returns a function that brings everything back. */
  clear() {
    const before = [...finals.childNodes];
    finals.replaceChildren();
    partial.hidden = true;
    hint.hidden = false;
    return () => {
      finals.replaceChildren(...before);
      hint.hidden = before.length > 0;
    };
  },

  /** No more comes: what was only partial is gone. */
  settle() {
    partial.hidden = true;
    hint.hidden = finals.childElementCount > 0;
  },
};

/** Seconds as 1:05 or 1:00:05. */
export function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (number) => String(number).padStart(2, "0");
  return h ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}

function fill(segment, text, start_s) {
  segment.firstChild.textContent = clock(start_s);
  segment.firstChild.dateTime = `PT${start_s.toFixed(2)}S`;
  segment.lastChild.textContent = text;
}

/** Keeps the end in sight, unless the reader has scrolled up. */
function following(change) {
  const page = document.documentElement;
  const atEnd = page.scrollHeight - innerHeight - scrollY < 48;
  change();
  if (atEnd) scrollTo(0, page.scrollHeight);
}
