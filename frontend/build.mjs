// Builds what the pages load that others have written, and keeps their licences beside it.
//   npm ci && npm run build      writes ../src/luthier/platform/ui/vendor, which the wheel holds and git does not
import { build } from "esbuild";
import { cp, mkdir, readFile, rm, writeFile } from "node:fs/promises";

const target = new URL("../src/luthier/platform/ui/vendor/", import.meta.url);
const own = (path) => new URL(path, import.meta.url);

await rm(target, { recursive: true, force: true });
await mkdir(target, { recursive: true });
await cp(own("node_modules/htmx.org/dist/htmx.min.js"), new URL("htmx.js", target));
await build({
  entryPoints: [own("echarts.mjs").pathname], outfile: new URL("echarts.js", target).pathname,
  bundle: true, minify: true, format: "iife", target: "es2020", legalComments: "none",
});
let licences = "";
for (const name of ["htmx.org", "echarts", "zrender", "tslib"]) {
  const { version, license } = JSON.parse(await readFile(own(`node_modules/${name}/package.json`), "utf8"));
  let text = "";
  for (const file of ["LICENSE", "LICENSE.txt", "NOTICE"]) {
    text += await readFile(own(`node_modules/${name}/${file}`), "utf8").catch(() => "");
  }
  if (!text) throw new Error(`${name} ${version} brings no licence: expected a file LICENSE`);
  licences += `${name} ${version} (${license})\n\n${text.trim()}\n\n${"-".repeat(80)}\n\n`;
}
await writeFile(new URL("LICENCES.txt", target), licences);
