// The model learns from what was accepted: the button, and what the server says of it until it is done.

import { element, say } from "./panel.js";

const SECONDS = 2; // between two looks

const WORDS = {
  none: "nothing was adapted yet",
  running: "adapting …",
  promoted: "the model is better now, and answers from here on",
  "not promoted": "the model stays as it was",
  failed: "adapting failed",
};

const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

// Of what is printed, what tells a person something: the photos, the last progress, figures, the decision.
const SAID = /^(learns|judges|left out|your photos|elsewhere|not promoted|models:|error)/;

function told(lines) {
  const progress = lines.filter((line) => line.endsWith("s left")).slice(-1);
  const said = lines.filter((line) => SAID.test(line));
  return [...said, ...(said.some((line) => line.startsWith("your photos")) ? [] : progress)].join("\n");
}

export async function adapt(server) {
  element("adapt").disabled = true;
  try {
    let found = await server.adapt("POST");
    while (found.state === "running") {
      say(WORDS.running, "busy");
      element("adaptation").textContent = told(found.lines);
      await pause(SECONDS);
      found = await server.adapt("GET");
    }
    say(WORDS[found.state], found.state === "failed" ? "error" : "");
    element("adaptation").textContent = told(found.lines);
  } catch (error) {
    say(error.message, "error");
  }
  element("adapt").disabled = false;
}
