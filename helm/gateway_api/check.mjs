// Holds HTTPRoutes and GRPCRoutes, a JSON list on standard input, to the Gateway API's own definitions: values by
// validators, unknown fields by types, both generated from its Go types. Prints what is wrong; exit code 1 if anything.
import { readFileSync, rmSync, writeFileSync } from "node:fs";
import * as api from "@kubernetes-models/gateway-api/gateway.networking.k8s.io/v1";
import ts from "typescript";

const MODULE = "@kubernetes-models/gateway-api/gateway.networking.k8s.io/v1";
const OPTIONS = {
  strict: true,
  noEmit: true,
  skipLibCheck: true, // of the definitions' own files
  target: ts.ScriptTarget.ES2022,
  module: ts.ModuleKind.NodeNext,
  moduleResolution: ts.ModuleResolutionKind.NodeNext,
};

function invalid(document) {
  try {
    new api[document.kind](document).validate();
    return [];
  } catch (error) {
    return [`${document.kind}: ${error.message}`];
  }
}

function mistyped(documents) {
  // The compiler refuses unknown fields in what is written out where a type is named.
  const lines = documents.map((each, n) => `export const route${n}: api.I${each.kind} = ${JSON.stringify(each)};`);
  const source = `${import.meta.dirname}/documents-${process.pid}.ts`; // beside node_modules, where imports are found
  writeFileSync(source, [`import type * as api from "${MODULE}";`, ...lines].join("\n"));
  try {
    const found = ts.getPreEmitDiagnostics(ts.createProgram([source], OPTIONS));
    return found.map((each) => ts.flattenDiagnosticMessageText(each.messageText, "\n"));
  } finally {
    rmSync(source);
  }
}

const documents = JSON.parse(readFileSync(0, "utf8"));
const complaints = [...documents.flatMap(invalid), ...mistyped(documents)];
for (const complaint of complaints) console.log(complaint);
process.exitCode = complaints.length > 0 ? 1 : 0;
