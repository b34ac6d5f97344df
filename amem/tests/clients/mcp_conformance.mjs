// The protocol's conformance suite: mcp_conformance.mjs URL
//
// Most of its scenarios want a server of theirs, with tools, prompts and resources by names of the suite's. These are those
// that any server can be put to.
import { execFileSync } from "node:child_process";
import { createRequire } from "node:module";

const [url] = process.argv.slice(2);
const suite = createRequire(import.meta.url).resolve("@modelcontextprotocol/conformance/dist/index.js");
const scenarios = [
  "server-initialize",
  "ping",
  "tools-list",
  "resources-list",
  "server-sse-multiple-streams",
  "dns-rebinding-protection",
];
for (const scenario of scenarios) {
  try {
    execFileSync(process.execPath, [suite, "server", "--url", url, "--scenario", scenario], { encoding: "utf8" });
  } catch (failed) {
    console.error(scenario, failed.stdout, failed.stderr);
    process.exitCode = 1;
  }
}
