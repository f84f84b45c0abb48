// Builds what the pages load that others have written, and keeps their licences beside it.
//   npm ci && npm run build      writes ../src/luthier/platform/ui/vendor, which the wheel holds and git does not
import { build } from "esbuild";
import { cp, mkdir, readFile, rm, writeFile } from "node:fs/promises";

const target = new URL("../src/luthier/platform/ui/vendor/", import.meta.url);
const own = (path) => new URL(path, import.meta.url);
const FONT = "@fontsource-variable/atkinson-hyperlegible-next";

await rm(target, { recursive: true, force: true });
await mkdir(target, { recursive: true });
await cp(own("node_modules/htmx.org/dist/htmx.min.js"), new URL("htmx.js", target));
await build({
  entryPoints: [own("echarts.mjs").pathname], outfile: new URL("echarts.js", target).pathname,
  bundle: true, minify: true, format: "iife", target: "es2020", legalComments: "none",
});

// The typeface: the upright variable font in two subsets; faces.css names the files, the server puts in their addresses.
let faces = "";
const sheet = await readFile(own(`node_modules/${FONT}/index.css`), "utf8");
for (const subset of ["latin-ext", "latin"]) {
  const face = sheet.split("@font-face").find((one) => one.includes(`-${subset}-wght-normal.woff2`));
  if (!face) throw new Error(`${FONT} has no upright face of the subset ${subset}: expected one in its index.css`);
  const [, file] = face.match(/url\(\.\/(files\/[\w.-]+\.woff2)\)/);
  const [, weight] = face.match(/font-weight: ([\d ]+);/), [, range] = face.match(/unicode-range: ([^;]+);/);
  await cp(own(`node_modules/${FONT}/${file}`), new URL(`text-${subset}.woff2`, target));
  // optional: text that is drawn already does not move when the font comes later
  faces += `@font-face{font-family:"Luthier Sans";font-display:optional;font-weight:${weight};src:url(text-${subset}.woff2) format("woff2");unicode-range:${range}}\n`;
}
await writeFile(new URL("faces.css", target), faces);

let licences = "";
for (const name of ["htmx.org", "echarts", "zrender", "tslib", FONT]) {
  const { version, license } = JSON.parse(await readFile(own(`node_modules/${name}/package.json`), "utf8"));
  let text = "";
  for (const file of ["LICENSE", "LICENSE.txt", "NOTICE"]) {
    text += await readFile(own(`node_modules/${name}/${file}`), "utf8").catch(() => "");
  }
  if (!text) throw new Error(`${name} ${version} brings no licence: expected a file LICENSE`);
  licences += `${name} ${version} (${license})\n\n${text.trim()}\n\n${"-".repeat(80)}\n\n`;
}
await writeFile(new URL("LICENCES.txt", target), licences);
