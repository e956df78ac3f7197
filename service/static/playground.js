"use strict";

const element = (id) => document.getElementById(id);
const numbered = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;

/** Read the lines of a field that have something; throws an Error that says what is needed where none has. */
function lines(id, needed) {
  const found = element(id).value.split("\n").map((line) => line.trim()).filter(Boolean);
  if (!found.length) {
    element(id).focus();
    throw new Error(needed);
  }
  return found;
}

function make(tag, text, properties = {}) {
  const made = Object.assign(document.createElement(tag), properties);
  made.textContent = text;
  return made;
}

function show(id, message) {
  element(id).textContent = message;
  element(id).hidden = !message;
}

/** Ask the service; throws an Error with the message and the code of its error body. */
async function ask(path, body) {
  const key = element("key").value.trim();
  const headers = { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
  const options = body ? { method: "POST", headers, body: JSON.stringify(body) } : { headers };
  const answer = await fetch(path, options).catch(() => {
    throw new Error("The server does not answer.");
  });
  const content = await answer.json().catch(() => null);
  if (!answer.ok) {
    const said = content?.error?.message ?? `The server answered ${answer.status}.`;
    const message = answer.status === 401 ? "Enter one of the server's keys above, under 'API key'." : said;
    throw Object.assign(new Error(message), { code: content?.error?.code });
  }
  return content;
}

// --- models ---

let models = [];
const modelOf = (id) => models.find((model) => model.id === id);

function fillTasks() {
  const model = modelOf(element("embed-model").value);
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
    element("rank-hint").hidden = hasReranker;
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

/** Count the tokens that a model would read of texts, were there no limit. */
async function tokensOf(model, texts, task) {
  const answer = await ask("v1/tokenize", { model, input: texts, ...(task && { task }) });
  return answer.data.map((item) => item.tokens);
}

/** Embed texts. Those that are too long are cut, and `excess` has their places and numbers of tokens. */
async function embed(model, texts, task) {
  const body = { model, input: texts, ...(task && { task }) };
  let excess = [];
  const answer = await ask("v1/embeddings", body).catch(async (error) => {
    if (error.code !== "input_too_long") throw error;
    const counts = await tokensOf(model, texts, task);
    excess = counts.map((tokens, index) => ({ tokens, index })).filter(({ tokens }) => tokens > modelOf(model).max_tokens);
    return ask("v1/embeddings", { ...body, truncate: true });
  });
  return { vectors: answer.data.map((item) => item.embedding), tokens: answer.usage.total_tokens, excess };
}

/** Say what was not read to its end, and how much the model reads. */
function showCut(id, reads, excess, nameOf) {
  const names = excess.map(({ index, tokens }) => `${nameOf(index)} (${tokens} tokens)`);
  show(id, names.length ? `Cut, since the model reads ${reads}: ${names.join(", ")}.` : "");
}

const readsOfText = (model) => `${modelOf(model).max_tokens} tokens of a text`;

async function compare() {
  element("matrix").replaceChildren();
  const texts = lines("texts", "At least one text is needed.");
  const model = element("embed-model").value;
  const found = await embed(model, texts, element("embed-task").value);
  element("matrix").replaceChildren(matrix(texts, found.vectors));
  showCut("embed-cut", readsOfText(model), found.excess, (index) => `text ${index + 1}`);
  return `${numbered(texts.length, "text")}, ${numbered(found.tokens, "token")}, ${numbered(found.vectors[0].length, "dimension")}; cosine similarity`;
}

// --- ranking ---

const READ_OF_EACH = { "jina-reranker-v3": { query: 512, document: 2048 } }; // /v1/models does not say it
const SPECIAL_TOKENS = 8; // no more stand around two texts

function bar({ text, score }, lowest, highest) {
  const line = make("div", "", { className: "line" });
  line.append(make("span", text), make("span", score.toFixed(4), { className: "score" }));
  const meter = make("meter", "", { min: Math.min(0, lowest), max: Math.max(1, highest), value: score });
  meter.setAttribute("aria-label", `score of: ${text}`);
  const item = document.createElement("li");
  item.append(line, meter);
  return item;
}

const nameInRanking = (index) => (index ? `document ${index}` : "the query");
const bytes = (text) => new TextEncoder().encode(text).length;

/** Say what a reranker has not read to its end: it cuts by itself, and its answer does not tell. */
async function showUnread(model, query, documents) {
  const { max_tokens: both } = modelOf(model);
  const each = READ_OF_EACH[model];
  const harmless = (each?.query ?? both) - SPECIAL_TOKENS; // a token has a byte or more
  if (documents.every((text) => bytes(query + text) <= harmless)) return;
  const [ofQuery, ...ofDocuments] = await tokensOf(model, [query, ...documents], "");
  const isCut = each ? (tokens) => tokens > each.document : (tokens) => ofQuery + tokens > both;
  const excess = ofDocuments.map((tokens, index) => ({ tokens, index: index + 1 })).filter(({ tokens }) => isCut(tokens));
  if (each && ofQuery > each.query) excess.unshift({ tokens: ofQuery, index: 0 });
  const reads = each ? `${each.query} tokens of a query and ${each.document} of a document` : `${both} tokens of query and document together`;
  showCut("rank-cut", reads, excess, nameInRanking);
}

async function rerank(model, query, documents) {
  const { results } = await ask("v1/rerank", { model, query, documents, return_documents: false });
  return results.map(({ index, relevance_score }) => ({ text: documents[index], score: relevance_score }));
}

async function rankByVectors(model, query, documents) {
  const { vectors, excess } = await embed(model, [query, ...documents], "");
  showCut("rank-cut", readsOfText(model), excess, nameInRanking);
  const scores = documents.map((text, index) => ({ text, score: dot(vectors[0], vectors[index + 1]) }));
  return scores.sort((one, other) => other.score - one.score);
}

async function rank() {
  element("bars").replaceChildren();
  const [query] = lines("query", "A query is needed.");
  const documents = lines("documents", "At least one document is needed.");
  const model = element("rank-model").value;
  const isReranker = modelOf(model)?.type === "reranker";
  const found = await (isReranker ? rerank : rankByVectors)(model, query, documents);
  const scores = found.map(({ score }) => score);
  element("bars").replaceChildren(...found.map((each) => bar(each, Math.min(...scores), Math.max(...scores))));
  if (isReranker) await showUnread(model, query, documents);
  return `${numbered(found.length, "document")}, best first`;
}

// --- the page ---

function onSubmit(name, action) {
  element(name).addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = element(name).querySelector("button");
    button.disabled = true;
    show(`${name}-error`, "");
    show(`${name}-cut`, "");
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
