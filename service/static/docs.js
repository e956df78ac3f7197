"use strict";

// --- colours ---

const dark = window.matchMedia("(prefers-color-scheme: dark)");
const paint = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
paint();
dark.addEventListener("change", paint);

// --- the document ---

/** What nobody tries here: HEAD is as GET, and the pages are this one and its like. */
const isShown = (tag) => (operation) => tag !== "Pages" && operation.get("method") !== "head";

const shownOperations = (original) => (state, ...rest) =>
  original(state, ...rest)
    .map((group, tag) => group.update("operations", (operations) => operations.filter(isShown(tag))))
    .filter((group) => group.get("operations").size > 0);

window.addEventListener("DOMContentLoaded", () => {
  window.ui = SwaggerUIBundle({
    url: "openapi.json",
    dom_id: "#swagger-ui",
    deepLinking: true,
    displayRequestDuration: true,
    defaultModelsExpandDepth: 0, // the schemas are there, closed
    validatorUrl: null, // no outside service is asked
    plugins: [() => ({ statePlugins: { spec: { wrapSelectors: { taggedOperations: shownOperations } } } })],
  });
});
