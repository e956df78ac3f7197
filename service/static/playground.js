"use strict";

const element = (id) => document.getElementById(id);
const lines = (id) => element(id).value.split("\n").map((line) => line.trim()).filter(Boolean);

function make(tag, text, properties = {}) {
  const made = Object.assign(document.createElement(tag), properties);
  made.textContent = text;
  return made;
}

function show(id, message) {
  element(id).textContent = message;
  element(id).hidden = !message;
}

/** Ask the service; throws an Error with the message of its error body. */
async function ask(path, body) {
  const key = element("key").value.trim();
  const headers = { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
  const options = body ? { method: "POST", headers, body: JSON.stringify(body) } : { headers };
  const answer = await fetch(path, options).catch(() => {
    throw new Error("The server does not answer.");
  });
  const content = await answer.json().catch(() => null);
  if (!answer.ok) throw new Error(content?.error?.message ?? `The server answered ${answer.status}.`);
  return content;
}

// --- models ---

let models = [];

function fillTasks() {
  const model = models.find(({ id }) => id === element("embed-model").value);
  const tasks = model?.tasks ?? [];
  element("embed-task").replaceChildren(...["", ...tasks].map((task) => new Option(task || "default", task)));
  element("embed-task").disabled = !tasks.length;
}

function fill(id, kind) {
  const fitting = models.filter(({ type }) => type === kind);
  const chosen = element(id).value;
  element(id).replaceChildren(...fitting.map((model) => new Option(model.id)));
  if (fitting.some((model) => model.id === chosen)) element(id).value = chosen;
  return fitting.length;
}

async function loadModels() {
  try {
    models = (await ask("v1/models")).data;
    show("embed-error", fill("embed-model", "embedding") ? "" : "No embedding model is loaded.");
    const hasReranker = fill("rank-model", "reranker") > 0;
    show("rank-error", "");
    element("rank-note").textContent = hasReranker ? "" : "No reranker is loaded: documents are ranked by the similarity of their vectors.";
    if (!hasReranker) fill("rank-model", "embedding");
    fillTasks();
  } catch (error) {
    show("embed-error", error.message);
    show("rank-error", error.message);
  }
}

// --- similarity ---

const dot = (one, other) => one.reduce((sum, value, index) => sum + value * other[index], 0);

function cell(similarity) {
  const share = Math.min(1, Math.max(0, similarity));
  const made = make("td", similarity.toFixed(2), { title: similarity.toFixed(4) });
  made.style.background = `rgb(var(--heat) / ${(0.06 + 0.6 * share).toFixed(3)})`;
  return made;
}

function matrix(texts, vectors) {
  const table = document.createElement("table");
  const head = table.createTHead().insertRow();
  head.append(make("td", ""), ...texts.map((text, index) => make("th", index + 1, { scope: "col", title: text })));
  const body = table.createTBody();
  texts.forEach((text, index) => {
    const row = body.insertRow();
    row.append(make("th", `${index + 1}  ${text}`, { scope: "row", title: text }));
    row.append(...vectors.map((other) => cell(dot(vectors[index], other))));
  });
  return table;
}

async function embed(model, texts, task) {
  const body = { model, input: texts, truncate: true, ...(task && { task }) };
  const answer = await ask("v1/embeddings", body);
  return { vectors: answer.data.map((item) => item.embedding), tokens: answer.usage.total_tokens };
}

async function compare() {
  element("matrix").replaceChildren();
  const texts = lines("texts");
  const found = await embed(element("embed-model").value, texts, element("embed-task").value);
  element("matrix").replaceChildren(matrix(texts, found.vectors));
  return `${texts.length} texts, ${found.tokens} tokens, ${found.vectors[0].length} dimensions; cosine similarity`;
}

// --- ranking ---

function bar({ text, score }, lowest, highest) {
  const line = make("div", "", { className: "line" });
  line.append(make("span", text), make("span", score.toFixed(4), { className: "score" }));
  const meter = make("meter", "", { min: Math.min(0, lowest), max: Math.max(1, highest), value: score });
  meter.setAttribute("aria-label", `score of: ${text}`);
  const item = document.createElement("li");
  item.append(line, meter);
  return item;
}

async function ranked(model, query, documents) {
  if (models.find(({ id }) => id === model)?.type === "reranker") {
    const { results } = await ask("v1/rerank", { model, query, documents, return_documents: false });
    return results.map(({ index, relevance_score }) => ({ text: documents[index], score: relevance_score }));
  }
  const { vectors } = await embed(model, [query, ...documents], "");
  const scores = documents.map((text, index) => ({ text, score: dot(vectors[0], vectors[index + 1]) }));
  return scores.sort((one, other) => other.score - one.score);
}

async function rank() {
  element("bars").replaceChildren();
  const found = await ranked(element("rank-model").value, element("query").value, lines("documents"));
  const scores = found.map(({ score }) => score);
  element("bars").replaceChildren(...found.map((each) => bar(each, Math.min(...scores), Math.max(...scores))));
  return `${found.length} documents, best first`;
}

// --- the page ---

function onSubmit(name, action) {
  element(name).addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = element(name).querySelector("button");
    button.disabled = true;
    show(`${name}-error`, "");
    element(`${name}-note`).textContent = "";
    try {
      element(`${name}-note`).textContent = await action();
    } catch (error) {
      show(`${name}-error`, error.message);
    } finally {
      button.disabled = false;
    }
  });
}

onSubmit("embed", compare);
onSubmit("rank", rank);
element("embed-model").addEventListener("change", fillTasks);
element("key").value = sessionStorage.getItem("key") ?? "";
element("key").addEventListener("change", () => {
  sessionStorage.setItem("key", element("key").value.trim());
  loadModels();
});
loadModels();
