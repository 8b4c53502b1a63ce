// Sends a photo to /invocations and says what came back in words.

const TYPES = ["image/jpeg", "image/png", "image/webp"];
const part = (id) => document.getElementById(id);
let shown = null; // the object URL of the photo on the page
let asked = 0; // only the last question's answer is shown

async function ask(body, type, picture) {
  const question = ++asked;
  part("result").hidden = true;
  part("error").textContent = "";
  part("busy").textContent = "Looking at the photo…";
  try {
    // Of an address, the server sends back what it saw: this page asks nobody else for it.
    const path = picture ? "invocations" : "invocations?photo=true";
    const response = await fetch(path, { method: "POST", headers: { "Content-Type": type }, body });
    const answer = await response.json();
    if (question !== asked) return;
    if (response.ok) show(answer, picture);
    else complain(answer.error);
  } catch {
    if (question === asked) part("error").textContent = "The server did not answer. Is it running?";
  } finally {
    if (question === asked) part("busy").textContent = "";
  }
}

function show(answer, picture) {
  if (shown) URL.revokeObjectURL(shown);
  shown = picture ? URL.createObjectURL(picture) : null;
  part("photo").src = shown ?? answer.photo;
  part("verdict").textContent = verdict(answer);
  part("guesses").replaceChildren(...answer.predictions.map(bar));
  part("result").hidden = false;
  part("result").focus();
}

const readable = (label) => label.replace(/^[0-9]+\./, "").replaceAll("_", " ");

function verdict(answer) {
  const best = readable(answer.predictions[0].label);
  if (answer.not_one_of_these) return "This does not look like anything that I was taught. The nearest:";
  if (answer.unsure) return `I am unsure. It may be: ${best}`;
  return best;
}

function bar({ label, probability }) {
  const row = document.createElement("li");
  const name = document.createElement("span");
  const percent = document.createElement("span");
  const meter = document.createElement("meter");
  name.textContent = readable(label);
  percent.textContent = `${(100 * probability).toFixed(probability < 0.1 ? 1 : 0)} %`;
  meter.value = probability;
  meter.setAttribute("aria-hidden", "true"); // the number stands beside it
  row.append(name, percent, meter);
  return row;
}

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

function complain({ problem, accepted }) {
  part("error").textContent = `${capital(problem)}. ${capital(accepted)}.`;
}

function askAbout(file) {
  if (file.type && !TYPES.includes(file.type)) {
    part("result").hidden = true;
    complain({ problem: `${file.name} is not a photo`, accepted: "a photo may be a JPEG, PNG or WEBP" });
    return;
  }
  ask(file, "application/octet-stream", file);
}

part("file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  if (file) askAbout(file);
  event.target.value = ""; // the same file may be chosen again
});

part("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const url = part("url").value.trim();
  if (url) ask(JSON.stringify({ url }), "application/json", null);
  else complain({ problem: "no photo was given", accepted: "choose one, or give its address" });
});

document.addEventListener("paste", (event) => {
  const [file] = event.clipboardData.files;
  if (file) askAbout(file);
});

for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    part("drop").classList.add("over");
  });
}
document.addEventListener("dragleave", () => part("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  part("drop").classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) askAbout(file);
});
