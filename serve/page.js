"use strict";
const $ = (id) => document.getElementById(id);
let photo = null; // the file that is shown
let asked = 0; // the last question; answers to earlier ones are dropped

function say(text, bad = false) {
  $("state").textContent = text;
  $("state").classList.toggle("bad", bad);
}

async function ask(label) {
  const question = ++asked;
  const where = new URLSearchParams({ top: "5", explain: "gradcam" });
  if (label !== undefined) where.set("label", label);
  say("Looking ...");
  $("result").classList.add("busy");
  let told;
  try {
    const response = await fetch(`predict?${where}`, { method: "POST", body: photo });
    told = await response.json();
    if (!response.ok && told.id === "explain.no-map") { // a network without feature maps
      told = await (await fetch("predict?top=5", { method: "POST", body: photo })).json();
    }
  } catch {
    told = { error: "no answer: is the service still there?" };
  }
  if (question !== asked) return;
  $("result").classList.remove("busy");
  if (told.error) {
    $("result").hidden = label === undefined;
    say(`That did not work: ${told.error}`, true);
    return;
  }
  show(told);
  say("");
}

function show(told) {
  const why = told.explained;
  $("heat").parentElement.hidden = !why;
  if (why) {
    $("heat").src = why.image;
    $("why").textContent = why.label;
  }
  $("bars").replaceChildren(...told.top.map((row) => {
    const button = document.createElement("button");
    const [bar, name, share] = ["i", "span", "span"].map((tag) => document.createElement(tag));
    bar.style.width = `${100 * row.probability}%`;
    name.textContent = row.label;
    share.textContent = `${(100 * row.probability).toFixed(1)} %`;
    share.className = "share";
    button.append(bar, name, share);
    button.type = "button";
    button.setAttribute("aria-pressed", String(why?.label === row.label));
    button.addEventListener("click", () => ask(row.label));
    const item = document.createElement("li");
    item.append(button);
    return item;
  }));
  $("result").hidden = false;
}

function take(files) {
  const file = [...(files ?? [])][0];
  if (!file) return;
  photo = file;
  if ($("photo").src) URL.revokeObjectURL($("photo").src);
  $("photo").parentElement.hidden = false;
  $("photo").src = URL.createObjectURL(file);
  ask();
}

$("photo").addEventListener("error", () => { $("photo").parentElement.hidden = true; }); // a TIFF, say
$("file").addEventListener("change", (event) => { take(event.target.files); event.target.value = ""; });
window.addEventListener("paste", (event) => take(event.clipboardData?.files));
for (const kind of ["dragenter", "dragover"]) {
  window.addEventListener(kind, (event) => { event.preventDefault(); $("drop").classList.add("over"); });
}
window.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) $("drop").classList.remove("over");
});
window.addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  take(event.dataTransfer?.files);
});
